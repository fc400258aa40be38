"""All strategies in one emulated home, pass by pass in turns: whatever the machine does besides
meets all of them alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import mean

from apps.bench.cases import Case
from apps.bench.choosing import chosen, expected, in_words, surveyed, why_impossible
from apps.bench.home import Device, DeviceFailed, Environment, Home, all_of
from apps.bench.passes import Done, Gloo, Model, Ours, Way, Work
from apps.bench.strategies import BOUNDS, GLOO, ONE, PLANNER, WIRE, WORK, Party, Strategy, plan_of
from mesh.errors import PotluckError
from mesh.ids import PeerId
from mesh.trust import MeshSecret
from planner.choose import Choice
from planner.plan import Plan, Prediction

Progress = Callable[[str], None]


@dataclass(slots=True)
class Passes:
    """What was measured of one strategy with one model in one home."""

    environment: str
    model: str
    strategy: str
    done: list[Done] = field(default_factory=list)
    words: str = ""  # of what the planner chose, what that is
    predicted: Prediction | None = None  # by the planner, whether or not it chose this
    error: float | None = None  # against one device alone, in parts of its largest number
    alike: float | None = None  # which part of the answer's tokens is that of one device alone
    failed: str = ""  # why there are no figures

    @property
    def seconds(self) -> list[float]:
        return [one.seconds for one in self.done]

    @property
    def token_seconds(self) -> list[float]:
        """For a token of the answer; none where there is no answer."""
        return [one.answer_s / len(one.answer) for one in self.done if one.answer]

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

    async def run(self, case: Case, runs: int) -> list[Passes]:
        """Each way `runs` times, after one pass that warms up and is held against the others: the
        strategies, what the planner chooses, Megatron over gloo, and the work and the wire alone.
        """
        name, model = self._home.environment.name, case.model
        ways = self._ways(case)
        found = {way: Passes(name, model.name, way) for way in [*ways, PLANNER]}
        self._progress(f"{name}, {model.name}: the devices measure themselves")
        try:
            choice = await self._choice(case)
        except PotluckError as error:
            found[PLANNER].failed = str(error)
        else:
            found[PLANNER].words = in_words(choice)
            found[PLANNER].predicted = choice.plan.predicted
            for strategy in case.strategies:
                stages = strategy.stages(model.sizes, self.party)
                found[strategy.name].predicted = expected(
                    choice, model, stages, case.wanted.request
                )
                found[strategy.name].failed = why_impossible(choice, model, stages)
            ways[PLANNER] = self._ours(model, choice.plan)
        if case.has_gloo and not self._is_limited:
            ways[GLOO] = Gloo(self._home, await self._started_ranks(), model)
            found[GLOO] = Passes(name, model.name, GLOO)
        told = await self._in_turns(ways, found, runs)
        _compare(found, told)
        for way in ways.values():
            await way.end()
        return list(found.values())

    async def _in_turns(
        self, ways: Mapping[str, Way], found: Mapping[str, Passes], runs: int
    ) -> dict[str, Done]:
        """What the first pass of each told; the others are for their time alone."""
        told: dict[str, Done] = {}
        for turn in range(runs + 1):
            for name, passes in found.items():
                if passes.failed:
                    continue
                where = f"{passes.environment}, {passes.model}: {name}"
                self._progress(f"{where}, run {turn} of {runs}")
                try:
                    # Where memory is short, there is one plan at a time.
                    if turn == 0 or self._is_limited:
                        await ways[name].load()
                    if turn == 0:
                        told[name] = await ways[name].run(told=True)
                    else:
                        passes.done.append(await ways[name].run(told=False))
                    if self._is_limited:
                        await ways[name].end()
                except DeviceFailed as error:
                    passes.failed = str(error)
        return told

    @property
    def _is_limited(self) -> bool:
        return bool(self._home.environment.memory_bytes)

    async def _choice(self, case: Case) -> Choice:
        limits = self._home.environment.model_bytes
        cluster = await surveyed(self._devices, case.model, limits)
        # A second of arithmetic, while the devices' answers may come.
        return await asyncio.to_thread(chosen, cluster, case.model, case.wanted)

    def _ways(self, case: Case) -> dict[str, Way]:
        model = case.model
        ways: dict[str, Way] = {
            strategy.name: self._ours(model, self._plan(model, strategy))
            for strategy in case.strategies
        }
        if case.bound is not None and not self._is_limited:
            plan = self._plan(model, case.bound)
            ways[WORK] = Work(self._home, self._devices, model, plan)
            idle = self._plan(model, case.bound)
            ways[WIRE] = Ours(self._home, self._devices, model, idle, is_idle=True)
        return ways

    def _ours(self, model: Model, plan: Plan) -> Ours:
        return Ours(self._home, self._devices, model, plan)

    def _plan(self, model: Model, strategy: Strategy) -> Plan:
        stages = strategy.stages(model.sizes, self.party)
        return plan_of(model.profile.model, model.name, stages, model.context)

    async def _started_ranks(self) -> Sequence[Device]:
        if not self._ranks:
            count, store = len(self._devices), self._home.lan.address(0)
            self._ranks = await self._home.start("apps.bench.gloo_rival", count=count, store=store)
        return self._ranks


def _without(table: Mapping[str, str], own: str) -> dict[str, str]:
    return {peer: address for peer, address in table.items() if peer != own}


def _compare(found: Mapping[str, Passes], told: Mapping[str, Done]) -> None:
    """Notes how far each answer is from that of one device alone."""
    alone = told.get(ONE)
    for name, passes in found.items():
        if alone is not None and name in told and name not in (ONE, *BOUNDS):
            passes.error = difference(told[name].said, alone.said)
            passes.alike = alike(told[name].answer, alone.answer)


def alike(answer: Sequence[int], alone: Sequence[int]) -> float | None:
    """Which part of the tokens is the same, up to the first other; None where there are none."""
    if not alone:
        return None
    pairs = enumerate(zip(answer, alone, strict=False))
    same = next((at for at, (one, other) in pairs if one != other), min(len(answer), len(alone)))
    return same / len(alone)


def difference(said: Sequence[float], alone: Sequence[float]) -> float | None:
    """The largest one, in parts of the largest number; None where nothing can be said."""
    if not alone or len(said) != len(alone):
        return None
    largest = max(abs(number) for number in alone)
    return max(abs(a - b) for a, b in zip(said, alone, strict=True)) / max(largest, 1e-30)
