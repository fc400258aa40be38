"""The fetcher: models, and parts of models, from the other members; nothing from outside."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from apps.models.messages import (
    FIND_MODEL,
    HAVE_MODEL,
    FindReply,
    FindRequest,
    HaveReply,
    HaveRequest,
    TransferState,
)
from apps.models.shelf import MAX_NAME_CHARS, Shelf
from apps.models.source import fetch_manifest
from apps.models.transfer import Holder, Transfer
from apps.planning.messages import ModelRef
from apps.timeline import Timeline
from mesh.codec import from_plain, to_plain
from mesh.errors import LinkError, MeshError, ModelNotFound, ProtocolError
from mesh.ids import ModelId, PeerId
from mesh.node import Node
from mesh.transport import Dials
from runtime.stored.manifest import Manifest
from runtime.stored.partial import About, PartialModel

FIND_TIMEOUT_S = 10.0  # a device may first have to put its default model together
HAVE_TIMEOUT_S = 1.5  # for what a device has at hand
ASK_AGAIN_S = 0.25  # while a device makes the manifest of a model it has


class Fetcher:
    """One transfer a model; whoever wants more of it joins."""

    def __init__(self, node: Node, dialer: Dials, shelf: Shelf, timeline: Timeline) -> None:
        self._node = node
        self._dialer = dialer
        self._shelf = shelf
        self._timeline = timeline
        self._transfers: dict[bytes, Transfer] = {}
        self._locks: dict[ModelId, asyncio.Lock] = {}

    @property
    def transfers(self) -> list[TransferState]:
        """What is under way."""
        states = [transfer.state for transfer in self._transfers.values()]
        return [state for state in states if state is not None]

    async def close(self) -> None:
        """Ends every transfer; what has come is kept."""
        for transfer in self._transfers.values():
            await transfer.close()

    async def find(self, name: str) -> ModelRef | None:
        """What the others mean by that name: the one most of them have whole."""
        replies = await self.ask_find(FindRequest(name, ""))
        found = [reply.model for reply in replies.values() if reply.model is not None]
        whole = Counter(r.model.model for r in replies.values() if r.model and r.is_whole)
        return max(found, key=lambda model: (whole[model.model], model.model), default=None)

    async def ask_find(self, request: FindRequest) -> dict[PeerId, FindReply]:
        """The answers of those who answer."""
        return await self._ask_others(FIND_MODEL, request, FindReply, FIND_TIMEOUT_S)

    async def partial_of(self, reference: ModelRef) -> PartialModel:
        """A model with enough of it here to be opened. Raises ModelNotFound, WeightsMissing or
        DiskFull.
        """
        async with self._locks.setdefault(reference.model, asyncio.Lock()):
            partial = self._shelf.partial_of(reference.model)
            if partial is None:
                manifest, about = await self._manifest(reference)
                partial = await asyncio.to_thread(self._shelf.begin, manifest, about)
        await self.bring(partial, partial.manifest.opening_pieces)
        return partial

    async def bring(self, partial: PartialModel, pieces: Iterable[int]) -> None:
        """Returns when these pieces are here. Raises WeightsMissing, DiskFull or ModelError."""
        missing = partial.missing(pieces)
        if not missing:
            return
        loop = asyncio.get_running_loop()
        began_s, name = loop.time(), partial.about.name
        size = sum(partial.manifest.size_of(index) for index in missing)
        self._timeline.note(
            "fetching", f"fetching {size / 1e6:.1f} MB of {name} from the other devices"
        )
        transfer = self._transfer(partial)
        before = transfer.given
        await transfer.bring(missing)
        took_s = loop.time() - began_s
        given = {who: sent - before[who] for who, sent in transfer.given.items()}
        whom = ", ".join(f"{who} {sent / 1e6:.1f} MB" for who, sent in given.items() if sent > 0)
        self._timeline.note(
            "fetched",
            f"fetched {size / 1e6:.1f} MB of {name} in {took_s:.2f} s from {whom or 'others'}",
            bytes=size,
            fetch_s=took_s,
            sources={who: sent for who, sent in given.items() if sent > 0},
        )

    def _transfer(self, partial: PartialModel) -> Transfer:
        key = partial.manifest.id
        if key not in self._transfers or self._transfers[key].partial is not partial:

            async def look() -> list[Holder]:
                holders = await self._holders(partial.model)
                may = [holder.have.manifest == key or holder.have.pending for holder in holders]
                return [holder for holder, is_one in zip(holders, may, strict=True) if is_one]

            self._transfers[key] = Transfer(partial, look, self._dialer, self._timeline)
        return self._transfers[key]

    async def _manifest(self, reference: ModelRef) -> tuple[Manifest, About]:
        """That of the most whole copies, waiting while somebody is still making it."""
        while True:
            holders = await self._holders(reference.model)
            ready = [holder for holder in holders if holder.have.manifest is not None]
            if ready:
                for holder in self._best(ready, reference.name):
                    if manifest := await self._manifest_from(holder, reference.model):
                        name = (holder.have.name or reference.name)[:MAX_NAME_CHARS]
                        return manifest, About(name, holder.have.origin)
            if not any(holder.have.pending for holder in holders):
                raise ModelNotFound(
                    f"no device here has {reference.name}: put its file into "
                    f"{self._shelf.folder}, or bring it with `potluck pull`"
                )
            await asyncio.sleep(ASK_AGAIN_S)

    def _best(self, ready: list[Holder], name: str) -> list[Holder]:
        """The holders of the copy that most have whole; the others are named."""
        votes = Counter({holder.have.manifest: 0 for holder in ready})
        votes.update(holder.have.manifest for holder in ready if holder.have.is_whole)
        best = max(votes, key=lambda manifest: (votes[manifest], manifest or b""))
        others = [holder.name for holder in ready if holder.have.manifest != best]
        if others:
            self._timeline.note(
                "trouble",
                f"the copy of {name} on {', '.join(others)} differs from that of the others and "
                "is not used; its file may be damaged",
            )
        return [holder for holder in ready if holder.have.manifest == best]

    async def _manifest_from(self, holder: Holder, model: ModelId) -> Manifest | None:
        assert holder.have.manifest is not None
        try:
            manifest = await fetch_manifest(
                self._dialer,
                holder.address,
                holder.peer,
                holder.have.manifest,
                holder.have.manifest_bytes,
            )
        except (LinkError, ProtocolError) as error:
            self._timeline.note("trouble", f"{holder.name} gave no manifest: {error}")
            return None
        return manifest if manifest.model == model else None

    async def _holders(self, model: ModelId) -> list[Holder]:
        """The members that have some of the model, or will in a moment."""
        answers = await self._ask_others(HAVE_MODEL, HaveRequest(model), HaveReply, HAVE_TIMEOUT_S)
        holders = []
        for peer, have in answers.items():
            member = self._node.view.find(peer)
            if member is None or member.address is None or not member.is_here:
                continue
            if have.manifest is not None or have.pending:
                holders.append(Holder(peer, member.name, member.address, have))
        return holders

    async def _ask_others(
        self, topic: str, request: Any, kind: Any, timeout_s: float
    ) -> dict[PeerId, Any]:
        view = self._node.view
        peers = [member.peer for member in view.alive if member.peer != view.me]

        async def ask(peer: PeerId) -> Any:
            try:
                return from_plain(
                    kind, await self._node.request(peer, topic, to_plain(request), timeout_s)
                )
            except MeshError:  # gone, busy, or of another version: it has nothing for us
                return None

        answers = await asyncio.gather(*(ask(peer) for peer in peers))
        return {p: answer for p, answer in zip(peers, answers, strict=True) if answer is not None}
