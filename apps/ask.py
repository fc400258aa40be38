"""Asking several devices at once: all of them must answer, or whoever does; or until it is moot."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from mesh.codec import from_plain
from mesh.errors import MeshError, ProtocolError
from mesh.ids import PeerId
from mesh.membership import Member
from mesh.node import Node

T = TypeVar("T")


async def ask_all(
    node: Node, devices: Iterable[PeerId], topic: str, body: Any, timeout_s: float
) -> list[Any]:
    """Every answer; the first refusal or loss is raised, and the rest is not waited for."""
    asked = [
        asyncio.ensure_future(node.request(device, topic, body, timeout_s)) for device in devices
    ]
    try:
        return await asyncio.gather(*asked)
    finally:
        for request in asked:
            request.cancel()


async def hear_all(
    node: Node, devices: Iterable[PeerId], topic: str, body: Any, timeout_s: float
) -> list[Any]:
    """The answers of those who answer."""
    answers = await asyncio.gather(
        *(node.request(device, topic, body, timeout_s) for device in devices),
        return_exceptions=True,
    )
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, MeshError):
            raise answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]


async def hear_members(
    node: Node, topic: str, kind: Any, timeout_s: float
) -> list[tuple[Member, Any]]:
    """All who are here with their answers, values of `kind`; this device first, then by name.
    Those who do not answer in time, or as another version of this software would, are left out.
    """
    view = node.view
    members = sorted(view.alive, key=lambda one: (one.peer != view.me, one.name))
    bodies = await asyncio.gather(
        *(hear_all(node, [one.peer], topic, None, timeout_s) for one in members)
    )
    answers = []
    for member, heard in zip(members, bodies, strict=True):
        with suppress(ProtocolError):
            answers += [(member, from_plain(kind, body)) for body in heard]
    return answers


async def unless(happens: asyncio.Event, work: Coroutine[Any, Any, T], otherwise: MeshError) -> T:
    """The result of the work; raises `otherwise` if the event comes first, and ends the work."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(happens.wait())
    try:
        await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise otherwise
        return working.result()
    finally:
        working.cancel()
        waiting.cancel()
