"""Commands that work: fit, import, embed, evaluate, claim."""

from __future__ import annotations

import json
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from repertory import catalog
from repertory.cli.look import Json, console, table
from repertory.errors import ConfigError, UserError

RunPath = Annotated[Path, typer.Argument(help="The folder of a run.", metavar="RUN")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="A sample, a path, kind:path?label=COLUMN&on_error=skip, or a YAML file.", metavar="SOURCE"
    ),
]


def _settings(pairs: list[str] | None, option: str) -> dict[str, Any]:
    """``name=value`` pairs; values are YAML (numbers, true, lists, texts)."""
    values = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option} {pair}: write {option} name=value")
        try:
            values[name] = yaml.safe_load(value)
            if isinstance(values[name], str) and value[:1] in "+-.0123456789":
                values[name] = float(value)  # 1e-3 is a text to YAML
        except (yaml.YAMLError, ValueError):
            values[name] = value
    return values


def fit(
    slug: Annotated[str, typer.Argument(help="A system, as in repertory list.")],
    data: Data = None,
    preset: Annotated[str | None, typer.Option(help="A preset of the system's configuration.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder (default: runs/SLUG).", metavar="RUN")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A hyperparameter: name=value. May be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Training batches, in place of the configuration's length.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training data, in place of the configuration's.")
    ] = None,
    validation: Annotated[str | None, typer.Option(help="Other data for model selection.", metavar="SOURCE")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    devices: Annotated[str | None, typer.Option(help="How many devices (Lightning).")] = None,
    strategy: Annotated[str | None, typer.Option(help="ddp (Lightning).")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed, ... (Lightning).")] = None,
    trainer: Annotated[
        list[str] | None, typer.Option("--trainer", help="Another option of the Lightning Trainer: name=value.")
    ] = None,
    log: Annotated[
        str | None, typer.Option(help="Show the learning curve also in tensorboard, mlflow or wandb.", metavar="NAME")
    ] = None,
) -> None:
    """Learns from data and writes a run."""
    from repertory.runs import leads

    console.quiet = not leads()  # on several devices, one process speaks
    entry = catalog.entry(slug)
    if data is None and preset is None:
        name = entry.card.sample.partition("?")[0]
        preset = name if name in entry.load().Config.presets else "tiny"
        console.print(
            f"[dim]no --data: the sample {entry.card.sample} with preset {preset}; "
            f"--data SOURCE takes your data with the paper's configuration[/]"
        )
    options = _settings(trainer, "--trainer")
    for name, value in (("devices", devices), ("strategy", strategy), ("precision", precision)):
        if value is not None:
            options[name] = int(value) if value.isdigit() and name == "devices" else value
    system = catalog.create(slug, preset, **_settings(set_, "--set"))
    if out is None:
        out, n = Path("runs") / slug, 1
        while not resume and (out / "config.yaml").exists():
            n += 1
            out = Path("runs") / f"{slug}-{n}"
    complete = (out / "weights.safetensors").exists()
    start = time.perf_counter()
    system.fit(
        data, validation=validation, run=out, seed=seed, steps=steps, epochs=epochs, resume=resume, trainer=options,
        log=log,
    )  # fmt: skip
    if complete:
        console.print(f"{out} is complete: nothing to do")
        return
    if system.run is not None and system.run.resumed_from:
        console.print(f"went on from {system.run.resumed_from}")
    items = system.record["items"]
    console.print(
        f"fitted [bold cyan]{slug}[/] to {items['train']} items in {time.perf_counter() - start:.0f} s: [bold]{out}[/]"
        + (
            f"; {len(system.splits.rejected)} left out (rejected.parquet)"
            if system.splits and system.splits.rejected
            else ""
        )
    )
    console.print(f"[dim]next: repertory evaluate {out}    repertory embed {out} --data SOURCE[/]")


def import_(
    slug: Annotated[str, typer.Argument(help="A system, as in repertory list.")],
    checkpoint: Annotated[Path, typer.Argument(help="An official checkpoint (.pth, .pt, .ckpt, .safetensors).")],
    out: Annotated[Path, typer.Option(help="The run's folder.", metavar="RUN")],
) -> None:
    """Turns an official checkpoint into a run."""
    system = catalog.entry(slug).load().from_official(checkpoint)
    system.save(out)
    console.print(f"imported {checkpoint.name} as [bold]{out}[/]")


def embed(
    run: RunPath,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the Parquet shards (default: RUN/embeddings).")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Items at a time; changes speed and memory, not the vectors.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after a kill.")] = False,
    only_new: Annotated[bool, typer.Option("--only-new", help="Embed only what is not in the folder yet.")] = False,
    engine: Annotated[str, typer.Option(help="local, or ray: a pool of workers.")] = "local",
) -> None:
    """Writes vectors of data (default: the run's held-out split) as Parquet shards."""
    from repertory.engines import engine_of

    chosen = engine_of(engine, run)
    system = catalog.load(run)
    folder = out or run / "embeddings"
    n = system.embed_to(
        folder, data, batch_size=batch_size, device=device, resume=resume, only_new=only_new, engine=chosen
    )  # fmt: skip
    console.print(f"embedded {n} items: [bold]{folder}[/]")
    console.print(f"[dim]in Python: repertory.Embeddings.read('{folder}')[/]")


