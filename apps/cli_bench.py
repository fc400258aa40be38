"""The verb `bench`: what this software measures of itself, beside its rivals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from apps import show
from apps.terminal import AsJson, err, out, print_json
from mesh.errors import ConfigError
from runtime.stored.model_files import DEFAULT_MODEL, cache_dir, default_model

bench = typer.Typer(help="Measure this device beside its rivals.", no_args_is_help=True)

Runs = Annotated[int, typer.Option(min=5, help="Runs of each; medians are told.")]


@bench.callback()
def benches() -> None:
    """Each benchmark is a verb of its own."""


@bench.command()
def engine(
    model: Annotated[
        str, typer.Argument(help="A GGUF file, or the default model.")
    ] = DEFAULT_MODEL,
    runs: Runs = 5,
    as_json: AsJson = False,
) -> None:
    """Speed, memory and exactness of one device, in turns with llama.cpp on the same cores."""
    from apps.bench import engine as measured
    from apps.bench.report import show as show_report

    path = _file_of(model)
    with show.waiting(err, "measuring; leave the machine alone meanwhile", quiet=as_json):
        report = measured.run(
            path, runs, lambda text: None if as_json else err.print(f"[dim]{text}")
        )
    if as_json:
        print_json(report.as_dict())
    else:
        show_report(out, report)


@bench.command()
def inference(
    environments: Annotated[
        str | None, typer.Option(help="Homes such as 4x0.25@125,0.5+0.125@125; all otherwise.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Such as bert-large,distilbert; all otherwise.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two homes and one model.")] = False,
    runs: Runs = 5,
    as_json: AsJson = False,
) -> None:
    """Several devices against one, and against other ways to share, in emulated homes (root)."""
    from apps.bench import inference as measured
    from apps.bench.report import show as show_report

    asked = measured.Asked(runs=runs)
    if quick:
        asked = measured.quick(asked)
    if environments is not None:
        asked = replace(asked, environments=tuple(environments.split(",")))
    if models is not None:
        asked = replace(asked, models=tuple(models.split(",")))
    report = measured.run(asked, lambda text: err.print(f"[dim]{text}"))
    if as_json:
        print_json(report.as_dict())
    else:
        show_report(out, report)


def _file_of(model: str) -> Path:
    path = default_model(cache_dir()) if model == DEFAULT_MODEL else Path(model).expanduser()
    if not path.is_file():
        raise ConfigError(f"{path} is no file; give the path of a GGUF file, or {DEFAULT_MODEL}")
    return path
