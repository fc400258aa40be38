"""Who may be in the mesh: /potluck/invite and /potluck/rotate."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from apps.api.http import BadRequest, read_json
from apps.invitations import Invitations
from apps.timeline import Timeline
from mesh.ids import PeerId
from mesh.limits import MAX_ROSTER, PAIRING_WINDOW_S
from mesh.net.credentials import Credentials
from mesh.net.rotator import Rotator
from mesh.node import Node


class TrustRoutes:
    """Handlers over one device's credentials."""

    def __init__(
        self,
        *,
        node: Node,
        credentials: Credentials,
        invitations: Invitations,
        rotator: Rotator,
        timeline: Timeline,
    ) -> None:
        self._node = node
        self._credentials = credentials
        self._invitations = invitations
        self._rotator = rotator
        self._timeline = timeline

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/potluck/invite", self.invite)
        app.router.add_post("/potluck/rotate", self.rotate)

    async def invite(self, request: web.Request) -> web.Response:
        """Opens the door for a short code, or tells the long one with `long`."""
        if (await read_json(request)).get("long") is True:
            return web.json_response({"code": self._credentials.keyring.secret.join_code})
        invitation = self._invitations.open(await self._node.started())
        return web.json_response(
            {
                "code": invitation.code,
                "seconds": PAIRING_WINDOW_S,
                "addresses": [str(address) for address in invitation.addresses],
            }
        )

    async def rotate(self, request: web.Request) -> web.Response:
        """A new secret for all but those named in `without`; `force` on a minority side, too."""
        body = await read_json(request)
        wanted = body.get("without", [])
        if not isinstance(wanted, list) or not all(isinstance(one, str) for one in wanted):
            raise BadRequest("'without' must be a list of names or ids")
        if len(wanted) > MAX_ROSTER:
            raise BadRequest(f"'without' names at most {MAX_ROSTER} devices")
        without = [self._rotator.find(text) for text in wanted]
        done = await self._rotator.rotate(without, force=body.get("force") is True)
        self._timeline.note("rotated", f"the mesh has a new secret, number {done.generation}")
        return web.json_response(
            {
                "generation": done.generation,
                "have_it": [self._who(peer) for peer in done.have_it],
                "behind": [self._who(peer) for peer in done.behind],
                "shut_out": [self._who(peer) for peer in done.shut_out],
            }
        )

    def _who(self, peer: PeerId) -> dict[str, Any]:
        return {"id": str(peer), "name": self._rotator.name_of(peer)}
