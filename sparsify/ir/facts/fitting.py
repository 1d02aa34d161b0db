"""Whether data fits a model: asked before anything slow, of the data's own numbers."""

from dataclasses import dataclass

from sparsify.data.domains import DomainData
from sparsify.data.sequences import ChatData, Data, Part, SentenceData, TensorData, TextData
from sparsify.ir.facts.admission import Admission

# What lies in memory is looked at whole; data of other makers may cost something to make.
_OURS = (ChatData, Part, SentenceData, TensorData, TextData)
_AT_ONCE, _OF_OTHERS = 1024, 256


@dataclass(frozen=True)
class Extent:
    """The largest id, the tokens of the longest sequence, and the largest label of a token; -1 for none."""

    largest: int
    longest: int
    label: int


def extent(data: Data) -> Extent:
    """The extent of data; of classes that are not ours, of its first 256 sequences."""
    if isinstance(data, DomainData):
        found = [extent(part) for domain in data.domains for part in domain.parts]
        return Extent(
            max(one.largest for one in found),
            max(one.longest for one in found),
            max(one.label for one in found),
        )
    count = len(data) if isinstance(data, _OURS) else min(len(data), _OF_OTHERS)
    largest = longest = label = -1
    for start in range(0, count, _AT_ONCE):
        batch = data.batch(range(start, min(start + _AT_ONCE, count)))
        ids, labels = batch.get("input_ids"), batch.get("labels")
        if ids is None or ids.dim() != 2 or ids.is_floating_point():
            break
        largest, longest = max(largest, int(ids.max())), max(longest, ids.shape[1])
        if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
            label = max(label, int(labels.max()))
    return Extent(largest, longest, label)


def check_data(data: Data, admission: Admission, what: str = "the sequences") -> Extent:
    """Refuse data with ids or lengths that a model does not take; DataError. The extent of the data."""
    found = extent(data)
    admission.check_ids(found.largest, what)
    admission.check_length(found.longest, what)
    return found
