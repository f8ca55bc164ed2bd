"""Schemas: what fits together, what is refused and how."""

import pytest
from pydantic import ValidationError

from multigate.options import explain
from multigate.schema import Bag, Category, Number, Schema, Task

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
        ([{"name": "a|b"}], "neither '|' nor '/'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(tasks: list[dict[str, object]], told: str) -> None:
    assert told in refused(features=[{"kind": "number", "name": "age"}], tasks=tasks)


def test_unknown_feature_kinds_are_named() -> None:
    assert "categroy" in refused(features=[{"kind": "categroy", "name": "age"}], tasks=[{"name": "click"}])


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


def test_columns_are_listed_once_and_only_those_asked_for() -> None:
    tasks = [Task("click", column="is_click", sample_weight="w"), Task("like", sample_weight="w")]
    schema = Schema(features=[*FEATURES, Bag("tags")], tasks=tasks, keys="row", time="at", group="user")
    assert schema.columns(labels=False, carried=False) == ("age", "user", "tags")
    assert schema.columns() == ("age", "user", "tags", "is_click", "like", "w", "row", "at")


def test_a_schema_goes_through_plain_values() -> None:
    tasks = [Task("topic", kind="multiclass", classes=("a", "b")), Task("paid", positive=("yes", 1, True))]
    schema = Schema(features=[*FEATURES, Bag("tags", separator="|", buckets=64)], tasks=tasks, types={"age": "int64"})
    assert Schema.model_validate(schema.to_dict()) == schema
