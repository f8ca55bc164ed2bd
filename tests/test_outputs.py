"""Declared outputs: the arithmetic of what was predicted and of the row's own numbers, through every door."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

import multigate as mg
from multigate.assembly import build_model
from multigate.bundle import Bundle, load
from multigate.data.encoder import Encoder
from multigate.errors import ExperimentError, SettingError
from multigate.schema import Category, Number, Output, Schema, Task
from multigate.score import write_predictions
from multigate.serve.inference import infer, metadata
from multigate.serve.predictions import predictions

TASKS = (
    Task("click"),
    Task("buy", given="click"),
    Task("watch", kind="regression", transform="log1p", where="click"),
    Task("size", kind="multiclass"),
)
OUTPUTS = (
    Output("expected watch", expression="click * watch"),
    Output("revenue", expression="buy * price"),
    Output("rank", expression="'buy|click' ** 0.5 * exp('size=small') + 'expected watch' / 10"),
)
FEATURES = (Number("price", column="eur", transform="log"), Category("user"), Number("age"))


def rows_of(many: int = 300, seed: int = 0) -> pa.Table:
    draw = np.random.default_rng(seed)
    price = draw.exponential(20, many).round(2)
    click = draw.random(many) < 0.5
    return pa.table(
        {
            "eur": pa.array(price, mask=draw.random(many) < 0.1),
            "user": draw.integers(0, 20, many),
            "age": draw.integers(18, 80, many),
            "click": click.astype(int),
            "buy": (click & (draw.random(many) < 0.4)).astype(int),
            "watch": draw.exponential(30, many),
            "size": draw.choice(["small", "large", "huge"], many),
        }
    )


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Of fresh weights: the arithmetic is the same."""
    experiment = mg.Experiment(schema=Schema(features=FEATURES, tasks=TASKS, outputs=OUTPUTS))
    encoder = Encoder.fit(experiment.schema, rows_of().to_batches())
    return Bundle(experiment, encoder, build_model(experiment, encoder))


def by_hand(row: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """The three outputs of a row, from what was predicted for it."""
    watch = found["click"] * found["watch"]
    price = math.nan if row["eur"] is None else float(row["eur"])
    rank = math.sqrt(found["buy|click"]) * math.exp(found["size=small"]) + watch / 10
    return {"expected watch": watch, "revenue": found["buy"] * price, "rank": rank}


def test_they_are_the_arithmetic_of_the_other_predictions(bundle: Bundle) -> None:
    table = rows_of(40, seed=1)
    assert table["eur"].null_count > 0
    found = bundle.predict(table)
    assert list(found)[-3:] == ["expected watch", "revenue", "rank"]
    for at, row in enumerate(table.to_pylist()):
        one = {name: values[at] for name, values in found.items()}
        expected = by_hand(row, one)
        assert {name: one[name] for name in expected} == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_every_door_has_them(bundle: Bundle, tmp_path: Path) -> None:
    table = rows_of(30, seed=2).drop_columns(["click", "buy", "watch", "size"])
    rows = table.to_pylist()
    expected = bundle.predict(table)
    pa_csv.write_csv(table, tmp_path / "rows.csv")
    pq.write_table(table, tmp_path / "rows.parquet")
    write_predictions(bundle, tmp_path / "rows.parquet", tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    as_texts = [row | {"eur": None if row["eur"] is None else str(row["eur"])} for row in rows]
    one_by_one = [bundle.predict(row) for row in rows]
    for name in ("expected watch", "revenue", "rank"):
        for found in (
            bundle.predict(rows),
            bundle.predict(as_texts),
            bundle.predict(tmp_path / "rows.csv"),
            {name: written[name].to_numpy()},
            {name: [one[name] for one in one_by_one]},
        ):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)
    assert bundle.predict([])["rank"].shape == (0,)


def test_they_read_names_that_are_no_text() -> None:
    """As rows of pandas have them where the columns are 0, 1, ..."""
    schema = Schema(
        features=(Number("price", column="0"), Number("age", column="1")),
        tasks=(Task("buy"),),
        outputs=(Output("revenue", expression="buy * price"),),
    )
    experiment = mg.Experiment(schema=schema)
    encoder = Encoder.fit(schema, pa.table({"0": [1.0, 2.0], "1": [20, 30], "buy": [0, 1]}).to_batches())
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    wanted = bundle.predict({"0": 2.0, "1": 30})
    assert bundle.predict({0: 2.0, 1: 30}) == wanted
    assert bundle.predict([{0: 2.0, 1: 30}])["revenue"].tolist() == [wanted["revenue"]]


def test_they_are_served(bundle: Bundle) -> None:
    rows = (
        rows_of(3, seed=3).select(["eur", "user", "age"]).set_column(0, "eur", pa.array([1.5, None, 3.0])).to_pylist()
    )
    expected = bundle.predict(rows)
    answer, _ = predictions(bundle, {"rows": rows})
    assert [one["rank"] for one in answer["predictions"]] == expected["rank"].tolist()
    tensors = [
        {"name": name, "datatype": kind, "shape": [3], "data": [row[name] for row in rows]}
        for name, kind in (("eur", "FP64"), ("user", "INT64"), ("age", "INT64"))
    ]
    answer, _ = infer(bundle, "shop", {"inputs": tensors, "outputs": [{"name": "revenue"}]})
    assert answer["outputs"][0]["data"] == pytest.approx(expected["revenue"].tolist(), nan_ok=True)
    assert math.isnan(answer["outputs"][0]["data"][1])
    assert {"name": "rank", "datatype": "FP64", "shape": [-1]} in metadata(bundle, "shop")["outputs"]


def test_a_bundle_keeps_them(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "kept")
    declared = json.loads((tmp_path / "kept" / "bundle.json").read_text())["experiment"]["schema"]["outputs"]
    assert declared[0] == {"name": "expected watch", "expression": "click * watch"}
    table = rows_of(10, seed=4)
    assert load(tmp_path / "kept").predict(table)["rank"].tolist() == bundle.predict(table)["rank"].tolist()


def test_a_finished_model_takes_others(bundle: Bundle, tmp_path: Path) -> None:
    other = bundle.with_outputs(Output("doubled", expression="click * 2"))
    table = rows_of(10, seed=5)
    found = other.predict(table)
    assert found["doubled"].tolist() == (found["click"].astype(float) * 2).tolist()
    assert "rank" not in found
    assert "rank" in bundle.predict(table)
    other.save(tmp_path / "other")
    assert load(tmp_path / "other").predict(table)["doubled"].tolist() == found["doubled"].tolist()
    with pytest.raises(SettingError, match="did you mean 'click'"):
        bundle.with_outputs(Output("doubled", expression="clik * 2"))


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (
            Output("rank", expression="clik * 2"),
            "'clik' is no number that a prediction or a row has; did you mean 'click'",
        ),
        (Output("rank", expression="size"), "'size' is no number .* did you mean 'size=...'"),
        (Output("rank", expression="user * click"), "'user' is no number"),
        (Output("rank", expression="rank * click"), "'rank' is no number"),
        (Output("rank", expression="'click|buy'"), "did you mean 'click'"),
        (Output("click", expression="click * 2"), "two tasks or outputs are named 'click'"),
    ],
)
def test_what_cannot_be_computed_is_refused(output: Output, told: str) -> None:
    with pytest.raises(SettingError, match=told.replace("|", r"\|")):
        Schema(features=FEATURES, tasks=TASKS, outputs=(output,))


