"""What all HTTP faces share: loopback only, JSON in, errors out in one form."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from mesh.errors import (
    BadPrompt,
    Busy,
    ConfigError,
    DiskFull,
    MeshError,
    ModelInUse,
    ModelNotFound,
    PlanError,
    PotluckError,
    PromptTooLong,
    WeightsMissing,
    WrongModel,
)

_log = logging.getLogger(__name__)

API_HOST = "127.0.0.1"
SHUTDOWN_S = 2.0  # for streams still open when the daemon ends
MAX_BODY_BYTES = 4 * 1024 * 1024  # a prompt of the longest context, with room
_LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class BadRequest(PotluckError):
    """A request body that cannot be used; the text says which field and why."""

    exit_code = 2


def make_app() -> web.Application:
    """An application that answers this machine's own programs only."""
    return web.Application(middlewares=[_errors, _guard], client_max_size=MAX_BODY_BYTES)


async def serve_app(app: web.Application, port: int) -> tuple[web.AppRunner, int]:
    """Serves it on loopback; the port is another one where 0 was asked for. Raises ConfigError for
    a port that is taken.
    """
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, API_HOST, port).start()
    except OSError:
        await runner.cleanup()
        raise ConfigError(
            f"port {port} on {API_HOST} is in use, perhaps by another potluck; end it, or choose "
            "another with --api-port"
        ) from None
    return runner, int(runner.addresses[0][1])


async def read_json(request: web.Request) -> dict[str, Any]:
    """The body as an object; raises BadRequest."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def error_body(error: PotluckError) -> dict[str, Any]:
    """OpenAI's form of an error."""
    return {
        "error": {
            "message": str(error),
            "type": "invalid_request_error" if status_of(error) < 500 else "server_error",
            "code": type(error).__name__,
            "exit_code": error.exit_code,
        }
    }


def status_of(error: PotluckError) -> int:
    """The HTTP status that says whose turn it is: the client's (4xx), or the mesh's (5xx)."""
    match error:
        case BadRequest() | BadPrompt() | PromptTooLong() | WrongModel():
            return 400
        case ModelNotFound():
            return 404
        case ModelInUse():
            return 409
        case Busy() | PlanError() | MeshError() | WeightsMissing():
            return 503
        case DiskFull():
            return 507
        case _:
            return 500


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A page on the web can make a browser call this port; its Host or Origin gives it away."""
    host = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
    origin = request.headers.get("Origin", "")
    origin_host = origin.split("://", 1)[-1].rsplit(":", 1)[0] if origin else "localhost"
    if host not in _LOOPBACK or origin_host not in _LOOPBACK:
        raise web.HTTPForbidden(text="this API answers programs of this machine only\n")
    return await handler(request)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except PotluckError as error:
        return web.json_response(error_body(error), status=status_of(error))
    except web.HTTPException as error:
        said = BadRequest(error.text or error.reason)
        return web.json_response(error_body(said), status=error.status)
    except Exception as error:  # a bug of ours: logged in full, told in a line
        _log.exception("a request for %s failed", request.path)
        ours = PotluckError(f"a mistake of ours: {type(error).__name__}: {error}")
        return web.json_response(error_body(ours), status=500)
