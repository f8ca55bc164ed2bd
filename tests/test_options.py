"""Options made from Python: one sentence of ours for what cannot be, and pydantic's places kept within the whole."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from multigate.balance import BALANCES
from multigate.data.tasks import read_task
from multigate.errors import ExperimentError, MultigateError
from multigate.experiment import Experiment, Optimizer, make_experiment
from multigate.model import Tower
from multigate.nn.embed import Embedding
from multigate.options import Options
from multigate.schema import Number, Schema, Task
from multigate.sharing import STRUCTURES, VARIANTS, MMoE

SCHEMA = Schema(features=[Number("x")], tasks=[Task("y")])
FEW_BINS = {"features": [{"name": "x", "kind": "number", "bins": 1}], "tasks": [{"name": "y"}]}
BAD_TASK = {"features": [{"name": "x", "kind": "number"}], "tasks": [{"name": "y", "kind": "regression", "given": "y"}]}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: MMoE(experts=0),
            "MMoE: experts: Input should be greater than or equal to 1 (found 0); set another value",
        ),
        (lambda: MMoE(expert=3), "MMoE: unknown key 'expert'; did you mean 'experts'?"),
        (
            lambda: Task("a", kind="binry"),
            "Task: kind: Input should be 'binary', 'regression' or 'multiclass' (found 'binry'); set another value",
        ),
        (Task, "Task: name: Field required; add it"),
        (lambda: Task(name=7), "Task: name: Input should be a valid string (found 7); write it in quotes"),
        (
            lambda: Schema(features=[Number("x")], tasks=[Task("y", given="z")]),
            "Schema: task 'y': given 'z' is not another binary task; add one of that name, or leave 'given' out",
        ),
        (
            lambda: Experiment(schema=SCHEMA, balance="pcgradd"),
            "Experiment: balance: there is no balance 'pcgradd'; did you mean 'pcgrad'?",
        ),
        (
            lambda: Experiment(schema=SCHEMA).with_(epochs=0),
            "Experiment: epochs: Input should be greater than or equal to 1 (found 0); set another value",
        ),
    ],
)
def test_what_python_gives_is_refused_in_one_sentence(make: Callable[[], Options], sentence: str) -> None:
    with pytest.raises(MultigateError) as caught:
        make()
    assert str(caught.value) == sentence
    assert isinstance(caught.value, ExperimentError)
    assert isinstance(caught.value, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == sentence  # as workers hand it on


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        (["epochs=0", "batch_size=abc"], ["epochs: ", "batch_size: "]),
        (["epohcs=3", "batch_sise=4", "patience=0"], ["'epohcs'; did you mean 'epochs'", "'batch_size'", "patience: "]),
        (["schmea=3", "seed=-1"], ["'schmea'; did you mean 'schema'", "seed: "]),
        (["sharing={expert: 1, dropout: 3}", "tower=[0, -1]"], ["'expert'", "dropout: ", "hidden.0: ", "hidden.1: "]),
        (["train=3"], ["train: Input should be a valid string (found 3); write it in quotes"]),
        (["schema.tasks=[{nam: y}]"], ["schema.tasks.0: unknown key 'nam'; did you mean 'name'?"]),
    ],
)
def test_all_that_is_wrong_is_told_at_once(changes: list[str], wrong: list[str]) -> None:
    """And nothing else: neither that a value is of none of two types, nor that what is misspelt is missing."""
    good = Experiment(schema=SCHEMA, train="rows.parquet").to_dict()
    with pytest.raises(ExperimentError) as caught:
        make_experiment(good, changes, name="x.yaml")
    told = str(caught.value).removeprefix("x.yaml: ").split(", and ")
    assert len(told) == len(wrong), told
    for one, piece in zip(told, wrong, strict=True):
        assert piece in one


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"learning_rate": 0.1}, "unknown key 'learning_rate'; it stands deeper: optimizer.learning_rate"),
        ({"hidden": [8]}, "unknown key 'hidden'; it stands deeper: sharing.hidden or tower.hidden"),
        ({"tasks": ["y"]}, "unknown key 'tasks'; it stands deeper: schema.tasks"),
        ({"sharing": {"hidden": 8}}, "sharing.hidden: Input should be a list (found 8); put [ ] around it"),
        ({"lr": 0.1}, "unknown key 'lr'; write optimizer.learning_rate"),
        ({"optimizer": {"lr": 0.1}}, "optimizer: unknown key 'lr'; write 'learning_rate'"),
        (
            {"device": "cpu"},
            "unknown key 'device'; it is said to the command that trains, as --device, or to the function",
        ),
        ({"valid": 0.2}, "valid: a file, folder or glob is wanted, found 0.2; a share of rows is split.valid or split"),
        ({"embedding": 8}, "or instance of Embedding (found 8); write its fields, as {field: value}"),
        (
            {"train": {"x": [1.0], "y": [0]}},
            "train: a file, folder or glob is wanted, found dict; a table in memory is",
        ),
        ({"valid": np.zeros((2, 2))}, "valid: a file, folder or glob is wanted, found ndarray; a table in memory is"),
    ],
)
def test_what_stands_in_the_wrong_place_is_told_the_right_one(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        Experiment(schema=SCHEMA, **options)
    assert told in str(caught.value)


def test_short_forms_are_those_they_stand_for(tmp_path: Path) -> None:
    schema = Schema(features=[Number("x")], tasks=["y", "z"])
    assert schema.tasks == (Task("y"), Task("z"))
    assert Schema(features=[Number("x")], tasks="y") == SCHEMA
    assert Schema(features={"x": "number"}, tasks={"y": "binary"}) == SCHEMA
    assert Schema(features={"x": {"kind": "number", "bins": 8}}, tasks={"y": {}}).features == (Number("x", bins=8),)
    with pytest.raises(ExperimentError, match=r"features\.0: there is no kind 'numeric'; did you mean 'number'\?$"):
        Schema(features={"x": "numeric"}, tasks="y")
    with pytest.raises(
        ExperimentError, match=r"features\.0: no 'kind' says what it is \(found \{'name': 'x'\}\); add it$"
    ):
        Schema(features=[{"name": "x"}], tasks="y")
    with pytest.raises(ExperimentError, match=r"features\.0: there is no kind '3'; valid names: .*, and tasks\.0: Inp"):
        Schema(features={"x": 3}, tasks=[3])
    experiment = Experiment(
        schema=SCHEMA, train=tmp_path / "a.csv", valid=[tmp_path, "b.csv"], warm_start=tmp_path, optimizer="adam"
    )
    assert experiment.train == str(tmp_path / "a.csv")
    assert experiment.valid == (str(tmp_path), "b.csv")
    assert experiment.warm_start == str(tmp_path)
    assert experiment.optimizer == Optimizer(name="adam")


def test_of_very_much_that_is_wrong_the_rest_is_counted() -> None:
    with pytest.raises(ExperimentError, match=r"hidden\.3: [^,]*, [^,]*; set another value \[and 3 more\]$"):
        make_experiment({"schema": SCHEMA.to_dict()}, ["sharing.hidden=[a, b, c, d, e, f, g]"])


@pytest.mark.parametrize(
    "kind",
    [Tower, Embedding, Optimizer, *STRUCTURES.values(), *BALANCES.values()],
    ids=lambda kind: kind.__name__,
)
def test_no_layer_without_width_and_no_number_without_end(kind: type[Options]) -> None:
    """In whichever field: of a network without units all that is learnt is a constant."""
    for name, field in kind.model_fields.items():
        if name in ("hidden", "bottom"):
            for widths in ((0, 8), (8, 0), (8, -4)):
                with pytest.raises(ExperimentError, match=rf"{name}\.\d: .* greater than or equal to 1"):
                    kind(**{name: widths})
            assert getattr(kind(**{name: (8, 1)}), name) == (8, 1)
        if field.annotation in (float, float | None):
            for number in (math.inf, -math.inf, math.nan):
                with pytest.raises(ExperimentError, match=f"{name}: Input should be"):
                    kind(**{name: number})


@pytest.mark.parametrize(
    ("schema", "place", "told"),
    [
        (FEW_BINS, ("schema", "features", 0, "number", "bins"), "Input should be greater than or equal to 2 (found 1)"),
        (BAD_TASK, ("schema", "tasks", 0), "task 'y': 'given' joins two binary tasks, this one is regression"),
    ],
)
def test_options_within_options_are_told_with_their_place(schema: dict, place: tuple, told: str) -> None:
    """Built by pydantic, from plain values or from Python: the place is that in the whole."""
    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate({"schema": schema})
    assert caught.value.errors()[0]["loc"] == place
    words = f"{'.'.join(map(str, place))}: {told}"
    with pytest.raises(ExperimentError) as caught_from_values:
        make_experiment({"schema": schema}, name="x.yaml")
    assert str(caught_from_values.value).startswith(f"x.yaml: {words}")
    with pytest.raises(ExperimentError) as caught_from_python:
        Experiment(schema=schema)
    assert str(caught_from_python.value) == str(caught_from_values.value).replace("x.yaml", "Experiment", 1)


def test_the_command_line_words_its_tasks_as_before() -> None:
    with pytest.raises(ExperimentError, match=r"^'' is not a task: name: String should have at least 1 character"):
        read_task("")


def test_options_are_copied_and_pickled_whole() -> None:
    experiment = Experiment(schema=SCHEMA, sharing=MMoE(experts=3), tower=(8,), balance="pcgrad")
    for again in (pickle.loads(pickle.dumps(experiment)), copy.deepcopy(experiment), experiment.with_()):
        assert again == experiment
        assert type(again.sharing) is MMoE
    assert experiment.with_(seed=3).to_dict() == experiment.to_dict() | {"seed": 3}
    assert Task("a", kind="regression").model_fields_set == {"name", "kind"}


def test_only_a_name_may_be_given_without_its_field() -> None:
    assert Task("click") == Task(name="click")
    with pytest.raises(MultigateError, match="say which field 'regression' is, such as kind='regression'"):
        Task("watch", "regression")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("epochs=true", "epochs: Input should be a valid integer (found True); set another value"),
        ("batch_size=true", "batch_size: Input should be a valid integer (found True); set another value"),
        ("seed=false", "seed: Input should be a valid integer (found False); set another value"),
        ("sharing.experts=true", "sharing.experts: Input should be a valid integer (found True); set another value"),
        ("tower=[8, true]", "tower.hidden.1: Input should be a valid integer (found True); set another value"),
        (
            "embedding.dropout=false",
            "embedding.dropout: Input should be a valid number (found False); set another value",
        ),
    ],
)
def test_booleans_are_no_numbers(change: str, sentence: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        make_experiment({"schema": SCHEMA}, change)
    assert str(caught.value) == f"experiment: {sentence}"


def test_what_may_be_a_boolean_still_is() -> None:
    task = Task("y", positive=[True, 2], auxiliary=True)
    assert task.positive == (True, 2)
    assert task.positive[0] is True
    assert task.auxiliary is True
    assert Embedding(drop_numbers=True).drop_numbers is True
    assert Task("y", kind="multiclass", classes=[True, False]).classes == ("true", "false")


def test_what_python_replaces_is_checked_like_a_new_one() -> None:
    given = Experiment(schema=SCHEMA)
    replace = getattr(copy, "replace", lambda one, **changes: one.__replace__(**changes))  # it is there from 3.13 on
    assert replace(given, seed=3) == given.with_(seed=3)
    assert replace(Task("y", weight=2.0), weight=3.0).model_fields_set == {"name", "weight"}, "its kind is not declared"
    for wrong in ({"epoch": 2}, {"epochs": 0}):
        with pytest.raises(MultigateError, match="epoch"):
            replace(given, **wrong)


def test_what_is_set_and_moves_nothing_is_told_with_its_place_and_why() -> None:
    features = [
        {"name": "age", "kind": "number", "embedding": "none", "bins": 9},
        {"name": "tags", "kind": "bag", "buckets": 9, "min_count": 2},
    ]
    tasks = [
        {"name": "buy", "given": "click", "risk_weight": 0.5},
        {"name": "click", "transform": "log1p", "classes": ["a"]},
    ]
    values = {
        "schema": {"features": features, "tasks": tasks},
        "sharing": {"structure": "mmoe", "k": 4},
        "embedding": {"dropout": 0, "drop_numbers": True},
    }
    assert make_experiment(values).set_in_vain() == [
        "schema.features.age.bins moves nothing: embedding 'none' does not read it",
        "schema.features.tags.min_count moves nothing: items are hashed into 'buckets'",
        "schema.tasks.buy.risk_weight moves nothing: no 'risk' is set, ips or dr",
        "schema.tasks.click.transform moves nothing: it is of regressions, this task is binary",
        "schema.tasks.click.classes moves nothing: they are of multiclass tasks, this one is binary",
        "sharing.k moves nothing: gates read all sources; set gating to 'top_k' or another sparse one",
        "embedding.drop_numbers moves nothing: dropout is 0",
    ]


@pytest.mark.parametrize(
    ("wrong", "right", "told"),
    [
        ({"structure": "soft", "every": 5}, {"penalty": "tucker"}, "sharing.every moves nothing: it is of penalty"),
        (
            {"structure": "aitm", "order_penalty": 1},
            {"order": ["y"]},
            "sharing.order_penalty moves nothing: no",
        ),
        (
            {"structure": "tensor_factor", "rank": 0.2, "form": "laf"},
            {"form": "tt"},
            "sharing.rank moves nothing: form",
        ),
        ({"structure": "ple", "k": 3}, {"gating": "dselect_k"}, "sharing.k moves nothing: gates read all"),
        (
            {"structure": "mmoe", "experts": 4, "exclusive": 0.1},
            {"exclusive": 0.25},
            "sharing.exclusive moves nothing: of 4 experts it comes to none; 0.25 is one of them",
        ),
        (
            {"structure": "mmoe", "experts": 8, "exclusion": 0.05},
            {"exclusion": 0.0},
            "sharing.exclusion moves nothing: of 8 experts it comes to none; 0.12 is one of them",
        ),
    ],
)
def test_settings_of_structures_that_move_nothing_are_told(
    wrong: dict[str, Any], right: dict[str, Any], told: str
) -> None:
    (found,) = make_experiment({"schema": SCHEMA, "sharing": wrong}).set_in_vain()
    assert found.startswith(told)
    assert not make_experiment({"schema": SCHEMA, "sharing": wrong | right}).set_in_vain()


@pytest.mark.parametrize(
    ("task", "idle"),
    [
        ({"kind": "binary"}, False),
        ({"kind": "regression", "transform": "log1p"}, False),
        ({"kind": "regression"}, True),
        ({"kind": "multiclass"}, True),
    ],
)
def test_recalibration_that_no_task_has_a_curve_for_is_told(task: dict[str, Any], idle: bool) -> None:
    schema = {"features": [{"name": "x", "kind": "number"}], "tasks": [{"name": "y", **task}]}
    experiment = make_experiment({"schema": schema, "recalibrate": "isotonic"})
    told = ["recalibrate moves nothing: there are curves for binary tasks and regressions through log1p alone"]
    assert experiment.set_in_vain() == told * idle
    assert experiment.corrects is not idle


@pytest.mark.parametrize("name", [*STRUCTURES, *VARIANTS])
def test_nothing_is_set_in_vain_where_all_is_at_its_default(name: str) -> None:
    assert not make_experiment({"schema": SCHEMA, "sharing": name}).set_in_vain()
