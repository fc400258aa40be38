"""Timelines: who computes, sends and waits at what moment, drawn from what plans are priced by.

Of a stage that several devices share one layer, in the middle of a pass, as it is simulated; of a
pipeline a whole pass; of a head that is cut one choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from mesh.ids import PeerId
from planner.cost import flow_of, profiles
from planner.group_cost import (
    SIMULATED_LAYERS,
    Team,
    Work,
    layer_ends,
    prompt_work,
    team_of,
    token_work,
)
from planner.head_cost import head_part_s, round_trip_s
from planner.lanes import Busy
from planner.network import links_of
from planner.plan import Plan, Share, Split, Stage
from planner.profile import Cluster, ModelProfile
from planner.request import request_of

Runs = tuple[tuple[float, float], ...]  # from, to: ascending, none touches the next


@dataclass(frozen=True, slots=True)
class Lane:
    """What one device does, in seconds from the timeline's beginning."""

    device: PeerId
    compute: Runs
    wire: Runs  # its link carries what it sends


@dataclass(frozen=True, slots=True)
class Timeline:
    """In the order of the shares. While a device does not compute, it waits."""

    title: str  # such as "a layer of 0..23 with 512 tokens"
    seconds: float
    lanes: tuple[Lane, ...]


def timelines(plan: Plan, cluster: Cluster, model: ModelProfile) -> tuple[Timeline, ...]:
    """Of a prompt, of a token where the model answers in tokens, and of a head that is cut. None
    of what cannot be priced, for a link or a device was not measured.
    """
    request = request_of(model)
    drawn = _passes(plan, cluster, model, request.prompt)
    if request.answer:
        drawn += _passes(plan, cluster, model, 1)
    if plan.head:
        drawn.append(_head(plan.head, plan.stages[-1].lead, cluster, model))
    return tuple(one for one in drawn if 0 < one.seconds < inf)


def merged(runs: Iterable[tuple[float, float]]) -> Runs:
    """In order, those that touch as one, and none without length."""
    found: list[tuple[float, float]] = []
    for first, last in sorted(runs):
        if last <= first:
            continue
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return tuple(found)


def _passes(plan: Plan, cluster: Cluster, model: ModelProfile, tokens: int) -> list[Timeline]:
    what = f"{tokens} tokens" if tokens > 1 else "one token"
    if len(plan.stages) > 1 and all(len(stage.shares) == 1 for stage in plan.stages):
        return [_pipeline(plan, cluster, model, tokens, what)]
    drawn = []
    for stage in plan.stages:
        title = f"one of the layers {stage.layers} with {what}"
        if len(stage.shares) == 1 or (tokens == 1 and stage.split is Split.SEQUENCE):
            drawn.append(_alone(title, stage, profiles(cluster)[stage.lead].layer.at(tokens)))
            continue
        team = team_of(stage, profiles(cluster), links_of(cluster), model)
        if team is None:
            continue
        work = prompt_work(stage, team, model, tokens)
        if tokens == 1:
            work = token_work(stage, team, model)
        elif work.of_lead:
            work = prompt_work(stage, team, model, tokens, SIMULATED_LAYERS + 1)
        drawn.append(_layer(title, work, team))
    return drawn


def _alone(title: str, stage: Stage, seconds: float) -> Timeline:
    """A layer that the lead computes by itself."""
    others = [Lane(share.device, (), ()) for share in stage.shares[1:]]
    return Timeline(title, seconds, (Lane(stage.lead, merged([(0.0, seconds)]), ()), *others))


def _layer(title: str, work: Work, team: Team) -> Timeline:
    """The last of those that are simulated; the one before it where only the lead's end counts, for
    the others may be done with the last one by then.
    """
    trace: list[Busy] = []
    ends = layer_ends(work, team, trace)
    began_s, ended_s = ends[-3:-1] if work.of_lead and len(ends) > 2 else ends[-2:]
    lanes = []
    for index, device in enumerate(team.devices):
        compute, wire = (
            merged(
                (max(one.first_s, began_s) - began_s, min(one.last_s, ended_s) - began_s)
                for one in trace
                if one.device == index and one.on_wire is on_wire
            )
            for on_wire in (False, True)
        )
        lanes.append(Lane(device.device, compute, wire))
    return Timeline(title, ended_s - began_s, tuple(lanes))


def _pipeline(
    plan: Plan, cluster: Cluster, model: ModelProfile, tokens: int, what: str
) -> Timeline:
    """All stages, chunk by chunk: each as soon as it is there, and the stage and the link free. At
    the end the head, where it is not cut.
    """
    flow = flow_of(plan.stages, cluster, model, tokens)
    ready_s = [0.0] * flow.chunks  # when each chunk is there
    lanes = []
    for stage, busy_s, hop_s in zip(plan.stages, flow.busy_s, (*flow.hops_s, 0.0), strict=True):
        done_s = _one_by_one(ready_s, busy_s)
        ready_s = _one_by_one(done_s, hop_s)
        compute = merged((end - busy_s, end) for end in done_s)
        lanes.append(Lane(stage.lead, compute, merged((end - hop_s, end) for end in ready_s)))
    layers_s, last = ready_s[-1], lanes[-1]
    end_s = layers_s if plan.head else layers_s + profiles(cluster)[last.device].head_s
    lanes[-1] = Lane(last.device, merged([*last.compute, (layers_s, end_s)]), ())
    chunks = f" in {flow.chunks} chunks" if flow.chunks > 1 else ""
    return Timeline(f"all layers with {what}{chunks}", end_s, tuple(lanes))


def _one_by_one(ready_s: Sequence[float], each_s: float) -> list[float]:
    """When each is done, if one follows the other."""
    done: list[float] = []
    for at_s in ready_s:
        done.append(max(at_s, done[-1] if done else 0.0) + each_s)
    return done


def _head(head: tuple[Share, ...], lead: PeerId, cluster: Cluster, model: ModelProfile) -> Timeline:
    """The lead asks, all compute, the others answer. Both ways are taken to be equally long."""
    devices, links = profiles(cluster), links_of(cluster)
    lanes, ends, asks = [], [0.0], [0.0]
    for share in head:
        way_s = round_trip_s(lead, share.device, devices, links, model) / 2
        done_s = way_s + head_part_s(share, devices[share.device], model)
        asks.append(way_s)
        ends.append(done_s + way_s)
        answer = merged([(done_s, done_s + way_s)])
        lanes.append(Lane(share.device, merged([(way_s, done_s)]), answer))
    asked = [
        Lane(
            lane.device,
            lane.compute,
            merged([(0.0, max(asks))]) if lane.device == lead else lane.wire,
        )
        for lane in lanes
    ]
    return Timeline("the vocabulary, for one token", max(ends), tuple(asked))
