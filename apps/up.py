"""`potluck up`: one device in the mesh, in the foreground, until Ctrl-C or SIGTERM.

The first of these hands over what goes through the device, for a few seconds at most; a second one
ends it at once.
"""

from __future__ import annotations

import asyncio
import json
import signal

from rich.console import Console

from apps.daemon import Daemon
from apps.logs import log_to_stderr
from apps.settings import Settings
from apps.show import escape
from mesh.config import FolderLock, StateFolder
from mesh.errors import PotluckError
from mesh.keyring import Keyring
from mesh.trust import MeshSecret

# Worth a line on the screen of a device; the rest is in `potluck status` and the events API.
SPOKEN = {
    "PeerJoined",
    "invited",
    "not-paired",
    "paired",
    "rotated",
    "PeerDied",
    "PeerLeft",
    "LeaderElected",
    "Refused",
    "other",
    "trouble",
    "fetching",
    "fetched",
    "damaged-piece",
    "wrong",
    "loaded",
    "plan",
    "evicted",
    "handing-over",
    "handed-over",
    "not-handed-over",
    "room",
    "no-plan",
    "resumed",
}


def run_up(settings: Settings, folder: StateFolder, out: Console, *, as_json: bool) -> None:
    """Blocks until the device is told to end. Raises ConfigError for a port or folder in use."""
    log_to_stderr()
    lock = FolderLock(folder)
    lock.take()
    try:
        keyring = Keyring.load(folder)
        is_new = keyring is None
        if keyring is None:
            keyring = Keyring(MeshSecret.new())
            keyring.save(folder)
        asyncio.run(_run(settings, folder, keyring, out, is_new=is_new, as_json=as_json))
    finally:
        lock.free()


async def _run(
    settings: Settings,
    folder: StateFolder,
    keyring: Keyring,
    out: Console,
    *,
    is_new: bool,
    as_json: bool,
) -> None:
    daemon = Daemon(settings, folder, keyring)

    def ready(daemon: Daemon) -> None:
        if as_json:
            print(json.dumps(_facts(daemon)), flush=True)
        else:
            _greet(out, daemon, is_new=is_new)

    running = asyncio.ensure_future(daemon.run(ready))
    stopped, hurried = asyncio.Event(), asyncio.Event()
    speaking = asyncio.ensure_future(_speak(daemon, out, as_json=as_json))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: (hurried if stopped.is_set() else stopped).set())
    stopping, hurrying = (asyncio.ensure_future(one.wait()) for one in (stopped, hurried))
    try:
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            handing = asyncio.ensure_future(daemon.hand_over())
            await asyncio.wait([running, handing, hurrying], return_when=asyncio.FIRST_COMPLETED)
            handing.cancel()
        if not running.done():
            await daemon.stop()
            if not as_json:
                out.print("\nstopped; the others go on without this device")
        await running
    except ExceptionGroup as group:
        # Of the daemon's many tasks, the one that failed says why; the others were only ended.
        refusal = _first_of_ours(group)
        if refusal is None:
            raise
        raise refusal from None
    finally:
        for task in (speaking, stopping, hurrying, running):
            task.cancel()


def _first_of_ours(group: ExceptionGroup[Exception]) -> PotluckError | None:
    for error in group.exceptions:
        found = _first_of_ours(error) if isinstance(error, ExceptionGroup) else error
        if isinstance(found, PotluckError):
            return found
    return None


async def _speak(daemon: Daemon, out: Console, *, as_json: bool) -> None:
    """One line per event that a person may care about."""
    number = 0
    while True:
        for event in await daemon.timeline.wait_since(number):
            number = event.number
            if as_json:
                line = {"event": event.kind, "text": event.text, "at_s": event.at_s}
                print(json.dumps({**line, **event.fields}), flush=True)
            elif event.kind in SPOKEN:
                out.print(f"[dim]{escape(event.text)}[/]")


def _facts(daemon: Daemon) -> dict[str, object]:
    return {
        "event": "up",
        "at_s": asyncio.get_running_loop().time(),
        "id": str(daemon.node.view.me),
        "name": daemon.settings.name,
        "device": str(daemon.torch_device),
        "api_port": daemon.api_port,
        "addresses": [str(address) for address in daemon.addresses],
    }


def _greet(out: Console, daemon: Daemon, *, is_new: bool) -> None:
    where = ", ".join(str(address) for address in daemon.addresses)
    out.print(
        f"[bold]{escape(daemon.settings.name)}[/] is up at {where}, computing on "
        f"{daemon.torch_device}"
    )
    if is_new:
        out.print(
            "This device has made a new mesh. To let another device in, type here, in another"
        )
        out.print("terminal, [bold]potluck invite[/]: it shows what to type there.\n")
    out.print(f"API for this machine: http://127.0.0.1:{daemon.api_port}/v1    Ctrl-C stops")
