"""Figures: what was measured, what it has to be, and the page that shows them."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
KEPT = DOCS / "performance_figures.json"
PAGE = DOCS / "performance_figures.md"


@dataclass(frozen=True)
class Figure:
    """One measured figure, and the most that it may be; infinite where nothing is promised."""

    what: str
    value: float
    unit: str
    target: float
    detail: str

    @property
    def reached(self) -> bool:
        return self.value <= self.target

    def row(self) -> str:
        value, target, mark = f"{self.value:.3g} {self.unit}", "none", ""
        if math.isfinite(self.target):
            target = f"at most {self.target:.3g} {self.unit}"
            mark = "yes" if self.reached else "**no**"
        return f"| {self.what} | {value} | {target} | {mark} | {self.detail} |"


@dataclass(frozen=True)
class Contender:
    """How one program did at one work; without seconds if it did not, and why."""

    work: str
    program: str
    seconds: float | None
    gap: float | None
    remark: str

    def row(self) -> str:
        seconds = "" if self.seconds is None else f"{self.seconds:.3g} s"
        gap = "" if self.gap is None else f"{self.gap:.0e}"
        return f"| {self.work} | {self.program} | {seconds} | {gap} | {self.remark} |"


@dataclass(frozen=True)
class Part:
    """What one bench has measured, and how."""

    figures: list[Figure]
    contenders: list[Contender] = field(default_factory=list)
    measured: str = ""

    def stamped(self, name: str, scale: float) -> Part:
        """With the command, the day and the machine."""
        command = f"python tests/benchmarks/run.py {name}"
        command += "" if scale == 1.0 else f" --scale {scale:g}"
        machine = f"{os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}"
        return Part(
            self.figures, self.contenders, f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {machine}"
        )


def _processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def page(parts: dict[str, Part]) -> str:
    """The tables of parts, in Markdown."""
    figures = [figure for part in parts.values() for figure in part.figures]
    contenders = [contender for part in parts.values() for contender in part.contenders]
    text = "| what | measured | target | reached | how |\n|---|---|---|---|---|\n"
    text += "".join(f"{figure.row()}\n" for figure in figures)
    if contenders:
        text += "\n| work | program | time | relative gap | |\n|---|---|---|---|---|\n"
        text += "".join(f"{contender.row()}\n" for contender in contenders)
    text += "\nMeasured by:\n\n"
    return text + "".join(f"- {part.measured}\n" for part in parts.values())


def keep(parts: dict[str, Part], order: list[str]) -> None:
    """Put parts beside, or in the place of, those that are kept, and write the page anew."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    kept |= {name: asdict(part) for name, part in parts.items()}
    kept = {name: kept[name] for name in order if name in kept}
    KEPT.write_text(f"{json.dumps(kept, indent=1)}\n", encoding="utf-8")
    PAGE.write_text(page({name: _part(plain) for name, plain in kept.items()}), encoding="utf-8")


def _part(plain: dict) -> Part:
    return Part(
        [Figure(**figure) for figure in plain["figures"]],
        [Contender(**contender) for contender in plain["contenders"]],
        plain["measured"],
    )


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"{text}\n")
