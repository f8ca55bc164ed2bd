"""Warm start: a model for later rows begins with the weights of one trained before."""

from collections.abc import Sequence
from functools import partial
from typing import cast

from torch import Tensor

from multigate.bundle import Bundle
from multigate.data.cells import DIGITS, NUMBERS, spelling
from multigate.data.vocabulary import table_of
from multigate.errors import ExperimentError
from multigate.experiment import Experiment
from multigate.model import Model
from multigate.nn.embedding_tables import StackedTables
from multigate.schema import Category, Feature, Hashed, Number, Task

ENCODING = ("name", "column", "kind", "positive", "classes", "transform", "given", "where")
"""What a task must have in common with the bundle's to mean the same."""


def check_start(bundle: Bundle, experiment: Experiment) -> None:
    """Raise ``ExperimentError`` where features, their texts, tasks or structure are not those of the bundle."""
    before, now = bundle.experiment, experiment
    advice = f"take the bundle's, or train from the start without warm_start {experiment.warm_start!r}"
    if before.schema.features != _embedded_as(before.schema.features, now.schema.features):
        found = {one.name for one in before.schema.features} ^ {one.name for one in now.schema.features}
        which = f" ({', '.join(sorted(found)[:5])})" if found else ""
        raise ExperimentError(f"schema.features differ from those the bundle was trained with{which}; {advice}")
    if [_meaning(task) for task in before.schema.tasks] != [_meaning(task) for task in now.schema.tasks]:
        raise ExperimentError(f"schema.tasks mean something else than in the bundle; {advice}")
    for one in now.schema.features:
        types = [schema.types.get(one.source) for schema in (before.schema, now.schema)]
        held = bundle.encoder.fitted.vocabularies.get(table_of(one)) if isinstance(one, Category) else None
        altered = _spelled(types[0]) != _spelled(types[1]) or _altered(() if held is None else held.values, types[1])
        if isinstance(one, Category | Hashed) and altered:
            raise ExperimentError(
                f"schema.types.{one.source} is {types[1] or 'not given'}, the bundle's is {types[0] or 'not given'}, "
                f"by which the values it knows are spelled; {advice}"
            )
    if before.sharing.name != now.sharing.name:
        raise ExperimentError(f"sharing is {now.sharing.name!r}, the bundle's is {before.sharing.name!r}; {advice}")


def start_from(model: Model, bundle: Bundle) -> None:
    """Put the bundle's weights into ``model``; ids that are new to it begin as what was learnt for unseen ones.

    Raises ``ExperimentError`` where their widths differ.
    """
    old = bundle.model
    grown = {name: module for name, module in model.named_modules() if isinstance(module, StackedTables)}
    weights, there = old.state_dict(), model.state_dict()
    tables = {f"{name}.weight" for name in grown}
    odd = sorted(name for name in {*weights, *there} - tables if _shape(weights, name) != _shape(there, name))
    if odd:
        raise ExperimentError(
            f"the model's widths are not those of the bundle (first at {odd[0]!r}: wanted {_shape(weights, odd[0])}, "
            f"found {_shape(there, odd[0])}); take sharing, tower and embedding from the bundle"
        )
    model.load_state_dict({name: one for name, one in weights.items() if name not in tables}, strict=False)
    for name, module in grown.items():
        module.begin_with(cast(StackedTables, old.get_submodule(name)))


def _shape(weights: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None


def _spelled(kind: str | None) -> object:
    """Equal for types whose values have the same texts, very long numbers aside."""
    spell = spelling(kind)
    if spell in NUMBERS:
        return NUMBERS
    return spell.keywords if isinstance(spell, partial) else spell


def _altered(values: Sequence[str], kind: str | None) -> bool:
    """Whether long numbers among the values known, of which a column of this type holds only the nearest."""
    spell = spelling(kind)
    return spell in NUMBERS and any(spell(value) != value for value in values if len(value) > DIGITS)


def _embedded_as(before: Sequence[Feature], now: Sequence[Feature]) -> tuple[Feature, ...]:
    """Features now; numbers that do not say how they are embedded are embedded as they were."""
    held = {one.name: one.embedding for one in before if isinstance(one, Number)}
    return tuple(
        one.with_(embedding=held.get(one.name, "auto")) if isinstance(one, Number) and one.embedding == "auto" else one
        for one in now
    )


def _meaning(task: Task) -> tuple[object, ...]:
    return tuple(getattr(task, name) for name in ENCODING)
