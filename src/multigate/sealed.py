"""JSON that tells whether it is what was written: a digit that was altered since is as good a number as any."""

import json
from collections.abc import Mapping
from typing import Any

import xxhash

SEAL = "checksum"
"""The name that the checksum of all the others goes by."""


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with their checksum beside them, to be written as JSON."""
    read: dict[str, Any] = json.loads(json.dumps(values))  # as it will be: names that are numbers are text then
    return {**read, SEAL: _checksum(read)}


def unsealed(found: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were read, without their checksum. Raises ``ValueError`` where it is not theirs."""
    values = {name: value for name, value in found.items() if name != SEAL}
    if SEAL in found and found[SEAL] != _checksum(values):  # what was written earlier has none
        raise ValueError("it is not what was written")
    return values


def _checksum(values: Mapping[str, Any]) -> str:
    """XXH3 of what JSON makes of them, whatever the order and the blanks."""
    return xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode())
