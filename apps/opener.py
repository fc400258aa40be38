"""The opener: from a model's name to all that a request of it needs on this device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from apps.models.library import Library
from apps.planning.installer import Installer
from apps.planning.messages import ModelRef, Wish
from apps.planning.road import MeshRoad
from apps.settings import Settings
from apps.timeline import Timeline
from mesh.errors import WrongModel
from mesh.ids import PeerId
from mesh.node import Node
from planner.plan import Capacity
from runtime.checkpoints import Model
from runtime.purpose import Purpose
from runtime.steps import Steps
from runtime.traffic import Traffic

T = TypeVar("T")

# What to do with a model of each kind, for whoever asked something else of it.
_ADVICE: Final = {
    Purpose.TEXT: "continues texts and answers chats: /v1/completions, /v1/chat/completions",
    Purpose.EMBEDDINGS: "turns texts into embeddings: /v1/embeddings",
    Purpose.TEXT_TO_TEXT: "turns one text into another: /v1/completions",
    Purpose.SPEECH_TO_TEXT: "turns speech into text: /v1/audio/transcriptions",
    Purpose.LABELS: "sorts texts into classes, for which there is no API yet",
}


@dataclass(frozen=True, slots=True)
class Opened:
    """A model, what would be asked of the mesh for it, and the way to its stages."""

    reference: ModelRef
    checkpoint: Model
    wish: Wish
    road: MeshRoad
    me: PeerId
    steps: Steps

    @property
    def around(self) -> tuple[PeerId, MeshRoad, Steps, Traffic]:
        """What `runtime.replay.Replayed` begins with."""
        return self.me, self.road, self.steps, self.checkpoint.traffic


class Opener:
    """Opens models and tokenizers once."""

    def __init__(
        self,
        node: Node,
        library: Library,
        installer: Installer,
        steps: Steps,
        timeline: Timeline,
        settings: Settings,
    ) -> None:
        self._node = node
        self._library = library
        self._installer = installer
        self._steps = steps
        self._timeline = timeline
        self._settings = settings
        self._made: dict[str, asyncio.Future[Any]] = {}

    async def open(self, name: str) -> Opened:
        """The model a person named, with the room this device asks for. Raises ModelError."""
        reference, checkpoint = await self._library.find(name)
        profile = checkpoint.profile()
        context = min(self._settings.context, profile.context)
        if checkpoint.purpose is Purpose.SPEECH_TO_TEXT:
            context = profile.context  # a few hundred tokens, and what is said needs them
        room = Capacity(self._settings.sessions, context)
        wish = Wish(reference, profile, room, self._settings.wire)
        road = MeshRoad(self._node, self._installer, self._timeline, wish)
        return Opened(reference, checkpoint, wish, road, self._node.view.me, self._steps)

    async def open_for(self, what: str, name: str, *purposes: Purpose) -> Opened:
        """The same, where `what` is asked of it, such as "chats". Raises WrongModel as well, for a
        model that has none of these purposes.
        """
        opened = await self.open(name)
        purpose = opened.checkpoint.purpose
        if purpose not in purposes:
            raise WrongModel(f"{opened.reference.name} is not for {what}: it {_ADVICE[purpose]}")
        return opened

    async def made(self, checkpoint: Model, make: Callable[[], T]) -> T:
        """What `make` makes of the checkpoint in a thread (its tokenizer), once for each model."""
        key = str(checkpoint.model_id)
        if key not in self._made:
            self._made[key] = asyncio.ensure_future(asyncio.to_thread(make))
        try:
            return cast(T, await asyncio.shield(self._made[key]))
        except Exception:
            self._made.pop(key, None)  # so that the next request tries again
            raise
