"""The one cost model: what a placement takes in seconds, and whether it fits.

A pass of n tokens goes through the stages one after the other:

    step_s(n) = sum of stages + head_s + sum of hops + the token's way back

A stage of one device takes layers * layer_s(n); what a stage of several takes is simulated
(`group_cost`). A pipeline may take a prompt in c chunks, of which one goes on while the next is
computed: then the slowest stage or hop is all that c - 1 of them add.

The session's owner is not known when planning, so its two hops are counted as one loop: the 4-byte
token goes from the last stage's lead back to the first's, which costs nothing on one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from mesh.errors import PlanError
from mesh.ids import PeerId
from planner.group_cost import IDLE, PassCost, prompt_cost, team_of, token_cost
from planner.head_cost import head_part_s, head_s, head_wire_bytes
from planner.memory import placed_bytes
from planner.network import Links, hidden_bytes, hop_s, links_of, return_s, token_bytes
from planner.plan import (
    Capacity,
    Effort,
    Prediction,
    Share,
    Stage,
    StageForecast,
)
from planner.profile import Cluster, DeviceProfile, ModelProfile, Stacks
from planner.request import Request, request_of


def predict(
    stages: tuple[Stage, ...],
    cluster: Cluster,
    model: ModelProfile,
    capacity: Capacity,
    head: tuple[Share, ...] = (),
    request: Request | None = None,
) -> Prediction:
    """What `stages` would take, with the vocabulary's rows where `head` says; seconds are infinite
    where a link was not measured, or a device of a group does not know its parts.

    Raises PlanError for a device that is not in the cluster. The sum along the pipeline is
    EdgeShard's latency objective, with the prompt and the answer weighed as one request.
    """
    request = request or request_of(model)
    devices = profiles(cluster)
    shares = [*(share for stage in stages for share in stage.shares), *head]
    missing = [share.device for share in shares if share.device not in devices]
    if missing:
        raise PlanError(f"expected devices of the cluster; {missing[0].short} is none of them")
    home = _Home(devices, links_of(cluster), model)
    prompt = _prompt(stages, home, request.prompt)
    token = _token(stages, home) if request.answer else _Step(0.0, (), 0)
    ending_s = home.ending_s(stages, head)
    sizes = placed_bytes(model, stages, head, capacity)
    return Prediction(
        prefill_s=prompt.seconds + ending_s,
        decode_s=token.seconds + ending_s if request.answer else 0.0,
        wire_bytes_per_token=token.sent_bytes + home.ending_bytes(stages, head),
        memory_bytes=tuple(
            (device, size + devices[device].scratch_bytes) for device, size in sizes.items()
        ),
        forecasts=_forecasts(stages, prompt, token, home, head),
    )


@dataclass(frozen=True, slots=True)
class Flow:
    """A pass through a pipeline: what each stage takes with one chunk of it, and the way on."""

    chunks: int
    busy_s: tuple[float, ...]
    hops_s: tuple[float, ...]  # to the next stage; one less


def flow_of(stages: tuple[Stage, ...], cluster: Cluster, model: ModelProfile, tokens: int) -> Flow:
    """Of stages with one device each."""
    return _Home(profiles(cluster), links_of(cluster), model).flow(stages, tokens)


def objective_s(prediction: Prediction, request: Request) -> float:
    """Seconds for the request that plans are compared by; lower is better."""
    return request.seconds(prediction.prefill_s, prediction.decode_s)


def fits(prediction: Prediction, cluster: Cluster) -> bool:
    """Whether every device has the memory, and every hop a measured link."""
    devices = profiles(cluster)
    return max(prediction.prefill_s, prediction.decode_s) < inf and all(
        size_bytes <= devices[device].memory_bytes for device, size_bytes in prediction.memory_bytes
    )


def profiles(cluster: Cluster) -> dict[PeerId, DeviceProfile]:
    return {device.device: device for device in cluster.devices}


def network_s(
    stages: tuple[Stage, ...], cluster: Cluster, model: ModelProfile, tokens: int
) -> float:
    """A step's time on the wire: between the stages, and the token's way back."""
    if len(stages) == 1:
        return 0.0
    links = links_of(cluster)
    back_s = return_s(links, stages[-1].lead, stages[0].lead)
    return sum(_hops_s(stages, links, model, tokens)) + back_s


# --- a step --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """Through all stages; without what follows the last layer."""

    seconds: float
    efforts: tuple[tuple[Effort, ...], ...]  # by stage, by share
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class _Home:
    devices: dict[PeerId, DeviceProfile]
    links: Links
    model: ModelProfile

    def alone_s(self, stage: Stage, tokens: int, chunks: int = 1) -> float:
        """A stage of one device with one of the chunks. A later chunk sees more than the first:
        all of them together take no less than the whole at once.
        """
        layer = self.devices[stage.lead].layer
        rows = -(-tokens // chunks)
        return len(stage.layers) * max(layer.at(rows), layer.at(tokens) / chunks)

    def flow(self, stages: tuple[Stage, ...], tokens: int) -> Flow:
        """A pass through stages of one device each."""
        chunks = _chunks(stages, tokens, self.model)
        busy_s = tuple(self.alone_s(stage, tokens, chunks) for stage in stages)
        hops_s = _hops_s(stages, self.links, self.model, -(-tokens // chunks))
        return Flow(chunks, busy_s, tuple(hops_s))

    def shared(self, stage: Stage, tokens: int) -> PassCost:
        """A stage of several devices with all of the tokens."""
        team = team_of(stage, self.devices, self.links, self.model)
        if team is None:
            return PassCost(inf, (IDLE,) * len(stage.shares), 0)
        if tokens == 1:
            return token_cost(stage, team, self.model)
        return prompt_cost(stage, team, self.model, tokens)

    def ending_s(self, stages: Sequence[Stage], head: Sequence[Share]) -> float:
        """The head for one token, and the token's way back."""
        last = stages[-1].lead
        chosen_s = head_s(head, last, self.devices, self.links, self.model)
        return chosen_s + return_s(self.links, last, stages[0].lead)

    def choosing_s(self, stages: Sequence[Stage], head: Sequence[Share], device: PeerId) -> float:
        """What a device computes of the head for one token."""
        profile = self.devices[device]
        if not head:
            return profile.head_s if device == stages[-1].lead else 0.0
        return sum(
            head_part_s(share, profile, self.model) for share in head if share.device == device
        )

    def ending_bytes(self, stages: Sequence[Stage], head: Sequence[Share]) -> int:
        back = token_bytes() if stages[-1].lead != stages[0].lead else 0
        return back + head_wire_bytes(head, stages[-1].lead, self.model)


