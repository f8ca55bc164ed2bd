"""What is tried of an experiment: fields by the names that ``--set`` has for them, and the values of each."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from multigate.analysis.ranges import Choice, Point, Range, Space, Value
from multigate.errors import ExperimentError, nearest
from multigate.experiment import Experiment, as_balance, as_optimizer, as_structure
from multigate.options import Options, refusal
from multigate.sharing import known_as
from multigate.yaml_text import dump_yaml, parse_yaml

Spec = str | tuple[float, float] | list[Any] | NDArray[Any]
"""Values of a field: text as ``--try`` has it, two ends of a range, or a list of choices."""
ROWS = "all trials train and are judged on the same rows, encoded once"
FIXED = {
    **dict.fromkeys(("schema", "train", "valid", "test", "split", "valid_rows"), ROWS),
    "monitor": "it is what trials are judged by",
    "seed": "all trials have the same seed, for a lucky one is no setting",
    "recalibrate": "curves are fitted once training is over",
    "warm_start": "every trial starts anew",
}
"""Fields that are not tried, and why."""
TRIED = tuple(name for name in Experiment.model_fields if name not in FIXED)
BLOCKS = {"sharing": as_structure, "balance": as_balance, "optimizer": as_optimizer}
"""Fields whose value may be the name of a whole block."""
ALSO = {"sharing.structure": "sharing", "balance.method": "balance", "tower": "tower.hidden"}
"""Other names of fields."""
RATE = "optimizer.learning_rate"
WIDE = 10
"""Ends of a range above 0 that are so many times apart have values evenly spread in their logarithm."""
DIGITS = 4
"""That count of a number drawn from a range."""


def read_space(experiment: Experiment, wanted: Mapping[str, Spec]) -> Space:
    """The space that is wanted, every value of it checked.

    Raises ``ExperimentError`` for a field or value that cannot be, alone or with another choice that is wanted.
    """
    if not isinstance(wanted, Mapping):
        raise ExperimentError(
            f"what is to be tried are fields and their values, found {type(wanted).__name__}; give them as "
            "{'epochs': [3, 6]}"
        )
    space: dict[str, Range | Choice] = {}
    for named, spec in wanted.items():
        key = ALSO.get(named, named)
        _check_field(key)
        if key in space:
            raise ExperimentError(f"{key} is to be tried twice; name all its values at once")
        space[key] = _values(key, spec)
    for key, one in space.items():
        if isinstance(one, Range):
            space[key] = _as_the_field(experiment, space, key, one)
        for value in _ends(space[key]):
            _check(experiment, space, key, value)
    return space


def read_try(text: str) -> tuple[str, str]:
    """Field and values of ``KEY=VALUES``.

    Raises ``ExperimentError`` for text of another form.
    """
    key, found, values = text.partition("=")
    if not found or not key:
        raise ExperimentError(
            f"--try wants a field and values, such as optimizer.learning_rate=1e-4..1e-2 or sharing=mmoe,ple; found "
            f"{text!r}"
        )
    return key, values


def usual_space(experiment: Experiment) -> Space:
    """What is worth trying of any experiment, around its own values: rate, dropout, decay, and sizes."""
    optimizer, embedding, sharing = experiment.optimizer, experiment.embedding, experiment.sharing
    rate, dim = optimizer.rate(), embedding.dim
    space: dict[str, Range | Choice] = {
        RATE: Range(low=rate / 10, high=rate * 10, log=True),
        "embedding.dropout": Range(low=0, high=max(0.5, embedding.dropout)),
        "embedding.dim": Range(low=max(1, dim // 4), high=2 * dim, log=True, whole=True),
    }
    if optimizer.decay:
        space["optimizer.weight_decay"] = Range(low=optimizer.decay / 10, high=optimizer.decay * 10, log=True)
    for name in ("experts", "shared"):
        many = getattr(sharing, name, 0)
        if many:
            space[f"sharing.{name}"] = Range(low=max(1, many // 4), high=2 * many, log=True, whole=True)
    widths = [sharing.widened(factor).hidden for factor in (0.5, 1, 2)]
    space["sharing.hidden"] = Choice(values=tuple(dict.fromkeys(_text(list(one)) for one in widths)))
    return space


def experiment_at(experiment: Experiment, point: Point) -> Experiment:
    """The experiment with the values of a point.

    Where a block is chosen by name, the experiment's own goes by its name, and fields that it has not are left alone.

    Raises ``ExperimentError`` where the values do not go together.
    """
    return _changed(experiment, {key: _plain(value) for key, value in point.items()}, lenient=True)


def point_of(experiment: Experiment, space: Space) -> Point | None:
    """The point that the experiment itself is at; None where it is outside the space."""
    point: Point = {}
    for key, one in space.items():
        value = _within(experiment, key, one)
        if value is None and _is_below_a_choice(key, space) and not _has(experiment, key):
            value = one.at(0.0)  # it does not matter
        if value is None:
            return None
        point[key] = value
    try:
        return point if experiment_at(experiment, point) == experiment else None
    except ExperimentError:
        return None


def applied(experiment: Experiment, point: Point) -> dict[str, Any]:
    """The plain values of a point, as they are in its experiment; fields that its blocks have not are None."""
    values = {key: _plain(value) for key, value in point.items()}
    chosen = {key: value for key, value in values.items() if key in BLOCKS}
    try:
        base = _changed(experiment, chosen, lenient=True)
    except ExperimentError:
        return values
    return {key: value if key in BLOCKS or _has(base, key) else None for key, value in values.items()}


def known_by(experiment: Experiment, point: Point) -> str:
    """The same for points that make the same experiment, whatever they say of fields that its blocks have not."""
    return _text(applied(experiment, point))


def own_value(experiment: Experiment, key: str) -> Any:
    """The plain value that the experiment has; None where it has none."""
    if key in BLOCKS:
        return _name(experiment, key)
    at: Any = experiment.to_dict(full=True)
    for name in key.split("."):
        at = at.get(name) if isinstance(at, dict) else None
    return at


def combinations(experiment: Experiment, space: Space, most: int) -> list[Point] | None:
    """Every point that makes another experiment, where there are at most so many; None where there are more."""
    every = [list(_listed(one, most)) for one in space.values()]
    if any(len(values) > most for values in every):
        return None
    found: dict[str, Point] = {}
    for values in product(*every):
        point = dict(zip(space, values, strict=True))
        found.setdefault(known_by(experiment, point), point)
        if len(found) > most:
            return None
    return list(found.values())


def in_vain(experiment: Experiment, space: Space) -> list[str]:
    """What is set that moves nothing, whichever value of a field is tried: a clause for each."""
    found = experiment.set_in_vain()
    for key, one in space.items():
        for value in _ends(one):
            with suppress(ExperimentError):  # it is none by itself
                there = experiment_at(experiment, {key: value}).set_in_vain()
                found = [told for told in found if told in there]
    return found


def described(one: Range | Choice) -> str:
    """The values of a field, for people."""
    if isinstance(one, Choice):
        return ", ".join(str(value) for value in one.values)
    kinds = [word for word, known in (("whole", one.whole), ("log", one.log)) if known]
    return f"{one.low:g} to {one.high:g}" + (f" ({', '.join(kinds)})" if kinds else "")


def _check_field(key: str) -> None:
    top = key.partition(".")[0]
    if top in FIXED:
        raise ExperimentError(f"{key} cannot be tried: {FIXED[top]}; fields to try are in {', '.join(TRIED)}")
    if top not in TRIED:
        raise ExperimentError(f"there is no field {top!r} to try; {nearest(top, TRIED)}")


def _values(key: str, spec: Spec) -> Range | Choice:
    """A range or choices, not yet checked."""
    if isinstance(spec, str):
        low, dots, high = spec.partition("..")
        ends = [_number(low), _number(high)] if dots else []
        if not dots:
            return _choices(key, [_simple(key, value) for value in _list(key, spec)])
        if None in ends:
            raise ExperimentError(f"--try {key}={spec}: a range is between two numbers; write it as 0..0.5")
        whole = all(re.fullmatch(r"[-+]?[0-9]+", text.strip()) for text in (low, high))
        return _range(key, float(low), float(high), whole=whole)
    if isinstance(spec, tuple):
        if len(spec) != 2 or not all(isinstance(end, int | float | np.number) for end in spec):
            raise ExperimentError(
                f"{key}: a range is two numbers, such as (0, 0.5); found {spec!r}; choices are a list"
            )
        return _range(key, *map(float, spec), whole=all(isinstance(end, int | np.integer) for end in spec))
    values = spec.tolist() if isinstance(spec, np.ndarray) else spec
    if not isinstance(values, list):
        raise ExperimentError(
            f"{key}: what is to be tried is a list of values, a range (low, high), or text such as '0..0.5' or 'a,b'; "
            f"found {spec!r}"
        )
    return _choices(key, [_simple(key, value) for value in values])


def _simple(key: str, value: Any) -> Any:
    """A choice as YAML would have it, and numbers such as 1e-3, which YAML takes for text, as numbers."""
    if isinstance(value, Options):
        return value.to_dict()
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    if isinstance(value, list | tuple):
        return [_simple(key, one) for one in value]
    if isinstance(value, dict):
        return {name: _simple(key, one) for name, one in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ExperimentError(
        f"{key}: {value!r} is no value that an experiment file could hold; write it as one does there"
    )


def _list(key: str, text: str) -> list[Any]:
    """Choices between commas, each as ``--set`` has it."""
    try:
        found = parse_yaml(f"[{text}]", key)
    except ExperimentError:  # *.parquet and the like
        found = [one.strip() for one in text.split(",")]
    return list(found)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _range(key: str, low: float, high: float, *, whole: bool) -> Range:
    if not low < high:
        raise ExperimentError(f"{key}: a range goes up; found {low:g} to {high:g}; give the lower end first")
    return Range(low=low, high=high, log=low > 0 and high / low >= WIDE, whole=whole)


def _choices(key: str, values: list[Any]) -> Choice:
    texts = list(dict.fromkeys(map(_text, values)))
    if len(texts) < 2:
        raise ExperimentError(
            f"{key}: one value is nothing to choose from; name two or more (a,b), a range (low..high), or --set it"
        )
    return Choice(values=tuple(texts))


def _as_the_field(experiment: Experiment, space: Space, key: str, one: Range) -> Range:
    """A range with whole ends, of whole numbers where the field holds no others, however the ends are written."""
    if not (one.low.is_integer() and one.high.is_integer()):
        return one
    return one.with_(whole=all(_errors(experiment, space, key, one.low + 0.5)))


def _check(experiment: Experiment, space: Space, key: str, value: Value) -> None:
    """Raise ``ExperimentError`` where a value cannot be, neither alone nor beside another choice."""
    errors = list(_errors(experiment, space, key, _plain(value)))
    if all(errors):
        told = next((one for one in errors if "unknown key" not in one), errors[0])
        raise ExperimentError(f"{key}={value}: {told}")


def _errors(experiment: Experiment, space: Space, key: str, value: Any) -> Iterator[str]:
    """What is wrong with a value, alone and beside each choice of another field; empty where nothing is."""
    others = [{}, *({name: _plain(text)} for name, one in space.items() if name != key for text in _texts(one))]
    for other in others:
        try:
            _changed(experiment, other | {key: value}, lenient=False)
        except ExperimentError as error:
            yield str(error)
        else:
            yield ""
            return


def _texts(one: Range | Choice) -> tuple[Value, ...]:
    return one.values if isinstance(one, Choice) else ()


def _ends(one: Range | Choice) -> tuple[Value, ...]:
    return one.values if isinstance(one, Choice) else (one.at(0.0), one.at(1.0))


def _changed(experiment: Experiment, values: Mapping[str, Any], *, lenient: bool) -> Experiment:
    """The experiment with plain values in the place of some fields; leniently those that a chosen block has not are
    left out."""
    fields: dict[str, Any] = {}
    for top in dict.fromkeys(key.partition(".")[0] for key in values):
        inner = _below(top, values)
        now = _block(experiment, top, values[top]) if top in values else getattr(experiment, top)
        fields[top] = _with(now, inner, top, lenient=lenient and top in values) if inner else now
    return experiment.with_(**fields)


def _block(experiment: Experiment, top: str, value: Any) -> Any:
    """What a field is set to; a block that the experiment's own goes by the name of is that."""
    if top not in BLOCKS:
        return value
    if isinstance(value, str) and value == _name(experiment, top):
        return getattr(experiment, top)
    try:
        return BLOCKS[top](value)
    except ValidationError as error:
        raise ExperimentError(refusal(top, error)) from None
    except ValueError as error:
        raise ExperimentError(f"{top}: {error}") from None


