"""A progress bar, in a terminal or a notebook."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import dask

from dask_dml.runtime.core import Event, FitEnded, FitStarted, RoundEnded

if TYPE_CHECKING:
    from tqdm import tqdm

_DELAY_S = 0.5


class ProgressBar:
    """A listener that shows rounds, loss and gap as they come, on stderr or in the notebook.

    Examples
    --------
    >>> import dask_dml as dml
    >>> from dask_dml.linear_model import LogisticRegression
    >>> model = LogisticRegression(callbacks=[dml.ProgressBar()])
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, FitStarted):
            self._bar = self._new_bar(event)
        elif self._bar is not None and isinstance(event, RoundEnded):
            self._bar.set_postfix_str(
                f"objective {event.objective:.10g}, gap {event.gap:.1e}, "
                f"{len(event.result.busy_s)} workers",
                refresh=False,
            )
            self._bar.update()
            if event.result.faults:
                names = ", ".join(fault.kind for fault in event.result.faults)
                # On stderr a notebook would show it as something that went wrong.
                file = sys.stdout if _in_notebook() else sys.stderr
                self._bar.write(f"round {event.round}: {names}", file=file)
        elif self._bar is not None and isinstance(event, FitEnded):
            self._bar.set_description_str(f"{event.run.solver}: {event.reason}", refresh=True)
            self._bar.close()
            self._bar = None

    @staticmethod
    def _new_bar(event: FitStarted) -> tqdm[Any]:
        from tqdm.auto import tqdm

        run = event.run
        return tqdm(
            desc=f"{run.solver}, {run.n_rows:,} rows in {run.n_blocks} blocks",
            unit=" rounds",
            delay=_DELAY_S,
            file=sys.stderr,
        )


def default_progress() -> list[ProgressBar]:
    """The progress bars that nobody asked for: one where somebody can see it.

    `dask.config` key ``dml.progress``: True, False, or "auto", which is a terminal or a notebook.
    """
    wanted = dask.config.get("dml.progress", "auto")
    if wanted == "auto":
        wanted = sys.stderr.isatty() or _in_notebook()
    return [ProgressBar()] if wanted else []


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    if shell is None:
        return False
    current = shell.get_ipython()
    return current is not None and hasattr(current, "kernel")
