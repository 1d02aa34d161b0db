"""Data with domains, for the tests of training on them."""

import pytest
import torch

from sparsify.data.domains import DomainData
from sparsify.data.sequences import TextData

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
# How many neighbouring ids each is drawn from: what is easy and what is hard to learn.
SPANS = {"a": 2, "b": 30, "c": 100}


@pytest.fixture(scope="session")
def domains():
    """Three domains of 20 sequences of 12 ids below 300, a fifth of them held out unless told."""

    def make(holdout=0.2, weights=WEIGHTS):
        data = {}
        for number, (name, span) in enumerate(SPANS.items()):
            draw = torch.Generator().manual_seed(number)
            ids = 90 * number + torch.randint(0, span, (240,), generator=draw)
            data[name] = TextData(ids, 12)
        return DomainData(data, weights, holdout)

    return make
