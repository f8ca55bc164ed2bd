"""Options: frozen, checked settings that turn into YAML and back."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from multigate.errors import SettingError, nearest


class Options(BaseModel):
    """Settings of one thing. Frozen; an unknown key is refused with the nearest valid name.

    Made from Python they raise ``SettingError``, in one sentence. ``model_validate``, and options within options, keep
    pydantic's ``ValidationError``, which knows the place of what is wrong in the whole.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise SettingError(refusal(type(self).__name__, error)) from None

    # as on BaseModel: pydantic then makes what stands within other options itself, and keeps the places of errors
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key {key!r}; {nearest(str(key), cls.model_fields)}")
        return data

    def with_(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one. Raises ``SettingError``."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    def to_dict(self, *, full: bool = False) -> dict[str, Any]:
        """Plain values for YAML or JSON; unless ``full``, fields at their default are omitted (tags are kept)."""
        if full:
            return self.model_dump(mode="json")
        dumped: dict[str, Any] = _with_tags(self, self.model_dump(mode="json", exclude_defaults=True))
        return dumped


TAGS = ("kind", "structure", "method", "by")


def _with_tags(value: Any, dumped: Any) -> Any:
    """Put back the discriminating tags that ``exclude_defaults`` dropped, at every depth."""
    if isinstance(value, Options):
        tags = {name: getattr(value, name) for name in TAGS if name in type(value).model_fields}
        names = {"name": dumped["name"]} if "name" in dumped else {}
        inner = {name: _with_tags(getattr(value, name), item) for name, item in dumped.items()}
        return names | tags | inner
    if isinstance(value, tuple | list):
        return [_with_tags(one, item) for one, item in zip(value, dumped, strict=True)]
    return dumped


ADVICE = {"string_type": "; write it in quotes", "missing": "; add it", "value_error": ""}
"""What to do about an error of pydantic, by its type; those of our own say it themselves."""


def refusal(name: str, error: ValidationError) -> str:
    """One sentence for a pydantic error, what to do included, about the thing called ``name``."""
    kind = error.errors(include_url=False)[0]["type"]
    return f"{name}: {explain(error)}{ADVICE.get(kind, '; set another value')}"


def explain(error: ValidationError) -> str:
    """One sentence for a pydantic error: where, and what was wrong with it (the first of several)."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    found = "" if first["type"] in ("value_error", "missing") else f" (found {_short(first['input'])})"
    others = error.error_count() - 1
    more = f" [and {others} more]" if others else ""
    return f"{place + ': ' if place else ''}{message}{found}{more}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
