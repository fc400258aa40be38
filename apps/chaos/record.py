"""The line that a run leaves: what was done, what it cost, and what was wrong with it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from apps.chaos.fault import Fault, Seen
from apps.chaos.scene import Scene
from apps.measure import Generation, Recovery, recovery
from runtime.processor import processor

HOLDERS: Final = 2  # so many devices can hold the model together; one alone cannot
ERROR_MS: Final = 5000.0  # one clear error, not an endless retry
NOBODY: Final = Recovery(None, None, None, None)


@dataclass(frozen=True, slots=True)
class Heard:
    """What the client got: tokens, and maybe an error in words."""

    generation: Generation
    error: str | None
    ended_s: float


@dataclass(frozen=True, slots=True)
class After:
    """The home once the fault was undone."""

    heal_ms: float | None  # until all see all alive under one leader; None: never
    leader: str | None
    one_plan: bool  # all devices know the same plans
    refused: int  # frames that were refused meanwhile, as stale or otherwise


@dataclass(frozen=True, slots=True)
class Record:
    """One run. Times are milliseconds; None: it did not happen."""

    fault: str
    seed: int
    date: str
    machine: str
    model: str
    devices: int
    at_token: int
    leader_lost: bool
    detect_ms: float | None
    elect_ms: float | None
    plan_ms: float | None
    resume_ms: float | None
    heal_ms: float | None
    tokens_equal: bool
    error_ms: float | None
    replayed_tokens: int
    suspicions: int  # of devices that were there
    deaths: int  # devices held dead that were there
    refused: int
    notes: dict[str, Any] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def record_of(
    name: str,
    fault: Fault,
    scene: Scene,
    led: str | None,
    model: str,
    undisturbed: Generation,
    heard: Heard,
    after: After,
) -> Record:
    """What the scene and the devices' own events say."""
    times = recovery(scene.lost, scene.survivors, scene.owner, led) if scene.lost else NOBODY
    record = Record(
        fault=name,
        seed=scene.case.seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        model=model,
        devices=len(scene.home.devices),
        at_token=scene.case.at_token,
        leader_lost=led in scene.lost,
        detect_ms=times.detect_ms,
        elect_ms=times.elect_ms,
        plan_ms=times.plan_ms,
        resume_ms=times.resume_ms,
        heal_ms=after.heal_ms,
        tokens_equal=_equal(heard, undisturbed),
        error_ms=(heard.ended_s - scene.last_loss_s) * 1e3 if heard.error else None,
        replayed_tokens=sum(
            event["replayed_tokens"]
            for event in scene.events(scene.owner)
            if event["event"] == "resumed"
        ),
        suspicions=_accusations(scene, "PeerSuspected"),
        deaths=_accusations(scene, "PeerDied"),
        refused=after.refused,
        notes=scene.notes,
    )
    wrong = tuple(_wrong(record, fault, scene, heard, after))
    return replace(record, wrong=wrong)


@cache
def machine() -> str:
    """What the figures were taken on, in a few words."""
    unnamed = f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}"
    return f"{processor() or unnamed}, {platform.system()}"


def _equal(heard: Heard, undisturbed: Generation) -> bool:
    """Whether what came is what comes undisturbed; of a text that broke off, its beginning."""
    came, whole = heard.generation.token_ids, undisturbed.token_ids
    return came == (whole[: len(came)] if heard.error else whole)


def _accusations(scene: Scene, kind: str) -> int:
    """Of devices that were there, by devices that could hear them."""
    return sum(
        event["event"] == kind and event["peer"] not in scene.lost
        for device in scene.home.devices
        if device.device_id not in scene.blind
        for event in scene.events(device)
    )


def _wrong(record: Record, fault: Fault, scene: Scene, heard: Heard, after: After) -> Iterator[str]:
    """What must not be, in words."""
    if not scene.began_s:
        yield "the text was over before anything happened"
    if not record.tokens_equal:
        yield "the tokens differ"
    if fault.seen is not Seen.NOTHING and record.detect_ms is None:
        yield "not all survivors saw who was gone"
    if record.leader_lost and record.elect_ms is None:
        yield "not all survivors have a new leader"
    if record.deaths:
        yield f"{record.deaths} times a device was held dead that was there"
    enough = len(scene.survivors) >= HOLDERS
    if enough and heard.error:
        yield f"an error, though the survivors can hold the model: {heard.error}"
    if not enough and record.error_ms is None:
        yield "no error, though one device cannot hold the model"
    if record.error_ms is not None and record.error_ms > ERROR_MS:
        yield f"the error came after {record.error_ms:.0f} ms"
    if after.heal_ms is None:
        yield "the devices did not find together again"
    elif not after.one_plan:
        yield "the devices do not know the same plans"
    yield from _wrong_notes(scene.notes, after)


def _wrong_notes(notes: Mapping[str, Any], after: After) -> Iterator[str]:
    before = notes.get("leader_before")
    if before is not None and after.leader != before:
        yield "the larger half did not keep its leader"
    if notes.get("still_running") is False:
        yield "the device with the full disk has ended"