def _with(options: Any, values: Mapping[str, Any], place: str, *, lenient: bool) -> Any:
    """Options with some values, by dotted name, in place of theirs."""
    if not isinstance(options, Options):
        raise ExperimentError(f"{place} has no fields of its own to try; try {place} as a whole")
    fields: dict[str, Any] = {}
    for name in dict.fromkeys(key.partition(".")[0] for key in values):
        if lenient and name not in type(options).model_fields:
            continue
        inner = _below(name, values)
        own = getattr(options, name, None)
        fields[name] = _with(own, inner, f"{place}.{name}", lenient=False) if inner else values[name]
    return options.with_(**fields)


def _below(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of fields within one, by the rest of their names."""
    return {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}


def _name(experiment: Experiment, top: str) -> str:
    """What a block of the experiment goes by."""
    if top == "optimizer":
        return experiment.optimizer.name
    return known_as(experiment.sharing) if top == "sharing" else str(experiment.balance.to_dict()["method"])


def _has(experiment: Experiment, key: str) -> bool:
    """Whether the experiment's own blocks have a field of that name."""
    at: Any = experiment
    for name in key.split("."):
        if not isinstance(at, Options) or name not in type(at).model_fields:
            return False
        at = getattr(at, name)
    return True


def _is_below_a_choice(key: str, space: Space) -> bool:
    return "." in key and key.partition(".")[0] in space


def _within(experiment: Experiment, key: str, one: Range | Choice) -> Value | None:
    """The experiment's own value as a point has it; None where it is outside."""
    if isinstance(one, Choice):
        return next((text for text in one.values if _changes_nothing(experiment, key, text)), None)
    value = own_value(experiment, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not one.low <= value <= one.high:
        return None
    if one.whole:
        return int(value) if float(value).is_integer() else None
    return float(value)


def _changes_nothing(experiment: Experiment, key: str, value: Value) -> bool:
    """Whether a value is the experiment's own, however it is written: 0 is 0.0, and a whole block its name."""
    with suppress(ExperimentError):
        return experiment_at(experiment, {key: value}) == experiment
    return False


def _listed(one: Range | Choice, most: int) -> Iterator[Value]:
    """All values, or more than so many."""
    if isinstance(one, Choice):
        yield from one.values
    elif one.whole:
        yield from range(int(one.low), min(int(one.high), int(one.low) + most) + 1)
    else:
        yield from map(float, range(most + 1))  # there is no end of them


def _plain(value: Value) -> Any:
    """A point's value as an experiment has it: texts are YAML, and of a number a few digits count (unless a share below
    1 would become 1, which many fields do not allow)."""
    if isinstance(value, str):
        return parse_yaml(value, value)
    if not isinstance(value, float):
        return value
    rounded = float(f"{value:.{DIGITS}g}")
    return value if (rounded < 1) != (value < 1) else rounded


def _text(value: Any) -> str:
    """A plain value as one line of YAML."""
    return dump_yaml(value, one_line=True).strip()
