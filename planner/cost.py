"""The one cost model: what a pipeline of stages takes in seconds, wire bytes and memory.

A step of n tokens goes through the stages one after the other (batch 1, no overlap of chunks yet):

    step_s(n) = sum of layers * layer_s(n) + head_s + sum of hops + the token's way back

The session's owner is not known when planning, so its two hops are counted as one loop: the 4-byte
token goes from the last stage's device back to the first's, which costs nothing on one device.
"""

from __future__ import annotations

from math import inf

from mesh.errors import PlanError
from mesh.ids import PeerId
from planner.plan import Capacity, Prediction, Span, Stage
from planner.profile import Cluster, DeviceProfile, LayerProfile, LinkProfile, ModelProfile

# The request that plans are compared by: a prompt of a page, an answer of a paragraph.
PREFILL_TOKENS = 512
EXPECTED_NEW_TOKENS = 128

TOKEN_BYTES = 4  # int32
HIDDEN_BYTES = 4  # fp32 on the wire
FRAME_BYTES = 256 * 1024  # what one frame carries at most
FRAME_OVERHEAD_BYTES = 150  # its header, and TLS and websocket framing
# A sliding window's cache holds the window, a step that may be taken back, and room to grow.
KV_SLACK_TOKENS = 768

Links = dict[tuple[PeerId, PeerId], LinkProfile]


def predict(
    stages: tuple[Stage, ...], cluster: Cluster, model: ModelProfile, capacity: Capacity
) -> Prediction:
    """What `stages` would take; seconds are infinite where a link was not measured.

    Raises PlanError for a device that is not in the cluster. The sum along the pipeline is
    EdgeShard's latency objective, with the prompt and the answer weighed as one request.
    """
    devices = profiles(cluster)
    missing = [stage.lead for stage in stages if stage.lead not in devices]
    if missing:
        raise PlanError(f"expected devices of the cluster; {missing[0].short} is none of them")
    hops = len(stages) - 1
    back_bytes = _token_bytes() if hops else 0
    return Prediction(
        prefill_s=_step_s(stages, cluster, model, PREFILL_TOKENS),
        decode_s=_step_s(stages, cluster, model, 1),
        wire_bytes_per_token=hops * hidden_bytes(model, 1) + back_bytes,
        memory_bytes=tuple(
            (stage.lead, stage_bytes(devices[stage.lead], model, stage.layers, capacity))
            for stage in stages
        ),
    )


def objective_s(prediction: Prediction) -> float:
    """Seconds for the request that plans are compared by; lower is better."""
    return request_s(prediction.prefill_s, prediction.decode_s)


def request_s(prefill_s: float, decode_s: float) -> float:
    """One prompt and its answer, from the seconds of a prefill step and of a decode step."""
    return prefill_s + EXPECTED_NEW_TOKENS * decode_s


def fits(prediction: Prediction, cluster: Cluster) -> bool:
    """Whether every device has the memory, and every hop a measured link."""
    devices = profiles(cluster)
    return objective_s(prediction) < inf and all(
        size_bytes <= devices[device].memory_bytes for device, size_bytes in prediction.memory_bytes
    )


def stage_bytes(
    device: DeviceProfile, model: ModelProfile, layers: Span, capacity: Capacity
) -> int:
    """Memory of a stage on one device: what it holds, and the scratch of whoever computes."""
    return held_bytes(model, layers, capacity) + device.scratch_bytes


def held_bytes(model: ModelProfile, layers: Span, capacity: Capacity) -> int:
    """What a stage keeps while another model computes: weights, caches, the head if it ends it."""
    held = sum(layer_bytes(layer, capacity) for layer in model.layers[layers.first : layers.last])
    return held + (model.head_bytes if layers.last == len(model.layers) else 0)


def layer_bytes(layer: LayerProfile, capacity: Capacity) -> int:
    """One layer's weights and its caches of all conversations."""
    tokens = capacity.context
    if layer.window is not None:
        tokens = min(tokens, layer.window + KV_SLACK_TOKENS)
    session_bytes = layer.session_bytes + layer.kv_bytes_per_token * tokens
    return layer.weight_bytes + capacity.sessions * session_bytes


def compute_s(device: DeviceProfile, model: ModelProfile, layers: Span, tokens: int) -> float:
    """A step's time in one stage. The head runs for a step's last token only."""
    head_s = device.head_s if layers.last == len(model.layers) else 0.0
    return len(layers) * device.layer.at(tokens) + head_s


def network_s(
    stages: tuple[Stage, ...], cluster: Cluster, model: ModelProfile, tokens: int
) -> float:
    """A step's time on the wire: between the stages, and the token's way back."""
    if len(stages) == 1:
        return 0.0
    links = links_of(cluster)
    path = [stage.lead for stage in stages]
    size_bytes = hidden_bytes(model, tokens)
    forward_s = sum(
        hop_s(links, source, target, size_bytes)
        for source, target in zip(path, path[1:], strict=False)
    )
    return forward_s + return_s(links, path[-1], path[0])


def hop_s(links: Links, source: PeerId, target: PeerId, size_bytes: int) -> float:
    """Half a round trip and the bytes; infinite where nobody measured the link."""
    if source == target:
        return 0.0
    link = links.get((source, target))
    if link is None or not (link.bytes_per_s > 0 and link.round_trip_s >= 0):
        return inf
    return link.round_trip_s / 2 + size_bytes / link.bytes_per_s


def return_s(links: Links, last: PeerId, first: PeerId) -> float:
    """The sampled token's way back."""
    return hop_s(links, last, first, _token_bytes())


def hidden_bytes(model: ModelProfile, tokens: int) -> int:
    """What a hidden state [tokens, hidden_size] weighs on the wire; a frame holds whole rows."""
    row_bytes = model.hidden_size * HIDDEN_BYTES
    frames = -(-tokens // max(1, FRAME_BYTES // row_bytes))
    return tokens * row_bytes + frames * FRAME_OVERHEAD_BYTES


def links_of(cluster: Cluster) -> Links:
    return {(link.source, link.target): link for link in cluster.links}


def profiles(cluster: Cluster) -> dict[PeerId, DeviceProfile]:
    return {device.device: device for device in cluster.devices}


def _step_s(stages: tuple[Stage, ...], cluster: Cluster, model: ModelProfile, tokens: int) -> float:
    devices = profiles(cluster)
    busy_s = sum(compute_s(devices[stage.lead], model, stage.layers, tokens) for stage in stages)
    return busy_s + network_s(stages, cluster, model, tokens)


def _token_bytes() -> int:
    return TOKEN_BYTES + FRAME_OVERHEAD_BYTES
