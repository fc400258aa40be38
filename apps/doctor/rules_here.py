"""What keeps this device itself from being met: pure rules over what was seen of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from apps.doctor.finding import Finding, note, problem
from apps.doctor.seen import Adapter, Seen
from mesh.ids import Address

EARLIEST_YEAR = 2025  # a clock that says less was never set


def mesh(seen: Seen) -> Iterator[Finding]:
    """In a mesh, and taking part in it?"""
    device = seen.device
    for trouble in device.troubles:
        yield problem("state", trouble, "")
    if device.tag is None:
        yield problem(
            "no-mesh",
            "this device is in no mesh yet",
            "type `potluck invite` on a device that is in one, and here what it says; "
            "or make a new mesh here: potluck up",
        )
    elif not device.runs:
        yield problem(
            "no-daemon",
            "no potluck runs on this device, so it neither looks for others nor answers them",
            "potluck up",
        )
    elif not device.answers:
        yield problem(
            "daemon-mute",
            "a potluck runs on this device and does not answer its own API",
            "end it (Ctrl-C in its terminal), and start it again: potluck up",
        )


def ports(seen: Seen) -> Iterator[Finding]:
    """Could a daemon listen, if it were started?"""
    device = seen.device
    if device.taken_port is not None:
        yield problem(
            "port-taken",
            f"port {device.taken_port}, where devices meet, is taken by another program here, "
            "perhaps by another potluck",
            "end that one; or take any free port: potluck up --port 0",
        )
    if device.taken_api_port is not None:
        yield problem(
            "api-port-taken",
            f"port {device.taken_api_port} on 127.0.0.1, the API's, is taken by another program "
            "here, perhaps by another potluck",
            "end that one; or take any free port: potluck up --api-port 0",
        )


def interfaces(seen: Seen) -> Iterator[Finding]:
    """Does this device face the home at all, and where?"""
    facing = [one for one in seen.adapters if not one.why_left_out]
    if not facing:
        yield _no_interface(seen)
    if seen.device.listens:
        yield from _listening(seen, facing)
    elif len(facing) > 1:
        yield _several([one.name for one in facing])
    left_out = [one for one in seen.adapters if one.why_left_out and one.hosts]
    left_out = [one for one in left_out if not _is_loopback(one.hosts[0])]
    if left_out:
        yield note(
            "left-out",
            "not used to meet others: "
            + ", ".join(f"{one.name} ({one.why_left_out})" for one in left_out),
            f"if the others are there: potluck up --interface {left_out[0].name}",
        )


def multicast(seen: Seen) -> Iterator[Finding]:
    """Does mDNS get out of this device, and in again?"""
    for heard in seen.heard:
        if heard.trouble:
            yield problem(
                "multicast-forbidden",
                f"this device may not send multicast on {heard.interface} ({heard.trouble})",
                f"{allow(5353, 'udp')}; or do without: potluck up --peer HOST:PORT",
            )
        elif not heard.echo:
            yield problem(
                "multicast-blocked",
                f"what this device asks by multicast on {heard.interface} does not come back to "
                "it, as it should: a firewall of this device drops mDNS (UDP port 5353)",
                f"{allow(5353, 'udp')}; or do without: potluck up --peer HOST:PORT",
            )


def clock(seen: Seen) -> Iterator[Finding]:
    """Nothing between devices depends on it; the rest of the internet does."""
    if seen.device.year < EARLIEST_YEAR:
        yield note(
            "clock",
            f"the clock of this device says {seen.device.year}; that keeps no device from another, "
            "but `potluck pull` from the internet needs the right time",
            "sudo timedatectl set-ntp true",
        )


def allow(port: int, protocol: str) -> str:
    """What opens a port, as most Linux systems have it."""
    return (
        f"let it through: sudo ufw allow {port}/{protocol} "
        f"(or: sudo firewall-cmd --permanent --add-port={port}/{protocol} && "
        "sudo firewall-cmd --reload)"
    )


def _no_interface(seen: Seen) -> Finding:
    only_six = [one for one in seen.adapters if one.has_ipv6 and not one.hosts]
    if only_six:
        name = only_six[0].name
        return problem(
            "ipv6-only",
            f"{name} has IPv6 addresses only, and devices meet over IPv4",
            f"let the router give IPv4 addresses, or give each device one of its own: "
            f"sudo ip addr add 192.168.77.2/24 dev {name} (.3 on the next, and so on)",
        )
    skipped = ", ".join(f"{one.name} ({one.why_left_out})" for one in seen.adapters)
    others = [one.name for one in seen.adapters if one.hosts and not _is_loopback(one.hosts[0])]
    return problem(
        "no-interface",
        f"no network interface of this device faces the home: {skipped or 'there is none'}",
        f"potluck up --interface {others[0]}"
        if others
        else "put the cable in, or join the Wi-Fi; then: potluck up",
    )


def _listening(seen: Seen, facing: list[Adapter]) -> Iterator[Finding]:
    listens = seen.device.listens
    if all(_is_loopback(address.host) for address in listens):
        yield problem(
            "loopback-only",
            f"this device listens at {listens[0]} only, where no other device reaches it",
            "stop it, and start it without `--interface lo`: potluck up",
        )
        return
    known = {host for adapter in seen.adapters for host in adapter.hosts}
    gone = [address for address in listens if address.host not in known]
    if gone:
        yield problem(
            "address-gone",
            f"potluck listens at {gone[0]}, which is no address of this device any more",
            "stop it, and start it again: potluck up",
        )
        return
    used = [one for one in seen.adapters if _any_of(one, listens)]
    idle = [one for one in facing if one not in used]
    if idle and all(one.why_left_out for one in used):
        yield problem(
            "wrong-interface",
            f"potluck uses {used[0].name} ({used[0].why_left_out}), and not {idle[0].name}",
            f"stop it, and: potluck up --interface {idle[0].name}",
        )
    elif len(used) > 1:
        yield _several([one.name for one in used])


def _several(names: list[str]) -> Finding:
    return note(
        "several-interfaces",
        f"this device is in several networks ({', '.join(names)}); devices in different ones do "
        "not meet",
        f"if the others are in one of them only: potluck up --interface {names[0]}",
    )


def _any_of(adapter: Adapter, addresses: tuple[Address, ...]) -> bool:
    return any(address.host in adapter.hosts for address in addresses)


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
