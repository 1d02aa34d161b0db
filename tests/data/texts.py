"""Documents as lists of strings."""

from sparsify.data import dialogues
from sparsify.data.sources import documents


def read_texts(spec):
    """The documents of a source, each whole."""
    return ["".join(document) for document in documents(spec)]


def read_dialogues(spec):
    """The dialogues of a source."""
    return list(dialogues.read_dialogues(spec))
