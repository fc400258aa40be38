"""What a plan takes of each device's memory: weights, caches, the vocabulary's rows, scratch."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.ids import PeerId
from planner.plan import Capacity, Plan, Share, Span, Stage
from planner.profile import DeviceProfile, LayerProfile, ModelProfile

# A sliding window's cache holds the window, a step that may be taken back, and room to grow.
KV_SLACK_TOKENS = 768

NOTHING = Span(0, 0)


def stage_bytes(
    device: DeviceProfile, model: ModelProfile, layers: Span, capacity: Capacity
) -> int:
    """Memory of whole layers on one device: what it holds, and the scratch of whoever computes."""
    return held_bytes(model, layers, capacity) + device.scratch_bytes


def held_bytes(model: ModelProfile, layers: Span, capacity: Capacity) -> int:
    """What a stage of one device keeps while another model computes: weights, caches, and the head
    if it ends the model.
    """
    held = sum(layer_bytes(layer, capacity) for layer in model.layers[layers.first : layers.last])
    return held + (model.head_bytes if layers.last == len(model.layers) else 0)


def device_bytes(model: ModelProfile, plan: Plan, device: PeerId, capacity: Capacity) -> int:
    """What a plan keeps on one of its devices, with this room; 0 on any other."""
    return placed_bytes(model, plan.stages, plan.head, capacity).get(device, 0)


def placed_bytes(
    model: ModelProfile, stages: Sequence[Stage], head: Sequence[Share], capacity: Capacity
) -> dict[PeerId, int]:
    """What each device keeps of a model that is placed so, scratch left out.

    An empty `head` is that of the last stage's lead.
    """
    held: dict[PeerId, int] = {}
    for stage in stages:
        for share in stage.shares:
            size = share_bytes(model, stage.layers, share, capacity)
            held[share.device] = held.get(share.device, 0) + size
    last = stages[-1]
    if last.layers.last == len(model.layers):
        for device, rows in head_rows(model, last, head):
            held[device] = held.get(device, 0) + head_bytes(model, rows)
    return held


def share_bytes(model: ModelProfile, layers: Span, share: Share, capacity: Capacity) -> int:
    """Weights and caches of a share of these layers, the head left out."""
    return sum(
        count * layer_share_bytes(model, index, share, capacity)
        for index, count in alike(model, layers)
    )


def alike(model: ModelProfile, layers: Span) -> list[tuple[int, int]]:
    """One layer of each kind among these, and how many of it there are."""
    kinds: dict[LayerProfile, list[int]] = {}
    for index in range(layers.first, layers.last):
        kinds.setdefault(model.layers[index], []).append(index)
    return [(indexes[0], len(indexes)) for indexes in kinds.values()]


def layer_share_bytes(model: ModelProfile, index: int, share: Share, capacity: Capacity) -> int:
    """Weights and caches of a share of one layer."""
    return part_bytes(model, index, share) + _cache_bytes(model, index, share, capacity)


def part_bytes(model: ModelProfile, index: int, share: Share) -> int:
    """Weights of a share of one layer."""
    cut, whole = model.cut_of(index), model.layers[index].weight_bytes
    if cut is None or not is_part(share):
        return whole
    return min(cut.share_bytes(*spans_of(model, index, share)), whole)


def is_part(share: Share) -> bool:
    """Whether it is less than all weights of its layers."""
    return share.heads is not None or share.columns is not None


def spans_of(model: ModelProfile, index: int, share: Share) -> tuple[Span, Span]:
    """Its heads and columns of one layer. Shares count as the model's first layer does; of a layer
    that has others it is the same part.
    """
    cut, first = model.cut_of(index), model.cut_of(0)
    assert cut is not None, "only layers that can be cut are"
    assert first is not None
    heads = Span(0, cut.heads) if share.heads is None else share.heads
    columns = Span(0, cut.columns) if share.columns is None else share.columns
    return (
        heads if share.heads is None else heads.scaled(first.heads, cut.heads),
        columns if share.columns is None else columns.scaled(first.columns, cut.columns),
    )


def layer_bytes(layer: LayerProfile, capacity: Capacity) -> int:
    """One whole layer's weights and its caches of all conversations."""
    return layer.weight_bytes + cache_bytes(layer, capacity)


def cache_bytes(layer: LayerProfile, capacity: Capacity) -> int:
    """One whole layer's caches of all conversations."""
    tokens = capacity.context
    if layer.window is not None:
        tokens = min(tokens, layer.window + KV_SLACK_TOKENS)
    return capacity.sessions * (layer.session_bytes + layer.kv_bytes_per_token * tokens)


def head_rows(
    model: ModelProfile, last: Stage, head: Sequence[Share]
) -> list[tuple[PeerId, Span | None]]:
    """Who holds which rows of the vocabulary; None: all."""
    if not head:
        return [(last.lead, None)]
    return [(share.device, share.vocab) for share in head]


def head_bytes(model: ModelProfile, rows: Span | None) -> int:
    """What so many rows of the head take, the norm in front of it being nothing beside them."""
    if rows is None:
        return model.head_bytes
    return -(-model.head_bytes * len(rows) // max(1, model.vocabulary))


def _cache_bytes(model: ModelProfile, index: int, share: Share, capacity: Capacity) -> int:
    """A share of a layer has the caches of its KV heads."""
    whole = cache_bytes(model.layers[index], capacity)
    cut = model.cut_of(index)
    if cut is None or not is_part(share):
        return whole
    heads, _ = spans_of(model, index, share)
    return -(-whole * len(cut.kv_heads_of(heads)) // cut.kv_heads)
