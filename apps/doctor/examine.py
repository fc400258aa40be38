"""Looks at everything, once: this device, what is said around it, and who answers calls."""

from __future__ import annotations

from collections.abc import Sequence

from apps.doctor.calls import call_all, resolve
from apps.doctor.own import Own, look_at_adapters, look_at_daemon
from apps.doctor.seen import Adapter, Call, Outcome, Seen, Source
from mesh.config import StateFolder
from mesh.errors import ConfigError
from mesh.ids import Address, PeerId
from mesh.limits import DEFAULT_PORT, MAX_CANDIDATES
from mesh.net.interfaces import Interface
from mesh.net.overhear import Announced, Heard, overhear


async def examine(
    folder: StateFolder, asked: str | None, interfaces: Sequence[str], api_port: int
) -> Seen:
    """Takes a few seconds. `asked` is HOST or HOST:PORT. Raises ConfigError for a folder, an
    interface or an address that cannot be used as given.
    """
    adapters = look_at_adapters()
    own = await look_at_daemon(folder, adapters, api_port)
    heard = await overhear(_where(own, adapters, interfaces))
    if asked is not None:
        calls = [await resolve(*_host_and_port(asked))]
    else:
        calls = _to_call(own, adapters, heard)
    made = [call for call in calls if call.outcome is not Outcome.NO_NAME]
    answered = await call_all(made, own.trust)
    done = (*answered, *(call for call in calls if call not in made))
    return Seen(own.device, adapters, heard, done, asked is not None)


def _where(own: Own, adapters: Sequence[Adapter], names: Sequence[str]) -> list[Interface]:
    """The interfaces to listen on: those named, else the daemon's, else those it would take."""
    by_name = {one.name: one for one in adapters}
    for name in names:
        if name not in by_name or not by_name[name].hosts:
            raise ConfigError(
                f"there is no network interface {name!r} with an IPv4 address here; there are: "
                f"{', '.join(sorted(by_name))}"
            )
    listening = {address.host for address in own.device.listens}
    if names:
        chosen = [by_name[name] for name in names]
    elif listening:
        chosen = [one for one in adapters if listening & set(one.hosts)]
    else:
        chosen = [one for one in adapters if not one.why_left_out]
    return [Interface(one.name, one.hosts) for one in chosen]


def _to_call(own: Own, adapters: Sequence[Adapter], heard: Sequence[Heard]) -> list[Call]:
    """Whoever may be of this mesh, each address once."""
    device = own.device
    own_addresses = {
        Address(host, address.port)
        for address in device.listens
        for one in adapters
        for host in one.hosts
    }
    found: dict[Address, Call] = {}

    def add(address: Address, source: Source, peer: PeerId, name: str) -> None:
        if address not in own_addresses and len(found) < MAX_CANDIDATES:
            found.setdefault(address, Call(address, source, Outcome.SILENT, peer, name))

    for one in (one for each in heard for one in each.announced):
        if _is_ours(own, one):
            for address in one.addresses:
                add(address, Source.HEARD, one.peer, one.name)
    for member in device.members:
        if member.is_here and member.address is not None:
            add(member.address, Source.MEMBER, member.peer, member.name)
    for known in own.remembered:
        add(known.address, Source.REMEMBERED, known.peer, known.name)
    return list(found.values())


def _is_ours(own: Own, one: Announced) -> bool:
    device = own.device
    return (one.tag, one.protocol) == (device.tag, str(device.protocol)) and (
        one.peer != device.peer
    )


def _host_and_port(text: str) -> tuple[str, int]:
    """Raises BadId."""
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        return text.strip("[]"), DEFAULT_PORT
    address = Address.parse(f"{host}:{port}")
    return address.host, address.port
