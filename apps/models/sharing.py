"""What this device gives the others of its models: names, manifests, pieces; and what it brings
when the leader asks it to have its share ready.
"""

from __future__ import annotations

import asyncio
from typing import Any

from apps.models.bringer import Bringer
from apps.models.fetcher import Fetcher
from apps.models.library import Library
from apps.models.messages import (
    BRING_SHARE,
    FIND_MODEL,
    HAVE_MODEL,
    LIST_MODELS,
    LOADED_MODEL,
    MAX_RUNS,
    NOTHING,
    TRANSFERS,
    BringRequest,
    FindReply,
    FindRequest,
    HaveReply,
    HaveRequest,
    ModelList,
    Pull,
    Transfers,
)
from apps.models.pulls import Pulls
from apps.models.shelf import Shelf
from apps.models.source import Kind
from apps.models.use import ModelUse
from apps.planning.messages import ModelRef
from mesh.codec import from_plain, to_plain
from mesh.errors import ModelError, StaleEpoch, WeightsMissing
from mesh.ids import ModelId, PeerId
from mesh.net.piece_links import PieceRequest
from mesh.node import Node
from runtime.checkpoints import Model
from runtime.stored.manifest import Manifest
from runtime.stored.partial import PartialModel

QUIET_S = 10.0  # after a plan came in force, before a large file is read from end to end
MANIFEST_WAIT_S = 0.5  # for one that is nearly made; then the asker comes again


