"""What the parts of a layer take on one device with its share of it, from what it measured.

Measured are the whole layer and a small share. A share in between, or smaller still, lies on the
line through both: so what a call costs whatever it computes is counted once a share, and a share
of a half takes more than half the time.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.plan import Wire
from planner.profile import Curve, PartCurves


@dataclass(frozen=True, slots=True)
class ShareCost:
    """Of one device with so many of a layer's heads and columns. All in seconds."""

    parts: PartCurves
    heads: int
    columns: int

    def project_s(self, rows: int) -> float:
        """Rows in front of attention: its opening, norms and positions."""
        whole, small = self.parts.whole, self.parts.small
        return self._by_heads(small.project.at(rows), whole.project.at(rows))

    def close_s(self, rows: int) -> float:
        """Rows behind attention: what closes it."""
        whole, small = self.parts.whole, self.parts.small
        return self._by_heads(small.close.at(rows), whole.close.at(rows))

    def attend_s(self, first: int, rows: int, *, sees_all_of: int = 0) -> float:
        """Attention of `rows` rows at `first` to those before them and each other, or, in an
        encoder, to all rows of the pass.
        """
        whole, small = self.parts.whole, self.parts.small
        if sees_all_of:
            seconds = [one.attend.at(sees_all_of) for one in (small, whole)]
            return self._by_heads(*seconds) * rows / sees_all_of
        return self._by_heads(
            _later_rows_s(small.attend, first, rows), _later_rows_s(whole.attend, first, rows)
        )

    def mlp_s(self, rows: int) -> float:
        whole, small = self.parts.whole, self.parts.small
        small_s, whole_s = small.mlp.at(rows), whole.mlp.at(rows)
        return _between(small_s, small.columns, whole_s, whole.columns, self.columns)

    def connect_s(self, rows: int) -> float:
        """All that stands around a layer's parts; half of it behind each of two."""
        return self.parts.connect.at(rows) if rows else 0.0

    def layer_s(self, rows: int) -> float:
        """The share's part of a layer, all of the rows being here."""
        return self.attention_s(rows) + self.mlp_s(rows) + self.connect_s(rows)

    def attention_s(self, rows: int) -> float:
        return self.project_s(rows) + self.attend_s(0, rows) + self.close_s(rows)

    def pack_s(self, rows: int, width: int, wire: Wire) -> float:
        """Packing rows, or unpacking them, each half of both."""
        match wire:
            case Wire.FP32:
                return 0.0
            case Wire.FP16:
                return rows * width * self.parts.fp16_s / 2
            case Wire.INT8:
                return rows * width * self.parts.int8_s / 2

    def add_s(self, rows: int, width: int) -> float:
        return rows * width * self.parts.add_s

    def _by_heads(self, small_s: float, whole_s: float) -> float:
        heads = self.parts.small.heads, self.parts.whole.heads
        return _between(small_s, heads[0], whole_s, heads[1], self.heads)


def _between(small_s: float, small: int, whole_s: float, whole: int, count: int) -> float:
    """On the line through both; below the small one no less than in proportion to it."""
    if count >= whole or whole <= small:
        return whole_s
    slope_s = max(0.0, whole_s - small_s) / (whole - small)
    return max(small_s + slope_s * (count - small), small_s * min(1.0, count / small))


def _later_rows_s(attend: Curve, first: int, rows: int) -> float:
    """The curve knows rows that see only each other, a triangle. Later ones see a rectangle beside
    it, for which the whole of it is computed and what they must not see is masked.

        attend(n) = a n + b n^2 / 2        the first n rows
        later     = a r + b r n            r rows that end at n
    """
    if first == 0 or rows == 0:
        return attend.at(rows) if rows else 0.0
    end = first + rows
    whole_s = attend.at(end)
    square_s = min(max(0.0, 2 * (whole_s - 2 * attend.at(end // 2))), whole_s)  # b n^2 / 2
    return (whole_s + square_s) * rows / end
