"""The verbs that systems adopt: predict, generate, score, explain, attack, search, act, analyze."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from repertory import catalog
from repertory.cli.look import Json, console, table
from repertory.cli.work import Data, RunPath, _settings
from repertory.errors import ConfigError, UserError, nearest

Out = Annotated[Path | None, typer.Option("--out", help="A .csv, .parquet or .json file (default: shown here).")]
Folder = Annotated[Path, typer.Option("--out", help="Folder for the files.")]
Options = Annotated[list[str] | None, typer.Option("--set", help="An option of this system's verb: name=value.")]

ABOUT = {
    "predict": "What the system says of each item, as a table.",
    "score": "How strange each item is (higher = stranger), as a table.",
    "explain": "Why: what each prediction rests on, as a table.",
    "analyze": "What the field asks of the representation, as a table.",
    "generate": "Makes new data and writes them in the field's format.",
    "attack": "Makes data that mislead, within a budget, and writes them.",
    "search": "The nearest items of an index for each query, as a table.",
    "act": "Acts in an environment and returns what happened, as a table.",
}


def _method(run: Path, verb: str) -> Callable[..., Any]:
    system = catalog.load(run)
    if verb not in system.card.verbs and verb != "search":  # every system that embeds new data can search
        has = f"; it has {', '.join(system.card.verbs)}" if system.card.verbs else ""
        raise UserError(f"{system.card.slug} has no verb '{verb}'{has}")
    method: Callable[..., Any] = getattr(system, verb)
    return method


def _call(method: Callable[..., Any], settings: dict[str, Any], **arguments: Any) -> Any:
    """Calls with the arguments of the command line; an option that the method has not is refused."""
    parameters = inspect.signature(method).parameters
    for name in settings:
        if name not in parameters:
            raise ConfigError(f"{method.__name__} has no option '{name}'{nearest(name, parameters)}")
    return method(**arguments, **settings)


def write_table(made: pa.Table, out: Path | None, as_json: bool = False) -> None:
    """Writes a table by the suffix of ``out``, or shows its first rows."""
    if as_json or (out is not None and out.suffix == ".json"):
        text = json.dumps(made.to_pylist(), indent=1, default=str)
        if out is None:
            print(text)
        else:
            out.write_text(text + "\n", encoding="utf-8")
    elif out is None:
        shown = table(*made.column_names)
        for row in made.slice(0, 20).to_pylist():
            shown.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
        console.print(shown)
        if len(made) > 20:
            console.print(f"[dim]{len(made)} rows; --out FILE writes all[/]")
        return
    elif out.suffix == ".csv":
        import pyarrow.csv

        pyarrow.csv.write_csv(made, out)
    elif out.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(made, out)
    else:
        raise ConfigError(f"--out {out}: the suffix must be .csv, .parquet or .json")
    if out is not None:
        console.print(f"{len(made)} rows: [bold]{out}[/]")


def tables(verb: str) -> Callable[..., None]:
    """The command of a verb that looks at data and returns a table."""

    def command(
        run: RunPath, data: Data = None, out: Out = None, options: Options = None, as_json: Json = False
    ) -> None:
        write_table(_call(_method(run, verb), _settings(options, "--set"), data=data), out, as_json)

    command.__doc__ = ABOUT[verb]
    return command


def _write_items(items: Any, folder: Path) -> None:
    if not hasattr(items, "write"):
        raise UserError(f"data of kind {items.kind} cannot be written to files; use the verb from Python")
    paths = items.write(folder)
    console.print(f"{len(paths)} files: [bold]{folder}[/]")


def generate(
    run: RunPath,
    out: Folder,
    data: Data = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    options: Options = None,
) -> None:
    settings = _settings(options, "--set")
    _write_items(_call(_method(run, "generate"), settings, data=data, n=n, seed=seed), out)


def attack(
    run: RunPath,
    out: Folder,
    budget: Annotated[float, typer.Option(help="How much may be changed, in the system's own measure.")],
    data: Data = None,
    options: Options = None,
) -> None:
    _write_items(_call(_method(run, "attack"), _settings(options, "--set"), data=data, budget=budget), out)


def act(
    run: RunPath,
    environment: Annotated[str, typer.Argument(help="A gymnasium environment id.")],
    episodes: Annotated[int, typer.Option(min=1, help="How many episodes.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    out: Out = None,
    options: Options = None,
    as_json: Json = False,
) -> None:
    settings = _settings(options, "--set")
    made = _call(_method(run, "act"), settings, environment=environment, episodes=episodes, seed=seed)
    write_table(made, out, as_json)


def search(
    run: RunPath,
    data: Data = None,
    index: Annotated[
        Path | None,
        typer.Option(help="Vectors of this run, as embed writes them (default: RUN/embeddings).", metavar="VECTORS"),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours of each query.")] = 10,
    out: Out = None,
    options: Options = None,
    as_json: Json = False,
) -> None:
    settings = _settings(options, "--set")
    made = _call(_method(run, "search"), settings, queries=data, index=index or run / "embeddings", k=k)
    write_table(made, out, as_json)


for command in (generate, attack, act, search):
    command.__doc__ = ABOUT[command.__name__]
