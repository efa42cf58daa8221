"""The gateway's routes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from vlmface import __version__
from vlmface.infer.predictor import Predictor
from vlmface.serving.gateway import inference, request_parsing, schemas
from vlmface.serving.gateway.http_errors import MEANING, Refusal
from vlmface.serving.gateway.limits import Keys, Load, Rate, client_of
from vlmface.serving.gateway.observability import ID, Metrics, Observed, failure, record_of
from vlmface.serving.gateway.settings import Settings
from vlmface.utils import isolated
from vlmface.utils.hosts import Hosts

ANALYZE, HEALTH, METRICS = "/v1/analyze", "/healthz", "/metrics"
THREADS = 4  # which read headers of pictures and look for faces
_EVERYWHERE = (400, 403, 500)

T = TypeVar("T")


def create_app(predictor: Predictor, settings: Settings, hosts: Hosts | None = None) -> FastAPI:
    """The gateway to a predictor, which stays the caller's to close. `hosts`: the names that it
    answers to; without them a server around it must check the Host header. `app.state.load` tells
    how much is at work, and is told to drain."""
    load, keys = Load(settings), Keys(settings.keys)
    rate = None if settings.rate is None else Rate(settings.rate)
    metrics = Metrics(load)
    app = FastAPI(
        title="vlmface gateway",
        version=__version__,
        lifespan=_few_threads,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.load = load
    app.add_middleware(
        Observed,  # type: ignore[arg-type]
        metrics=metrics,
        routes=frozenset((ANALYZE, HEALTH, METRICS)),
        hosts=hosts,
    )
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _refused)
    bearer = HTTPBearer(auto_error=False, description="one of the keys that the gateway was given")

    @app.post(
        ANALYZE,
        summary="What a face shows",
        response_model=schemas.Analysis,
        responses=_failures(*MEANING),
        dependencies=[Depends(bearer)] if settings.keys else [],
        openapi_extra={
            "parameters": [_REQUEST_ID],
            "requestBody": schemas.request_body(list(predictor.tasks), settings.max_faces),
        },
    )
    async def analyze(request: Request) -> dict[str, Any]:
        record = record_of(request.scope)
        key = keys.check(request.headers.get("authorization"))
        if rate is not None:
            rate.check(client_of(request.client.host if request.client else None, key))
        with load.taking("reading"):
            asked = await request_parsing.read(request, settings)
        with load.taking("answering"):
            work = inference.analyze(asked, predictor, settings, load)
            found = await _in_time(request, work, settings.answer_timeout_s)
        record.faces = len(found.reports)
        return {
            "request_id": record.request_id,
            "width": found.width,
            "height": found.height,
            "faces": [report.as_dict() for report in found.reports],
            "left_out": found.left_out,
            "model": predictor.name,
            "seconds": record.seconds,
        }

    @app.get(
        HEALTH,
        summary="Whether it takes requests",
        response_model=schemas.Health,
        responses={
            503: {
                "model": schemas.Health,
                "description": "It finishes what is at work, and stops.",
            },
            **_failures(*_EVERYWHERE),
        },
    )
    async def healthz() -> JSONResponse:
        status = "draining" if load.draining else "ready"
        content = {"status": status, "model": predictor.name, "tasks": list(predictor.tasks)}
        return JSONResponse(content, 503 if load.draining else 200)

    @app.get(
        METRICS,
        summary="Counts and times for Prometheus",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **_failures(*_EVERYWHERE),
        },
    )
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "The request's id in answer and log; left out, one is made.",
    "schema": {"type": "string", "pattern": f"^{ID}$"},
}


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": schemas.Failure, "description": MEANING[status]} for status in statuses
    }


@contextlib.asynccontextmanager
async def _few_threads(app: FastAPI) -> AsyncIterator[None]:
    """Decoding a picture and looking for faces in it take memory."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway")
    asyncio.get_running_loop().set_default_executor(pool)
    yield
    isolated.close()


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, Refusal):
        return failure(record_of(request.scope), error)
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refusal = Refusal(
            "method",
            f"{request_parsing.shown(request.method)} does nothing here: see /openapi.json",
        )
    else:
        refusal = Refusal("not_found", "there is nothing here: see /openapi.json")
    response = failure(record_of(request.scope), refusal)
    response.headers.update(error.headers or {})
    return response


async def _in_time(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result, unless the client hangs up first or it takes too long: then the work is ended."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise Refusal("gone", "the client hung up")
        raise Refusal("timeout", f"the model has not answered within {seconds:g} s")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
