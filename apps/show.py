"""How answers look in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apps.draw.sheet import sheet_of
from apps.draw.terminal import draw

__all__ = [
    "escape",
    "invited",
    "joined",
    "rotated",
    "layers_text",
    "loaded",
    "models",
    "plan",
    "status",
    "waiting",
]

HEALTH_STYLE = {
    "alive": "green",
    "degraded": "yellow",
    "suspect": "yellow",
    "dead": "red",
    "left": "dim",
}


class Waiting(Protocol):
    """A sign of life on the terminal, until stopped."""

    def stop(self) -> None:
        """Clears the sign."""

    def update(self, text: str) -> None:
        """Says something else."""


class _Silent:
    def stop(self) -> None:
        """Nothing was shown."""

    def update(self, text: str) -> None:
        """Nobody sees it."""


@contextmanager
def waiting(console: Console, text: str, *, quiet: bool) -> Iterator[Waiting]:
    """Shows that something is going on; nothing where the output is not a terminal."""
    if quiet or not console.is_interactive:
        yield _Silent()
        return
    with console.status(text) as shown:
        yield shown


def invited(out: Console, body: dict[str, Any]) -> None:
    """What to type on the other device, and what to beware of."""
    out.print("On the other device, with potluck installed, type:\n")
    out.print(f"  [bold]potluck join {body['code']}[/]\n")
    if "seconds" not in body:
        out.print("Whoever has this code is a member: show it to nobody else.")
        return
    out.print(f"The code lets one device in and is good for {body['seconds'] / 60:.0f} minutes.")
    where = " or ".join(escape(address) for address in body["addresses"])
    out.print(f"If that device does not find this one, add there: --peer {where}")


def rotated(out: Console, body: dict[str, Any]) -> None:
    """Who has the new secret, who gets it later, and what the old one was good for until now."""
    have_it, behind, shut_out = (
        ", ".join(f"{escape(one['name'])} ({one['id'][:8]})" for one in body[key])
        for key in ("have_it", "behind", "shut_out")
    )
    out.print(f"The mesh has a new secret, number {body['generation']}. These devices have it:")
    out.print(f"  {have_it}")
    if behind:
        out.print(f"These were not reached, and get it when they are back:\n  {behind}")
    if shut_out:
        out.print(f"Shut out:\n  {shut_out}")
    out.print(
        "\nUntil this moment, whoever held the old secret (a lost device, a copied disk, an old "
        "long code) could have invited other devices. Is one of those above not yours? Then type: "
        "potluck rotate --without NAME"
    )


def joined(out: Console, found: Any) -> None:
    """What `potluck join` found, and what to type next."""
    if found.members:
        out.print(f"The code is right: {escape(found.members[0])} answered.")
    else:
        out.print("The code is well formed and saved, but no member of its mesh answered yet.")
        for hint in dict.fromkeys(found.hints):
            out.print(f"  - {escape(hint)}")
        out.print("Is a member up? Name it if mDNS does not reach: potluck up --peer HOST:PORT")
        out.print("What keeps the two apart, [bold]potluck doctor[/] finds out; type it on both.")
    out.print("Now type: [bold]potluck up[/]")


def status(out: Console, body: dict[str, Any]) -> None:
    """The members, and each model that runs."""
    mesh = body["mesh"]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("device", "id", "health", "address", "layers", "sent", "received"):
        table.add_column(column)
    for member in mesh["members"]:
        marks = " (leads)" if member["id"] == mesh["leader"] else ""
        marks += " (this one)" if member["id"] == body["device"]["id"] else ""
        health = "degraded" if member.get("degraded") else member["health"]
        link = member["link"] or {}
        table.add_row(
            escape(member["name"]) + marks,
            member["id"][:8],
            f"[{HEALTH_STYLE[health]}]{health}[/]",
            member["address"] or "",
            _shares_text(member["shares"], len(body["plans"])),
            _megabytes(link.get("sent_bytes")),
            _megabytes(link.get("received_bytes")),
        )
    out.print(table)
    if body["trouble"]:
        out.print(f"\n[bold red]trouble:[/] {escape(body['trouble'])}")
    if not body["plans"]:
        out.print("\nNo model runs yet: potluck run MODEL 'PROMPT'")
    names = {member["id"]: member["name"] for member in mesh["members"]}
    for one in body["plans"]:
        epoch = one["epoch"]["counter"]
        out.print(f"\n[bold]{escape(one['model'])}[/], plan of epoch {epoch}, {_use_text(one)}")
        out.print(escape(f"on {_memory_text(one, names)}"))
        out.print(escape(one["reason"]))


def _shares_text(shares: list[dict[str, Any]], models: int) -> str:
    """Which layers a device has; of which model, where there are several."""
    named = models > 1
    return (
        ", ".join(
            f"{escape(one['model'])} {layers_text(one['layers'])}"
            if named
            else layers_text(one["layers"])
            for one in shares
        )
        or "-"
    )


def _memory_text(plan_body: dict[str, Any], names: dict[str, str]) -> str:
    """Such as "attic (210 MB) and kitchen (190 MB)"."""
    memory = plan_body["predicted"]["memory_bytes"].items()
    return " and ".join(f"{names.get(id_, id_[:8])} ({size / 1e6:.0f} MB)" for id_, size in memory)


def _use_text(one: dict[str, Any]) -> str:
    """How a model is used, as far as this device knows."""
    if count := one["conversations"]:
        return f"{count} conversation{'s' if count > 1 else ''} here"
    return f"last used {_ago_text(one['idle_s'])}"


def _ago_text(seconds: float) -> str:
    for size_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size_s:
            return f"{seconds / size_s:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def plan(out: Console, body: dict[str, Any]) -> None:
    """Every candidate, the chosen one first, then why it was chosen, and how it goes."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("devices and layers", "prefill", "a token", "on the wire", "memory", "room"):
        table.add_column(column)
    for candidate in body["candidates"]:
        table.add_row(*_candidate_row(candidate), style="bold" if candidate["chosen"] else "")
    out.print(table)
    if body["not_shown"]:
        out.print(f"[dim]and {body['not_shown']} more[/]")
    out.print(f"\n{escape(body['chosen']['reason'])}\n")
    plain = not out.encoding.startswith("utf")
    for line in draw(sheet_of(body), out.width, plain=plain):
        out.print(line)


