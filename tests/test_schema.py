"""Schemas: what fits together, what is refused and how."""

from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, reject, settings
from pydantic import ValidationError

from multigate.data import cells
from multigate.errors import ExperimentError, SettingError
from multigate.experiment import Experiment, make_experiment
from multigate.options import explain
from multigate.schema import Bag, Category, Number, Output, Schema, Task, Time
from multigate.yaml_text import dump_yaml, parse_yaml

FEATURES = [Number("age"), Category("user")]


def refused(**data: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Schema.model_validate(data)
    return explain(caught.value)


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ([{"name": "buy", "given": "clik"}, {"name": "click"}], "did you mean 'click'?"),
        ([{"name": "buy", "given": "buy"}], "is not another binary task"),
        ([{"name": "a", "given": "b"}, {"name": "b", "given": "a"}], "comes back to itself"),
        ([{"name": "click"}, {"name": "watch", "kind": "regression", "given": "click"}], "use 'where' instead"),
        ([{"name": "watch", "kind": "regression"}, {"name": "buy", "given": "watch"}], "is not another binary task"),
        ([{"name": "click"}, {"name": "click"}], "two tasks are named 'click'"),
        ([{"name": "age"}], "also feature 'age'"),
        ([{"name": "click", "postive": 1}], "did you mean 'positive'?"),
        ([{"name": "click", "risk": "ips"}], "wants a 'given' parent"),
        ([{"name": "a|b"}], "neither '|' nor '/'"),
        ([{"name": "size", "kind": "multiclass", "classes": [1, "2", 1.0]}], "class '1' is named twice"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(tasks: list[dict[str, object]], told: str) -> None:
    assert told in refused(features=[{"kind": "number", "name": "age"}], tasks=tasks)


def test_one_of_a_kind_may_stand_by_itself() -> None:
    score = Output("score", expression="2 * click")
    alone = Schema(features=Number("age"), tasks=Task("click"), outputs=score)  # type: ignore[arg-type]
    assert alone == Schema(features=(Number("age"),), tasks=(Task("click"),), outputs=(score,))


def test_unknown_feature_kinds_are_named() -> None:
    assert "categroy" in refused(features=[{"kind": "categroy", "name": "age"}], tasks=[{"name": "click"}])


def test_names_that_are_there_twice_are_told() -> None:
    click, age, user = {"name": "click"}, {"kind": "number", "name": "age"}, {"kind": "category", "name": "user"}
    twice = refused(features=[user, age, user, age], tasks=[click])
    assert twice == "two features are named 'age'; give each a name of its own"
    assert "two tasks are named 'click'" in refused(features=[age], tasks=[click, click])
    output = {"name": "click", "expression": "click * 2"}
    assert "two tasks or outputs are named 'click'" in refused(features=[age], tasks=[click], outputs=[output])
    told = refused(features=[age], tasks=[click], keys=["id", "day", "id"])
    assert told == "key 'id' is named twice among the keys; name each column once"


def test_a_time_has_parts() -> None:
    told = refused(features=[{"kind": "time", "name": "at", "parts": []}], tasks=[{"name": "click"}])
    assert "time.parts" in told
    assert "at least 1 item" in told


def test_parents_come_before_children() -> None:
    tasks = [Task("pay", given="buy"), Task("like"), Task("buy", given="click"), Task("click")]
    schema = Schema(features=FEATURES, tasks=tasks)
    assert schema.parents() == (2, None, 3, None)
    order = schema.order()
    assert sorted(order) == [0, 1, 2, 3]
    assert order.index(3) < order.index(2) < order.index(0)


def test_only_some_tasks_are_cut_loose_from_absent_parents() -> None:
    tasks = [Task("click"), Task("buy", given="click"), Task("watch", kind="regression", where="click")]
    schema = Schema(features=FEATURES, tasks=tasks)
    assert schema.only(["buy"]).tasks[0].given is None
    assert schema.only(["watch"]).tasks[0].where is None
    assert schema.only(["click", "buy"]).tasks[1].given == "click"


def test_a_task_alone_does_not_fade() -> None:
    """Adam would go on with the second moments of larger gradients: the reference of a comparison would learn less."""
    tasks = [Task("click", weight=2), Task("like", weight=3, weight_factor=0.1)]
    schema = Schema(features=FEATURES, tasks=tasks)
    assert schema.only(["like"]).tasks == (Task("like", weight=3),)
    assert schema.only(["click", "like"]).tasks == tuple(tasks)


@pytest.mark.parametrize(
    ("uses", "told"),
    [
        (("gates", "shared"), "did you mean 'gate'?"),
        (("bias", "shared"), "did you mean 'bias:'?"),
        (("bias:clik", "shared"), "feature 'age': use 'bias:clik' names no task; did you mean 'bias:click'?"),
        (("bias:", "shared"), "names no task; did you mean 'bias:buy'?"),
        (("gate", "bias:buy"), "leave it out of those they should read"),
    ],
)
def test_a_use_that_is_none_is_refused(uses: tuple[str, str], told: str) -> None:
    features = [{"kind": "number", "name": "age", "use": uses[0]}, {"kind": "bag", "name": "tags", "use": uses[1]}]
    assert told in refused(features=features, tasks=[{"name": "click"}, {"name": "buy"}])


def test_what_biases_a_task_goes_with_it_and_is_not_needed_to_predict() -> None:
    features = [*FEATURES, Number("place", column="p", use="bias:click"), Number("size", use="gate")]
    schema = Schema(features=features, tasks=[Task("click"), Task("buy", given="click", risk="dr")])
    assert schema.columns(labels=False, carried=False) == ("age", "user", "size")
    assert schema.columns(carried=False) == ("age", "user", "p", "size", "click", "buy")
    assert [one.name for one in schema.only(["buy"]).features] == ["age", "user", "size"]
    assert schema.only(["click"]).features == schema.features


def test_risks_know_the_places_of_their_tasks() -> None:
    tasks = [Task("pay", given="buy", risk="dr", risk_weight=0.3, risk_clip=0.5), Task("click"), Task("like")]
    schema = Schema(features=FEATURES, tasks=[*tasks, Task("buy", given="click", risk="ips")])
    assert schema.risks() == ((0, 3, "dr", 0.3, 0.5), (3, 1, "ips", 0.1, 0.1))
    assert schema.only(["buy", "pay"]).risks() == ((0, 1, "dr", 0.3, 0.5),)
    assert schema.only(["like", "click"]).risks() == ()


def test_a_label_of_0_and_1_is_no_weight_of_its_own_rows() -> None:
    for column in ("", "click"):
        with pytest.raises(ExperimentError, match="column 'click' is its label and its 'sample_weight'"):
            Task("click" if not column else "clicked", column=column, sample_weight="click")
    assert Task("click", sample_weight="seconds").sample_weight == "seconds", "which may be another task's label"
    assert Task("amount", kind="regression", sample_weight="amount").kind == "regression"


def test_columns_are_listed_once_and_only_those_asked_for() -> None:
    tasks = [Task("click", column="is_click", sample_weight="w"), Task("like", sample_weight="w")]
    schema = Schema(features=[*FEATURES, Bag("tags")], tasks=tasks, keys="row", time="at", group="user")
    assert schema.columns(labels=False, carried=False) == ("age", "user", "tags")
    assert schema.columns() == ("age", "user", "tags", "is_click", "like", "w", "row", "at")


NAMES = st.text(min_size=1, max_size=8) | st.sampled_from(
    ["on", "no", "null", "007", "1_000", "2024-05-01", "~", "a: b"]
)
FEATURE = st.one_of(
    st.builds(Number, NAMES, transform=st.sampled_from(["standard", "log", "quantile"]), bins=st.integers(2, 1024)),
    st.builds(
        Category,
        NAMES,
        column=st.text(max_size=3),
        use=st.sampled_from(["shared", "gate"]),
        max_size=st.integers(1, 10**9),
        table=st.text(max_size=3),
    ),
    st.builds(Bag, NAMES, separator=st.text(min_size=1, max_size=2), buckets=st.none() | st.integers(2, 99)),
    st.builds(Time, NAMES, dim=st.none() | st.integers(1, 99)),
)
VALUES = st.text() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
TASK = st.one_of(
    st.builds(Task, NAMES, positive=st.none() | VALUES | st.lists(VALUES).map(tuple), weight=st.floats(0, 9)),
    st.builds(Task, NAMES, kind=st.just("multiclass"), classes=st.lists(st.text(), max_size=3).map(tuple)),
)


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    try:
        return Schema(
            features=draw(st.lists(FEATURE, min_size=1, max_size=4)),
            tasks=draw(st.lists(TASK, min_size=1, max_size=3)),
            keys=draw(st.lists(NAMES, max_size=2)),
            types=draw(st.dictionaries(NAMES, st.text(max_size=5), max_size=3)),
            time=draw(st.none() | NAMES),
        )
    except SettingError:
        reject()


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas())
def test_any_schema_comes_back_from_yaml(schema: Schema) -> None:
    assert Schema.model_validate(parse_yaml(dump_yaml(schema.to_dict()), "x")) == schema
    assert Schema.model_validate(parse_yaml(dump_yaml(schema.to_dict(full=True), one_line=True), "x")) == schema


WORDS = st.sampled_from([*Schema.model_fields, *Task.model_fields, *Number.model_fields, *Experiment.model_fields])
TREES = st.recursive(
    st.none() | VALUES | WORDS | st.sampled_from(["number", "bag", "mmoe", "binary"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(WORDS, TREES, max_size=5), st.dictionaries(WORDS, TREES, max_size=5))
def test_a_tree_of_anything_is_an_experiment_or_an_error_of_ours(tree: dict[str, Any], schema: dict[str, Any]) -> None:
    for data in (tree, tree | {"schema": schema}, {"schema": tree | {"features": [schema], "tasks": [tree]}}):
        with suppress(ExperimentError):
            make_experiment(data)


def test_a_schema_goes_through_plain_values() -> None:
    tasks = [Task("topic", kind="multiclass", classes=("a", "b")), Task("paid", positive=("yes", 1, True))]
    schema = Schema(features=[*FEATURES, Bag("tags", separator="|", buckets=64)], tasks=tasks, types={"age": "int64"})
    assert Schema.model_validate(schema.to_dict()) == schema


def test_classes_are_the_text_that_their_cells_have() -> None:
    wanted = [cells.text(one) for one in (1.0, 2, True, False, 0.5, "high")]
    assert list(Task("t", kind="multiclass", classes=(1.0, 2, True, False, 0.5, "high")).classes) == wanted
