"""A model over HTTP: parameters are posted, a PNG or an .npz file comes back.

Needs the extra `[serve]`: FastAPI and uvicorn.
"""

from __future__ import annotations

import asyncio
import hmac
import io
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from ddim_keras import plotting
from ddim_keras.serving import addresses
from ddim_keras.serving.limits import Busy, Limits, OutOfTime, Stopped
from ddim_keras.serving.service import Asked, Made, Service
from ddim_keras.serving.worker import Job
from ddim_keras.support.version import __version__

try:
    import fastapi
    import fastapi.exceptions
    import fastapi.responses
    import pydantic
    import starlette.middleware.trustedhost
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise ImportError(
        f"serving over HTTP needs FastAPI and uvicorn ({error}): pip install 'ddim_keras[serve]'"
    ) from error

# How often a waiting request looks whether who asked is still there.
_LOOKING_SECONDS = 0.25
_CONNECTIONS = 64
# After so long in which nothing of an answer was read, the connection is closed.
_READING_SECONDS = 60.0
# Of what is wrong with a request as many parts are told, each in as many characters.
_PROBLEMS, _WORDS = 10, 1000
_STATUS = {Busy: 503, Stopped: 503, OutOfTime: 504}

Messages = Callable[[], Awaitable[Any]]


class Parameters(pydantic.BaseModel):
    """What `POST /generate` takes; as for `DiffusionModel.generate`."""

    # Strict: true is no number, and "2" none either.
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    num_images: Annotated[int, pydantic.Field(ge=1, description="How many images.")] = 1
    steps: Annotated[int | None, pydantic.Field(ge=1, description="Steps of the walk.")] = None
    sampler: Annotated[str | None, pydantic.Field(max_length=40)] = None
    eta: Annotated[float | None, pydantic.Field(ge=0.0, le=1.0)] = None
    spacing: Annotated[str | None, pydantic.Field(max_length=40)] = None
    clipping: Annotated[str | None, pydantic.Field(max_length=40)] = None
    guidance: Annotated[float | None, pydantic.Field(allow_inf_nan=False)] = None
    labels: Annotated[
        str | int | list[str | int | None] | None,
        pydantic.Field(description="A class for all images, or one for each."),
    ] = None
    seed: Annotated[
        int | None,
        pydantic.Field(ge=0, lt=2**32, description="Fixes the images; drawn if left out."),
    ] = None
    format: Annotated[
        Literal["png", "npz"],
        pydantic.Field(description="One picture of all, or float32 `images` in [0, 1]."),
    ] = "png"


