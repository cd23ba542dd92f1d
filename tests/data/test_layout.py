from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.data.layout import (
    BLOCK_BYTES,
    FEWEST_PARTS,
    PART_BYTES,
    SMALL_BLOCK_BYTES,
    BlockGrid,
    choose_grid,
    explicit_grid,
    sample_rows,
    split_rows,
)
from dask_dml.errors import DataError, IncompatibleError

chunks = st.lists(st.integers(1, 50), min_size=1, max_size=12).map(tuple)
grids = st.builds(BlockGrid, chunks, chunks)
layouts = st.sampled_from(["horizontal", "vertical", "hybrid"])


@given(grids)
def test_blocks_cover_every_cell_once_in_row_major_order(grid: BlockGrid) -> None:
    seen = np.zeros((grid.n_rows, grid.n_columns), dtype=int)
    order = []
    for i, j in grid.blocks():
        seen[slice(*grid.row_bounds(i)), slice(*grid.column_bounds(j))] += 1
        order.append((i, j))
    assert (seen == 1).all()
    assert order == sorted(order)
    assert len(order) == grid.shape[0] * grid.shape[1]


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 250), st.integers(1, 250))
def test_regular_blocks_are_equal_but_for_the_last(n: int, p: int, rows: int, columns: int) -> None:
    grid = BlockGrid.regular(n, p, rows, columns)
    assert (grid.n_rows, grid.n_columns) == (n, p)
    for sizes, size in ((grid.row_chunks, rows), (grid.column_chunks, columns)):
        assert all(s == size for s in sizes[:-1])
        assert 1 <= sizes[-1] <= size