class Sharing:
    """Registers a handler per topic on the node; `read` is for the piece links."""

    def __init__(
        self,
        *,
        node: Node,
        library: Library,
        shelf: Shelf,
        fetcher: Fetcher,
        bringer: Bringer,
        pulls: Pulls,
        use: ModelUse,
    ) -> None:
        self._node = node
        self._library = library
        self._shelf = shelf
        self._fetcher = fetcher
        self._bringer = bringer
        self._pulls = pulls
        self._use = use
        self._readying: asyncio.Task[None] | None = None
        self._making: dict[ModelId, asyncio.Task[Manifest]] = {}
        node.on_request(FIND_MODEL, self._find)
        node.on_request(HAVE_MODEL, self._have)
        node.on_request(LIST_MODELS, self._list)
        node.on_request(BRING_SHARE, self._bring)
        node.on_request(LOADED_MODEL, self._tell_loaded)
        node.on_request(TRANSFERS, self._tell_transfers)

    async def read(self, peer: PeerId, request: PieceRequest) -> bytes:
        """For PieceServer. Raises WeightsMissing."""
        if request.kind == Kind.PIECE:
            return await asyncio.to_thread(
                self._shelf.read_piece, request.collection, request.number
            )
        if request.kind == Kind.MANIFEST:
            return await asyncio.to_thread(
                self._shelf.read_manifest, request.collection, request.number
            )
        raise WeightsMissing(f"nothing of kind {request.kind} is given here")

    def on_plan(self, reference: ModelRef) -> None:
        """A plan is in force: soon, the manifest of its model is made here, before anybody who
        comes later has to wait for it.
        """
        if self._shelf.known_manifest(reference.model) is None and self._readying is None:
            # Kept, and ended by `close`; it must not take time from the conversation that began.
            self._readying = asyncio.create_task(self._make_ready(reference))

    async def _make_ready(self, reference: ModelRef) -> None:
        try:
            await asyncio.sleep(QUIET_S)
            checkpoint = await self._library.whole_here(reference.model)
            if checkpoint is not None:
                await self._make(checkpoint)
        except ModelError:
            pass  # said when somebody asks for it
        finally:
            self._readying = None

    async def close(self) -> None:
        """Ends what is being made."""
        for task in (*self._making.values(), self._readying):
            if task is not None:
                task.cancel()

    # --- what the others ask ----------------------------------------------------------------------

    async def _find(self, peer: PeerId, body: Any) -> Any:
        request: FindRequest = from_plain(FindRequest, body)
        pull = self._pulls.state_of(request.origin) if request.origin else Pull.NONE
        name = request.name or await self._name_of_origin(request.origin)
        checkpoint = await self._library.named(name) if name else None
        if checkpoint is None:
            return to_plain(FindReply(None, is_whole=False, pull=pull))
        whole = self._shelf.partial_at(checkpoint.path) is None
        model = ModelRef(checkpoint.model_id, name, "")
        return to_plain(FindReply(model, is_whole=whole, pull=pull))

    async def _name_of_origin(self, origin: str) -> str:
        held = await self._library.held()
        return next((one.name for one in held if one.origin == origin and one.is_whole), "")

    async def _have(self, peer: PeerId, body: Any) -> Any:
        request: HaveRequest = from_plain(HaveRequest, body)
        return to_plain(await self._what_is_here(request.model))

    async def _what_is_here(self, model: ModelId) -> HaveReply:
        checkpoint = await self._library.whole_here(model)
        if checkpoint is not None:
            manifest = self._shelf.known_manifest(model) or await self._made_soon(checkpoint)
            name = await self._library.name_of(checkpoint)
            origin = self._shelf.origins().get(checkpoint.path.name, "")
            if manifest is None:
                return HaveReply(name, origin, None, 0, is_whole=True, runs=(), pending=True)
            runs, size = ((0, len(manifest)),), manifest.encoded_bytes
            return HaveReply(
                name, origin, manifest.id, size, is_whole=True, runs=runs, pending=False
            )
        partial = self._shelf.partial_of(model)
        return NOTHING if partial is None else _part(partial)

    async def _made_soon(self, checkpoint: Model) -> Manifest | None:
        try:
            async with asyncio.timeout(MANIFEST_WAIT_S):
                return await self._make(checkpoint)
        except TimeoutError:
            return None

    async def _make(self, checkpoint: Model) -> Manifest:
        """Once at a time; goes on when whoever asked does not wait. Raises BadModelFile."""
        model = checkpoint.model_id
        making = self._making.get(model)
        if making is None or (making.done() and self._shelf.known_manifest(model) is None):
            # Kept in `_making`; `close` ends it.
            making = asyncio.create_task(asyncio.to_thread(self._shelf.manifest_of, checkpoint))
            making.add_done_callback(_seen)
            self._making[model] = making
        return await asyncio.shield(making)

    async def _list(self, peer: PeerId, body: Any) -> Any:
        return to_plain(ModelList(tuple(await self._library.held())))

    async def _bring(self, peer: PeerId, body: Any) -> Any:
        request: BringRequest = from_plain(BringRequest, body)
        if peer != self._node.view.leader:
            raise StaleEpoch(f"{peer.short} does not lead here; plans come from the leader")
        return to_plain(await self._bringer.bring(request))

    async def _tell_loaded(self, peer: PeerId, body: Any) -> Any:
        return to_plain(self._use.loaded())

    async def _tell_transfers(self, peer: PeerId, body: Any) -> Any:
        return to_plain(Transfers(tuple(self._fetcher.transfers)))


def _seen(making: asyncio.Task[Manifest]) -> None:
    """Whoever asked may not have waited for how it ended; whoever asks next tries again."""
    if not making.cancelled():
        making.exception()


def _part(partial: PartialModel) -> HaveReply:
    """The longest runs, where there are more than fit a message: less than is here, never more."""
    runs = partial.runs()
    if len(runs) > MAX_RUNS:
        longest = sorted(runs, key=lambda run: run[1] - run[0], reverse=True)[:MAX_RUNS]
        runs = sorted(longest)
    return HaveReply(
        partial.about.name,
        partial.about.origin,
        partial.manifest.id,
        partial.manifest.encoded_bytes,
        is_whole=False,
        runs=tuple(runs),
        pending=False,
    )
