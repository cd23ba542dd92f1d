"""The command line: `dask dml ...`.

Every `dask` command imports this module, so it imports nothing that takes time; the commands
themselves are loaded when one of them is used.
"""

from __future__ import annotations

import warnings
from typing import Any

import click


class Commands(click.Group):
    """A group that loads its commands late; they fail with one line and exit status 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from dask_dml import commands, fault_commands

        return [*super().list_commands(ctx), *commands.COMMANDS, *fault_commands.COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from dask_dml import commands, fault_commands

        found = commands.COMMANDS.get(cmd_name) or fault_commands.COMMANDS.get(cmd_name)
        return found or super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        from dask_dml.commands import FAILURES, one_line, say

        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"Warning: {one_line(message)}")
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise
            except FAILURES as error:
                say(f"Error: {one_line(error)}")
                ctx.exit(1)


@click.group(name="dml", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Fit models on Zarr data of any size.

    Stores are paths or fsspec URLs such as s3://bucket/flights.zarr. Results go to stdout,
    progress to stderr. The exit status is 0, 1 (it failed, and one line says why) or 2 (bad usage).
    """
