"""What a model reads and answers: for people who ask, and as JSON Schema on the page of the interface."""

from typing import Any

from multigate.bundle import Bundle
from multigate.data.vocabulary import FIRST, table_of
from multigate.schema import Bag, Category, Feature, Hashed, Number, Time, Vector

ERROR = {
    "description": "What was wanted, what was found, what to do, in one sentence",
    "content": {
        "application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}},
    },
}
"""An answer that holds no predictions, as OpenAPI describes it."""


def description(bundle: Bundle, name: str) -> dict[str, Any]:
    """Features with their kinds and sizes, tasks, and the names of the predictions."""
    return {
        "model": name,
        "engine": bundle.engines.row.name,
        "features": [_feature(bundle, one) for one in bundle.schema.features if one.biased is None],
        "tasks": [{"name": task.name, "kind": task.kind, "given": task.given} for task in bundle.schema.tasks],
        "predictions": list(bundle.predict_rows([])),
    }


def _feature(bundle: Bundle, feature: Feature) -> dict[str, Any]:
    about: dict[str, Any] = {"name": feature.name, "column": feature.source, "kind": feature.kind}
    if feature.source in bundle.schema.types:
        about["type"] = bundle.schema.types[feature.source]
    if isinstance(feature, Category | Hashed | Bag):
        hashed = isinstance(feature, Hashed | Bag) and feature.buckets
        about["buckets" if hashed else "vocabulary"] = bundle.encoder.layout.tables[table_of(feature)] - FIRST
    if isinstance(feature, Vector):
        about["size"] = feature.size
    if isinstance(feature, Time):
        about["parts"] = list(feature.parts)
    return about


def row_schema(bundle: Bundle) -> dict[str, Any]:
    """JSON Schema of one row."""
    columns = bundle.schema.columns(labels=False, carried=False)
    by_column = {one.source: one for one in reversed(bundle.schema.features)}
    return {
        "type": "object",
        "properties": {column: _cell_schema(by_column[column]) for column in columns},
        "required": list(columns),
    }


def _cell_schema(feature: Feature) -> dict[str, Any]:
    match feature:
        case Number():
            return {"type": ["number", "null"]}
        case Vector():
            size = feature.size
            return {"type": ["array", "null"], "items": {"type": "number"}, "minItems": size, "maxItems": size}
        case Bag():
            return {"type": ["array", "string", "null"], "items": {"type": ["string", "number", "boolean"]}}
        case Time():
            return {"type": ["string", "number", "null"], "description": "ISO 8601, or seconds since 1970"}
    return {"type": ["string", "number", "boolean", "null"]}


def question_schema(bundle: Bundle) -> dict[str, Any]:
    """JSON Schema of what ``/predict`` reads."""
    row = row_schema(bundle)
    many = {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": row}, "gates": {"type": "boolean"}},
        "required": ["rows"],
    }
    return {"anyOf": [many, row]}
