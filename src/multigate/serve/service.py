"""A service: the models of one process, and how a request for predictions goes through it."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from multigate.bundle import Bundle
from multigate.errors import DataError, MultigateError, nearest
from multigate.serve.body import Refused, from_json, read_body, to_json
from multigate.serve.metrics import Metrics

SMALL = 8 << 10
"""Bytes of a request that is answered at once: a thread would cost as much as one row."""

Answer = Callable[[dict[str, Any]], tuple[dict[str, Any], int]]
"""From what a request holds to what it is answered, and the number of rows predicted."""


class Service:
    """Bundles by name. Long requests are computed one after the other on a thread, short ones in between."""

    def __init__(self, models: Mapping[str, Bundle]) -> None:
        self.models = dict(models)
        self.metrics = Metrics()
        self._long = ThreadPoolExecutor(1, "multigate-serve")

    def bundle(self, name: str) -> Bundle:
        """The model of this name; ``Refused`` where there is none."""
        if name not in self.models:
            raise Refused(404, f"there is no model {name[:60]!r}; {nearest(name, self.models)}")
        return self.models[name]

    def only(self) -> str:
        """The name of the only model; ``Refused`` where there are several."""
        if len(self.models) > 1:
            raise Refused(404, f"there are several models; ask one of /models/{', /models/'.join(self.models)}")
        return next(iter(self.models))

    async def answered(self, request: Request, door: str, name: str, answer: Answer) -> Response:
        """The answer to a request for predictions; counted, whatever becomes of it."""
        began, status, rows = perf_counter(), 500, 0
        try:
            body = await read_body(request)
            if len(body) <= SMALL:
                content, rows = _work(answer, body)
            else:
                content, rows = await asyncio.get_running_loop().run_in_executor(self._long, _work, answer, body)
            status = 200
            return Response(content, media_type="application/json")
        except ClientDisconnect:
            status = 499
            return Response(status_code=status)
        except asyncio.CancelledError:  # by a server that stops, and has waited long enough
            status = 503
            raise Refused(status, "the server stops, and waits no longer for this request; ask again") from None
        except MultigateError as error:
            status = status_of(error)
            raise
        finally:
            self.metrics.add(name, door, status, rows, perf_counter() - began)


def _work(answer: Answer, body: bytes) -> tuple[bytes, int]:
    try:
        found, rows = answer(from_json(body))
        return to_json(found), rows
    except RecursionError:
        raise Refused(400, "the request is nested too deeply; a row holds values, and lists of values") from None


def status_of(error: MultigateError) -> int:
    """The status of HTTP for an error: what a request holds is the client's, all else the server's."""
    if isinstance(error, Refused):
        return error.status
    return 400 if isinstance(error, DataError) else 500
