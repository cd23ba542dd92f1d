"""The algebra of block grids: which rows and columns stand in which block.

A dataset of ``n`` rows and ``p`` columns is cut into an ``R x C`` grid of blocks. ``"horizontal"``
is ``R x 1`` (every block has whole rows), ``"vertical"`` gives each of ``C`` owners a part of the
columns, ``"hybrid"`` cuts both ways. Everything here is a pure function of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dask_dml.errors import DataError, IncompatibleError

Layout = Literal["horizontal", "vertical", "hybrid"]

# Below the 32 MiB from which glibc's malloc asks the system for new pages each time and gives them
# back at once: decoding larger blocks takes more than twice as long a byte.
BLOCK_BYTES = 32_000_000
SMALL_BLOCK_BYTES = 4_000_000
BLOCKS_PER_MEMORY = 32
FAIR_SHARE = 8
# Chunks that are given are cut into parts no larger than these, if that is not less than a small
# block: a dozen or more are shared evenly. Dask's own chunks of 128 MiB make four parts.
PART_BYTES = 2**25
FEWEST_PARTS = 12
COLUMN_PARTS = 4


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """How rows and columns are cut into blocks.

    Parameters
    ----------
    row_chunks : tuple of int
        Number of rows of each row of blocks, from the top; each at least 1.
    column_chunks : tuple of int
        Number of columns of each column of blocks, from the left; each at least 1.

    Raises
    ------
    DataError
        If a side has no chunk, or a chunk has no row or column.
    """

    row_chunks: tuple[int, ...]
    column_chunks: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, chunks in (
            ("row_chunks", self.row_chunks),
            ("column_chunks", self.column_chunks),
        ):
            if not chunks or min(chunks) < 1:
                raise DataError(f"{name} must hold positive integers, found {chunks}")

    @classmethod
    def regular(
        cls, n_rows: int, n_columns: int, rows_per_block: int, columns_per_block: int
    ) -> BlockGrid:
        """Cut into equal blocks, where the last of each side may be smaller.

        Parameters
        ----------
        n_rows, n_columns : int
            Shape of the data; both at least 1.
        rows_per_block, columns_per_block : int
            Shape of a block; both at least 1, cut down to the shape of the data.

        Raises
        ------
        DataError
            If a number is below 1.
        """
        return cls(
            _equal_chunks(n_rows, rows_per_block, "rows"),
            _equal_chunks(n_columns, columns_per_block, "columns"),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of blocks down and across, ``(R, C)``."""
        return len(self.row_chunks), len(self.column_chunks)

    @property
    def n_rows(self) -> int:
        """Number of rows of the data."""
        return sum(self.row_chunks)

    @property
    def n_columns(self) -> int:
        """Number of columns of the data."""
        return sum(self.column_chunks)

    def row_bounds(self, i: int) -> tuple[int, int]:
        """First row of block row ``i`` and the row after its last."""
        return _bounds(self.row_chunks, i, "row")

    def column_bounds(self, j: int) -> tuple[int, int]:
        """First column of block column ``j`` and the column after its last."""
        return _bounds(self.column_chunks, j, "column")

    def blocks(self) -> Iterator[tuple[int, int]]:
        """All blocks ``(i, j)`` in row-major order, the order in which sums are taken."""
        n_down, n_across = self.shape
        return ((i, j) for i in range(n_down) for j in range(n_across))


