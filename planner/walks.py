"""What each device of a group does in a pass, chunk by chunk, as the walks of the runtime do it.

One function a walk (`runtime.walks`): it says what is computed, what it needs, what is sent. Pieces
are told by (layer, phase, tile, origin), marks by (layer, tile).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.lanes import Chain, Chunk, Key, Piece, Program
from planner.network import frames, rows_bytes
from planner.part_cost import ShareCost
from planner.plan import FEW_ROWS, ROW_UNITS, Span, Wire, even_units


@dataclass(frozen=True, slots=True)
class Pass:
    """So many rows through a group, devices by the index of their share."""

    costs: tuple[ShareCost, ...]
    units: tuple[Span, ...]  # of the rows, in 1 / ROW_UNITS
    rows: int
    width: int
    tiles: int
    wire: Wire
    sees_all: bool  # an encoder's rows see all others
    layers: int  # of the simulation

    @property
    def count(self) -> int:
        return len(self.costs)

    @property
    def attends_to(self) -> int:
        """What `ShareCost.attend_s` is told."""
        return self.rows if self.sees_all else 0

    def others(self, me: int) -> list[int]:
        """The next one first, so that not all send to the same."""
        return [(me + step) % self.count for step in range(1, self.count)]

    def piece(self, to: int, key: Key, rows: int, *, exact: bool = False, width: int = 0) -> Piece:
        wire, width = Wire.FP32 if exact else self.wire, width or self.width
        return Piece(to, key, rows_bytes(rows, width, wire), frames(rows, width, wire))


def hybrid(one: Pass) -> list[Program]:
    """Galaxy's: a tile's rows are gathered, opened, closed, scattered, summed and connected, and
    meanwhile the other tiles travel.
    """
    spans = _tiles(Span(0, one.rows), one.tiles)
    return [
        [_hybrid_chain(one, me, tile, span, spans) for tile, span in enumerate(spans)]
        for me in range(one.count)
    ]


def _hybrid_chain(one: Pass, me: int, tile: int, span: Span, spans: Sequence[Span]) -> Chain:
    cost, owned = one.costs[me], _owned(span, one.units)
    mine, rows = len(owned[me]), len(span)
    others = one.others(me)
    pack_s = cost.pack_s(1, one.width, one.wire)  # a row
    gather_s = pack_s * mine  # once, for all
    unpack_s = pack_s * (rows - mine)
    scatter_s = pack_s * (rows - mine)
    sum_s = len(others) * (pack_s * mine + cost.add_s(mine, one.width))
    connect_s = cost.connect_s(mine) / 2

    project_s, mlp_s = unpack_s + cost.project_s(rows), unpack_s + cost.mlp_s(rows) + scatter_s
    attend_s = cost.attend_s(span.first, rows, sees_all_of=one.attends_to)
    attend_s += cost.close_s(rows) + scatter_s
    ahead = range(len(spans)) if one.sees_all else range(max(0, tile - 1), tile)
    to_all = [one.piece(to, (), mine) for to in others if mine]
    to_owners = [one.piece(to, (), len(owned[to])) for to in others if len(owned[to])]

    def gathered(layer: int, phase: str) -> tuple[Key, ...]:
        return tuple((layer, phase, tile, origin) for origin in others if len(owned[origin]))

    def scattered(layer: int, phase: str) -> tuple[Key, ...]:
        return tuple((layer, phase, tile, origin) for origin in others) if mine else ()

    def sends(layer: int, phase: str, pieces: Sequence[Piece]) -> tuple[Piece, ...]:
        key = (layer, phase, tile, me)
        return tuple(Piece(each.to, key, each.size_bytes, each.frames) for each in pieces)

    chunks = [Chunk(connect_s + gather_s, pieces=sends(0, "attend", to_all))]
    for layer in range(one.layers):
        is_last, mark = layer == one.layers - 1, ((layer, tile),)
        project = Chunk(
            project_s,
            needs=gathered(layer, "attend"),
            marks=mark if one.sees_all else (),
            layer=layer,
        )
        attend = Chunk(
            attend_s,
            needs=tuple((layer, before) for before in ahead),
            marks=() if one.sees_all else mark,
            pieces=sends(layer, "attended", to_owners),
            layer=layer,
        )
        between = Chunk(
            sum_s + connect_s + gather_s,
            needs=scattered(layer, "attended"),
            pieces=sends(layer, "mlp", to_all),
            layer=layer,
        )
        mlp = Chunk(
            mlp_s,
            needs=gathered(layer, "mlp"),
            pieces=sends(layer, "done", to_owners),
            layer=layer,
        )
        end = Chunk(
            sum_s + connect_s + (0.0 if is_last else gather_s),
            needs=scattered(layer, "done"),
            pieces=() if is_last else sends(layer + 1, "attend", to_all),
            layer=layer,
        )
        chunks += [project, attend, between, mlp, end]
    return chunks


def tensor(one: Pass) -> list[Program]:
    """Megatron's: two sums a layer that everybody waits for. Of few rows everybody gets what each
    other has to add; of many each sums an even part for all.
    """
    few = one.rows <= FEW_ROWS
    return [[_summed_chain(one, me) if few else _reduced_chain(one, me)] for me in range(one.count)]


def _summed_chain(one: Pass, me: int) -> Chain:
    cost, others, rows = one.costs[me], one.others(me), one.rows
    sum_s = len(others) * cost.add_s(rows, one.width) + cost.connect_s(rows) / 2
    chunks: list[Chunk] = []
    needs: tuple[Key, ...] = ()
    before_s = 0.0
    for layer in range(one.layers):
        for phase, part_s in (("attended", cost.attention_s(rows)), ("done", cost.mlp_s(rows))):
            key = (layer, phase, 0, me)
            pieces = tuple(one.piece(to, key, rows, exact=True) for to in others)
            chunks.append(Chunk(before_s + part_s, needs, pieces, layer=layer))
            needs = tuple((layer, phase, 0, origin) for origin in others)
            before_s = sum_s
        chunks.append(Chunk(sum_s, needs, layer=layer))
        needs, before_s = (), 0.0
    return chunks


def _reduced_chain(one: Pass, me: int) -> Chain:
    cost, others = one.costs[me], one.others(me)
    owned = _owned(Span(0, one.rows), even_units(one.count))
    mine = len(owned[me])
    pack_s = cost.pack_s(1, one.width, one.wire)
    scatter_s = pack_s * (one.rows - mine)
    sum_s = len(others) * (pack_s * mine + cost.add_s(mine, one.width)) + pack_s * mine
    connect_s = pack_s * (one.rows - mine) + cost.connect_s(one.rows) / 2
    attention_s = cost.close_s(one.rows) + cost.project_s(one.rows)
    attention_s += cost.attend_s(0, one.rows, sees_all_of=one.attends_to)
    chunks: list[Chunk] = []
    needs: tuple[Key, ...] = ()
    for layer in range(one.layers):
        for phase, part_s in (("attended", attention_s), ("done", cost.mlp_s(one.rows))):
            key, back = (layer, phase, 0, me), (layer, phase, 1, me)
            pieces = tuple(one.piece(to, key, len(owned[to])) for to in others)
            chunks.append(Chunk(part_s + scatter_s, needs, pieces, layer=layer))
            heard = tuple((layer, phase, 0, origin) for origin in others)
            pieces = tuple(one.piece(to, back, mine) for to in others)
            chunks.append(Chunk(sum_s, heard, pieces, layer=layer))
            heard = tuple((layer, phase, 1, origin) for origin in others)
            chunks.append(Chunk(connect_s, heard, layer=layer))
            needs = ()
    return chunks


def sequence(one: Pass, kv_width: int) -> list[Program]:
    """Rows are cut, and keys and values [rows, kv_width] travel as soon as they are there. In a
    decoder a device waits only for those with earlier rows.
    """
    owned = _owned(Span(0, one.rows), one.units)
    if not one.sees_all:
        return [[_earlier_chain(one, me, owned, kv_width)] for me in range(one.count)]
    tiles = [_tiles(span, one.tiles) for span in owned]
    return [
        [_seen_chain(one, me, tile, tiles, kv_width) for tile in range(len(tiles[me]))]
        for me in range(one.count)
    ]


def _earlier_chain(one: Pass, me: int, owned: Sequence[Span], kv_width: int) -> Chain:
    cost, span, others = one.costs[me], owned[me], one.others(me)
    rows = len(span)
    earlier = [to for to in others if owned[to].first < span.first and len(owned[to])]
    pack_s = cost.pack_s(1, kv_width, one.wire)
    project_s = cost.project_s(rows) + pack_s * rows
    rest_s = cost.attend_s(span.first, rows) + cost.close_s(rows) + cost.mlp_s(rows)
    rest_s += cost.connect_s(rows) + pack_s * sum(len(owned[one_]) for one_ in earlier)
    chunks: list[Chunk] = []
    for layer in range(one.layers):
        key = (layer, "kv", 0, me)
        pieces = tuple(one.piece(to, key, rows, width=kv_width) for to in others)
        needs = tuple((layer, "kv", 0, origin) for origin in earlier)
        chunks.append(Chunk(project_s, (), pieces, layer=layer))
        chunks.append(Chunk(rest_s, needs, layer=layer))
    return chunks


def _seen_chain(
    one: Pass, me: int, tile: int, tiles: Sequence[Sequence[Span]], kv_width: int
) -> Chain:
    cost, others, rows = one.costs[me], one.others(me), len(tiles[me][tile])
    theirs = [(origin, number) for origin in others for number in range(len(tiles[origin]))]
    pack_s = cost.pack_s(1, kv_width, one.wire)
    project_s = cost.project_s(rows) + pack_s * rows
    rest_s = cost.attend_s(0, rows, sees_all_of=one.rows) + cost.close_s(rows)
    rest_s += cost.mlp_s(rows) + cost.connect_s(rows)
    unpack_s = pack_s * sum(len(tiles[origin][number]) for origin, number in theirs)
    rest_s += unpack_s / len(tiles[me])
    chunks: list[Chunk] = []
    for layer in range(one.layers):
        key = (layer, "kv", tile, me)
        pieces = tuple(one.piece(to, key, rows, width=kv_width) for to in others)
        needs = tuple((layer, "kv", number, origin) for origin, number in theirs)
        marks = tuple((layer, number) for number in range(len(tiles[me])))
        chunks.append(Chunk(project_s, (), pieces, ((layer, tile),), layer))
        chunks.append(Chunk(rest_s, (*needs, *marks), layer=layer))
    return chunks


# --- whose rows are whose, as in `runtime.walks.rows` -------------------------------------------


def _tiles(rows: Span, tiles: int) -> list[Span]:
    """As at most `tiles` runs of rows; none where there are no rows."""
    count = min(tiles, len(rows))
    marks = [rows.first + len(rows) * index // max(1, count) for index in range(count + 1)]
    return [Span(first, last) for first, last in zip(marks, marks[1:], strict=False)]


def _owned(tile: Span, units: Sequence[Span]) -> list[Span]:
    return [
        Span(
            tile.first + len(tile) * unit.first // ROW_UNITS,
            tile.first + len(tile) * unit.last // ROW_UNITS,
        )
        for unit in units
    ]
