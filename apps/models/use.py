"""Who needs a model on this device right now: asked before it is removed, and for `potluck ps`."""

from __future__ import annotations

from apps.models.fetcher import Fetcher
from apps.models.messages import LoadedModel
from apps.planning.installer import Installer
from mesh.ids import ModelId
from runtime.holdings import Holdings
from runtime.pipeline import Pipeline


class ModelUse:
    """A look at what is loaded, planned and on its way."""

    def __init__(
        self, installer: Installer, holdings: Holdings, pipeline: Pipeline, fetcher: Fetcher
    ) -> None:
        self._installer = installer
        self._holdings = holdings
        self._pipeline = pipeline
        self._fetcher = fetcher

    def why(self, model: ModelId) -> str:
        """By what the model is needed, in words; empty when it is not."""
        if self._holdings.model == model:
            return (
                "it is loaded here and may be asked at any moment; run another model, or end "
                "`potluck up` on this device first"
            )
        if any(state.model == model for state in self._fetcher.transfers):
            return "it is just being fetched from the other devices"
        return ""

    def loaded(self) -> LoadedModel:
        """What this device holds in memory."""
        plan, holdings = self._installer.plan, self._holdings
        held = holdings.model is not None and plan is not None and plan.model == holdings.model
        return LoadedModel(
            model=plan.model_name if plan is not None and held else "",
            layers=holdings.layers,
            head=holdings.has_head,
            size_bytes=holdings.size_bytes,
            limit_bytes=holdings.memory_bytes,
            conversations=self._pipeline.conversations,
        )
