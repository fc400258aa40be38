"""How the command talks to its daemon: the same local API that other programs use."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Self

import aiohttp

from mesh.errors import ConfigError, PotluckError

SocketFactory = Callable[[Any], socket.socket]

# Answers may take as long as loading a model; what ends a wait is the daemon, not the clock.
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=5, sock_read=None)


class ApiError(PotluckError):
    """The daemon said no; the text is its own."""

    def __init__(self, message: str, code: str, exit_code: int) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code


class Client:
    """One daemon's API. Raises ApiError in the daemon's words, ConfigError when it is gone."""

    def __init__(self, port: int, socket_factory: SocketFactory | None = None) -> None:
        """`socket_factory` makes the sockets of a daemon in another network namespace."""
        self._base = f"http://127.0.0.1:{port}"
        self._socket_factory = socket_factory
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(socket_factory=self._socket_factory)
        self._session = aiohttp.ClientSession(timeout=_NO_TIMEOUT, connector=connector)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        return await self._call("GET", path, params=query)

    async def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await self._call("POST", path, json=body or {})

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The server-sent events of a POST, as objects, until `[DONE]`."""
        assert self._session is not None
        try:
            async with self._session.post(self._base + path, json=body) as response:
                if response.status != 200:
                    raise _error(await _json(response))
                async for line in response.content:
                    if not line.startswith(b"data: "):
                        continue
                    data = line.removeprefix(b"data: ").strip()
                    if data == b"[DONE]":
                        return
                    event: dict[str, Any] = json.loads(data)
                    if "error" in event:
                        raise _error(event)
                    yield event
            raise ConfigError("the daemon ended in the middle of the answer; see its own output")
        except aiohttp.ClientError as error:
            raise _gone(error) from None

    async def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        assert self._session is not None
        try:
            async with self._session.request(method, self._base + path, **arguments) as response:
                body = await _json(response)
                if response.status != 200:
                    raise _error(body)
                return body
        except aiohttp.ClientError as error:
            raise _gone(error) from None


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        body = json.loads(await response.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ConfigError(f"port {response.url.port} is answered by something else than potluck")
    return body


def _error(body: dict[str, Any]) -> ApiError:
    error = body.get("error", {})
    return ApiError(
        str(error.get("message", "the daemon refused without a word")),
        str(error.get("code", "unknown")),
        int(error.get("exit_code", 1)),
    )


def _gone(error: aiohttp.ClientError) -> ConfigError:
    return ConfigError(
        f"the daemon does not answer ({error}); start it with `potluck up` in another terminal"
    )
