"""`potluck doctor`: why two devices do not meet, and what to type next."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from apps import show
from apps.settings import DEFAULT_API_PORT
from apps.terminal import AsJson, Home, awaited, err, out, print_json
from mesh.config import StateFolder

_MARKS = {"problem": "[bold red]problem[/]", "note": "[dim]note[/]   ", "well": "[green]well[/]   "}


def doctor(
    host: Annotated[
        str | None, typer.Argument(help="HOST or HOST:PORT of a device that should be met.")
    ] = None,
    interface: Annotated[
        list[str] | None, typer.Option(help="Network interface to listen on; all otherwise.")
    ] = None,
    api_port: Annotated[
        int, typer.Option(min=1, max=65535, help="The local API's, if it will be another.")
    ] = DEFAULT_API_PORT,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Find out why two devices do not meet. Run it on both; the exit status is 1 for a problem."""
    from apps.doctor.diagnosis import diagnose
    from apps.doctor.examine import examine
    from apps.doctor.finding import Level

    folder = StateFolder.open(home)
    with show.waiting(err, "listening, and calling whoever may be there", quiet=as_json):
        seen = awaited(examine(folder, host, tuple(interface or ()), api_port))
    findings = diagnose(seen)
    is_well = all(one.level is not Level.PROBLEM for one in findings)
    if as_json:
        print_json(
            {"ok": is_well, "findings": [asdict(one) for one in findings], "seen": asdict(seen)}
        )
    else:
        for one in findings:
            out.print(f"{_MARKS[one.level]}  {show.escape(one.text)}")
            if one.do:
                out.print(f"         -> {show.escape(one.do)}")
    if not is_well:
        raise typer.Exit(1)
