"""What makes two fits the same one: names and values that a message can tell apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_dml.objective import Survey


def identity(
    estimator: str,
    arguments: Mapping[str, Any],
    row_chunks: Sequence[int],
    feature_names: Sequence[str],
) -> dict[str, Any]:
    """What makes two fits the same one, as far as it is known before any data is read.

    Parameters
    ----------
    estimator : str
        Name of the class.
    arguments : mapping of str to what JSON holds
        Those that have a say in the result.
    row_chunks : sequence of int
        Rows of each block.
    feature_names : sequence of str

    Returns
    -------
    dict
        What JSON holds, by names for messages.
    """
    chunks = np.asarray(row_chunks, dtype=np.int64)
    size = f"{chunks.min()}" if chunks.min() == chunks.max() else f"{chunks.min()}-{chunks.max()}"
    names = list(feature_names)
    return {
        "estimator": estimator,
        **{f"argument {name!r}": value for name, value in arguments.items()},
        "blocks": f"{len(chunks)} of {size} rows, digest {_digest(chunks)}",
        "columns": f"{len(names)}, {names[0]!r} to {names[-1]!r}, digest {_digest(names)}",
    }


def fingerprint(survey: Survey) -> dict[str, Any]:
    """What a survey tells one data set from another by, as `identity`; the sample is left out."""
    return {
        "rows": survey.n_rows,
        "sum of the weights": survey.weight,
        "sums of the columns": f"digest {_digest(survey.moment1)}",
        "sums of squares of the columns": f"digest {_digest(survey.moment2)}",
        "bounds of the columns": f"digest {_digest(survey.lower, survey.upper)}",
        "classes": f"{len(survey.classes)}, digest {_digest(survey.classes.tolist())}",
        "rows and weights of the classes": (
            f"digest {_digest(survey.class_rows, survey.class_weight)}"
        ),
        "sum of the target": survey.target_moment1,
        "sum of squares of the target": survey.target_moment2,
    }


def _digest(*values: NDArray[Any] | list[Any]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        digest.update(
            np.ascontiguousarray(value).tobytes()
            if isinstance(value, np.ndarray)
            else json.dumps(value, default=str).encode()
        )
    return digest.hexdigest()
