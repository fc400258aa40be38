"""What a device says of its wire: what it measured, at the speed that it has while it computes."""

from __future__ import annotations

import pytest

from apps.planning.profiles import RECEIVE_TO_SEND, wire_cost
from mesh.net.probe import LinkMeasure
from planner.profile import Curve
from runtime.measured import Measured

LAYER = Curve(((1, 0.001),))


def test_the_wire_costs_more_where_computing_leaves_less() -> None:
    links = [LinkMeasure(1e-3, 1e8, 50e-6, 1e-9), LinkMeasure(1e-3, 1e7, 70e-6, 3e-9)]
    found = wire_cost(Measured(LAYER, 0.1, slowdown=4.0), links)
    assert found is not None
    assert found.send_s_per_frame == found.receive_s_per_frame == pytest.approx(4 * 60e-6)
    assert found.send_s_per_byte == pytest.approx(4 * 2e-9)
    assert found.receive_s_per_byte == pytest.approx(RECEIVE_TO_SEND * 4 * 2e-9)
    assert not found.own_core


def test_a_device_without_links_knows_nothing_of_its_wire() -> None:
    assert wire_cost(Measured(LAYER, 0.1, own_core=True), []) is None
