"""What a pass takes in a stage that several devices share: one layer simulated, and its two ends.

The third of three layers stands for all that follow: by then a group goes on evenly (papers:
Galaxy, section III, prices a layer as the slowest of each part; here parts of tiles overlap, so
their order decides).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mesh.ids import PeerId
from planner.lanes import Busy, Program, Wires, finish_s, wires_of
from planner.network import TOKEN_BYTES, Links, frames, rows_bytes
from planner.part_cost import ShareCost
from planner.plan import MIN_SHARED_ROWS, ROW_UNITS, Effort, Span, Split, Stage, Wire
from planner.profile import DeviceProfile, ModelProfile, Stacks
from planner.walks import Pass, hybrid, sequence, tensor

SIMULATED_LAYERS = 3

IDLE = Effort(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class PassCost:
    """A pass through a stage, in seconds, and what each of its devices does meanwhile."""

    seconds: float
    efforts: tuple[Effort, ...]  # in the order of the shares
    sent_bytes: int  # by all of them


@dataclass(frozen=True, slots=True)
class Team:
    """The devices of a stage in the order of its shares, all of which know their parts."""

    devices: tuple[DeviceProfile, ...]
    costs: tuple[ShareCost, ...]
    wires: Wires


def team_of(
    stage: Stage, devices: dict[PeerId, DeviceProfile], links: Links, model: ModelProfile
) -> Team | None:
    """None where a device does not know its parts, or a link was not measured."""
    cut = model.cut_of(0)
    chosen = tuple(devices[share.device] for share in stage.shares)
    if cut is None:
        return None
    costs = []
    for share, device in zip(stage.shares, chosen, strict=True):
        if device.parts is None:
            return None
        heads = cut.heads if share.heads is None else len(share.heads)
        columns = cut.columns if share.columns is None else len(share.columns)
        costs.append(ShareCost(device.parts, heads, columns))
    wires = wires_of(chosen, links)
    return Team(chosen, tuple(costs), wires) if wires.is_whole else None


@dataclass(frozen=True, slots=True)
class Work:
    """A few layers of a pass, to be simulated."""

    programs: list[Program]
    layers: int
    of_lead: bool  # the pass is over when the lead has done them, whatever the others do


def prompt_work(
    stage: Stage, team: Team, model: ModelProfile, rows: int, layers: int = SIMULATED_LAYERS
) -> Work:
    """Many rows at once, through so many layers."""
    one = replace(_prompt_pass(stage, team, model, rows), layers=min(layers, len(stage.layers)))
    of_lead = stage.split is Split.SEQUENCE and not one.sees_all and _ends(stage, model)
    return Work(_programs(stage, one, model), one.layers, of_lead)


def token_work(stage: Stage, team: Team, model: ModelProfile) -> Work:
    """One row, where all sum up what each has to add."""
    layers = min(SIMULATED_LAYERS, len(stage.layers))
    whole = Span(0, ROW_UNITS)
    one = Pass(
        team.costs, (whole,) * len(team.costs), 1, model.hidden_size, 1, Wire.FP32, False, layers
    )
    return Work(tensor(one), layers, of_lead=False)


def layer_ends(work: Work, team: Team, trace: list[Busy] | None = None) -> list[float]:
    """When each of the simulated layers is done, behind the beginning of the first."""
    finished = finish_s(work.programs, team.wires, work.layers, trace)
    if work.of_lead:
        finished = finished[:1]
    return [0.0, *(max(of[layer] for of in finished) for layer in range(work.layers))]


def prompt_cost(stage: Stage, team: Team, model: ModelProfile, rows: int) -> PassCost:
    """Many rows at once, from the lead's order until it has what it sends on."""
    one = _prompt_pass(stage, team, model, rows)
    walked = _walked(prompt_work(stage, team, model, rows), team, stage)
    order_s = _order_s(stage, team, model, rows)
    return PassCost(
        walked.seconds + order_s + _collect_s(team, _collected(stage, one, model), one.width),
        walked.efforts,
        walked.sent_bytes,
    )


def token_cost(stage: Stage, team: Team, model: ModelProfile) -> PassCost:
    """One row. Where all have all weights the lead is alone with it, else they sum up what each
    has to add, twice a layer.
    """
    if stage.split is Split.SEQUENCE:
        alone_s = len(stage.layers) * team.devices[0].layer.at(1)
        others = (IDLE,) * (len(team.devices) - 1)
        return PassCost(alone_s, (Effort(alone_s, 0.0, 0.0), *others), 0)
    walked = _walked(token_work(stage, team, model), team, stage)
    order_s = _order_s(stage, team, model, 1)
    return PassCost(walked.seconds + order_s, walked.efforts, walked.sent_bytes)


