from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.objective.summation import TreeSum


def sequential(values):
    """The sum of values along the tree, written as the recursion that defines it."""

    def node(level, index):
        if level == 0:
            return values[index]
        left = node(level - 1, 2 * index)
        right = 2 * index + 1
        if right << (level - 1) >= len(values):
            return left
        return left + node(level - 1, right)

    return node((len(values) - 1).bit_length(), 0)


@st.composite
def groupings(draw):
    """Values of blocks, and the blocks in groups, in any order within and between groups."""
    n = draw(st.integers(1, 70))
    seed = draw(st.integers(0, 2**32 - 1))
    values = (np.random.default_rng(seed).normal(size=n) * 10.0 ** np.arange(n)[::-1]).tolist()
    owners = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    order = draw(st.permutations(range(n)))
    return values, [[b for b in order if owners[b] == group] for group in set(owners)]


@given(groupings())
def test_any_grouping_in_any_order_gives_the_same_bits(case):
    values, groups = case
    total = TreeSum(len(values))
    for group in groups:
        part = TreeSum(len(values))
        for block in group:
            part.add((0, block), values[block])
        total.update(part.nodes)
    assert total.value == sequential(values)
    assert total.missing == ()


def test_the_order_of_addition_is_that_of_the_tree_and_not_of_a_loop():
    values = [1e16, 1.0, 1.0, -1e16]
    total = TreeSum(4)
    for block, value in enumerate(values):
        total.add((0, block), value)
    assert total.value == (1e16 + 1.0) + (1.0 - 1e16)


@given(st.integers(1, 3000), st.data())
def test_a_run_of_neighbours_leaves_few_nodes(n, data):
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    part = TreeSum(n)
    for block in range(start, stop):
        part.add((0, block), 1)
    assert len(part.nodes) <= 2 * n.bit_length()
    assert sum(value for _, value in part.nodes) == stop - start


def test_nodes_come_in_block_order_and_name_the_blocks_they_hold():
    part = TreeSum(8)
    for block in (7, 0, 1, 4, 5, 6):
        part.add((0, block), (block,))
    assert part.nodes == [((1, 0), (0, 1)), ((2, 1), (4, 5, 6, 7))]
    assert part.missing == (2, 3)


@pytest.mark.parametrize("node", [(0, -1), (0, 5), (1, 3), (3, 1), (4, 0), (-1, 0)])
def test_a_node_that_is_not_in_the_tree_is_refused(node):
    with pytest.raises(ValueError, match="not in a tree of 5 blocks"):
        TreeSum(5).add(node, 1.0)


@given(st.integers(2, 40), st.data())
def test_a_block_cannot_come_in_twice_neither_alone_nor_within_a_node(n, data):
    total = TreeSum(n)
    block = data.draw(st.integers(0, n - 1))
    for other in data.draw(st.sets(st.integers(0, n - 1))) | {block}:
        total.add((0, other), 1)
    level = data.draw(st.integers(0, (n - 1).bit_length()))
    with pytest.raises(ValueError, match="added before"):
        total.add((level, block >> level), 1)


def test_there_is_no_value_while_blocks_are_missing():
    total = TreeSum(3)
    total.add((1, 0), 1.0)
    with pytest.raises(ValueError, match=r"blocks \(2,\) of 3"):
        _ = total.value


def test_a_sum_of_no_blocks_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        TreeSum(0)
