"""The verbs about models on disk and in memory: pull, list, ps, rm.

With no daemon running they see and change this device's own folder.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import typer

from apps import show
from apps.terminal import AsJson, Home, ask, awaited, err, find_daemon, out, print_json
from mesh.config import FolderLock, StateFolder

Source = Annotated[
    str,
    typer.Argument(
        help="OWNER/REPO[:FILE] on the Hugging Face hub, a path, gemma-3-270m, or the name of a "
        "model that another device has."
    ),
]


def pull(source: Source, home: Home = None, as_json: AsJson = False) -> None:
    """Bring a model onto this device's disk; from the other devices where they have it."""
    path = Path(source).expanduser()
    is_model = path.is_file() or (path / "config.json").is_file()
    if is_model or source.startswith(("./", "../", "~", "/")):
        source = str(path.resolve())
    result = awaited(_pull(StateFolder.open(home), source, quiet=as_json))
    if as_json:
        print_json(result)
    else:
        out.print(
            f"[bold]{show.escape(result['name'])}[/] is here ({show.escape(result['how'])}). "
            f"Try: potluck run {show.escape(result['name'])} 'PROMPT'"
        )


def list_models(home: Home = None, as_json: AsJson = False) -> None:
    """The models of the mesh: which devices have them, whole or in part."""
    folder = StateFolder.open(home)
    body = (
        ask(home, lambda client: client.get("/potluck/models"))
        if FolderLock(folder).is_taken
        else _list_here(folder)
    )
    if as_json:
        print_json(body)
    else:
        show.models(out, body)


def ps(home: Home = None, as_json: AsJson = False) -> None:
    """What each device holds in memory now."""
    body = ask(home, lambda client: client.get("/potluck/ps"))
    if as_json:
        print_json(body)
    else:
        show.loaded(out, body)


def rm(
    name: Annotated[str, typer.Argument(help="As `potluck list` shows it.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Remove a model from this device's disk; not while it is in use."""
    folder = StateFolder.open(home)
    if FolderLock(folder).is_taken:
        body = ask(home, lambda client: client.post("/potluck/rm", {"name": name}))
    else:
        freed = _catalogue(folder).remove(name, lambda model: "")
        body = {"removed": name, "freed_bytes": freed}
    if as_json:
        print_json(body)
    else:
        freed_mb = body["freed_bytes"] / 1e6
        out.print(
            f"Removed {show.escape(name)} from this device; {freed_mb:.0f} MB are free again."
        )


async def _pull(folder: StateFolder, source: str, *, quiet: bool) -> dict[str, Any]:
    """Through the daemon where one runs, which asks the mesh first; else by ourselves."""
    if FolderLock(folder).is_taken:
        from apps.client import Client

        async with Client(find_daemon(folder)) as client:
            return await _watch(client.stream("/potluck/pull", {"source": source}), source, quiet)
    from apps.models.library import Library
    from apps.models.pulls import Pulls
    from apps.models.shelf import Shelf

    library = Library(Shelf(folder.path / "models"))
    pulls = Pulls(None, library, library.shelf)
    return await _watch(pulls.pull(source), source, quiet)


async def _watch(
    reports: AsyncGenerator[dict[str, Any], None], source: str, quiet: bool
) -> dict[str, Any]:
    from apps.progress import show_progress

    async with aclosing(reports):
        with show_progress(err, source, quiet=quiet) as progress:
            async for report in reports:
                progress.show(report["stage"], report["done_bytes"], report["wanted_bytes"])
                last = report
    return {"name": last["name"], "how": last["how"], "bytes": last["wanted_bytes"]}


def _list_here(folder: StateFolder) -> dict[str, Any]:
    return {
        "device": "",
        "models": [
            {
                "name": one.name,
                "model": str(one.model),
                "purpose": one.purpose,
                "size_bytes": one.size_bytes,
                "origin": one.origin,
                "devices": [{"id": "", "device": "here", "have_bytes": one.have_bytes}],
            }
            for one in _catalogue(folder).held()
        ],
    }


def _catalogue(folder: StateFolder) -> Any:
    from apps.models.catalogue import Catalogue  # not for `--help`: it opens files of all kinds
    from apps.models.shelf import Shelf

    return Catalogue(Shelf(folder.path / "models"))
