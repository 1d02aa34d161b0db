"""FOLDER SENTENCE...: the features of a padded batch by Optimum, with the mask."""

import json
import sys

from optimum.onnxruntime import ORTModelForFeatureExtraction
from transformers import AutoTokenizer

folder, *sentences = sys.argv[1:]
model = ORTModelForFeatureExtraction.from_pretrained(folder)
batch = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
features = model(**batch).last_hidden_state
print(json.dumps({"ids": batch["input_ids"].tolist(), "features": features.tolist()}))
