"""Freed memory goes back to the system."""

import torch

from sparsify.train import heap
from sparsify.train.heap import give_back


def test_it_can_be_called_and_changes_no_value():
    kept = [torch.full((1000,), float(i)) for i in range(50)]
    del kept[::2]
    give_back()
    assert [float(value[0]) for value in kept] == list(range(1, 50, 2))


def test_nothing_is_done_where_it_is_not(monkeypatch):
    monkeypatch.setattr(heap, "_trim", lambda: None)
    give_back()
