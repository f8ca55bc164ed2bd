"""The application: which address is answered by what. Any ASGI server runs it."""

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from multigate.bundle import Bundle
from multigate.errors import MultigateError
from multigate.serve.body import to_json
from multigate.serve.description import ERROR, description, question_schema
from multigate.serve.inference import infer, metadata
from multigate.serve.metrics import TYPE
from multigate.serve.predictions import predictions
from multigate.serve.service import Service, status_of

PROTOCOL = "Open Inference Protocol"


def application(models: Mapping[str, Bundle]) -> FastAPI:
    """Models by name behind HTTP, as an ASGI application; of at least one."""
    service = Service(models)
    app = FastAPI(
        title="multigate",
        version=version("multigate"),
        description=f"Predictions for raw rows. Models: {', '.join(service.models)}.",
        redoc_url=None,
        responses=dict.fromkeys((400, 404, 413), ERROR),
    )
    app.add_middleware(_Heads)
    app.add_exception_handler(MultigateError, _told)
    app.add_exception_handler(HTTPException, _no_page)
    app.add_exception_handler(Exception, _fault)
    _add_rows(app, service)
    _add_protocol(app, service)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Requests, rows and seconds by model, for Prometheus."""
        return Response(service.metrics.page(), media_type=TYPE)

    return app


class _Heads:
    """HEAD answered as GET is; the server sends the head of it. Balancers and monitors ask so whether it is there."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self.app({**scope, "method": "GET"} if head else scope, receive, send)


def _add_rows(app: FastAPI, service: Service) -> None:
    """The doors for people and for programs that know nothing else."""
    questions = [question_schema(bundle) for bundle in service.models.values()]
    asked = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"anyOf": questions}}}}}

    @app.post("/predict", openapi_extra=asked)
    async def predict(request: Request) -> Response:
        """Predictions for rows, or for one row, by the only model."""
        return await predict_by(request, service.only())

    @app.post("/models/{name}/predict", openapi_extra=asked)
    async def predict_by(request: Request, name: str) -> Response:
        """Predictions for rows, or for one row, by a model."""
        return await service.answered(request, "predict", name, partial(predictions, service.bundle(name)))

    @app.get("/models")
    async def names() -> Response:
        """The names of the models."""
        return _json({"models": list(service.models)})

    @app.get("/schema")
    async def schema() -> Response:
        """What the only model reads and answers."""
        return await schema_of(service.only())

    @app.get("/models/{name}/schema")
    async def schema_of(name: str) -> Response:
        """What a model reads and answers."""
        return _json(description(service.bundle(name), name))


def _add_protocol(app: FastAPI, service: Service) -> None:
    """The doors of the Open Inference Protocol, V2."""

    @app.get("/v2", tags=[PROTOCOL])
    async def server() -> Response:
        """About the server."""
        return _json({"name": "multigate", "version": version("multigate"), "extensions": []})

    @app.get("/v2/health/live", tags=[PROTOCOL])
    async def live() -> Response:
        """Whether the server runs."""
        return _json({"live": True})

    @app.get("/v2/health/ready", tags=[PROTOCOL])
    async def ready() -> Response:
        """Whether all models can be asked: they are loaded before the server listens."""
        return _json({"ready": True})

    @app.get("/v2/models/{name}", tags=[PROTOCOL])
    async def model(name: str) -> Response:
        """Names, datatypes and shapes of a model's inputs and outputs."""
        return _json(metadata(service.bundle(name), name))

    @app.get("/v2/models/{name}/ready", tags=[PROTOCOL])
    async def model_ready(name: str) -> Response:
        """Whether a model can be asked."""
        service.bundle(name)
        return _json({"name": name, "ready": True})

    @app.post("/v2/models/{name}/infer", tags=[PROTOCOL])
    async def model_infer(request: Request, name: str) -> Response:
        """Predictions, a tensor for each, of rows given as a tensor for each feature column."""
        return await service.answered(request, "infer", name, partial(infer, service.bundle(name), name))


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(content), status, headers, media_type="application/json")


async def _told(request: Request, error: Exception) -> Response:
    status = status_of(error) if isinstance(error, MultigateError) else 500
    # what is still to come of a request that was not waited for is no next request
    headers = {"Connection": "close"} if status == 408 else None
    return _json({"error": " ".join(str(error).split())}, status, headers)


async def _no_page(request: Request, error: Exception) -> Response:
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (500, None)
    advice = "this address wants another method" if status == 405 else "there is nothing at this address"
    return _json({"error": f"{advice}; /docs lists what there is"}, status, headers)


async def _fault(request: Request, error: Exception) -> Response:
    """The server prints the traceback, and then hangs up."""
    told = {"error": "this is a fault of multigate; the server's log has the traceback, please report it"}
    return _json(told, 500, {"Connection": "close"})
