"""The checker: reads what a history says and nothing else, and names what must not have happened.

    python -m apps.sim.check FILE

Of each line `at_s`, `device` and `event` are read, and of these events:

    home        devices: their names; the first line
    started     a new process; it has met nobody
    ended       the process is gone, however it went
    epoch       counter, leader: an epoch was accepted
    view        alive, leader, counter, incarnation: what the device holds true from now on
    joined, died, left    peer, incarnation
    calm        within_s: nothing is done to anybody any more; so soon all agree
    over        the last line: all agree still, and every conversation has ended
    plan        model, plan, epoch, leader, devices: it came in force on this device
    asked       session, expected: the tokens of the undisturbed conversation
    answered    session, tokens, error: what came, and the one error where it is not all
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]


def violations(lines: Iterable[Line]) -> list[str]:
    """Every breach of what must hold under any fault, in words."""
    told = list(lines)
    found = [
        *_no_leader_without_winning(told),
        *_calm_ends_in_one_view(told),
        *_one_plan_an_epoch(told),
        *_conversations_are_whole(told),
    ]
    for device in sorted({line["device"] for line in told if line["device"]}):
        own = [line for line in told if line["device"] == device]
        found += _epochs_grow(device, own)
        found += _incarnations_grow(device, own)
        found += _gone_stay_gone(device, own)
        found += _plans_grow(device, own)
    return found


def disagreements(views: Mapping[str, Line]) -> list[str]:
    """How the views of the devices that run differ from one view with one leader."""
    running, found = sorted(views), []
    for device, view in views.items():
        if view["alive"] != running:
            found.append(f"{device} holds {view['alive']} alive, {running} run")
        if view["leader"] not in running:
            found.append(f"{device} follows {view['leader']}, which does not run")
    if len({(view["counter"], view["leader"]) for view in views.values()}) > 1:
        epochs = {device: (view["counter"], view["leader"]) for device, view in views.items()}
        found.append(f"different epochs: {epochs}")
    return found


def main(arguments: Sequence[str]) -> int:
    """Prints what is wrong; the exit status."""
    if len(arguments) != 1:
        print("usage: python -m apps.sim.check FILE", file=sys.stderr)
        return 2
    try:
        found = violations(map(json.loads, Path(arguments[0]).read_text().splitlines()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{arguments[0]} is no history: {error!r}", file=sys.stderr)
        return 2
    for text in found:
        print(text)
    return 1 if found else 0


def _no_leader_without_winning(lines: list[Line]) -> Iterator[str]:
    """Whoever accepts an epoch has it from its leader, who declared it once and before."""
    declared: set[tuple[int, str]] = set()
    for line in lines:
        if line["event"] != "epoch":
            continue
        epoch, device = (line["counter"], line["leader"]), line["device"]
        if line["leader"] == device:
            if epoch in declared:
                yield f"{device} declared {_words(epoch)} twice"
            declared.add(epoch)
        elif epoch not in declared:
            yield f"{device} accepted {_words(epoch)}, which its leader never declared"


def _epochs_grow(device: str, lines: list[Line]) -> Iterator[str]:
    """Also over restarts; so no counter is ever accepted twice, with one leader or with two."""
    last = (0, "")
    for line in lines:
        if line["event"] == "epoch":
            epoch = line["counter"], line["leader"]
            if epoch[0] <= last[0]:
                at = f"at {line['at_s']:.2f} s"
                yield f"{device} accepted {_words(epoch)} after {_words(last)} {at}"
            last = epoch


def _incarnations_grow(device: str, lines: list[Line]) -> Iterator[str]:
    last, started = -1, False
    for line in lines:
        if line["event"] == "started":
            started = True
        elif line["event"] == "view":
            now = line["incarnation"]
            if now < last or (started and now == last):
                yield f"{device} ran as {now} after {last} at {line['at_s']:.2f} s"
            last, started = now, False


def _gone_stay_gone(device: str, lines: list[Line]) -> Iterator[str]:
    gone: dict[str, int] = {}
    for line in lines:
        match line["event"]:
            case "started":
                gone.clear()  # a new process has met nobody
            case "died" | "left":
                gone[line["peer"]] = line["incarnation"]
            case "joined":
                peer, incarnation = line["peer"], line["incarnation"]
                if incarnation <= gone.get(peer, -1):
                    yield f"{device} brought {peer} back as {incarnation}, gone as {gone[peer]}"


def _calm_ends_in_one_view(lines: list[Line]) -> Iterator[str]:
    due_s: float | None = None
    views: dict[str, Line] = {}
    for line in lines:
        if due_s is not None and line["at_s"] >= due_s:
            for text in disagreements(views):
                yield f"at {due_s:.2f} s, when all should agree: {text}"
            due_s = None
        match line["event"]:
            case "calm":
                due_s = line["at_s"] + line["within_s"]
            case "started":
                views[line["device"]] = {"alive": [], "leader": None, "counter": None}
            case "ended":
                views.pop(line["device"], None)
            case "view":
                views[line["device"]] = line
            case "over":
                for text in disagreements(views):
                    yield f"in the end: {text}"


def _one_plan_an_epoch(lines: list[Line]) -> Iterator[str]:
    """So no device is in two plans under one epoch, whoever believes to lead."""
    plans: dict[tuple[int, str], str] = {}
    for line in lines:
        if line["event"] == "plan":
            epoch = line["epoch"], line["leader"]
            if plans.setdefault(epoch, line["plan"]) != line["plan"]:
                yield f"{line['device']} put a second plan of {_words(epoch)} in force"


def _plans_grow(device: str, lines: list[Line]) -> Iterator[str]:
    """Of a model, plans come in force with growing epochs, and none above what was accepted."""
    accepted, plans = 0, dict[str, int]()
    for line in lines:
        match line["event"]:
            case "epoch":
                accepted = line["counter"]
            case "started":
                plans.clear()  # nothing is in force any more
            case "plan":
                model, epoch, at = line["model"], line["epoch"], f"at {line['at_s']:.2f} s"
                if epoch <= plans.get(model, 0):
                    yield f"{device} put plan {epoch} in force after {plans[model]} {at}"
                if device in line["devices"] and epoch > accepted:
                    yield f"{device} put plan {epoch} in force, being in epoch {accepted} {at}"
                plans[model] = epoch


def _conversations_are_whole(lines: list[Line]) -> Iterator[str]:
    """Each ends, unless its owner does: with the undisturbed tokens, or some and one error."""
    open_: dict[int, Line] = {}
    for line in lines:
        match line["event"]:
            case "asked":
                open_[line["session"]] = line
            case "ended":
                open_ = {
                    s: asked for s, asked in open_.items() if asked["device"] != line["device"]
                }
            case "answered":
                asked = open_.pop(line["session"], None)
                at = f"at {line['at_s']:.2f} s"
                if asked is None:
                    yield f"conversation {line['session']} ended twice, {at}"
                    continue
                expected, tokens = asked["expected"], line["tokens"]
                if tokens != expected[: len(tokens)]:
                    yield f"conversation {line['session']}: expected {expected}, got {tokens} {at}"
                elif line["error"] is None and tokens != expected:
                    yield f"conversation {line['session']} ended early {at}: {tokens}"
            case "over":
                for asked in open_.values():
                    at = f"asked at {asked['at_s']:.2f} s on {asked['device']}"
                    yield f"conversation {asked['session']} never ended: {at}"


def _words(epoch: tuple[int, str]) -> str:
    return f"epoch {epoch[0]} of {epoch[1]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
