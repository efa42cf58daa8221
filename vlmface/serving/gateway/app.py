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
from vlmface.serving.gateway.http_errors import DESCRIPTIONS, RequestError
from vlmface.serving.gateway.limits import ApiKeys, InFlightLimits, RateLimiter, rate_limit_key
from vlmface.serving.gateway.observability import (
    REQUEST_ID_PATTERN,
    Metrics,
    ObservabilityMiddleware,
    error_response,
    record_of,
)
from vlmface.serving.gateway.settings import Settings
from vlmface.utils import isolated
from vlmface.utils.hosts import Hosts

ANALYZE, HEALTH, METRICS = "/v1/analyze", "/healthz", "/metrics"
THREADS = 4  # for image headers and face detection
_COMMON_ERRORS = (400, 403, 500)

T = TypeVar("T")


def create_app(predictor: Predictor, settings: Settings, hosts: Hosts | None = None) -> FastAPI:
    """Create the gateway of a predictor.

    Args:
        predictor: Remains open; the caller closes it.
        settings: The gateway's limits.
        hosts: The host names that it answers to; without them an outer server must check the Host
            header.

    Returns:
        The app. Its `state.limits` are its InFlightLimits, where draining is switched on.
    """
    limits = InFlightLimits(settings)
    metrics = Metrics(limits)
    app = FastAPI(
        title="vlmface gateway",
        version=__version__,
        lifespan=_lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.limits = limits
    app.add_middleware(
        ObservabilityMiddleware,
        metrics=metrics,
        routes=frozenset((ANALYZE, HEALTH, METRICS)),
        hosts=hosts,
    )
    app.add_exception_handler(RequestError, _handle_error)
    app.add_exception_handler(HTTPException, _handle_error)
    _add_analyze(app, predictor, settings, limits)
    _add_status(app, predictor, limits, metrics)
    return app


def _add_analyze(
    app: FastAPI, predictor: Predictor, settings: Settings, limits: InFlightLimits
) -> None:
    api_keys = ApiKeys(settings.keys)
    rate_limiter = None if settings.rate is None else RateLimiter(settings.rate)
    bearer = HTTPBearer(auto_error=False, description="one of the gateway's API keys")

    @app.post(
        ANALYZE,
        summary="Predict what faces show",
        response_model=schemas.AnalyzeResponse,
        responses=_error_responses(*DESCRIPTIONS),
        dependencies=[Depends(bearer)] if settings.keys else [],
        openapi_extra={
            "parameters": [_REQUEST_ID],
            "requestBody": schemas.request_body(list(predictor.tasks), settings.max_faces),
        },
    )
    async def analyze(request: Request) -> dict[str, Any]:
        record = record_of(request.scope)
        key = api_keys.check(request.headers.get("authorization"))
        if rate_limiter is not None:
            host = request.client.host if request.client else None
            rate_limiter.check(rate_limit_key(host, key))
        with limits.acquire("reading"):
            parsed = await request_parsing.parse_request(request, settings)
        with limits.acquire("answering"):
            work = inference.analyze(parsed, predictor, settings, limits)
            result = await _with_timeout(request, work, settings.answer_timeout_s)
        record.faces = len(result.reports)
        return {
            "request_id": record.request_id,
            "width": result.width,
            "height": result.height,
            "faces": [report.as_dict() for report in result.reports],
            "skipped": result.skipped,
            "model": predictor.name,
            "latency_s": record.latency_s,
        }


def _add_status(
    app: FastAPI, predictor: Predictor, limits: InFlightLimits, metrics: Metrics
) -> None:
    @app.get(
        HEALTH,
        summary="Whether requests are accepted",
        response_model=schemas.Health,
        responses={
            503: {
                "model": schemas.Health,
                "description": "The gateway finishes the requests in flight and shuts down.",
            },
            **_error_responses(*_COMMON_ERRORS),
        },
    )
    async def healthz() -> JSONResponse:
        status = "draining" if limits.draining else "ready"
        content = {"status": status, "model": predictor.name, "tasks": list(predictor.tasks)}
        return JSONResponse(content, 503 if limits.draining else 200)

    @app.get(
        METRICS,
        summary="Counts and times for Prometheus",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **_error_responses(*_COMMON_ERRORS),
        },
    )
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "The request's id in response and log; generated by default.",
    "schema": {"type": "string", "pattern": f"^{REQUEST_ID_PATTERN}$"},
}


def _error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": schemas.ErrorBody, "description": DESCRIPTIONS[status]}
        for status in statuses
    }


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Few threads, since decoding a picture and detecting faces take memory."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway")
    asyncio.get_running_loop().set_default_executor(pool)
    yield
    isolated.close()


async def _handle_error(request: Request, error: Exception) -> Response:
    record = record_of(request.scope)
    if isinstance(error, RequestError):
        return error_response(record, error)
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        method = request_parsing.excerpt(request.method)
        converted = RequestError("method", f"{method} is not supported here: see /openapi.json")
    else:
        converted = RequestError("not_found", "this path does not exist: see /openapi.json")
    response = error_response(record, converted)
    response.headers.update(error.headers or {})
    return response


async def _with_timeout(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of `work`, which is cancelled if the client disconnects or the time is over."""
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_until_disconnected(request))
    try:
        await asyncio.wait(
            {task, disconnected}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if task.done():
            return task.result()
        if disconnected.done():
            raise RequestError("gone", "the client has disconnected")
        raise RequestError("timeout", f"the model has not answered within {seconds:g} s")
    finally:
        task.cancel()
        disconnected.cancel()
        await asyncio.gather(task, disconnected, return_exceptions=True)


async def _until_disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
