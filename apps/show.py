"""How answers look in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["escape", "joined", "layers_text", "loaded", "models", "plan", "status", "waiting"]

HEALTH_STYLE = {"alive": "green", "suspect": "yellow", "dead": "red", "left": "dim"}


class Waiting(Protocol):
    """A sign of life on the terminal, until stopped."""

    def stop(self) -> None:
        """Clears the sign."""


class _Silent:
    def stop(self) -> None:
        """Nothing was shown."""


@contextmanager
def waiting(console: Console, text: str, *, quiet: bool) -> Iterator[Waiting]:
    """Shows that something is going on; nothing where the output is not a terminal."""
    if quiet or not console.is_interactive:
        yield _Silent()
        return
    with console.status(text) as shown:
        yield shown


def joined(out: Console, found: Any) -> None:
    """What `potluck join` found, and what to type next."""
    if found.members:
        out.print(f"The code is right: {escape(found.members[0])} answered.")
    else:
        out.print("The code is well formed and saved, but no member of its mesh answered yet.")
        for hint in dict.fromkeys(found.hints):
            out.print(f"  - {escape(hint)}")
        out.print("Is a member up? Name it if mDNS does not reach: potluck up --peer HOST:PORT")
    out.print("Now type: [bold]potluck up[/]")


def status(out: Console, body: dict[str, Any]) -> None:
    """The members, the plan, and what is held here."""
    mesh, plan_body = body["mesh"], body["plan"]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("device", "id", "health", "address", "layers", "sent", "received"):
        table.add_column(column)
    for member in mesh["members"]:
        marks = " (leads)" if member["id"] == mesh["leader"] else ""
        marks += " (this one)" if member["id"] == body["device"]["id"] else ""
        health = member["health"]
        link = member["link"] or {}
        table.add_row(
            escape(member["name"]) + marks,
            member["id"][:8],
            f"[{HEALTH_STYLE[health]}]{health}[/]",
            member["address"] or "",
            layers_text(member["layers"]),
            _megabytes(link.get("sent_bytes")),
            _megabytes(link.get("received_bytes")),
        )
    out.print(table)
    if plan_body is None:
        out.print("\nNo model runs yet: potluck run MODEL 'PROMPT'")
        return
    epoch = plan_body["epoch"]["counter"]
    out.print(f"\n[bold]{escape(plan_body['model'])}[/], plan of epoch {epoch}")
    out.print(escape(plan_body["reason"]))


def plan(out: Console, body: dict[str, Any]) -> None:
    """Every candidate, the chosen one first, then why it was chosen."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("devices and layers", "prefill", "a token", "on the wire", "memory", "room"):
        table.add_column(column)
    for candidate in body["candidates"]:
        table.add_row(*_candidate_row(candidate), style="bold" if candidate["chosen"] else "")
    out.print(table)
    if body["not_shown"]:
        out.print(f"[dim]and {body['not_shown']} more[/]")
    out.print(f"\n{escape(body['chosen']['reason'])}")


def models(out: Console, body: dict[str, Any]) -> None:
    """Each model once, with the devices that have it."""
    if not body["models"]:
        out.print("No model is here yet: potluck pull gemma-3-270m, or the path of a GGUF file")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("model", "size", "id", "here", "on other devices"):
        table.add_column(column)
    for model in body["models"]:
        where = {one["id"]: one for one in model["devices"]}
        here = where.pop(body["device"], None)
        table.add_row(
            escape(model["name"]),
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
    """What each device holds in memory."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("device", "model", "layers", "head", "memory", "may use", "conversations"):
        table.add_column(column)
    for one in body["devices"]:
        layers = one["layers"]
        table.add_row(
            escape(one["device"]),
            escape(one["model"]) or "-",
            layers_text([layers[0], layers[-1] + 1] if layers else None),
            "yes" if one["head"] else "-",
            _megabytes(one["size_bytes"]),
            _megabytes(one["limit_bytes"]),
            str(one["conversations"]),
        )
    out.print(table)


def _candidate_row(candidate: dict[str, Any]) -> tuple[str, ...]:
    predicted, room = candidate["predicted"], candidate["capacity"]
    if predicted is None:
        return (f"{escape(', '.join(candidate['names']))}: {escape(candidate['reason'])}",)
    who = " > ".join(
        f"{escape(name)} {layers_text(stage['layers'])}"
        for name, stage in zip(candidate["names"], candidate["stages"], strict=True)
    )
    return (
        who,
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