def application(
    service: Service,
    token: str | None = None,
    names: Sequence[str] | None = addresses.OWN_NAMES,
) -> Any:
    """Return the ASGI application that serves a model.

    Args:
        service: the model and its limits.
        token: what requests must carry, but for those of /health; None for nothing.
        names: the names by which it may be asked for; None for any. By default those of this
            machine itself: pages of other sites, whose names lead here, are turned away.
    """
    app = fastapi.FastAPI(
        title="ddim_keras", version=__version__, description="Images by a diffusion model."
    )
    app.add_exception_handler(fastapi.exceptions.RequestValidationError, _say_what_is_wrong)

    def allowed(authorization: Annotated[str, fastapi.Header()] = "") -> None:
        scheme, _, given = authorization.partition(" ")
        if token is None:
            return
        # Headers are bytes, which the server read as Latin-1.
        told = given.strip().encode("latin-1")
        if scheme.lower() != "bearer" or not hmac.compare_digest(told, token.encode()):
            raise fastapi.HTTPException(
                401, "a token is needed: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"}
            )

    guarded = [fastapi.Depends(allowed)]

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Say that the server runs, and how many requests are unfinished."""
        return {"status": "ok", "unfinished": service.worker.unfinished}

    @app.get("/model", dependencies=guarded)
    def model() -> dict[str, Any]:
        """Say what the model makes, and what a request may ask for."""
        return service.describe()

    @app.post(
        "/generate",
        dependencies=guarded,
        response_class=fastapi.Response,
        responses={
            200: {"content": {"image/png": {}, "application/octet-stream": {}}},
            503: {"description": "As many requests wait as may."},
            504: {"description": "It took longer than it may."},
        },
    )
    async def generate(parameters: Parameters, request: fastapi.Request) -> fastapi.Response:
        """Make images. The header x-seed says which seed makes them again."""
        settings = parameters.model_dump()
        format = settings.pop("format")
        try:
            # Checks what is asked for, which is quick.
            job = await asyncio.to_thread(service.submit, Asked(**settings))
            made = await _result(job, request)
        except tuple(_STATUS) as error:
            again = {"Retry-After": "1"} if isinstance(error, Busy) else None
            raise fastapi.HTTPException(_STATUS[type(error)], str(error), again) from error
        except (ValueError, ArithmeticError) as error:
            raise fastapi.HTTPException(422, _shown(str(error))) from error
        content, kind = await asyncio.to_thread(_packed, made, format)
        headers = {"x-seed": str(made.seed)}
        return fastapi.Response(content, media_type=kind, headers=headers)

    app.add_middleware(_Patience, limits=service.limits)
    if names is not None:
        app.add_middleware(
            starlette.middleware.trustedhost.TrustedHostMiddleware, allowed_hosts=[*names]
        )
    return app


async def _say_what_is_wrong(request: fastapi.Request, error: Any) -> fastapi.Response:
    """Answer with what is wrong, but without what was sent: that may be long, and may hold what
    JSON does not, such as NaN.
    """
    problems = [
        {
            "type": problem["type"],
            "loc": [part if isinstance(part, int) else _shown(part) for part in problem["loc"]],
            "msg": _shown(": ".join([problem["msg"], *_reasons(problem)])),
        }
        for problem in error.errors()[:_PROBLEMS]
    ]
    return fastapi.responses.JSONResponse({"detail": problems}, 422)


def _reasons(problem: dict[str, Any]) -> list[str]:
    """Where a text is no JSON, at what it is not."""
    return [str(problem["ctx"]["error"])] if problem["type"] == "json_invalid" else []


def _shown(text: str) -> str:
    """A text that can be sent: without halves of characters, and not at any length."""
    text = text if len(text) <= _WORDS else f"{text[:_WORDS]} ..."
    return text.encode("utf-8", "backslashreplace").decode()


async def _result(job: Job, request: fastapi.Request) -> Made:
    """Wait for a job; drop it if the client disconnects."""
    future = asyncio.wrap_future(job.future)
    try:
        while not (await asyncio.wait({future}, timeout=_LOOKING_SECONDS))[0]:
            job.check()  # a step or a compilation before it may take long
            if await request.is_disconnected():
                raise Stopped("the client has disconnected")
        return future.result()
    finally:
        if not future.done():
            job.drop()
            # Nobody will ask for what it raises, of which the loop would complain.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())


def _packed(made: Made, format: str) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    if format == "npz":
        np.savez_compressed(buffer, images=made.images, seed=made.seed)
        return buffer.getvalue(), "application/octet-stream"
    import PIL.Image

    padding = 0 if len(made.images) == 1 else 1
    grid = plotting.image_grid(made.images, padding=padding)
    PIL.Image.fromarray(grid).save(buffer, format="PNG")
    return buffer.getvalue(), "image/png"


class _Patience:
    """Turns away requests that are too long, or sent too slowly."""

    def __init__(self, app: Any, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Any, receive: Messages, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._body(receive), self.limits.patience)
        except asyncio.TimeoutError:
            await _refuse(send, 408, f"not sent within {self.limits.patience:g} seconds")
            return
        if body is None:
            await _refuse(send, 413, f"longer than {self.limits.body} bytes")
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def received() -> Any:
            return messages.pop() if messages else await receive()

        await self.app(scope, received, send)

    async def _body(self, receive: Messages) -> bytes | None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.limits.body:
                return None
            if not message.get("more_body", False):
                return body


async def _refuse(send: Any, status: int, reason: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    body = f'{{"detail": "the request is {reason}"}}'.encode()
    await send({"type": "http.response.body", "body": body})


def _protocol(patience: float, reading: float = _READING_SECONDS) -> type[H11Protocol]:
    class Impatient(H11Protocol):
        """Closes connections over which no whole request comes, or whose answer nobody reads;
        uvicorn would wait for ever.
        """

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.seen, self.unsent, self.moved = None, 0, self.loop.time()
            self.loop.call_later(patience, self.look)

        def look(self) -> None:
            unsent = self.transport.get_write_buffer_size()
            if not unsent or unsent != self.unsent:
                self.unsent, self.moved = unsent, self.loop.time()
            elif self.loop.time() - self.moved > reading:
                self.transport.abort()
                return
            if self.transport.is_closing() and not unsent:
                return
            is_idle = self.cycle is None or self.cycle.response_complete
            if is_idle and self.scope is self.seen:
                self.transport.close()  # once all is sent
            self.seen = self.scope
            self.loop.call_later(patience, self.look)

    return Impatient


def serve(
    service: Service,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    token: str | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Serve a model until Ctrl-C or a request to terminate.

    Args:
        service: the model and its limits. It is stopped at the end.
        host: the address to bind; others than this machine's own need a token.
        port: 0 for any that is free.
        token: what requests must carry.
        tell: called with a line once it is ready.

    Raises:
        ValueError: the address is not available, or is open to others without a token.
    """
    addresses.check_host(host, token)
    at = addresses.bound(host, port)
    app = application(service, token, addresses.names_at(host))
    config = uvicorn.Config(
        app,
        http=_protocol(service.limits.patience),
        ws="none",
        log_level="warning",
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )
    try:
        service.warm_up()
        name = addresses.in_url(host)
        tell(f"Serving at http://{name}:{at.getsockname()[1]}, described at /docs; Ctrl-C ends it")
        uvicorn.Server(config).run(sockets=[at])
    except KeyboardInterrupt:  # uvicorn has ended, and hands it on
        pass
    finally:
        at.close()
        service.stop()
