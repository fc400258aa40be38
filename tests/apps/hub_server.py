"""A hub on loopback: as much of the Hugging Face hub's HTTP as its own client library needs."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

COMMIT = "c0ffee" * 6 + "beef"
BLOCK = 64 * 1024


@dataclass
class FakeHub:
    """`files` by repository and path; what was asked for is kept, and can be made to break off."""

    files: dict[str, dict[str, bytes]]
    endpoint: str = ""
    sent: dict[str, int] = field(default_factory=dict)  # bytes of content, by path
    break_after: int | None = None  # bytes in all; then every answer breaks off
    lie: bool = False  # send other bytes than were promised

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeHub]:
        app = web.Application()
        app.router.add_get("/api/models/{owner}/{repo}", self._info)
        app.router.add_get("/{owner}/{repo}/resolve/{revision}/{path:.*}", self._resolve)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def _repo(self, request: web.Request) -> dict[str, bytes]:
        name = f"{request.match_info['owner']}/{request.match_info['repo']}"
        if name not in self.files:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"})
        return self.files[name]

    async def _info(self, request: web.Request) -> web.Response:
        siblings = [
            {
                "rfilename": path,
                "size": len(data),
                "lfs": {"sha256": _sha(data), "size": len(data), "pointerSize": 130},
            }
            for path, data in self._repo(request).items()
        ]
        name = f"{request.match_info['owner']}/{request.match_info['repo']}"
        return web.json_response({"id": name, "sha": COMMIT, "siblings": siblings, "tags": []})

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        data = self._repo(request).get(path)
        if data is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound"})
        headers = {
            "ETag": f'"{_sha(data)}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(data)),
            "Accept-Ranges": "bytes",
        }
        first = int(request.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
        part = data[first:]
        response = web.StreamResponse(status=206 if first else 200, headers=headers)
        response.content_length = len(part)
        if first:
            response.headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        for at in range(0, len(part), BLOCK):
            if self.break_after is not None and self.sent.get(path, 0) >= self.break_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            block = part[at : at + BLOCK]
            self.sent[path] = self.sent.get(path, 0) + len(block)
            await response.write(bytes(len(block)) if self.lie else block)
        return response


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
