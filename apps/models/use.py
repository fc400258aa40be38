"""Who needs a model on this device right now: asked before it is removed, and for `potluck ps`."""

from __future__ import annotations

from apps.models.fetcher import Fetcher
from apps.models.messages import Loaded, LoadedModel
from apps.planning.installer import Installer
from apps.planning.messages import Known
from mesh.ids import ModelId
from runtime.holdings import Held, Holdings


class ModelUse:
    """A look at what is loaded, planned and on its way."""

    def __init__(self, installer: Installer, holdings: Holdings, fetcher: Fetcher) -> None:
        self._installer = installer
        self._holdings = holdings
        self._fetcher = fetcher

    def why(self, model: ModelId) -> str:
        """By what the model is needed, in words; empty when it is not."""
        if model in self._holdings.models:
            return (
                "it is loaded here and may be asked at any moment; run another model, or end "
                "`potluck up` on this device first"
            )
        if any(state.model == model for state in self._fetcher.transfers):
            return "it is just being fetched from the other devices"
        return ""

    def loaded(self) -> Loaded:
        """What this device holds in memory, the model used last first; then what is loading."""
        held = dict(self._holdings.models)
        models = []
        for known in self._installer.report().known:
            one = held.pop(known.plan.model, None)
            if one is not None:
                models.append(_loaded(known.plan.model_name, one, known))
        models += [_loaded(one.profile.name, one, None) for one in held.values()]
        return Loaded(tuple(models), self._holdings.memory_bytes)


def _loaded(name: str, held: Held, known: Known | None) -> LoadedModel:
    return LoadedModel(
        model=name,
        layers=held.layers,
        head=held.has_head,
        size_bytes=held.size_bytes,
        sessions=known.plan.capacity.sessions if known else 0,
        conversations=known.conversations if known else 0,
        idle_s=known.idle_s if known else 0.0,
    )
