"""The verb `chaos`: whole homes in trouble, and whether they keep what was promised."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from apps import show
from apps.terminal import AsJson, err, out, print_json
from mesh.errors import ConfigError, PotluckError


def chaos(
    seeds: Annotated[int, typer.Option(min=1, help="How many simulated homes.")] = 200,
    first_seed: Annotated[int, typer.Option(min=0, help="The number of the first one.")] = 0,
    keep: Annotated[
        Path | None, typer.Option(help="A folder for the histories of those that fail.")
    ] = None,
    fault: Annotated[
        str | None,
        typer.Option(
            help="On real processes of this machine instead: kill,unplug,... in turns; or soak."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="How often each fault.")] = 10,
    devices: Annotated[
        int | None, typer.Option(min=3, max=5, help="In each home; the seed says otherwise.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="No run begins later; the length of a soak.")
    ] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="A file that gets a JSON line of each run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Homes in trouble, simulated ones or (with --fault) real processes, and what of it should not
    have happened.
    """
    if fault is not None:
        real(fault, range(first_seed, first_seed + runs), devices, seconds, out_file, quiet=as_json)
        return
    summary = simulate(seeds, first_seed, keep, quiet=as_json)
    if as_json:
        print_json(summary)
    else:
        out.print(
            f"{summary['seeds']} homes, {summary['simulated_s'] / 3600:.1f} simulated hours in "
            f"{summary['took_s']:.0f} s: {len(summary['failed'])} with something wrong"
        )
    if summary["failed"]:
        raise PotluckError(f"{len(summary['failed'])} of {summary['seeds']} homes broke a promise")


def real(
    fault: str,
    seeds: range,
    devices: int | None,
    seconds: float | None,
    out_file: Path | None,
    *,
    quiet: bool,
) -> None:
    """Seeded faults on real daemons in mid-generation. Raises PotluckError if anything is wrong."""
    from apps.chaos.command import run_faults
    from apps.chaos.runs import Asked

    asked = Asked(tuple(fault.split(",")), seeds, devices, seconds=seconds)
    outcome = run_faults(asked, out_file, lambda line: None if quiet else print(line, flush=True))
    if quiet:
        print_json({"faults": list(outcome.lines), "wrong": list(outcome.wrong)})
    else:
        out.print(outcome.text)
        for text in outcome.wrong:
            out.print(f"[red]wrong[/] {show.escape(text)}")
    if outcome.wrong:
        raise PotluckError(f"{len(outcome.wrong)} times something was wrong")


def simulate(seeds: int, first_seed: int, keep: Path | None, *, quiet: bool) -> dict[str, Any]:
    """Plays the seeds one after the other; what is wrong is told as it comes."""
    from apps.sim.seeds import Theatre

    logging.getLogger().addHandler(logging.NullHandler())  # what goes wrong there is wanted
    began_s, simulated_s = time.monotonic(), 0.0
    failed: list[dict[str, Any]] = []
    with show.waiting(err, "", quiet=quiet) as waiting, Theatre.open() as theatre:
        for count, seed in enumerate(range(first_seed, first_seed + seeds), 1):
            played = theatre.play(seed)
            simulated_s += played.simulated_s
            if played.wrong:
                failed.append({"seed": seed, "wrong": played.wrong, "again": played.again})
                if not quiet:
                    for text in (f"[bold]seed {seed}[/]", *map(show.escape, played.wrong)):
                        out.print(text)
                    out.print(f"again: {played.again}")
                if keep is not None:
                    _keep(keep, seed, played.history)
            waiting.update(f"{count} of {seeds} homes, {len(failed)} with something wrong")
    return {
        "seeds": seeds,
        "first_seed": first_seed,
        "simulated_s": simulated_s,
        "took_s": time.monotonic() - began_s,
        "failed": failed,
    }


def _keep(folder: Path, seed: int, history: str) -> None:
    path = folder / f"seed-{seed}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(history)
    except OSError as error:
        raise ConfigError(f"{path} could not be written: {error.strerror}") from None
    out.print(f"its history: {path}; check it with: python -m apps.sim.check {path}")
