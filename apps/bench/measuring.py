"""All strategies in one emulated home, pass by pass in turns: whatever the machine does besides
meets all of them alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import mean

from apps.bench.home import Device, DeviceFailed, Environment, Home, all_of
from apps.bench.passes import Done, Gloo, Model, Ours, Way, Work
from apps.bench.shapes import CONTEXT
from apps.bench.strategies import BOUNDS, GLOO, ONE, WIRE, WORK, Party, Strategy, plan_of
from mesh.ids import PeerId
from mesh.trust import MeshSecret
from planner.plan import Plan

Progress = Callable[[str], None]


@dataclass(slots=True)
class Passes:
    """What was measured of one strategy with one model in one home."""

    environment: str
    model: str
    strategy: str
    done: list[Done] = field(default_factory=list)
    error: float | None = None  # against one device alone, in parts of its largest number
    failed: str = ""  # why there are no figures

    @property
    def seconds(self) -> list[float]:
        return [one.seconds for one in self.done]

    @property
    def sent_bytes(self) -> float:
        """By all devices, of a pass."""
        return mean(one.sent_bytes for one in self.done)

    @property
    def cpu_s(self) -> float:
        """Of the device that is busiest, of a pass."""
        return mean(max(one.cpu_s, default=0.0) for one in self.done)


class Measuring:
    """The devices of one home, ready to be asked."""

    def __init__(self, home: Home, devices: Sequence[Device], progress: Progress) -> None:
        self._home = home
        self._devices = devices
        self._ranks: list[Device] = []
        self._progress = progress
        peers = tuple(PeerId(device.ready["peer"]) for device in devices)
        self.party = Party(peers, home.environment.cores)

    @classmethod
    @asynccontextmanager
    async def of(cls, environment: Environment, progress: Progress) -> AsyncIterator[Measuring]:
        """Raises ConfigError where this machine cannot be that home."""
        progress(f"{environment}: devices start")
        async with Home.of(environment) as home:
            secret = MeshSecret.new().join_code
            devices = await home.start("apps.bench.device", secret=secret)
            table = {device.ready["peer"]: device.ready["address"] for device in devices}
            with home.unlimited():
                await all_of(
                    device.ask("connect", peers=_without(table, device.ready["peer"]))
                    for device in devices
                )
            yield cls(home, devices, progress)

    async def run(
        self, model: Model, strategies: Sequence[Strategy], bound: Strategy | None, runs: int
    ) -> list[Passes]:
        """Each strategy `runs` times, after one pass that warms up and is held against the others;
        Megatron over gloo as well; and of `bound` the work and the wire, each alone.
        """
        ways = self._ways(model, strategies, bound)
        ways[GLOO] = Gloo(self._home, await self._started_ranks(), model)
        name = self._home.environment.name
        found = {strategy: Passes(name, model.name, strategy) for strategy in ways}
        said: dict[str, Sequence[float]] = {}
        for turn in range(runs + 1):
            for strategy, passes in found.items():
                if passes.failed:
                    continue
                self._progress(f"{name}, {model.name}: {strategy}, run {turn} of {runs}")
                try:
                    if turn == 0:
                        await ways[strategy].load()
                        said[strategy] = (await ways[strategy].run(told=True)).said
                    else:
                        passes.done.append(await ways[strategy].run(told=False))
                except DeviceFailed as error:
                    passes.failed = str(error)
        for strategy, passes in found.items():
            if strategy not in BOUNDS:
                passes.error = difference(said.get(strategy, ()), said.get(ONE, ()))
        for way in ways.values():
            await way.end()
        return list(found.values())

    def _ways(
        self, model: Model, strategies: Sequence[Strategy], bound: Strategy | None
    ) -> dict[str, Way]:
        ways: dict[str, Way] = {
            strategy.name: Ours(self._home, self._devices, model, self._plan(model, strategy))
            for strategy in strategies
        }
        if bound is not None:
            plan = self._plan(model, bound)
            ways[WORK] = Work(self._home, self._devices, model, plan)
            ways[WIRE] = Ours(
                self._home, self._devices, model, self._plan(model, bound), is_idle=True
            )
        return ways

    def _plan(self, model: Model, strategy: Strategy) -> Plan:
        stages = strategy.stages(model.sizes, self.party)
        return plan_of(model.model_id, model.name, stages, CONTEXT)

    async def _started_ranks(self) -> Sequence[Device]:
        if not self._ranks:
            count, store = len(self._devices), self._home.lan.address(0)
            self._ranks = await self._home.start("apps.bench.gloo_rival", count=count, store=store)
        return self._ranks


def _without(table: Mapping[str, str], own: str) -> dict[str, str]:
    return {peer: address for peer, address in table.items() if peer != own}


def difference(said: Sequence[float], alone: Sequence[float]) -> float | None:
    """The largest one, in parts of the largest number; None where nothing can be said."""
    if not alone or len(said) != len(alone):
        return None
    largest = max(abs(number) for number in alone)
    return max(abs(a - b) for a, b in zip(said, alone, strict=True)) / max(largest, 1e-30)
