"""The control links of this node: greeting, which of two links counts, reading until the end."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

from mesh.control_link import ControlLink, replaces
from mesh.errors import LinkClosed, LinkError, ProtocolError
from mesh.ids import Address, PeerId
from mesh.limits import PROBE_TIMEOUT_S, RETIRE_GRACE_S
from mesh.messages import Hello, Message, decode_hello, decode_message, encode_message
from mesh.nursery import Nursery
from mesh.transport import Channel


class ControlLinks:
    """At most one current link per peer. The callbacks run in the reading task, and never wait.

    `on_up(link, is_new)`: `is_new` is False where it takes the place of a living link.
    `on_message(link, message)` may raise ProtocolError, which closes the link.
    `on_down(peer, reason)`: the current link broke and nothing has replaced it.
    `on_parked(peer)`: the current link was closed since it was of no use.
    `on_retired(peer)`: a link that another has replaced is gone, with what was still under way.
    """

    def __init__(
        self,
        me: PeerId,
        nursery: Nursery,
        hello: Callable[[], Hello],
        refusal: Callable[[Hello], str | None],
        on_up: Callable[[ControlLink, bool], None],
        on_message: Callable[[ControlLink, Message], None],
        on_down: Callable[[PeerId, str], None],
        on_parked: Callable[[PeerId], None],
        on_retired: Callable[[PeerId], None],
    ) -> None:
        self._me = me
        self._nursery = nursery
        self._hello = hello
        self._refusal = refusal
        self._on_up = on_up
        self._on_message = on_message
        self._on_down = on_down
        self._on_parked = on_parked
        self._on_retired = on_retired
        self._current: dict[PeerId, ControlLink] = {}
        self._changed: defaultdict[PeerId, asyncio.Event] = defaultdict(asyncio.Event)

    def find(self, peer: PeerId) -> ControlLink | None:
        return self._current.get(peer)

    def has(self, peer: PeerId) -> bool:
        return peer in self._current

    @property
    def all(self) -> tuple[ControlLink, ...]:
        return tuple(self._current.values())

    async def wait(self, peer: PeerId) -> ControlLink:
        """The link to a peer that should be here; raises LinkClosed if it does not come back."""
        if peer not in self._current:
            changed = self._changed[peer]
            changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await changed.wait()
        link = self._current.get(peer)
        if link is None:
            raise LinkClosed(f"there is no link to {peer.short}")
        return link

    def close(self, peer: PeerId, reason: str) -> bool:
        """Drops the current link without calling it a loss; False if there was none."""
        link = self._current.pop(peer, None)
        self._changed[peer].set()
        if link is not None:
            self._close_soon(link, reason, delay_s=0)
        return link is not None

    async def serve(self, channel: Channel, patience_s: float) -> None:
        """Greets, reads to the end. Raises ProtocolError or LinkError if the greeting fails."""
        try:
            link = await self._greet(channel, patience_s)
        except (LinkError, ProtocolError) as error:
            await channel.close(str(error))
            raise
        self._adopt(link)
        reason = await self._hold(link)
        if self._current.get(link.peer) is link:
            del self._current[link.peer]
            if link.is_parked(asyncio.get_running_loop().time()):
                self._on_parked(link.peer)
            else:
                self._on_down(link.peer, reason)
        else:
            self._on_retired(link.peer)

    async def _greet(self, channel: Channel, patience_s: float) -> ControlLink:
        if channel.peer == self._me:
            raise LinkClosed("this is our own address")
        try:
            async with asyncio.timeout(patience_s):
                await channel.send(encode_message(self._hello()))
                hello = decode_hello(await channel.receive())
        except TimeoutError:
            raise LinkClosed(f"no Hello came within {patience_s} s") from None
        if hello.peer != channel.peer:
            raise ProtocolError(
                f"it says it is {hello.peer.short}, but proved to be {channel.peer.short}"
            )
        refusal = self._refusal(hello)
        if refusal is not None:
            raise LinkClosed(refusal)
        return ControlLink(channel, hello, asyncio.get_running_loop().time())

    def _adopt(self, link: ControlLink) -> None:
        old = self._current.get(link.peer)
        if old is not None and not replaces(link, old, self._me):
            # The peer may not have seen the better link yet: to close this one would look a loss.
            self._close_soon(link, "there is another link already", RETIRE_GRACE_S)
            return
        self._current[link.peer] = link
        self._changed[link.peer].set()
        if old is not None:  # an older process says nothing that counts; else a message may come
            same_process = old.hello.started_as == link.hello.started_as
            self._close_soon(old, "replaced", RETIRE_GRACE_S if same_process else 0)
        self._on_up(link, old is None)

    async def _hold(self, link: ControlLink) -> str:
        """Reads and writes until the link ends; the reason why it did."""
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(link.write())
            try:
                while True:
                    self._on_message(link, decode_message(await link.channel.receive()))
            except (LinkError, ProtocolError) as error:
                reason = str(error)
                await link.close(reason)
            finally:
                writer.cancel()
                await link.close("this device stopped")
        return reason

    def _close_soon(self, link: ControlLink, reason: str, delay_s: float) -> None:
        async def close() -> None:
            await asyncio.sleep(delay_s)
            await link.close(reason)

        self._nursery.start(close())


def reachable(link: ControlLink) -> Address | None:
    """Where the peer listens: the address that worked, or its host as we see it."""
    if link.channel.dialled:
        return link.channel.remote
    listens = link.hello.address
    return None if listens is None else Address(link.channel.remote.host, listens.port)
