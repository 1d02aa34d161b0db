import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.errors import OptionError
from sparsify.tensors.pattern import Pattern


@pytest.mark.parametrize(("text", "n", "m", "sparsity"), [("2:4", 2, 4, 0.5), ("1:4", 1, 4, 0.75)])
def test_n_is_the_number_kept(text: str, n: int, m: int, sparsity: float) -> None:
    pattern = Pattern.parse(text)
    assert (pattern.n, pattern.m, pattern.sparsity) == (n, m, sparsity)


@settings(deadline=None)
@given(st.integers(1, 999), st.integers(1, 999))
def test_parse_and_str_are_inverse(n: int, more: int) -> None:
    pattern = Pattern(n, n + more)
    assert Pattern.parse(str(pattern)) == pattern


@pytest.mark.parametrize(
    "text", ["", "2", "2-4", "2:4:8", ":4", "2:", "-2:4", "2:4 ", "a:b", "2.:4"]
)
def test_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Pattern.parse(text)
    assert str(caught.value) == f"pattern {text!r} is not N:M (N kept of every M), as in 2:4"


def test_a_pattern_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(OptionError) as caught:
        Pattern.parse("0:4")
    assert str(caught.value) == "pattern 0:4 keeps nothing: N must be at least 1, as in 2:4"


@pytest.mark.parametrize("text", ["4:4", "5:4", "1:1"])
def test_a_pattern_that_prunes_nothing_is_refused(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Pattern.parse(text)
    assert str(caught.value) == f"pattern {text} prunes nothing: N must be below M, as in 2:4"


def test_m_must_divide_the_axis() -> None:
    Pattern(2, 4).check_axis(12, "up.weight")
    with pytest.raises(OptionError) as caught:
        Pattern(2, 4).check_axis(10, "up.weight")
    assert str(caught.value) == (
        "pattern 2:4 does not fit up.weight: its axis of 10 is no multiple of 4"
    )