# --- a walk --------------------------------------------------------------------------------------


def _prompt_pass(stage: Stage, team: Team, model: ModelProfile, rows: int) -> Pass:
    return Pass(
        costs=team.costs,
        units=stage.row_units,
        rows=rows,
        width=model.hidden_size,
        tiles=stage.tiles,
        wire=stage.wire,
        sees_all=model.stacks is Stacks.ENCODER,
        layers=min(SIMULATED_LAYERS, len(stage.layers)),
    )


def _ends(stage: Stage, model: ModelProfile) -> bool:
    return stage.layers.last == len(model.layers)


def _programs(stage: Stage, one: Pass, model: ModelProfile) -> list[Program]:
    match stage.split:
        case Split.HYBRID if one.rows >= MIN_SHARED_ROWS:
            return hybrid(one)
        case Split.HYBRID | Split.TENSOR:
            return tensor(one)
        case _:
            cut = model.cut_of(0)
            assert cut is not None, "a team's layers can be cut"
            return sequence(one, 2 * cut.kv_heads * cut.head_dim)


def _walked(work: Work, team: Team, stage: Stage) -> PassCost:
    """All layers of the stage, from a simulation of a few."""
    ends = layer_ends(work, team)
    depth = len(stage.layers)
    seconds = ends[-1] + (depth - work.layers) * (ends[-1] - ends[-2])
    scale = depth / work.layers
    efforts, sent = [], 0
    for me, program in enumerate(work.programs):
        chunks = [chunk for chain in program for chunk in chain]
        compute_s = scale * sum(chunk.compute_s for chunk in chunks)
        wire_s = 0.0
        for chunk in chunks:
            for piece in chunk.pieces:
                sent += piece.size_bytes
                wire_s += piece.size_bytes / team.wires.bytes_per_s[me][piece.to]
        efforts.append(Effort(compute_s, scale * wire_s, max(0.0, seconds - compute_s)))
    return PassCost(seconds, tuple(efforts), round(scale * sent))


# --- its two ends --------------------------------------------------------------------------------


def _order_s(stage: Stage, team: Team, model: ModelProfile, rows: int) -> float:
    """The lead tells the others what a pass computes: of the first stage the tokens, which each
    embeds for itself, of a later one all rows.
    """
    size, count = rows * TOKEN_BYTES, 1
    if stage.layers.first:
        size, count = rows_bytes(rows, model.hidden_size), frames(rows, model.hidden_size)
    cost, wires = team.wires.costs[0], team.wires
    last_s = 0.0
    for number in range(1, len(team.devices)):
        sent_s = number * max(
            size / wires.bytes_per_s[0][number],
            size * cost.send_s_per_byte + count * cost.send_s_per_frame,
        )
        heard_s = wires.costs[number].receive_s_per_frame + wires.latency_s[0][number]
        last_s = max(last_s, sent_s + heard_s)
    return last_s


def _collected(stage: Stage, one: Pass, model: ModelProfile) -> list[int]:
    """How many rows each device has for the lead at the end. All its own where they go on to a
    stage; of an encoder that ends here one, for each sums up its own; of a decoder the last of all,
    from whoever has it.
    """
    if stage.split is Split.TENSOR or (stage.split is Split.HYBRID and one.rows < MIN_SHARED_ROWS):
        return [0] * one.count
    rows = [one.rows * len(unit) // ROW_UNITS for unit in one.units]
    if not _ends(stage, model):
        return rows
    if one.sees_all:
        return [min(1, count) for count in rows]
    return [int(unit.last == ROW_UNITS) for unit in one.units]


def _collect_s(team: Team, rows: list[int], width: int) -> float:
    """What the lead sends on or answers with comes to it, as exact numbers."""
    wires, total_s, latency_s = team.wires, 0.0, 0.0
    for number, count in enumerate(rows[1:], start=1):
        if count:
            size = rows_bytes(count, width)
            cost = wires.costs[0].receive_s_per_byte
            total_s += size * max(1 / wires.bytes_per_s[number][0], cost)
            latency_s = max(latency_s, wires.latency_s[number][0])
    return total_s + latency_s