@given(
    st.integers(1, 50_000_000),
    st.integers(1, 5_000),
    st.sampled_from([4, 8]),
    layouts,
    st.none() | st.integers(2**20, 2**38),
)
def test_chosen_blocks_keep_to_their_limits(n, p, itemsize, layout, memory_bytes) -> None:
    grid = choose_grid(n, p, itemsize, layout, memory_bytes)
    assert (grid.n_rows, grid.n_columns) == (n, p)
    block_bytes = grid.row_chunks[0] * grid.column_chunks[0] * itemsize
    limit_bytes = min(BLOCK_BYTES, (memory_bytes or 2**60) // 32)
    assert block_bytes <= limit_bytes or grid.row_chunks[0] == 1
    assert grid.shape[1] == (1 if layout == "horizontal" else -(-p // -(-p // min(4, p))))


@pytest.mark.parametrize(
    ("n_rows", "n_blocks"),
    [(1_000, 1), (285_000, 1), (290_000, 8), (4_000_000, 16), (11_000_000, 40)],
)
def test_horizontal_block_counts_share_evenly_among_workers(n_rows: int, n_blocks: int) -> None:
    grid = choose_grid(n_rows, 28, 4)
    assert grid.shape == (n_blocks, 1)
    if n_blocks > 1:
        assert grid.row_chunks[-1] * 28 * 4 >= 0.99 * SMALL_BLOCK_BYTES
        assert min(grid.row_chunks) > 0.99 * max(grid.row_chunks)


def test_little_memory_makes_small_blocks() -> None:
    grid = choose_grid(1_000_000, 10, 8, memory_bytes=64_000_000)
    assert grid.row_chunks[0] * 10 * 8 <= 2_000_000


@pytest.mark.parametrize(("layout", "shape"), [("vertical", (1, 4)), ("hybrid", (2, 4))])
def test_small_data_is_cut_as_its_layout_says(layout, shape) -> None:
    assert choose_grid(1000, 10, 8, layout).shape == shape


@pytest.mark.parametrize(
    "asked",
    [(30, 10), (30, -1), (30, None), {"rows": 30}, {0: 30, 1: -1}, 30, [30, 99]],
)
def test_every_way_to_ask_for_chunks_means_the_same(asked) -> None:
    assert explicit_grid(100, 10, asked, "horizontal") == BlockGrid((30, 30, 30, 10), (10,))


@pytest.mark.parametrize("asked", ["big", (1, 2, 3), (0, 5), {"rows": -2}, {"row": 3}, 2.5, True])
def test_chunks_of_another_form_are_refused(asked) -> None:
    with pytest.raises(DataError, match=r"chunks|rows"):
        explicit_grid(100, 10, asked, "horizontal")


def test_a_horizontal_layout_keeps_rows_whole() -> None:
    with pytest.raises(IncompatibleError, match=r"layout='hybrid'"):
        explicit_grid(100, 10, (30, 5), "horizontal")
    assert explicit_grid(100, 10, (30, 5), "hybrid").shape == (4, 2)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_grid_without_rows_and_columns(shape) -> None:
    with pytest.raises(DataError, match="rows and columns"):
        choose_grid(*shape, itemsize=8)


def test_unknown_layout_is_refused() -> None:
    with pytest.raises(DataError, match="'diagonal'"):
        choose_grid(3, 3, 8, "diagonal")  # type: ignore[arg-type]


def test_blocks_outside_the_grid_have_no_bounds() -> None:
    with pytest.raises(IndexError, match="block row 2"):
        BlockGrid((1, 1), (1,)).row_bounds(2)


@given(grids, st.integers(0, 2**32), st.data())
def test_a_sample_is_proportional_sorted_and_repeatable(grid, seed, data) -> None:
    n_sample = data.draw(st.integers(0, grid.n_rows))
    drawn = sample_rows(grid, n_sample, seed)
    assert sum(map(len, drawn)) == n_sample
    for rows, n_block in zip(drawn, grid.row_chunks, strict=True):
        assert (np.diff(rows) > 0).all()
        assert rows.size == 0 or (rows[0] >= 0 and rows[-1] < n_block)
        assert abs(rows.size - n_sample * n_block / grid.n_rows) < 1
    again = sample_rows(grid, n_sample, seed)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_another_seed_draws_other_rows() -> None:
    grid = BlockGrid((1000,), (1,))
    assert not np.array_equal(sample_rows(grid, 100, 0)[0], sample_rows(grid, 100, 1)[0])


def test_a_sample_cannot_exceed_the_data() -> None:
    with pytest.raises(DataError, match="n_sample"):
        sample_rows(BlockGrid((5,), (1,)), 6, 0)


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.floats(1.0, 4e4)), min_size=1, max_size=12),
)
def test_large_chunks_are_split_into_as_few_equal_parts_as_share_evenly(given) -> None:
    rows = [n for n, _ in given]
    nbytes = [n * row_nbytes for n, row_nbytes in given]
    limit = min(max(sum(nbytes) / FEWEST_PARTS + 1, SMALL_BLOCK_BYTES), PART_BYTES)
    for n_rows, chunk_nbytes, parts in zip(rows, nbytes, split_rows(rows, nbytes), strict=True):
        assert sum(parts) == n_rows
        assert max(parts) - min(parts) <= 1
        assert len(parts) & (len(parts) - 1) == 0
        if len(parts) > 1:
            assert min(parts) >= 1
            assert chunk_nbytes / len(parts) > limit / 2 - 1
        # A chunk of few rows may not have enough for so many parts.
        assert chunk_nbytes / len(parts) <= limit or 2 * len(parts) > n_rows


def test_few_chunks_make_blocks_for_two_and_three_workers() -> None:
    for n_chunks, n_blocks in ((1, 16), (2, 16), (3, 12), (5, 20), (8, 16), (12, 12), (16, 16)):
        split = split_rows([100_000] * n_chunks, [1e8 / n_chunks] * n_chunks)
        assert sum(map(len, split)) == n_blocks


def test_small_chunks_are_blocks() -> None:
    assert split_rows([10, 0, 1000], [4e4, 0.0, 4e6]) == [(10,), (0,), (1000,)]
