"""Experiment files: defaults, changes from the command line, and errors that name the key."""

from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import multigate as mg
from multigate.errors import ExperimentError
from multigate.experiment import Experiment, make_experiment, read_experiment
from multigate.schema import Number, Schema, Task
from multigate.sharing import MMoE, OMoE, SharedBottom
from multigate.yaml_text import parse_yaml

TEXT = """
schema:
  features:
    - {name: age, kind: number}
  tasks:
    - {name: click}
train: data/*.parquet
sharing: mmoe
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(TEXT)
    return path


def test_changes_reach_the_field_they_name(file: Path) -> None:
    changes = [
        "sharing.experts=16",
        "sharing.hidden=[32, 16]",
        "tower=[8]",
        "optimizer.learning_rate=1e-2",
        "split.valid_from=2022-05-05",
        "patience=null",
    ]
    experiment = read_experiment(file, changes)
    assert experiment.sharing == MMoE(experts=16, hidden=(32, 16))
    assert experiment.tower.hidden == (8,)
    assert experiment.optimizer.learning_rate == 0.01
    assert experiment.split.valid_from == "2022-05-05"
    assert experiment.patience is None


def test_changes_reach_into_what_is_said_in_one_word() -> None:
    text = "{schema: {features: {age: number}, tasks: {click: binary}}, train: x, optimizer: adam, balance: cagrad}"
    changes = ["optimizer.clip=1", "balance.c=0.2", "schema.features.age.bins=8", "schema.tasks.click.weight=2"]
    made = make_experiment(parse_yaml(text, "text"), changes)
    assert (made.optimizer.name, made.optimizer.clip, made.balance.to_dict()["c"]) == ("adam", 1.0, 0.2)
    assert made.schema.features == (Number("age", bins=8),)
    assert made.schema.tasks == (Task("click", weight=2.0),)
    sized = make_experiment(parse_yaml(text, "text"), ["optimizer=adamw", "optimizer.learning_rate=0.01"])
    assert (sized.optimizer.name, sized.optimizer.learning_rate) == ("adamw", 0.01)
    with pytest.raises(ExperimentError, match="'train' has no keys of its own"):
        make_experiment(parse_yaml(text, "text"), ["train.rows=3"])


def test_what_trains_wants_an_experiment_and_says_how_to_read_one(file: Path, tmp_path: Path) -> None:
    for function in (mg.train, mg.compare, mg.relate, partial(mg.tune, out=tmp_path / "out")):
        with pytest.raises(ExperimentError, match=r"an experiment is wanted, found PosixPath; .* mg.read_experiment"):
            function(file) if isinstance(function, partial) else function(file, tmp_path / "out")
    with pytest.raises(ExperimentError, match="names no table"):
        mg.train(read_experiment(file), tmp_path / "out", tables={"train": None}, quiet=True)
    assert not (tmp_path / "out").exists()


def test_one_change_is_a_text(file: Path) -> None:
    assert read_experiment(file, "sharing.experts=16") == read_experiment(file, ["sharing.experts=16"])


def test_changes_reach_into_what_was_made_in_python() -> None:
    class Mine(MMoE):
        structure: Literal["mine"] = "mine"  # type: ignore[assignment]
        depth: int = 1

    schema = Schema(features=(Number("age"),), tasks=(Task("click"),))
    values = {"schema": schema, "train": "data/*.parquet", "sharing": MMoE(experts=5, hidden=(8,))}
    made = make_experiment(values, ["sharing.experts=16", "schema.group=user", "optimizer.clip=1"])
    assert made.sharing == MMoE(experts=16, hidden=(8,))
    assert made.schema == schema.with_(group="user")
    own = make_experiment(values | {"sharing": Mine(experts=5)}, ["sharing.depth=3"]).sharing
    assert own == Mine(experts=5, depth=3)
    assert make_experiment(values, ["sharing.structure=omoe"]).sharing == OMoE(experts=5, hidden=(8,))
    with pytest.raises(ExperimentError, match="did you mean 'experts'"):
        make_experiment(values, ["sharing.expert=16"])


def test_a_structure_may_be_named_or_spelled_out(file: Path) -> None:
    assert read_experiment(file, ["sharing=omoe"]).sharing == OMoE()
    assert read_experiment(file, ["sharing={structure: shared_bottom, hidden: [9]}"]).sharing == SharedBottom(
        hidden=(9,)
    )


def test_what_is_written_is_read_back(file: Path, tmp_path: Path) -> None:
    experiment = read_experiment(file, ["sharing.gate_dropout=0.1", "balance=uncertainty", "split.by=fraction"])
    (tmp_path / "again.yaml").write_text(experiment.to_yaml())
    assert read_experiment(tmp_path / "again.yaml") == experiment


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("epoch=3", "did you mean 'epochs'?"),
        ("sharing.expert=3", "did you mean 'experts'?"),
        ("sharing=mmo", "did you mean 'mmoe'?"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate"),
        ("batch_size=0", "batch_size"),
        ("monitor=auc", "<task>/<metric>"),
        ("monitor=click/calibration", "'click/calibration' cannot be monitored, for calibration is best at 1"),
        ("monitor=click/calibration", "'click/log_loss'"),
        ("epochs", "key=value"),
        ("seed.inner=3", "seed"),
        ("schema.tasks.click.weight=2", "'tasks' is a list; set it as a whole, or edit the experiment file"),
    ],
)
def test_what_cannot_be_is_told_with_the_key(file: Path, change: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=told.replace("?", r"\?").replace("<", ".").replace(">", ".")):
        read_experiment(file, [change])


@pytest.mark.parametrize(
    ("text", "told"),
    [("schema: [", "not valid YAML"), ("- a\n- b", "found list"), ("train: x", "schema"), (TEXT + "trian: x", "train")],
)
def test_broken_files_are_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ExperimentError, match=told):
        read_experiment(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optimizer.learning_rate=inf", "finite"),
        ("optimizer.learning_rate=.nan", "learning_rate"),
        ("optimizer.clip=nan", "finite"),
        ("schema.keys=[7]", "found 7"),
        ("train=null", "train"),
        ("sharing={structure: [mmoe]}", "no structure"),
        ("sharing={structure: {a: b}}", "no structure"),
        ("sharing.hidden={a: b}", "hidden"),
        ("tower=!!python/name:os.system", "tower"),
        ("schema=" + "[" * 5_000, "schema"),
    ],
)
def test_odd_values_are_told_with_advice(file: Path, change: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=f"{told}.*(; |did you mean)"):
        read_experiment(file, [change])


def test_names_stay_what_was_written(file: Path) -> None:
    file.write_text(TEXT.replace("name: age", "name: no").replace("name: click", "name: 007, column: 2022-05-05"))
    schema = read_experiment(file, ["schema.keys=[on, off, 1_000]", "schema.types.y=string"]).schema
    assert schema.features[0].name == "no"
    assert (schema.tasks[0].name, schema.tasks[0].column) == ("007", "2022-05-05")
    assert schema.keys == ("on", "off", "1_000")
    assert schema.types == {"y": "string"}


KEYS = st.sampled_from([*Experiment.model_fields, *Schema.model_fields, "structure", "hidden", "kind", "name", "by"])
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["mmoe", "a", "", "number", "inf"])
TREES = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5))


@given(st.dictionaries(KEYS, TREES, max_size=6))
def test_any_tree_is_an_experiment_or_told_in_one_line(tree: dict[str, object]) -> None:
    good = {"schema": {"features": [{"name": "x", "kind": "number"}], "tasks": [{"name": "y"}]}}
    for data in (tree, good | tree):
        try:
            make_experiment(data)
        except ExperimentError as error:
            told = str(error)
        else:
            told = "none"
        assert "\n" not in told


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6) | st.sampled_from(
    [
        "on",
        "no",
        "~",
        "null",
        "007",
        "1e5",
        "1_000",
        "2022-05-05",
        "a: b",
        "#a",
        "- a",
        "a\nb",
        "\x85",
        "'",
        '"',
        "{a}",
        "*",
        "<<",
    ]
)


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), NAMES)
def test_any_names_come_back_from_the_file(names: list[str], kind: str) -> None:
    schema = Schema(
        features=[Number(name) for name in names],
        tasks=[Task("a task nobody draws the name of", column="a label nobody draws", positive=names[0])],
        keys=names,
        group=names[-1],
        types=dict.fromkeys(names, kind),
    )
    experiment = Experiment(schema=schema, train=names[0], valid=tuple(names))
    for full in (True, False):
        assert make_experiment(parse_yaml(experiment.to_yaml(full=full), "x")) == experiment


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"nothing\.yaml"):
        read_experiment(tmp_path / "nothing.yaml")


def test_options_are_frozen() -> None:
    experiment = Experiment(schema=Schema(features=[Number("a")], tasks=[Task("b")]))
    with pytest.raises(ValueError, match="frozen"):
        experiment.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "decay", "written"),
    [
        ([], 0.05, {}),
        (["optimizer.name=adam"], 0.0, {"name": "adam"}),
        (["optimizer.name=adam", "optimizer.weight_decay=0"], 0.0, {"name": "adam"}),
        (["optimizer.weight_decay=0"], 0.0, {"weight_decay": 0.0}),
        (["optimizer.name=adam", "optimizer.weight_decay=0.05"], 0.05, {"name": "adam", "weight_decay": 0.05}),
    ],
)
def test_weight_decay_is_of_the_optimisers_name_unless_set(
    file: Path, changes: list[str], decay: float, written: dict[str, object]
) -> None:
    """In full it is the number; what is read back is the same experiment."""
    experiment = read_experiment(file, changes)
    assert experiment.optimizer.decay == decay
    assert experiment.to_dict(full=True)["optimizer"]["weight_decay"] == decay
    assert experiment.to_dict().get("optimizer", {}) == written
    for full in (True, False):
        again = make_experiment(experiment.to_dict(full=full))
        assert again == experiment
        assert again.with_(epochs=2).optimizer.decay == decay
    assert experiment.optimizer.with_(learning_rate=0.1).decay == decay


def test_a_variant_is_a_structure_with_settings(file: Path) -> None:
    """By name, and with fields changed on top; it is stored as what it is."""
    experiment = read_experiment(file, ["sharing=mmoe_top_k"])
    assert experiment.sharing == MMoE(gating="top_k")
    assert experiment.to_dict()["sharing"] == {"structure": "mmoe", "gating": "top_k"}
    changed = read_experiment(file, ["sharing=mmoe_top_k", "sharing.k=3"])
    assert changed.sharing == MMoE(gating="top_k", k=3)


def test_a_structure_that_names_no_task_of_the_schema_is_refused_at_once(file: Path) -> None:
    with pytest.raises(ExperimentError, match="there is no task 'clik'; did you mean 'click'"):
        read_experiment(file, ["sharing=aitm", "sharing.order=[clik]"])


def test_in_place_of_the_calibration_of_amounts_a_metric_that_they_have_is_offered() -> None:
    amounts = {"features": {"x": "number"}, "tasks": {"a": "regression"}}
    with pytest.raises(ExperimentError, match=r"'a/calibration' cannot be monitored.*take 'a/rmse'"):
        make_experiment({"schema": amounts, "monitor": "a/calibration"})
