"""The library: the models of this device by name, path or fingerprint; and, through the fetcher,
those that only other devices have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from apps.models.catalogue import Catalogue, is_path
from apps.models.fetcher import Fetcher
from apps.models.messages import HeldModel
from apps.models.shelf import Shelf
from apps.planning.messages import ModelRef
from mesh.errors import ModelNotFound, NowhereHere
from mesh.ids import ModelId
from planner.plan import Span
from planner.words import list_text
from runtime.checkpoints import Model
from runtime.compute.precision import Precision
from runtime.cut import WHOLE, Cut
from runtime.stored.layout import share_of
from runtime.stored.manifest import Manifest
from runtime.stored.partial import PartialModel


class Library:
    """The device's own catalogue first, then the others."""

    def __init__(
        self,
        shelf: Shelf,
        fetcher: Fetcher | None = None,
        precision: Precision = Precision.AUTO,
    ) -> None:
        """The shelf's folder is searched beside what is named by path; without a `fetcher`,
        nothing comes from elsewhere. What a person names here is run with `precision`.
        """
        self._precision = precision
        self._shelf = shelf
        self._fetcher = fetcher
        self._catalogue = Catalogue(shelf)

    @property
    def shelf(self) -> Shelf:
        return self._shelf

    async def find(self, name: str) -> tuple[ModelRef, Model]:
        """A model by the name a person typed: a path, a name in the folder, the default model, or
        one that another device has.

        Raises ModelNotFound, BadModelFile, UnsupportedModel, or what `get` raises.
        """
        try:
            checkpoint = await asyncio.to_thread(self._catalogue.find, name)
        except ModelNotFound:
            if self._fetcher is None or is_path(name):
                raise
            reference = await self._fetcher.find(name)
            if reference is None:
                raise
            checkpoint = await self.get(replace(reference, precision=self._precision))
            return replace(reference, precision=checkpoint.precision), checkpoint
        checkpoint = checkpoint.at(self._precision)
        # What `auto` means depends on the model; who compares two wishes need not know.
        reference = self._catalogue.reference(checkpoint)
        return replace(reference, precision=checkpoint.precision), checkpoint

    async def named(self, name: str) -> Model | None:
        """What another device may ask for by name: never a path, never by way of a third one."""
        return await asyncio.to_thread(self._catalogue.named, name)

    async def here(self, reference: ModelRef) -> Model | None:
        """The very model another device means, if this device can open it without the others."""
        found = await asyncio.to_thread(self._catalogue.get, reference)
        return None if found is None else found.at(reference.precision)

    async def get(self, reference: ModelRef) -> Model:
        """The same, opened with what the other devices give where this one lacks it; its weights
        may still be holes.

        Raises ModelNotFound where no device has it, WeightsMissing or DiskFull.
        """
        checkpoint = await self.here(reference)
        if checkpoint is None and self._fetcher is not None:
            partial = await self._fetcher.partial_of(reference)
            opened = await asyncio.to_thread(self._catalogue.open_partial, partial)
            checkpoint = opened.at(reference.precision)
        if checkpoint is None:
            raise ModelNotFound(
                f"does not have {reference.name}: copy the file to {self._shelf.folder}, "
                "and it is used without a restart"
            )
        return checkpoint

    async def share(self, reference: ModelRef, span: Span, cut: Cut = WHOLE) -> Model:
        """The same, with every byte on disk that these layers need, or these shares of them.
        Raises what `get` raises, and PlanError for shares that the model does not have.
        """
        checkpoint = await self.get(reference)
        partial = self._shelf.partial_at(checkpoint.path)
        if partial is not None and self._fetcher is not None:
            ranges = await asyncio.to_thread(share_of, checkpoint, span, cut)
            try:
                await self._fetcher.bring(partial, partial.manifest.pieces_of(ranges))
            except NowhereHere as error:
                layers = await asyncio.to_thread(
                    _layers_with, error.pieces, partial.manifest, checkpoint, span
                )
                words = f"layers {list_text([str(one) for one in layers])}" if layers else "a part"
                text = f"no device here has {words} of {reference.name}"
                raise NowhereHere(text, error.pieces) from None
            await self._finish(partial)
        return checkpoint

    async def whole(self, reference: ModelRef) -> Model:
        """The same, with every byte on disk: an ordinary model from then on."""
        checkpoint = await self.get(reference)
        partial = self._shelf.partial_at(checkpoint.path)
        if partial is not None and self._fetcher is not None:
            await self._fetcher.bring(partial, range(len(partial.manifest)))
            await self._finish(partial)
            return await self.get(reference)
        return checkpoint

    async def names(self) -> list[str]:
        """What this device has, by name."""
        return await asyncio.to_thread(self._catalogue.names)

    async def held(self) -> list[HeldModel]:
        """The models on this device, those too that are partly here. Damaged files are left out."""
        return await asyncio.to_thread(self._catalogue.held)

    async def whole_here(self, model: ModelId) -> Model | None:
        """A whole copy on this device, for its pieces."""
        return await asyncio.to_thread(self._catalogue.whole, model)

    async def name_of(self, checkpoint: Model) -> str:
        """What this device calls an open model."""
        return await asyncio.to_thread(self._catalogue.name_of, checkpoint)

    async def remove(self, name: str, in_use: Callable[[ModelId], str]) -> int:
        """Removes a model from the folder, whole or partly here; the bytes that became free.

        `in_use` says by whom a model is needed now, or nothing. Raises ModelInUse, or
        ModelNotFound for what is not in the folder.
        """
        return await asyncio.to_thread(self._catalogue.remove, name, in_use)

    async def _finish(self, partial: PartialModel) -> None:
        """Once everything of a model has come, it is an ordinary one."""
        if partial.is_whole and partial in self._shelf.partials:
            await asyncio.to_thread(self._catalogue.finish, partial)


def _layers_with(
    pieces: frozenset[int], manifest: Manifest, checkpoint: Model, span: Span
) -> list[Span]:
    """The runs of layers that need some of these pieces; with the first goes the embedding, with
    the last the head.
    """
    runs: list[Span] = []
    for index in range(span.first, span.last):
        if pieces.isdisjoint(manifest.pieces_of(share_of(checkpoint, Span(index, index + 1)))):
            continue
        first = runs.pop().first if runs and runs[-1].last == index else index
        runs.append(Span(first, index + 1))
    return runs