def _prompt(stages: tuple[Stage, ...], home: _Home, tokens: int) -> _Step:
    if any(len(stage.shares) > 1 for stage in stages):
        return _through(stages, home, tokens)
    flow = home.flow(stages, tokens)
    first_s = sum(flow.busy_s) + sum(flow.hops_s)
    seconds = first_s + (flow.chunks - 1) * max([*flow.busy_s, *flow.hops_s])
    efforts = tuple(
        (Effort(flow.chunks * busy, flow.chunks * wire, 0.0),)
        for busy, wire in zip(flow.busy_s, (*flow.hops_s, 0.0), strict=True)
    )
    return _Step(seconds, efforts, 0)


def _token(stages: tuple[Stage, ...], home: _Home) -> _Step:
    return _through(stages, home, 1)


def _through(stages: tuple[Stage, ...], home: _Home, tokens: int) -> _Step:
    """One stage after the other, each with all of the tokens."""
    hops_s = [*_hops_s(stages, home.links, home.model, tokens), 0.0]
    seconds, sent = sum(hops_s), (len(stages) - 1) * hidden_bytes(home.model, tokens)
    efforts = []
    for stage, hop in zip(stages, hops_s, strict=True):
        if len(stage.shares) > 1:
            cost = home.shared(stage, tokens)
        else:
            alone_s = home.alone_s(stage, tokens)
            cost = PassCost(alone_s, (Effort(alone_s, 0.0, 0.0),), 0)
        seconds += cost.seconds
        sent += cost.sent_bytes
        lead = cost.efforts[0]
        on = Effort(lead.compute_s, lead.wire_s + hop, lead.wait_s)
        efforts.append((on, *cost.efforts[1:]))
    return _Step(seconds, tuple(efforts), sent)


def _chunks(stages: Sequence[Stage], tokens: int, model: ModelProfile) -> int:
    """How many chunks a prompt goes through a pipeline in: what an encoder reads goes whole."""
    if len(stages) < 2 or model.stacks is not Stacks.DECODER:
        return 1
    return min(max(1, *(stage.tiles for stage in stages)), tokens)


def _hops_s(stages: Sequence[Stage], links: Links, model: ModelProfile, tokens: int) -> list[float]:
    path = [stage.lead for stage in stages]
    size_bytes = hidden_bytes(model, tokens)
    return [
        hop_s(links, source, target, size_bytes)
        for source, target in zip(path, path[1:], strict=False)
    ]


def _forecasts(
    stages: tuple[Stage, ...],
    prompt: _Step,
    token: _Step,
    home: _Home,
    head: tuple[Share, ...],
) -> tuple[StageForecast, ...]:
    ending_s = home.ending_s(stages, head)
    found = []
    for number, stage in enumerate(stages):
        for index, share in enumerate(stage.shares):
            chosen_s = home.choosing_s(stages, head, share.device)
            prefill, decode = (
                _whole(step.efforts[number][index], chosen_s, step.seconds + ending_s)
                if step.efforts
                else IDLE
                for step in (prompt, token)
            )
            found.append(StageForecast(number, index, prefill, decode))
    return tuple(found)


def _whole(effort: Effort, chosen_s: float, seconds: float) -> Effort:
    """With the head; for the rest of the pass the device waits."""
    compute_s = effort.compute_s + chosen_s
    return Effort(compute_s, effort.wire_s, max(0.0, seconds - compute_s))
