"""The parts of a device that have to do with models on disk, put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from apps.models.bringer import Bringer
from apps.models.fetcher import Fetcher
from apps.models.library import Library
from apps.models.pulls import Pulls
from apps.models.sharing import Sharing
from apps.models.shelf import Shelf
from apps.models.use import ModelUse
from apps.timeline import Timeline
from mesh.ids import PeerId
from mesh.net.piece_links import PieceServer
from mesh.node import Node
from mesh.transport import Dials, Routes
from runtime.compute.precision import Precision


class Models:
    """What is here, what comes from the others, and what they get."""

    def __init__(
        self,
        node: Node,
        dialer: Dials,
        folder: Path,
        timeline: Timeline,
        precision: Precision = Precision.AUTO,
    ) -> None:
        """`folder` holds the models; it is made when the first one comes."""
        self._node = node
        self.shelf = Shelf(folder)
        self.fetcher = Fetcher(node, dialer, self.shelf, timeline)
        self.library = Library(self.shelf, self.fetcher, precision)
        self.pulls = Pulls(node.view.me, self.library, self.shelf, self.fetcher)
        self._bringer = Bringer(self.library, self.fetcher)
        self._sharing: Sharing | None = None

    def serve(self, server: Routes, admit: Callable[[PeerId], bool], use: ModelUse) -> Sharing:
        """Answers the others from now on."""
        self._sharing = Sharing(
            node=self._node,
            library=self.library,
            shelf=self.shelf,
            fetcher=self.fetcher,
            bringer=self._bringer,
            pulls=self.pulls,
            use=use,
        )
        PieceServer(server, self._sharing.read, admit=admit)
        return self._sharing

    async def close(self) -> None:
        """Ends what is under way; what has come is kept."""
        await self._bringer.close()
        await self.fetcher.close()
        if self._sharing is not None:
            await self._sharing.close()