def evaluate(
    run: RunPath,
    data: Data = None,
    show_paths: Annotated[
        bool, typer.Option("--show-paths", help="Let the report name paths of this machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measures a run on held-out data; writes metrics.json and report.html."""
    from repertory.reporting.report import write_report
    from repertory.runs import write_atomic

    system = catalog.load(run)
    metrics = system.evaluate(data)
    write_atomic(run / "metrics.json", json.dumps(metrics.to_dict(), indent=1))
    page = write_report(system, metrics, run / "report.html", data=data, show_paths=show_paths)
    if as_json:
        print(json.dumps(metrics.to_dict(), indent=1))
        return
    print_metrics(metrics)
    console.print(f"report: [bold]{page}[/]")


def print_metrics(metrics: Any) -> None:
    """A table of metrics with their intervals."""
    made = table("metric", "value", "95 % interval", "about")
    for name, metric in metrics.items():
        interval = "" if metric.low is None else f"{metric.low:.3f} .. {metric.high:.3f}"
        made.add_row(name, f"{metric.value:.4g}", interval, metric.about)
    console.print(made)


def claim(
    slug: Annotated[str | None, typer.Argument(help="A system, as in repertory list.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every claim of every system.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Only the claim of this name.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds (default: the claim's, at least 3).")] = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the results go (default: claims/results.json; with --data nowhere).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measures the paper's finding here, or on your data: method against baseline, equal budgets, several seeds."""
    from dataclasses import asdict

    from repertory import data as data_
    from repertory.errors import nearest
    from repertory.experiments import claim_on, run_claims, write_result

    if everything == (slug is not None):
        raise UserError("claim: name a system, or --all")
    if everything and data is not None:
        raise UserError("claim --all: each system asks for its own kind of data: name one system with --data")
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds {seeds}: at least 1 is needed")
    for chosen in list(catalog.entries()) if everything else [slug or ""]:
        claims = catalog.entry(chosen).claims()
        if not claims and not everything:
            raise UserError(f"{chosen} has no claim")
        if name is not None and name not in (names := [c.name for c in claims]):
            raise UserError(f"{chosen} has no claim '{name}'{nearest(name, names)}")
        claims = tuple(one for one in claims if name in (None, one.name))
        if data is not None:
            entry = catalog.entry(chosen)
            asked = tuple(one for one in claims if one.on is not None) or claims[:1]
            splits = data_.open(data, entry.card.kind, entry.load().readers)
            claims = tuple(claim_on(one, splits, data) for one in (claims if name else asked))
        start = time.perf_counter()
        with nullcontext() if as_json else console.status(f"{chosen}: {_counted(claims)}"):
            results = run_claims(chosen, claims, seeds, None if as_json else _watch, _processes())
        for one, result in zip(claims, results, strict=True):
            if out is not None or data is None:
                write_result(result, out or Path("claims/results.json"))
            if as_json:
                print(json.dumps(asdict(result)))
            else:
                _print_result(one, result)
        if claims and not as_json:
            console.print(f"\n[dim]{chosen}: {_counted(claims)} in {time.perf_counter() - start:.0f} s[/]")


def _counted(claims: Any) -> str:
    return "1 claim" if len(claims) == 1 else f"{len(claims)} claims"


def _processes() -> int:
    """How many seeds at once: one for each core; on a GPU one, which all its memory is for."""
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def _watch(claim: Any, variant: str, seed: int, value: float) -> None:
    console.print(f"[dim]seed {seed}  {claim.name}  {variant}: {value:.4g} {claim.unit}[/]")


def _print_result(claim: Any, result: Any) -> None:
    console.print(f"\n[bold cyan]{result.slug}[/] [bold]{claim.name}[/]: {claim.finding}")
    console.print(f"[dim]data: {claim.data}; paper: {claim.paper}[/]")
    made = table(result.metric, f"mean ({result.unit})" if result.unit else "mean", "95 % interval", "seeds")
    for measured in result.measured:
        seeds = " ".join(f"{v:.4g}" for v in measured.values)
        style = "bold" if measured.variant == result.method else ""
        made.add_row(
            measured.variant, f"{measured.mean:.4g}", f"{measured.low:.4g} .. {measured.high:.4g}", seeds, style=style
        )
    console.print(made)
    colour = {"reproduced": "green", "not reproduced": "red"}.get(result.verdict, "yellow")
    console.print(
        f"[bold {colour}]{result.verdict}[/]: {result.method} is better than {result.baseline} by {result.gap:.4g} "
        f"({result.gap_low:.4g} .. {result.gap_high:.4g}), asked: more than {result.margin:g}"
    )
