"""The routes of OpenAI's API, as an application for a web server, and the server itself."""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from genai_jax.serving.errors import ApiError, server_error
from genai_jax.serving.exchange import Endpoint, Service, error_headers
from genai_jax.serving.responses import as_json, model, models

_MISSING = (
    "serving needs the packages starlette and uvicorn, which are not installed. Install them: "
    "pip install -e '.[serve]'."
)
_PATHS = "/v1/completions, /v1/chat/completions, /v1/models and /health"


def make_app(service: Service) -> Any:
    """Make an ASGI application.

    Args:
        service: Whose worker runs; it ends with the application.

    Raises:
        ModuleNotFoundError: If starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.requests import Request
        from starlette.responses import Response
        from starlette.routing import Route
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_MISSING) from error

    def give(value: dict[str, Any], status: int = 200) -> Response:
        return Response(as_json(value), status, media_type="application/json")

    def refuse(error: ApiError) -> Response:
        response = give(error.as_object(), error.status)
        response.headers.update({k.decode(): v.decode() for k, v in error_headers(error).items()})
        return response

    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, ApiError):
            return refuse(error)
        if isinstance(error, HTTPException):
            said = f"{request.method} {request.url.path[:100]} is not served here; {_PATHS} are."
            return refuse(ApiError(said, status=error.status_code, code="not_found"))
        return refuse(server_error())

    async def health(request: Request) -> Response:
        if service.worker.healthy:
            return give({"status": "ok"})
        return give({"status": "failed"}, 503)

    async def list_models(request: Request) -> Response:
        service.check_key(request.headers.raw)
        return give(models(service.served))

    async def one_model(request: Request) -> Response:
        service.check_key(request.headers.raw)
        served, name = service.served, request.path_params["name"]
        if name != served.name:
            said = f"there is no model {name[:100]!r} here; {served.name!r} is."
            raise ApiError(said, status=404, param="model", code="model_not_found")
        return give(model(served))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await service.end()

    return Starlette(
        routes=[
            Route("/v1/completions", Endpoint("completion", service), methods=["POST"]),
            Route("/v1/chat/completions", Endpoint("chat", service), methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", one_model),
            Route("/health", health),
        ],
        exception_handlers={ApiError: refused, HTTPException: refused, Exception: refused},
        lifespan=lifespan,
    )


def bind(host: str, port: int) -> socket.socket:
    """Take a port, and do not listen yet.

    Args:
        host: Name or address of this machine; 127.0.0.1 is reached from it alone.
        port: 0 takes any that is free.

    Raises:
        OSError: If it cannot be had.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found


def url_of(bound: socket.socket) -> str:
    """Give the address of a socket, as a client needs it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(service: Service, ready: Callable[[], None] = lambda: None) -> Any:
    """Make a web server; its `run(sockets=[...])` returns after Ctrl-C or SIGTERM.

    Then nothing more is taken in, requests under way end by an error that says so, and whoever is
    being sent the rest has ten seconds for it.

    Args:
        service: Whose worker runs.
        ready: Is called once it listens.

    Raises:
        ModuleNotFoundError: If uvicorn or starlette is not installed.
    """
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_MISSING) from error

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service.worker.close()
            await super().shutdown(sockets)

    return Server(
        uvicorn.Config(
            make_app(service),
            log_level="warning",
            access_log=False,
            # A last bound on connections; requests have their own.
            limit_concurrency=4 * service.limits.requests + 64,
            timeout_graceful_shutdown=10,
            server_header=False,
        )
    )
