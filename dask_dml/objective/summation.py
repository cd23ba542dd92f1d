"""Sums whose bits do not depend on who adds what, or when.

Floating-point addition is not associative, so the order has to be fixed. It is that of a binary
tree over the block numbers: node ``(level, i)`` is the sum of blocks ``i * 2**level`` up to
``(i + 1) * 2**level``, and its value is that of its left child plus that of its right. Whoever
holds both children may add them: a worker adds what it has, whatever blocks those are, sends the
nodes that are left, and the total is the same bits for every grouping and every order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, Self, TypeVar

Node = tuple[int, int]


class Summable(Protocol):
    """Anything with an addition."""

    def __add__(self, other: Self, /) -> Self: ...


T = TypeVar("T", bound=Summable)


class TreeSum(Generic[T]):
    """A sum over `n_blocks` blocks, taken along the binary tree of block numbers.

    Parameters
    ----------
    n_blocks : int
        Number of blocks of the whole sum, at least 1.

    Examples
    --------
    >>> total = TreeSum(3)
    >>> for block in (2, 0, 1):
    ...     total.add((0, block), 0.1 * (block + 1))
    >>> total.value
    0.6000000000000001
    """

    def __init__(self, n_blocks: int) -> None:
        if n_blocks < 1:
            raise ValueError(f"TreeSum(n_blocks=...) must be at least 1, got {n_blocks}")
        self.n_blocks = n_blocks
        self._top = (n_blocks - 1).bit_length()
        self._nodes: dict[Node, T] = {}

    def add(self, node: Node, value: T) -> None:
        """Take in the value of one node and add up all that now can be.

        Raises
        ------
        ValueError
            If the node is not one of this tree, or is there already.
        """
        level, index = node
        if not (0 <= level <= self._top and 0 <= index << level < self.n_blocks):
            raise ValueError(f"node {node} is not in a tree of {self.n_blocks} blocks")
        if self._overlaps(node):
            raise ValueError(f"node {node} was added before, or a part of it")
        while level < self._top:
            sibling = (level, index ^ 1)
            if sibling[1] << level < self.n_blocks:
                if sibling not in self._nodes:
                    break
                other = self._nodes.pop(sibling)
                value = other + value if index & 1 else value + other
            level, index = level + 1, index >> 1
        self._nodes[level, index] = value

    def update(self, nodes: Iterable[tuple[Node, T]]) -> None:
        """Take in several nodes."""
        for node, value in nodes:
            self.add(node, value)

    def _overlaps(self, node: Node) -> bool:
        level, index = node
        return any(
            index >> max(other - level, 0) == at >> max(level - other, 0)
            for other, at in self._nodes
        )

    @property
    def nodes(self) -> list[tuple[Node, T]]:
        """Nodes that are left, in block order."""
        return sorted(self._nodes.items(), key=lambda item: item[0][1] << item[0][0])

    @property
    def missing(self) -> tuple[int, ...]:
        """Blocks that have not been added."""
        present = {
            block
            for level, index in self._nodes
            for block in range(index << level, min((index + 1) << level, self.n_blocks))
        }
        return tuple(block for block in range(self.n_blocks) if block not in present)

    @property
    def value(self) -> T:
        """The total.

        Raises
        ------
        ValueError
            While blocks are missing.
        """
        if (self._top, 0) not in self._nodes:
            raise ValueError(f"blocks {self.missing} of {self.n_blocks} have not been added")
        return self._nodes[self._top, 0]
