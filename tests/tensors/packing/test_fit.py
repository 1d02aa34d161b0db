import pytest
import torch

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.packing.fit import Wanted, fullest_group


@pytest.mark.parametrize(("text", "n", "m"), [("2:4", 2, 4), ("N:8", None, 8), ("N:4", None, 4)])
def test_patterns_are_read_and_print_themselves(text, n, m):
    found = Wanted.parse(text)
    assert (found.n, found.m) == (n, m)
    assert str(found) == text


@pytest.mark.parametrize("text", ["n:8", "N:", "N:8 ", ":8", "8", "N:N"])
def test_other_texts_are_refused(text):
    with pytest.raises(OptionError, match="is not N:M"):
        Wanted.parse(text)


@pytest.mark.parametrize("text", ["3:4", "N:16", "2:6", "1:2"])
def test_patterns_without_a_layout_are_refused(text):
    with pytest.raises(OptionError, match=f"pattern {text} cannot be packed"):
        Wanted.parse(text)


def test_the_fullest_group_is_the_first_of_equal_ones():
    weight = torch.zeros(3, 10)
    assert fullest_group(weight, 4) == (0, 0, 0)
    weight[1, 5] = -0.0
    weight[1, 4] = 1
    weight[2, 8:] = torch.tensor([float("nan"), 2])  # a group of two columns
    assert fullest_group(weight, 4) == (2, 8, 2)
    weight[0, 2:4] = 3
    assert fullest_group(weight, 4) == (0, 0, 2)


def test_only_matrices_have_groups():
    with pytest.raises(SparsifyError, match="must be a matrix"):
        fullest_group(torch.zeros(4), 4)
