"""Parameters and sums as named arrays, and the ranges of their keys that machines share out.

What is held of a fit is a few arrays with a name each. Their keys are the positions along the first
axis; a *range* is one of `count` equal stretches of every array, and the unit that is hosted.
Addition is by element, so that ranges add up apart to the bits they have together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dask_dml.objective import Statistics

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class KeyRange:
    """One of `count` equal stretches of the keys.

    Attributes
    ----------
    index : int
        Which one, counted from 0.
    count : int
        How many there are, at least 1.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"KeyRange(index={self.index}, count={self.count}): index must be from 0 to count-1"
            )

    def bounds(self, n_keys: int) -> tuple[int, int]:
        """First key, and the one after the last; stretches differ by one key at most."""
        return n_keys * self.index // self.count, n_keys * (self.index + 1) // self.count


def key_ranges(count: int) -> tuple[KeyRange, ...]:
    """All ranges, in order of their keys."""
    return tuple(KeyRange(index, count) for index in range(count))


@dataclass(frozen=True, slots=True, eq=False)
class NamedArrays:
    """Arrays with names, which add up name by name.

    Attributes
    ----------
    arrays : mapping of str to ndarray
    """

    arrays: Mapping[str, Array]

    def __add__(self, other: Self) -> Self:
        if self.arrays.keys() != other.arrays.keys():
            raise ValueError(
                f"sums of {sorted(self.arrays)} and of {sorted(other.arrays)} do not add up: both "
                "must be answers to the same request"
            )
        mine, others = self.arrays, other.arrays
        return type(self)({name: np.asarray(mine[name] + others[name]) for name in mine})

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def of(self, keys: KeyRange) -> NamedArrays:
        """Its stretch of every array, not copied; scalars go with the first range."""
        return NamedArrays(
            {
                name: array[slice(*keys.bounds(len(array)))] if array.ndim else array
                for name, array in self.arrays.items()
                if array.ndim or keys.index == 0
            }
        )


def joined(parts: Sequence[NamedArrays]) -> NamedArrays:
    """Put the ranges together again, given in order."""
    if len(parts) == 1:
        return parts[0]
    return NamedArrays(
        {
            name: np.concatenate([part.arrays[name] for part in parts]) if array.ndim else array
            for name, array in parts[0].arrays.items()
        }
    )


def as_arrays(sums: Statistics) -> NamedArrays:
    """Sums of a block as named arrays, the keys of all being those of theta, flat."""
    arrays = {
        "n_rows": np.asarray(sums.n_rows, dtype=np.int64),
        "loss": np.asarray(sums.loss, dtype=np.float64),
        "gradient": sums.gradient.reshape(-1),
    }
    if sums.gram is not None:
        arrays["gram"] = sums.gram
    return NamedArrays(arrays)


def as_statistics(sums: NamedArrays, shape: tuple[int, int]) -> Statistics:
    """Sums as they were before `as_arrays`.

    Parameters
    ----------
    sums : NamedArrays
        Of all keys.
    shape : (int, int)
        Shape (K, q) of theta.
    """
    arrays = sums.arrays
    return Statistics(
        int(arrays["n_rows"]),
        float(arrays["loss"]),
        np.asarray(arrays["gradient"]).reshape(shape),
        arrays.get("gram"),
    )
