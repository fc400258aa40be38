"""One pass over a text on the devices of an emulated home, in each of the ways compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from apps.bench.home import Device, Home, all_of
from apps.bench.strategies import Sizes, cut
from mesh.codec import to_plain
from mesh.ids import SessionId
from planner.plan import Plan
from planner.profile import ModelProfile
from runtime.compute.precision import Precision


@dataclass(frozen=True, slots=True)
class Model:
    """A model to be measured, as the devices find it on their disks."""

    name: str
    path: Path
    profile: ModelProfile
    sizes: Sizes
    tokens: int  # of a pass
    context: int  # that there is room for
    answer: int = 0  # tokens that are then chosen one by one; without, a pass ends in hidden states
    precision: Precision = Precision.FP32


@dataclass(frozen=True, slots=True)
class Done:
    """What one pass took."""

    seconds: float
    said: Sequence[float] = ()  # numbers to be held against those of others
    answer_s: float = 0.0  # for all tokens of the answer
    answer: Sequence[int] = ()
    sent_bytes: int = 0  # by all devices
    cpu_s: tuple[float, ...] = ()  # of each device


class Way(Protocol):
    """A way to compute a pass; all of them take turns."""

    async def load(self) -> None:
        """Before the first pass. Raises DeviceFailed."""

    async def run(self, *, told: bool) -> Done:
        """One pass; with `told`, its answer is wanted too. Raises DeviceFailed."""

    async def end(self) -> None:
        """Lets go of it."""


class Ours:
    """A plan in our runtime; an idle one computes nothing, and shows what the wire alone takes."""

    def __init__(
        self,
        home: Home,
        devices: Sequence[Device],
        model: Model,
        plan: Plan,
        *,
        is_idle: bool = False,
    ) -> None:
        self._home, self._devices = home, devices
        self._model, self._plan = model, plan
        self._is_idle = is_idle

    async def load(self) -> None:
        question = {
            "plan": to_plain(self._plan),
            "path": str(self._model.path),
            "precision": self._model.precision.value,
            "idle": self._is_idle,
        }
        with self._home.unlimited():
            await all_of(device.ask("load", **question) for device in self._devices)

    async def run(self, *, told: bool) -> Done:
        owner, plan = self._devices[0], self._plan.plan_id
        place = {"plan": plan, "session": SessionId.new(), "owner": owner.ready["peer"]}
        await all_of(device.ask("open", **place, told=told) for device in self._devices)
        before = await self._usage()
        choose = told or self._model.answer > 0
        done = await owner.ask(
            "pass",
            plan=plan,
            session=place["session"],
            tokens=self._model.tokens,
            choose=choose and not self._is_idle,
            decode=self._model.answer,
        )
        after = await self._usage()
        await all_of(device.ask("close", **place) for device in self._devices)
        pairs = list(zip(after, before, strict=True))
        return Done(
            done["s"],
            done["said"],
            done["decode_s"],
            done["tokens"],
            sum(new["sent_bytes"] - old["sent_bytes"] for new, old in pairs),
            tuple(new["cpu_s"] - old["cpu_s"] for new, old in pairs),
        )

    async def end(self) -> None:
        await all_of(device.ask("unload", plan=self._plan.plan_id) for device in self._devices)

    async def _usage(self) -> list[dict[str, Any]]:
        return await all_of(device.ask("usage") for device in self._devices)


class Work(Ours):
    """The work of a plan alone: whatever a device would wait for is there at once. A pass takes as
    long as the slowest of them.
    """

    async def run(self, *, told: bool) -> Done:
        question = {
            "plan": self._plan.plan_id,
            "session": SessionId.new(),
            "tokens": self._model.tokens,
        }
        return Done(max(await all_of(device.ask("work", **question) for device in self._devices)))


class Gloo:
    """Megatron over `torch.distributed`; see `apps.bench.gloo_rival`."""

    def __init__(self, home: Home, ranks: Sequence[Device], model: Model) -> None:
        self._home, self._ranks, self._model = home, ranks, model

    async def load(self) -> None:
        even = [1.0] * len(self._ranks)
        heads, columns = (
            cut(self._model.sizes.heads, even),
            cut(self._model.sizes.columns, even),
        )
        with self._home.unlimited():
            await all_of(
                rank.ask(
                    "load",
                    path=str(self._model.path),
                    heads=[heads[index].first, heads[index].last],
                    columns=[columns[index].first, columns[index].last],
                )
                for index, rank in enumerate(self._ranks)
            )

    async def run(self, *, told: bool) -> Done:
        question = {"path": str(self._model.path), "tokens": self._model.tokens}
        done = (await all_of(rank.ask("pass", **question) for rank in self._ranks))[0]
        return Done(done["s"], done["said"])

    async def end(self) -> None:
        await all_of(rank.ask("unload", path=str(self._model.path)) for rank in self._ranks)