def test_names_that_would_be_mistaken_are_refused() -> None:
    for name in ("a|b", "gate/click", "size=huge"):
        with pytest.raises(SettingError, match=r"may hold none of '\|', '/' and '='"):
            Output(name, expression="click")
    with pytest.raises(SettingError, match="output 'rank': 'click and 1' is none of names"):
        Output("rank", expression="click and 1")
    with pytest.raises(SettingError, match="key 'rank' has the name of an output"):
        Schema(features=FEATURES, tasks=TASKS, outputs=(Output("rank", expression="click"),), keys="rank")


def test_a_class_that_no_row_has_is_refused_before_training() -> None:
    schema = Schema(features=FEATURES, tasks=TASKS, outputs=(Output("rank", expression="'size=smal' * click"),))
    experiment = mg.Experiment(schema=schema)
    encoder = Encoder.fit(schema, rows_of().to_batches())
    with pytest.raises(
        ExperimentError, match="'size=smal' is no class of the training rows; did you mean 'size=small'"
    ):
        build_model(experiment, encoder)
    declared = Task("size", kind="multiclass", classes=("small", "large", "huge"))
    with pytest.raises(SettingError, match="did you mean 'size=small'"):
        Schema(features=FEATURES, tasks=(*TASKS[:3], declared), outputs=schema.outputs)


def test_rows_are_not_prepared_anew_for_other_outputs(tmp_path: Path) -> None:
    """They are made of predictions; neither rows nor weights depend on them."""
    pq.write_table(rows_of(2_000), tmp_path / "rows.parquet")
    schema = Schema(features=FEATURES, tasks=TASKS)
    experiment = mg.Experiment(
        schema=schema, train=str(tmp_path / "rows.parquet"), epochs=1, sharing={"experts": 2, "hidden": [8]}
    )
    first = mg.train(experiment, tmp_path / "first", quiet=True)
    other = experiment.with_(schema=schema.with_(outputs=OUTPUTS))
    second = mg.train(other, tmp_path / "second", quiet=True)
    assert first.best == second.best
    manifests = [(one.folder / "prepared" / "manifest.json").read_text() for one in (first, second)]
    assert manifests[0] == manifests[1]
    assert list(second.bundle().predict(rows_of(5)))[-1] == "rank"


def test_models_of_some_tasks_have_none() -> None:
    schema = Schema(features=FEATURES, tasks=TASKS, outputs=OUTPUTS)
    assert schema.only(["click", "watch"]).outputs == ()