def models(out: Console, body: dict[str, Any]) -> None:
    """Each model once, with the devices that have it."""
    if not body["models"]:
        out.print("No model is here yet: potluck pull gemma-3-270m, or the path of a GGUF file")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("model", "for", "size", "id", "here", "on other devices"):
        table.add_column(column)
    for model in body["models"]:
        where = {one["id"]: one for one in model["devices"]}
        here = where.pop(body["device"], None)
        table.add_row(
            escape(model["name"]),
            escape(model["purpose"]) or "-",
            _megabytes(model["size_bytes"]),
            model["model"][:8],
            _part(here, model) if here else "-",
            ", ".join(
                f"{escape(one['device'])}{_part(one, model, whole='')}" for one in where.values()
            )
            or "-",
        )
    out.print(table)


def _part(held: dict[str, Any], model: dict[str, Any], whole: str = "whole") -> str:
    """How much of a model a device has."""
    if held["have_bytes"] == model["size_bytes"]:
        return whole
    share = f"{held['have_bytes'] / model['size_bytes']:.0%}"
    return share if whole else f" ({share})"


def loaded(out: Console, body: dict[str, Any]) -> None:
    """What each device holds in memory, a line for each model."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("device", "model", "layers", "head", "weights", "conversations", "last used"):
        table.add_column(column)
    for device in body["devices"]:
        name = f"{escape(device['device'])} ({_megabytes(device['limit_bytes'])})"
        for one in device["models"]:
            table.add_row(name, *_loaded_row(one))
            name = ""
        if not device["models"]:
            table.add_row(name, "-")
    out.print(table)


def _loaded_row(one: dict[str, Any]) -> tuple[str, ...]:
    layers = one["layers"]
    held = (
        escape(one["model"]),
        layers_text([layers[0], layers[-1] + 1] if layers else None),
        "yes" if one["head"] else "-",
        _megabytes(one["size_bytes"]),
    )
    if not one["sessions"]:
        return (*held, "loading", "")
    used = "now" if one["conversations"] else _ago_text(one["idle_s"])
    return (*held, f"{one['conversations']} of {one['sessions']}", used)


def _candidate_row(candidate: dict[str, Any]) -> tuple[str, ...]:
    predicted, room = candidate["predicted"], candidate["capacity"]
    if predicted is None:
        return (f"{escape(', '.join(candidate['names']))}: {escape(candidate['reason'])}",)
    return (
        escape(candidate["shape"]),
        f"{predicted['prefill_ms']:.0f} ms",
        f"{predicted['decode_ms']:.1f} ms",
        f"{predicted['wire_bytes_per_token'] / 1e3:.1f} kB",
        " + ".join(f"{size / 1e6:.0f}" for size in predicted["memory_bytes"].values()) + " MB",
        f"{room['sessions']} x {room['context']}",
    )


def layers_text(layers: list[int] | None) -> str:
    if not layers:
        return "-"
    first, last = layers[0], layers[1] - 1
    return str(first) if first == last else f"{first}-{last}"


def _megabytes(size: int | None) -> str:
    return f"{size / 1e6:.1f} MB" if size is not None else ""
