"""Options: frozen, checked settings that turn into YAML and back."""

import re
from collections.abc import Container, Mapping
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

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

    elsewhere: ClassVar[Mapping[str, str]] = {}
    """What people write who know other programs, and where it is said here."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        unknown = [key for key in data if key not in cls.model_fields] if isinstance(data, dict) else []
        if not unknown:
            return data
        advice = {key: cls.place_of(str(key)) or nearest(str(key), cls.model_fields) for key in unknown}
        told = [f"unknown key {key!r}; {advice[key]}" for key in unknown]
        try:
            cls.model_validate({key: value for key, value in data.items() if key not in unknown})
        except ValidationError as error:  # what is missing may stand there under the wrong name
            told.append(_listed(error, advice=True, left_out=("missing",)))
        raise ValueError(", and ".join(filter(None, told)))

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        numbers = {name for name, field in cls.model_fields.items() if _is_numeric(field.annotation)}
        return {name: _no_number(value) if name in numbers else value for name, value in data.items()}

    @classmethod
    def place_of(cls, key: str) -> str | None:
        """Where a key stands that is one of the options within these, or what else it stands for."""
        if key in cls.elsewhere:
            return cls.elsewhere[key]
        kinds = {
            name: type(field.default) if isinstance(field.default, Options) else field.annotation
            for name, field in cls.model_fields.items()
        }
        homes = [
            f"{name}.{key}"
            for name, kind in kinds.items()
            if isinstance(kind, type) and issubclass(kind, Options) and key in kind.model_fields
        ]
        return f"it stands deeper: {' or '.join(homes)}" if homes else None

    def idle(self) -> Mapping[str, str]:
        """Fields that move nothing beside what others are set to, and why."""
        return {}

    def set_in_vain(self, place: str = "") -> list[str]:
        """What is not at its default, here or in options within these, and moves nothing: a clause for each."""
        fields = type(self).model_fields
        found = [
            f"{place}{name} moves nothing: {why}"
            for name, why in self.idle().items()
            if getattr(self, name) != fields[name].default
        ]
        for name in fields:
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, Options):
                    within = f"{name}.{one.name}" if value is not one and hasattr(one, "name") else name
                    found += one.set_in_vain(f"{place}{within}.")
        return found

    def with_(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one. Raises ``SettingError``."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    def __replace__(self, **changes: Any) -> Self:
        """What ``copy.replace`` asks for, from Python 3.13 on: pydantic's own checks nothing. Fields that were not set
        still are not, as a task's that are read off its column."""
        kept = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        return type(self)(**kept | changes)

    def to_dict(self, *, full: bool = False) -> dict[str, Any]:
        """Plain values for YAML or JSON; unless ``full``, fields at their default are omitted (tags are kept)."""
        if full:
            return self.model_dump(mode="json")
        dumped: dict[str, Any] = _with_tags(self, self.model_dump(mode="json", exclude_defaults=True))
        return dumped


class _Boolean:
    """A boolean where a number is wanted: pydantic, as Python, takes one for 0 or 1, and refuses this."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


def _no_number(value: Any) -> Any:
    """The value with its booleans as what is no number."""
    if isinstance(value, list | tuple):
        return [_no_number(one) for one in value]
    if isinstance(value, dict):
        return {name: _no_number(one) for name, one in value.items()}
    return _Boolean(value) if isinstance(value, bool) else value


def _is_numeric(annotation: Any) -> bool:
    """Whether values of a type are numbers, or hold some, and no booleans."""
    kinds = _kinds(annotation)
    return (int in kinds or float in kinds) and bool not in kinds


def _kinds(annotation: Any) -> list[Any]:
    """The types that an annotation is made of, itself among them."""
    return [annotation, *(kind for part in get_args(annotation) for kind in _kinds(part))]


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


ADVICE = {
    "string_type": "; write it in quotes",
    "tuple_type": "; put [ ] around it",
    "union_tag_not_found": "; add it",
    "union_tag_invalid": "",
    "model_type": "; write its fields, as {field: value}",
    "model_attributes_type": "; write its fields, as {name: ..., kind: ...}",
    "missing": "; add it",
    "value_error": "",
}
"""What to do about an error of pydantic, by its type; those of our own say it themselves."""
SAID = ("value_error", "missing", "union_tag_invalid")
"""Those of which what was found need not be told."""
MOST = 4
"""Wrong fields that a sentence names."""
BRANCH = re.compile(r"(str|int|float|bool|list|tuple)(\[.*\])?")
"""What pydantic puts behind a place that may be of one type or another."""


def refusal(name: str, error: ValidationError) -> str:
    """One sentence for a pydantic error, what to do included, about the thing called ``name``."""
    return f"{name}: {_listed(error, advice=True)}"


def explain(error: ValidationError) -> str:
    """One sentence for a pydantic error: where, and what was wrong with it, of all that is wrong."""
    return _listed(error, advice=False)


def _listed(error: ValidationError, *, advice: bool, left_out: Container[str] = ()) -> str:
    told: dict[str, str] = {}
    for one in error.errors(include_url=False):
        place = ".".join(str(part) for part in one["loc"] if not BRANCH.fullmatch(str(part)))
        follows = one["type"] == "too_short" and any(at.startswith(f"{place}.") for at in told)
        if one["type"] in left_out or follows:
            continue  # no value is left in a list, for those that are wrong were taken out
        message = _message(one)
        found = "" if one["type"] in SAID else f" (found {_short(one['input'])})"
        what_to_do = ADVICE.get(one["type"], "; set another value") if advice else ""
        told.setdefault(place, f"{place + ': ' if place else ''}{message}{found}{what_to_do}")
    more = f" [and {len(told) - MOST} more]" if len(told) > MOST else ""
    return ", and ".join(list(told.values())[:MOST]) + more


def _message(one: ErrorDetails) -> str:
    """What pydantic says, or what we say of options that are told apart by a field such as ``kind``."""
    told = one.get("ctx", {})
    match one["type"]:
        case "union_tag_not_found":
            return f"no {told['discriminator']} says what it is"
        case "union_tag_invalid":
            known = re.findall(r"'([^']+)'", told["expected_tags"])
            return f"there is no {told['discriminator'].strip(chr(39))} {told['tag']!r}; {nearest(told['tag'], known)}"
        case "tuple_type":
            return "Input should be a list"
    return one["msg"].removeprefix("Value error, ")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