def choose_grid(
    n_rows: int,
    n_columns: int,
    itemsize: float,
    layout: Layout = "horizontal",
    memory_bytes: int | None = None,
) -> BlockGrid:
    """Choose blocks that are large enough to be worth a task and small enough to hold many.

    Parameters
    ----------
    n_rows, n_columns : int
        Shape of the data.
    itemsize : float
        Bytes of one value; of sparse data all bytes, over the number of rows times columns.
    layout : {"horizontal", "vertical", "hybrid"}
        Which side is cut. Vertical and hybrid grids have up to four column parts.
    memory_bytes : int, optional
        Memory of the machine that will hold blocks.

    Returns
    -------
    BlockGrid
        Regular, with blocks of at most 32 MB and at most a 32nd of the memory (a single row may
        be more). Once a part of the columns holds 32 MB, its number of blocks is a multiple of
        8, so that 2, 4 or 8 workers share evenly, unless blocks would fall below 4 MB.

    Raises
    ------
    DataError
        If there is no row, no column, or the layout is not one of the three.
    """
    check_layout(layout)
    if n_rows < 1 or n_columns < 1:
        raise DataError(f"a dataset needs rows and columns, found shape ({n_rows}, {n_columns})")
    limit_bytes = BLOCK_BYTES
    if memory_bytes is not None:
        limit_bytes = min(limit_bytes, memory_bytes // BLOCKS_PER_MEMORY)
    n_parts = 1 if layout == "horizontal" else min(COLUMN_PARTS, n_columns)
    columns_per_block = -(-n_columns // n_parts)
    row_bytes = columns_per_block * itemsize
    n_blocks = -(-n_rows // max(1, int(limit_bytes / row_bytes)))
    if layout == "hybrid":
        n_blocks = max(n_blocks, 2)
    if layout != "vertical":
        n_fair = -(-n_blocks // FAIR_SHARE) * FAIR_SHARE
        if n_rows * row_bytes >= n_fair * SMALL_BLOCK_BYTES:
            n_blocks = n_fair
    return BlockGrid.regular(
        n_rows, n_columns, -(-n_rows // min(n_blocks, n_rows)), columns_per_block
    )


def split_rows(row_chunks: Sequence[int], chunk_nbytes: Sequence[float]) -> list[tuple[int, ...]]:
    """Cut chunks that are too large to be shared evenly into parts, by what they are alone.

    Parameters
    ----------
    row_chunks : sequence of int
        Rows of each chunk.
    chunk_nbytes : sequence of float
        Bytes of each chunk.

    Returns
    -------
    list of tuple of int
        Rows of the parts of each chunk, equal but for one: 1, 2, 4, ... parts of at most 32 MiB
        and a twelfth of all bytes, where that is more than 4 MB, as few as that takes. A single
        row may be more.

    Examples
    --------
    >>> split_rows([100, 10], [60e6, 6e6])
    [(13, 13, 13, 13, 12, 12, 12, 12), (10,)]
    """
    fair = math.ceil(sum(chunk_nbytes) / FEWEST_PARTS)
    limit = min(max(fair, SMALL_BLOCK_BYTES), PART_BYTES)
    split = []
    for n_rows, nbytes in zip(row_chunks, chunk_nbytes, strict=True):
        n_parts = 1
        while nbytes > n_parts * limit and 2 * n_parts <= n_rows:
            n_parts *= 2
        least, n_more = divmod(n_rows, n_parts)
        split.append((least + 1,) * n_more + (least,) * (n_parts - n_more))
    return split


def explicit_grid(n_rows: int, n_columns: int, chunks: Any, layout: Layout) -> BlockGrid:
    """Build the grid that a caller asked for.

    Parameters
    ----------
    n_rows, n_columns : int
        Shape of the data.
    chunks : (int, int), dict or int
        Rows and columns of a block; a dict has the keys ``"rows"`` and ``"columns"`` or 0 and 1;
        a single number is the rows. What is missing, None or -1 is the whole side.
    layout : {"horizontal", "vertical", "hybrid"}
        A horizontal layout keeps rows whole.

    Raises
    ------
    DataError
        If ``chunks`` has another form, or a number below 1.
    IncompatibleError
        If the chunks cut the columns of a horizontal layout.
    """
    check_layout(layout)
    sizes = _chunk_sizes(chunks)
    rows, columns = (
        whole if size is None or size == -1 else size
        for size, whole in zip(sizes, (n_rows, n_columns), strict=True)
    )
    grid = BlockGrid.regular(n_rows, n_columns, rows, columns)
    if layout == "horizontal" and grid.shape[1] > 1:
        raise IncompatibleError(
            f"chunks={chunks!r} cuts {n_columns} columns into {grid.shape[1]} parts, and "
            "layout='horizontal' keeps rows whole: use layout='hybrid', or -1 for the columns"
        )
    return grid


def check_layout(layout: str) -> None:
    """Raise DataError unless ``layout`` is one of the three."""
    if layout not in get_args(Layout):
        raise DataError(f"layout must be one of {', '.join(get_args(Layout))}, found {layout!r}")


def sample_rows(grid: BlockGrid, n_sample: int, seed: int) -> list[NDArray[np.int64]]:
    """Draw rows at random from every block row in proportion to its rows.

    Parameters
    ----------
    grid : BlockGrid
        Only its row chunks matter.
    n_sample : int
        Number of rows to draw in all, at most ``grid.n_rows``.
    seed : int
        Each block row draws from its own generator, seeded by ``(seed, i)``.

    Returns
    -------
    list of ndarray of int64
        For each block row, sorted positions counted from the block's own first row, without
        repetition. The sizes add up to ``n_sample`` and each is within one of its fair share.

    Raises
    ------
    DataError
        If ``n_sample`` is negative or above the number of rows.
    """
    if not 0 <= n_sample <= grid.n_rows:
        raise DataError(f"n_sample must be between 0 and {grid.n_rows} rows, found {n_sample}")
    drawn = []
    for i, n_block in enumerate(grid.row_chunks):
        start, stop = grid.row_bounds(i)
        n_draw = n_sample * stop // grid.n_rows - n_sample * start // grid.n_rows
        generator = np.random.default_rng([seed, i])
        rows = generator.choice(n_block, size=n_draw, replace=False, shuffle=False)
        drawn.append(np.sort(rows).astype(np.int64))
    return drawn


def _equal_chunks(n: int, size: int, what: str) -> tuple[int, ...]:
    if n < 1 or size < 1:
        raise DataError(f"{what} and {what} per block must be at least 1, found {n} and {size}")
    whole, rest = divmod(n, size)
    return (size,) * whole + ((rest,) if rest else ())


def _bounds(chunks: tuple[int, ...], index: int, what: str) -> tuple[int, int]:
    if not 0 <= index < len(chunks):
        raise IndexError(f"block {what} {index} is not one of {len(chunks)}")
    start = sum(chunks[:index])
    return start, start + chunks[index]


def _chunk_sizes(chunks: Any) -> tuple[int | None, int | None]:
    if isinstance(chunks, int | np.integer) and not isinstance(chunks, bool):
        chunks = (chunks, None)
    elif isinstance(chunks, dict) and set(chunks) <= {"rows", "columns", 0, 1}:
        chunks = (chunks.get("rows", chunks.get(0)), chunks.get("columns", chunks.get(1)))
    if (
        isinstance(chunks, tuple | list)
        and len(chunks) == 2
        and all(c is None or isinstance(c, int | np.integer) for c in chunks)
    ):
        rows, columns = (None if c is None else int(c) for c in chunks)
        return rows, columns
    raise DataError(
        "chunks must be 'auto', (rows, columns), {'rows': ..., 'columns': ...} or a number of "
        f"rows, found {chunks!r}"
    )
