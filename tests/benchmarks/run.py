"""Measures what dask_dml promises, beside other programs, on one machine.

    python tests/benchmarks/run.py [NAME ...] [--scale S] [--peers PYTHON] [--write]

Without names everything is measured; names choose, and figures of other names stay on the page.
Prints tables on stdout, progress on stderr, and ends with status 1 when a target is missed.
``--write`` puts the figures into docs/performance_figures.{json,md}. The other programs run under
the interpreter PYTHON, which `make bench` makes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from functools import partial

import costs
import growth
import recovery
import streaming
from comparison import Comparison
from figures import PAGE, Part, keep, page, say
from reading import bench_codecs
from works import WORKS, Work


def bench_work(work: Work, scale: float, python: str) -> Part:
    """One work, done by all."""
    return Comparison(work, int(work.n_rows * scale), python).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    own = costs.BENCHES | streaming.BENCHES | growth.BENCHES | recovery.BENCHES
    beside = {name: partial(bench_work, work) for name, work in WORKS.items()}
    beside["codecs"] = bench_codecs
    names = [*beside, *own]
    parser.add_argument(
        "names", nargs="*", choices=[[], *names], metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all numbers of rows")
    parser.add_argument("--peers", default=sys.executable, help="interpreter of other programs")
    parser.add_argument("--write", action="store_true", help=f"put the figures into {PAGE.name}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    benches = own | {name: partial(bench, python=arguments.peers) for name, bench in beside.items()}
    parts: dict[str, Part] = {}
    for name in arguments.names or names:
        start_s = time.perf_counter()
        say(f"{name} ...")
        parts[name] = benches[name](arguments.scale).stamped(name, arguments.scale)
        say(f"{name}: {time.perf_counter() - start_s:.0f} s")
        if arguments.write:
            # As soon as it is there, so that a bench that fails later takes nothing away.
            keep({name: parts[name]}, names)
    if arguments.json:
        print(json.dumps({name: asdict(part) for name, part in parts.items()}, indent=1))
    else:
        print(page(parts))
    return 0 if all(f.reached for part in parts.values() for f in part.figures) else 1


if __name__ == "__main__":
    sys.exit(main())
