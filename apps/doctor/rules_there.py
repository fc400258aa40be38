"""What keeps other devices from this one: pure rules over what was heard and who answered."""

from __future__ import annotations

from collections.abc import Iterator

from apps.doctor.finding import Finding, Level, note, problem
from apps.doctor.rules_here import allow
from apps.doctor.seen import Call, Outcome, Seen, Source
from mesh.ids import PeerId

INVITE = "to join its mesh, type `potluck invite` there, and here what it says"
SAME_VERSION = "install the same version of Potluck on both"


def copies(seen: Seen) -> Iterator[Finding]:
    """Another device with this one's key: its disk was copied with all that is on it."""
    hosts = [one.source for one in seen.announced if one.peer == seen.device.peer]
    hosts += [
        call.address.host
        for call in seen.calls
        if call.outcome is Outcome.OWN_KEY and call.address.host not in seen.own_hosts
    ]
    for host in dict.fromkeys(hosts):
        yield problem(
            "same-identity",
            f"the device at {host} has the very key of this one, as a copied disk or SD card has; "
            "to the others the two are one device",
            f"on one of the two stop potluck, remove {seen.device.home}/device.key, and start it "
            "again: potluck up",
        )


def strangers(seen: Seen) -> Iterator[Finding]:
    """Devices near that are of another mesh, or another version."""
    level = Level.NOTE if seen.met else Level.PROBLEM
    told: set[PeerId] = set()
    for one in seen.announced:
        where = f"{one.name or one.peer.short} ({one.source})"
        if one.peer == seen.device.peer or one.peer in told:
            continue
        told.add(one.peer)
        if one.tag in seen.device.old_tags:
            yield Finding(
                "old-secret",
                level,
                f"{where} has the secret that this mesh had before `potluck rotate`",
                "if it belongs here, keep a member up beside it, which hands it the new one; if "
                "that does not help, there: potluck leave, and join with a new `potluck invite`",
            )
        elif one.tag != seen.device.tag:
            mesh = "a mesh" if seen.device.tag is None else "another mesh"
            yield Finding("other-mesh", level, f"{where} is of {mesh}", INVITE)
        elif one.protocol != str(seen.device.protocol):
            yield Finding(
                "other-version",
                level,
                f"{where} speaks protocol {one.protocol or '?'}, this device "
                f"{seen.device.protocol}",
                SAME_VERSION,
            )


def answers(seen: Seen) -> Iterator[Finding]:
    """What came of calling each address."""
    heard = {address for one in seen.announced for address in one.addresses}
    reached = {call.peer for call in seen.calls if call.outcome is Outcome.MEMBER}
    for call in seen.calls:
        if call.peer in reached:  # perhaps at another of its addresses
            continue
        if call.outcome is Outcome.OWN_KEY and call.address.host in seen.own_hosts:
            yield note("itself", f"{call.address} is this device itself")
        found = _judged(seen, call, announces=call.address in heard)
        if found is None:
            continue
        if call.source is Source.REMEMBERED:  # a device that is off is no riddle
            yield note("not-here", f"{_who(call)} was a member and is not reached: {found.text}")
        else:
            yield found


def silence(seen: Seen) -> Iterator[Finding]:
    """Devices that answer calls and are not heard: multicast does not cross the network."""
    if not any(heard.echo for heard in seen.heard):
        return  # that is this device's own trouble, and said already
    heard = {one.peer for one in seen.announced}
    deaf = [
        call
        for call in seen.calls
        if call.outcome is Outcome.MEMBER and call.peer is not None and call.peer not in heard
    ]
    here = {member.peer for member in seen.device.members if member.is_here}
    for call in deaf:
        near = seen.is_near(call.address.host)
        between = (
            "the network between the two drops multicast, as guest Wi-Fi and some access points do "
            "(AP isolation, IGMP snooping)"
            if near
            else "it is in another network, and mDNS does not cross a router"
        )
        yield Finding(
            "multicast-lost",
            Level.NOTE if call.peer in here else Level.PROBLEM,
            f"{_who(call)} answers and is not heard by mDNS: {between}",
            f"name it: potluck up --peer {call.address}",
        )


def one_way(seen: Seen) -> Iterator[Finding]:
    """Members that have a link in one direction only."""
    port = seen.device.listens[0].port if seen.device.listens else 0
    for member in seen.device.members:
        if not member.is_here or member.reaches_us == member.is_reached:
            continue
        if member.is_reached:
            yield problem(
                "one-way",
                f"{member.name} is reached from here and does not reach this device: a firewall "
                f"here lets nobody in at TCP port {port}",
                allow(port, "tcp"),
            )
        else:
            theirs = member.address.port if member.address else port
            yield problem(
                "one-way",
                f"{member.name} reaches this device and is not reached: a firewall there lets "
                f"nobody in at TCP port {theirs}",
                f"there, {allow(theirs, 'tcp')}",
            )


def _judged(seen: Seen, call: Call, *, announces: bool) -> Finding | None:
    address, port = call.address, call.address.port
    match call.outcome:
        case Outcome.REFUSED if announces:
            return problem(
                "refused",
                f"{_who(call)} is on, and its port {port} is refused: a firewall there rejects it, "
                "or potluck has just ended",
                f"there, {allow(port, 'tcp')}",
            )
        case Outcome.REFUSED:
            return problem(
                "refused",
                f"{address.host} answers, and nobody listens at its port {port}",
                "there: potluck up; if it uses another port: potluck doctor HOST:PORT",
            )
        case Outcome.SILENT if announces:
            return problem(
                "firewall",
                f"{_who(call)} is on, for it announces itself, and does not answer at TCP port "
                f"{port}: a firewall there drops it",
                f"there, {allow(port, 'tcp')}",
            )
        case Outcome.SILENT | Outcome.NO_WAY:
            return _unreached(seen, call)
        case Outcome.STRANGER:
            return problem("other-mesh", call.text, INVITE)
        case Outcome.OTHER_VERSION:
            return problem("other-version", call.text, SAME_VERSION)
        case Outcome.MUTE:
            return problem(
                "mute",
                f"{address} takes connections and says nothing: the device sleeps, is stuck, or "
                "another program listens there",
                "there: potluck doctor",
            )
        case Outcome.SAYS_NO:
            return problem("says-no", call.text, "there: potluck doctor")
        case Outcome.NO_NAME:
            return problem("no-name", call.text, "give its address: potluck doctor 192.168.1.20")
        case Outcome.OPEN:
            return note("open", f"somebody listens at {address}", INVITE)
        case Outcome.MEMBER | Outcome.OWN_KEY:
            return None


def _unreached(seen: Seen, call: Call) -> Finding:
    where = f"{_who(call)} ({call.address})" if call.name else str(call.address)
    if not seen.is_near(call.address.host):
        return problem(
            "no-way",
            f"{where} is in none of this device's networks, and does not answer",
            "bring both into one network (a guest Wi-Fi is another one); or start a VPN on both "
            "and name it: potluck up --interface NAME",
        )
    return problem(
        "unreached",
        f"{where} does not answer: the device is off or asleep, a firewall there drops TCP port "
        f"{call.address.port}, or the Wi-Fi keeps its devices apart (AP isolation)",
        "there: potluck doctor; and look for `AP isolation` or `guest` in the router's settings",
    )


def _who(call: Call) -> str:
    return call.name or (call.peer.short if call.peer else str(call.address))
