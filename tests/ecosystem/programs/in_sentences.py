"""BACKEND FOLDER SENTENCE...: embeddings by sentence-transformers, and the names of its modules."""

import json
import sys

from sentence_transformers import SentenceTransformer

backend, folder, *sentences = sys.argv[1:]
model = SentenceTransformer(folder, backend=backend, device="cpu")
modules = [type(module).__name__ for module in model]
print(json.dumps({"modules": modules, "embeddings": model.encode(sentences).tolist()}))
