"""The group of verbs: how `--help` lists them, and what every one of them can do: be quiet, and be interrupted."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dalr_stream.cli.console import QUIET

GROUPS = {
    "Begin": ("init", "keys"),
    "Look before a run": ("layers", "estimate"),
    "Run everything, or one step": (
        "run", "capture", "accumulate", "solve", "compress", "finetune", "evaluate", "report",
    ),
    "Look at what a run found": ("inspect", "profile"),
    "Stores": ("verify", "merge", "diff"),
}  # fmt: skip
"""Headings of `--help`, in order, and the verbs under each."""

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only warnings and errors.")]


class Verbs(TyperGroup):
    """The verbs; every one of them may be interrupted, and resumes when it is run again."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("Interrupted. Run the same command again to resume.", err=True)
            raise typer.Exit(130) from None

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the verbs in the order of `--help`; those that no heading has come last."""
        known = super().list_commands(ctx)
        grouped = [name for names in GROUPS.values() for name in names if name in known]
        return grouped + [name for name in known if name not in grouped]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the verbs under their headings."""
        names = self.list_commands(ctx)
        longest = max(map(len, names))
        grouped = {name for group in GROUPS.values() for name in group}
        for heading, group in {**GROUPS, "More": [name for name in names if name not in grouped]}.items():
            shown = [
                (name.ljust(longest), self.commands[name].get_short_help_str(200)) for name in group if name in names
            ]
            if shown:
                with formatter.section(heading):
                    formatter.write_dl(shown)


def with_quiet(verb: Callable[..., None]) -> Callable[..., None]:
    """Return the verb with `--quiet` among its options."""

    @functools.wraps(verb)
    def called(*arguments: Any, quiet: bool = False, **options: Any) -> None:
        QUIET.set(quiet)
        verb(*arguments, **options)

    signature = inspect.signature(verb, eval_str=True)
    option = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
    called.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    called.__annotations__ = {name: one.annotation for name, one in called.__signature__.parameters.items()}  # type: ignore[attr-defined]
    return called
