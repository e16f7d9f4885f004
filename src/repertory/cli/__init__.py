"""The command line: ``repertory`` and ``python -m repertory``."""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from repertory.cli import compare, demo, explore, look, runs, verbs, work
from repertory.errors import UserError

app = typer.Typer(
    name="repertory",
    help="Published representation-learning systems: learn from your data, embed them, look at the result.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
LOOK, WORK, VERBS = "Look", "Work", "Verbs of a system"
app.command("list", rich_help_panel=LOOK)(look.list_)
app.command("show", rich_help_panel=LOOK)(look.show)
app.command("samples", rich_help_panel=LOOK)(look.samples)
app.command("inspect", rich_help_panel=LOOK)(look.inspect)
app.command("runs", rich_help_panel=LOOK)(runs.runs)
app.command("demo", rich_help_panel=WORK)(demo.demo)
app.command("fit", rich_help_panel=WORK)(work.fit)
app.command("import", rich_help_panel=WORK)(work.import_)
app.command("embed", rich_help_panel=WORK)(work.embed)
app.command("evaluate", rich_help_panel=WORK)(work.evaluate)
app.command("explore", rich_help_panel=LOOK)(explore.explore)
app.command("claim", rich_help_panel=WORK)(work.claim)
app.command("compare", rich_help_panel=WORK)(compare.compare)
for verb in ("predict", "score", "explain", "analyze"):
    app.command(verb, rich_help_panel=VERBS)(verbs.tables(verb))
app.command("generate", rich_help_panel=VERBS)(verbs.generate)
app.command("attack", rich_help_panel=VERBS)(verbs.attack)
app.command("act", rich_help_panel=VERBS)(verbs.act)
app.command("search", rich_help_panel=VERBS)(verbs.search)


def _version(asked: bool) -> None:
    if asked:
        from repertory import __version__

        typer.echo(f"repertory {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    pass


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Our own warnings as one line; those of the libraries below are for their developers."""
    if category is UserWarning and "repertory" in Path(filename).parts:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; 2 for a mistake of the user's, 1 for one of ours, each with one line on standard error; 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    warnings.showwarning = _show_warning
    arguments = [a for a in arguments if a != "--debug"]
    try:
        return int(get_command(app).main(arguments, prog_name="repertory", standalone_mode=False) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # everything a person sees passes here
        if debug:
            traceback.print_exc()
        message = " ".join(str(error).split())
        if isinstance(error, UserError):
            print(f"error: {message}", file=sys.stderr)
            return 2
        if hasattr(error, "format_message"):  # the option parser's own errors
            message = " ".join(error.format_message().split()) or "no command"
            print(f"error: {message} (repertory --help)", file=sys.stderr)
            return 2
        if type(error).__name__ == "Abort":
            return 130
        print(f"internal error: {type(error).__name__}: {message} (--debug shows where)", file=sys.stderr)
        return 1
