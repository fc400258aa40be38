"""The verbs about who is in the mesh: `potluck invite`, `join`, `leave`, `rotate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from apps import show
from apps.terminal import AsJson, Home, ask, awaited, err, out, print_json
from mesh.config import FolderLock, StateFolder
from mesh.errors import ConfigError
from mesh.ids import Address

if TYPE_CHECKING:
    from apps.join import Found


def invite(
    long: Annotated[
        bool, typer.Option("--long", help="The secret itself, for devices without a person.")
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show the code that lets another device into this mesh."""
    body = ask(home, lambda client: client.post("/potluck/invite", {"long": long}))
    if as_json:
        print_json(body)
    else:
        show.invited(out, body)


def join(
    code: Annotated[str, typer.Argument(help="What `potluck invite` shows on a member.")],
    peer: Annotated[
        list[str] | None, typer.Option(help="HOST:PORT of a member, where mDNS does not reach.")
    ] = None,
    interface: Annotated[
        list[str] | None, typer.Option(help="Network interface; physical ones otherwise.")
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Let this device into a mesh. Then start it with `potluck up`."""
    from mesh.pairing_window import is_short_code

    addresses = [Address.parse(text) for text in peer or ()]
    by_code = _by_short_code if is_short_code(code) else _by_long_code
    found = by_code(code, StateFolder.open(home), addresses, tuple(interface or ()), as_json)
    if as_json:
        print_json({"joined": True, "members": found.members, "hints": found.hints})
    else:
        show.joined(out, found)


def leave(home: Home = None, as_json: AsJson = False) -> None:
    """Say goodbye to the others and forget the mesh."""
    folder = StateFolder.open(home)
    if not FolderLock(folder).is_taken:
        from mesh.trust import MeshSecret

        MeshSecret.erase(folder)
        body = {"left": True}
    else:
        body = ask(home, lambda client: client.post("/potluck/leave"))
    if as_json:
        print_json(body)
    else:
        out.print("This device has left and has forgotten the mesh.")


def rotate(
    without: Annotated[
        list[str] | None, typer.Option(help="Name or id of a device to shut out: lost, or sold.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Although most devices of the mesh do not answer.")
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Give the mesh a new secret: whoever has only the old one is out."""
    asked = {"without": without or [], "force": force}
    with show.waiting(err, "handing out a new secret", quiet=as_json):
        body = ask(home, lambda client: client.post("/potluck/rotate", asked))
    if as_json:
        print_json(body)
    else:
        show.rotated(out, body)


def _by_short_code(
    code: str,
    folder: StateFolder,
    addresses: list[Address],
    interfaces: tuple[str, ...],
    quiet: bool,
) -> Found:
    from apps.pairing import join_by_short_code
    from apps.settings import Settings
    from mesh.keyring import Keyring
    from mesh.pairing_window import parse_short_code

    digits = parse_short_code(code)
    if FolderLock(folder).is_taken:
        raise ConfigError("potluck runs here already; end it before this device joins another mesh")
    if Keyring.load(folder) is not None:
        raise ConfigError("this device is in a mesh; leave that one first: potluck leave")
    name = Settings(home=folder.path).name
    with show.waiting(err, "looking for the device that shows the code", quiet=quiet):
        return awaited(join_by_short_code(folder, digits, name, addresses, interfaces))


def _by_long_code(
    code: str,
    folder: StateFolder,
    addresses: list[Address],
    interfaces: tuple[str, ...],
    quiet: bool,
) -> Found:
    from apps.join import look_for_members
    from mesh.keyring import Keyring
    from mesh.trust import MeshSecret

    secret = MeshSecret.from_join_code(code)
    known = Keyring.load(folder)
    if known is not None and known.secret != secret:
        raise ConfigError("this device is in another mesh; leave that one first: potluck leave")
    with show.waiting(err, "looking for the mesh", quiet=quiet):
        found = awaited(look_for_members(folder, secret, addresses, interfaces))
    if known is None:
        Keyring(secret).save(folder)
    return found
