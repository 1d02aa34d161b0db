"""The algebra of axes: ties refine structure, pins go down to the leaves, conflicts are seen."""

import pytest

from sparsify.ir.axes.axis import (
    Axis,
    Conflict,
    concatenation,
    product,
    regroup,
    split_addend,
    split_factor,
    take,
    unify,
)


def test_a_tie_to_a_product_splits_an_atom() -> None:
    eight, four, two = Axis(8), Axis(4), Axis(2)
    unify(eight, product([four, two]))
    assert [leaf.root() for leaf in eight.leaves()] == [four, two]


def test_two_products_meet_in_their_common_refinement() -> None:
    left, right = product([Axis(4), Axis(6)]), product([Axis(2), Axis(12)])
    unify(left, right)
    assert [leaf.size for leaf in left.leaves()] == [2, 2, 6]
    assert list(left.leaves()) == list(right.leaves())


def test_two_sums_meet_in_their_common_refinement() -> None:
    left, right = concatenation([Axis(4), Axis(6)]), concatenation([Axis(7), Axis(3)])
    unify(left, right)
    assert [leaf.size for leaf in left.leaves()] == [4, 3, 3]
    assert list(left.leaves()) == list(right.leaves())


def test_a_sum_of_equal_products_is_a_product() -> None:
    one, other = product([Axis(2), Axis(5)]), product([Axis(3), Axis(5)])
    outer, inner = split_factor(concatenation([one, other]), 5)
    assert [leaf.size for leaf in outer.leaves()] == [2, 3]
    assert inner.root() is list(one.leaves())[1] is list(other.leaves())[1]


def test_a_product_is_cut_along_its_slowest_factor() -> None:
    heads, size = Axis(6), Axis(4)
    before, after = split_addend(product([heads, size]), 8)
    assert [leaf.size for leaf in before.leaves()] == [2, 4]
    assert [leaf.size for leaf in after.leaves()] == [4, 4]
    with pytest.raises(Conflict):
        split_addend(product([Axis(6), Axis(4)]), 9)


def test_a_tie_of_a_product_and_a_sum_cuts_the_product() -> None:
    whole = product([Axis(6), Axis(4)])
    unify(whole, concatenation([Axis(8), Axis(16)]))
    assert [leaf.size for leaf in whole.leaves()] == [2, 4, 4, 4]


def test_pins_go_down_when_an_axis_is_split_and_over_when_it_is_tied() -> None:
    axis, other = Axis(12), Axis(12)
    axis.pin("because")
    split_factor(axis, 3)
    unify(other, axis)
    assert [list(leaf.pins) for leaf in other.leaves()] == [["because"]] * 2


def test_unequal_sizes_do_not_tie() -> None:
    with pytest.raises(Conflict):
        unify(Axis(4), Axis(5))


def test_a_view_passes_whole_axes_through() -> None:
    heads, size = Axis(4), Axis(16)
    (merged,) = regroup([heads, size], [64])
    assert regroup([merged], [4, 16]) == [heads, size]
    with pytest.raises(Conflict):
        regroup([product([Axis(6), Axis(4)])], [4, 6])


def test_take_shares_the_leaves_of_what_it_cuts() -> None:
    whole = Axis(10)
    middle = take(whole, 2, 5)
    assert [leaf.size for leaf in whole.leaves()] == [2, 5, 3]
    assert list(middle.leaves()) == [list(whole.leaves())[1]]
