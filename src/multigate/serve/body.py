"""Bodies of requests and answers: bytes of limited length, and JSON as its standard has it."""

import asyncio
import json
from collections import Counter
from typing import Any, NoReturn

from starlette.requests import Request

from multigate.errors import DataError

LARGEST = 16 << 20
"""Bytes that a request may have."""
DRAINED = 4 * LARGEST
"""Bytes of a longer one that are taken and thrown away, for a client that still sends reads no answer."""


ARRIVES = 60
"""Seconds that the whole of a request may take to arrive; one that is not sent on would hold its place for ever."""


class Refused(DataError):
    """A request that is turned down, with the status of HTTP that says so."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


async def read_body(request: Request) -> bytes:
    """The whole body. Raises ``Refused`` where it is too long, packed, or does not arrive."""
    packed = request.headers.get("content-encoding", "identity")
    if packed.lower() != "identity":
        raise Refused(415, f"the request is packed ({packed[:40]}); send it without a Content-Encoding")
    parts, size = [], 0
    try:
        async with asyncio.timeout(ARRIVES):
            async for part in request.stream():
                size += len(part)
                if size <= LARGEST:
                    parts.append(part)
                elif size > DRAINED:
                    break
    except TimeoutError:
        raise Refused(408, f"the request did not arrive within {ARRIVES} seconds; send it again") from None
    if size > LARGEST:
        raise Refused(
            413, f"the request has more than {LARGEST >> 20} MB, which is the limit; send fewer rows at a time"
        )
    return b"".join(parts)


def from_json(body: bytes) -> dict[str, Any]:
    """The object that a body is.

    Raises ``Refused`` where it is none, and for what Python reads but JSON does not have or does not settle: NaN, a
    name that an object has twice.
    """
    try:
        read = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise Refused(400, "the request is not valid UTF-8; send JSON") from None
    except json.JSONDecodeError as error:
        raise Refused(400, f'the request is not JSON ({error}); send an object such as {{"rows": [...]}}') from None
    except ValueError as error:  # a number of thousands of digits
        raise Refused(400, f"the request holds what cannot be read ({error}); mend it") from None
    if not isinstance(read, dict):
        found = {"list": "a list", "str": "text", "NoneType": "null"}.get(type(read).__name__, "a single value")
        raise Refused(400, f'wanted a JSON object, found {found}; send one such as {{"rows": [...]}}')
    return read


def _no_constant(name: str) -> NoReturn:
    raise Refused(400, f"the request holds {name}, which JSON does not have; send null for what is missing")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise Refused(400, f"an object of the request has {twice[:60]!r} twice; leave one out")
    return read


_written = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def to_json(answer: Any) -> bytes:
    """JSON, with null for numbers that are none."""
    try:
        text = _written(answer)
    except ValueError:
        text = _written(_finite(answer))
    return text.encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
