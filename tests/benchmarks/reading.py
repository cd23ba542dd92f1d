"""Which codec and which size of block are the fastest to read: what `write_dataset` writes."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from figures import Contender, Figure, Part

from dask_dml.datasets import flights

# Decoded bytes of each kind of data.
NBYTES = 128_000_000
DEFAULT = {"codec": "blosc-lz4", "block_mb": 32, "pipeline": "zarr"}


def bench_codecs(scale: float, python: str) -> Part:
    """Read float32 noise and the flights' columns from four kinds of storage."""
    rng = np.random.default_rng(0)
    nbytes = int(NBYTES * scale)
    real = flights.load(0).train_X.to_numpy()
    data = {
        "noise": rng.standard_normal((nbytes // 112, 28), dtype=np.float32),
        "flights": real[rng.integers(0, len(real), nbytes // real[0].nbytes)],
    }
    with tempfile.TemporaryDirectory(prefix="dml-bench-") as folder:
        for name, X in data.items():
            np.save(Path(folder) / f"{name}.npy", X)
        script = Path(__file__).with_name("codecs.py")
        done = subprocess.run(
            [python, str(script), folder], stdout=subprocess.PIPE, text=True, check=True
        )
    found = json.loads(done.stdout)
    return Part([_slower(found, name) for name in data], [_row(one) for one in found])


def _slower(found: list[dict[str, Any]], data: str) -> Figure:
    """How much longer the default takes than what is best, at the storage where that is most."""
    worst, where = 0.0, ""
    for storage in dict.fromkeys(one["storage"] for one in found if one["storage"] != "memory"):
        here = [one for one in found if one["storage"] == storage and one["data"] == data]
        best = min(here, key=lambda one: one["seconds"])
        (ours,) = (one for one in here if DEFAULT.items() <= one.items())
        if ours["seconds"] / best["seconds"] > worst:
            worst = ours["seconds"] / best["seconds"]
            where = f"{storage}; the fastest there is {best['codec']}"
    what = f"reading {data} as written by default, time over the fastest codec"
    return Figure(what, worst, "x", 1.1, f"most of all at: {where}")


def _row(one: dict[str, Any]) -> Contender:
    work = f"reading a gigabyte of {one['data']}, {one['storage']}"
    program = f"{one['codec']}, blocks of {one['block_mb']} MB, {one['pipeline']}'s pipeline"
    remark = f"{one['cpu_s']:.2f} s of computing, {one['ratio']:.2f} x smaller"
    return Contender(work, program, one["seconds"], None, remark)
