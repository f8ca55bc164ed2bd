"""Bundles: the same answers from any kind of rows, in any batch, after any journey; nothing altered goes unnoticed."""

import copy
import hashlib
import json
import math
import pickle
import pickletools
import random
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from multigate.assembly import build_model
from multigate.bundle import Bundle, load
from multigate.calibration import Curve
from multigate.data.encoder import Encoder
from multigate.data.files import open_table
from multigate.data.infer import infer_schema
from multigate.engine import BLOCK, Onnx, arrays
from multigate.errors import BundleError, DataError, ExperimentError
from multigate.experiment import Experiment
from multigate.naming import sigmoid, softmax
from multigate.schema import Category, Number, Schema, Task, Vector
from multigate.score import score_table, write_predictions
from multigate.sharing import STRUCTURES, MMoE, Structure, TensorFactor
from multigate.training.recalibrate import recalibrate
from multigate.training.train import train
from processes import run_program


@pytest.fixture(scope="module")
def run_folder(feed_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "run"
    train(feed_experiment, folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def bundle(run_folder: Path) -> Bundle:
    return load(run_folder)


@pytest.fixture(scope="module")
def table(feed_experiment: Experiment) -> pa.Table:
    return pq.read_table(feed_experiment.test).slice(0, 50)


@pytest.mark.parametrize("curves", [{}, {"click": Curve(at=(-1.0, 1.0), to=(-2.0, 0.5))}], ids=["", "calibrated"])
def test_a_bundle_pickles_as_its_files(run_folder: Path, table: pa.Table, curves: dict[str, Curve]) -> None:
    loaded = load(run_folder)
    bundle = Bundle(loaded.experiment, loaded.encoder, loaded.model, curves)
    assert repr(bundle).startswith("<Bundle: mmoe of ")
    assert repr(bundle).endswith("features; tasks click, buy, like, watch>")
    expected, row = bundle.predict(table), table.slice(0, 1).to_pylist()[0]
    one = bundle.predict(row)
    data = pickle.dumps(bundle)
    names = [argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)]
    assert not [name for name in names if name.partition(".")[0] == "torch"]
    for again in (pickle.loads(data), copy.deepcopy(bundle)):
        found = again.predict(table)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], values) for name, values in expected.items())
        assert again.predict(row) == one
        assert again.model is not bundle.model


@pytest.mark.parametrize("rows", [1, 50])
def test_predictions_are_those_of_a_trained_model_whatever_mode_it_is_in(
    run_folder: Path, bundle: Bundle, table: pa.Table, rows: int
) -> None:
    touched = load(run_folder)
    touched.model.train()
    given: Any = table.to_pylist()[0] if rows == 1 else table
    expected, found = bundle.predict(given), touched.predict(given)
    assert all(np.array_equal(found[name], values) for name, values in expected.items())


def test_every_kind_of_table_gives_the_same(bundle: Bundle, table: pa.Table) -> None:
    expected = bundle.predict(table)
    assert {"click", "buy", "buy|click", "like", "watch"} == expected.keys()
    kinds = [
        table.to_pandas(),
        pl.from_arrow(table),
        table.to_pydict(),
        table.to_batches()[0],
        pa.table(table.to_pandas()),
    ]
    for rows in kinds:
        found = bundle.predict(rows)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-7, err_msg=f"{type(rows)} {name}")


def test_one_row_as_a_dict_is_the_row_of_the_table(bundle: Bundle, table: pa.Table) -> None:
    expected = bundle.predict(table)
    for i, row in enumerate(table.slice(0, 10).to_pylist()):
        found = bundle.predict(row)
        assert bundle.predict(pd.Series(row)) == found
        for name, values in expected.items():
            assert found[name] == pytest.approx(values[i], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("floats", [False, True])
def test_long_ids_are_the_same_by_every_road_or_refused(floats: bool, tmp_path: Path) -> None:
    """Of whole numbers in training and of floats, which pandas makes of them when one is missing."""
    ids = [2**60 + 512 * at + 1 for at in range(8)]
    whole = pd.DataFrame({"user": pd.array([*ids, None] * 10, "Int64"), "click": [0, 1, 1] * 30})
    rounded = whole.astype({"user": float})
    trained = rounded if floats else whole
    schema = infer_schema(trained, [Task("click")]).with_(features=(Category("user"),), keys=())
    encoder = Encoder.fit(schema, pa.Table.from_pandas(trained, preserve_index=False).to_batches())
    experiment = Experiment(schema=schema)
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    expected = bundle.predict(whole.head(9))["click"]
    assert len(set(expected.tolist())) == 9
    text = pd.DataFrame({"user": [*map(str, ids), None]})
    for rows in (text, text.to_dict("records"), whole.head(9).to_dict("list")):
        np.testing.assert_allclose(bundle.predict(rows)["click"], expected, rtol=1e-6)
    rounded.head(9).to_csv(tmp_path / "rounded.csv", index=False)
    written = [{"user": "" if math.isnan(user) else str(user)} for user in rounded["user"].head(9)]
    for rows in (rounded.head(9), rounded.head(9).to_dict("records"), tmp_path / "rounded.csv", written):
        if floats:
            np.testing.assert_allclose(bundle.predict(rows)["click"], expected, rtol=1e-6)
        else:
            with pytest.raises(
                DataError, match=r"column 'user'.*wanted a whole number, found '?1\.15.*Int64 or as text"
            ):
                bundle.predict(rows)


def test_ids_with_decimal_commas_are_those_of_training(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user": [*map(float, range(8)), math.nan] * 10, "click": [0, 1, 1] * 30})
    frame.to_csv(tmp_path / "rows.csv", sep=";", decimal=",", index=False)
    schema = infer_schema(tmp_path / "rows.csv", [Task("click")])
    schema = schema.with_(features=(Category("user"),), keys=(), group="user")
    assert schema.types["user"] == "double"
    encoder = Encoder.fit(schema, open_table(tmp_path / "rows.csv", schema.read_types()).batches())
    experiment = Experiment(schema=schema)
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    expected = bundle.predict(frame)["click"]
    assert len(set(expected.tolist())) == 9
    np.testing.assert_allclose(bundle.predict(tmp_path / "rows.csv")["click"], expected, rtol=1e-6)


class Old(pd.Series):
    """A column of a pandas that does not speak the PyCapsule interface."""

    @property
    def __arrow_c_stream__(self) -> None:
        raise AttributeError


@pytest.fixture(scope="module")
def users() -> Bundle:
    """That knows the users 1 to 8, of fresh weights."""
    table = pa.table({"user": [*range(1, 9)] * 10, "click": [0, 1] * 40})
    experiment = Experiment(schema=Schema(features=(Category("user"),), tasks=(Task("click"),)))
    encoder = Encoder.fit(experiment.schema, table.to_batches())
    return Bundle(experiment, encoder, build_model(experiment, encoder))


@pytest.mark.parametrize(
    "kind",
    [tuple, np.array, pd.Index, pd.Series, Old, pd.array, pl.Series, pa.array, torch.tensor, lambda _: range(3, 6)],
)
def test_every_kind_of_column_is_one(users: Bundle, kind: Callable[[list[int]], Any]) -> None:
    expected = [users.predict({"user": user})["click"] for user in (3, 4, 5)]
    assert len(set(expected)) == 3
    assert users.predict({"user": kind([3, 4, 5])})["click"].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "value", [{3: 4}, {3: 4}.values(), {3: 4}.keys(), {3}, frozenset([3]), deque([3]), torch.ones(1, 1), np.array(3)]
)
def test_what_is_neither_a_column_nor_a_value_is_refused(users: Bundle, value: object) -> None:
    with pytest.raises(DataError, match="column 'user': wanted a single value, found"):
        users.predict({"user": value, "day": 1})
    with pytest.raises(DataError, match="row 1: column 'user': wanted a single value, found"):
        users.predict([{"user": value}])


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_list_of_rows_is_predicted_as_one_by_one(exported: Path, table: pa.Table, engine: str) -> None:
    """In their order, more of them than are computed together, some that know nothing; whatever the engine."""
    bundle = load(exported, engine=engine)
    nothing = dict.fromkeys(bundle.schema.columns(labels=False, carried=False))
    different = [nothing, *table.slice(0, 20).to_pylist(), nothing | {"tags": ["t1", "t2"], "user": 3}]
    assert len({str(row["tags"]) for row in different}) > 2
    times = BLOCK // len(different) + 1
    rows = different * times
    found = bundle.predict(rows, gates=True)
    single = [bundle.predict(row, gates=True) for row in different] * times
    assert found.keys() == single[0].keys()
    for name, values in found.items():
        assert values.shape[0] == len(rows)
        np.testing.assert_allclose(values, np.array([one[name] for one in single]), rtol=1e-5, atol=1e-6, err_msg=name)
    for name, values in bundle.predict(tuple(rows[:1])).items():
        assert values.shape == (1,)
        assert values[0] == pytest.approx(single[0][name], rel=1e-5)
    empty = bundle.predict([], gates=True)
    assert {name: value.shape[1:] for name, value in empty.items()} == {name: v.shape[1:] for name, v in found.items()}
    assert all(len(value) == 0 for value in empty.values())


def test_onnx_runtime_is_never_asked_for_no_rows(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which it ended the process, up to version 1.31."""
    bundle = load(exported, engine="onnx")
    engine = bundle.engines.table
    assert isinstance(engine, Onnx)
    session, asked = engine._session, []

    class Counted:
        def run(self, outputs: list[str], feed: dict[str, np.ndarray]) -> Any:
            asked.append(len(feed["numbers"]))
            return session.run(outputs, feed)

    monkeypatch.setattr(engine, "_session", Counted())
    assert all(len(values) == 0 for values in bundle.predict([], gates=True).values())
    assert asked == [1]


def test_a_wrong_row_of_a_list_is_named(bundle: Bundle, table: pa.Table) -> None:
    row = table.slice(0, 1).to_pylist()[0]
    without = {name: value for name, value in row.items() if name != "country"}
    for before in (2, BLOCK + 2):
        for wrong, told in (
            (without, "there is no column 'country'; "),
            (row | {"price": "dear"}, "column 'price': wanted a number, found 'dear'; "),
            (None, "wanted a dict of values, found NoneType; "),
        ):
            with pytest.raises(DataError, match=f"^row {before + 1}: {told}"):
                bundle.predict([*[row] * before, wrong, row])


def test_rows_that_others_sent_are_rows_whatever_they_hold(bundle: Bundle, table: pa.Table, tmp_path: Path) -> None:
    """Not tables where all their cells are lists, nor paths where they are text."""
    rows = table.slice(0, 3).to_pylist()
    for row in rows:
        assert bundle.predict_row(row, gates=True) == bundle.predict(row, gates=True)
    for name, values in bundle.predict(rows).items():
        assert np.array_equal(bundle.predict_rows(rows)[name], values)
    lists = {name: [value] for name, value in rows[0].items()}
    assert len(bundle.predict(lists)["click"]) == 1
    with pytest.raises(DataError, match=r"^column 'user': wanted a single value, found \["):
        bundle.predict_row(lists)
    with pytest.raises(DataError, match=r"^row 1: column 'user': wanted a single value, found \["):
        bundle.predict_rows([lists])
    path = str(tmp_path / "rows.parquet")
    pq.write_table(table, path)
    assert len(bundle.predict([path])["click"]) == len(table)
    with pytest.raises(DataError, match=r"^row 1: wanted a dict of values, found str; "):
        bundle.predict_rows([path])
    for other in (rows[0], pa.Table.from_pylist(rows), (row for row in rows)):
        with pytest.raises(DataError, match=r"a list of rows is wanted, found \w+; give \[row, ...\]"):
            bundle.predict_rows(other)  # type: ignore[arg-type]
    for other in (None, rows, path):
        with pytest.raises(DataError, match=r"^wanted a dict of values, found \w+; give the row as one"):
            bundle.predict_row(other)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="the folder of a run or a bundle is wanted, found Bundle"):
        load(bundle)  # type: ignore[arg-type]


def test_conditionals_multiply(bundle: Bundle, table: pa.Table) -> None:
    named = bundle.predict(table)
    np.testing.assert_allclose(named["buy"], named["buy|click"] * named["click"], rtol=1e-5)
    assert (named["watch"] > -1).all()


def test_unseen_values_and_nulls_are_predicted(bundle: Bundle, table: pa.Table) -> None:
    row = dict.fromkeys(bundle.schema.columns(labels=False, carried=False))
    nothing = bundle.predict(row)
    strange = bundle.predict(row | {"user": "never seen", "country": "Atlantis", "price": 1e30, "tags": "x,y,z"})
    for named in (nothing, strange):
        assert all(np.isfinite(value) for value in named.values())
    another = bundle.predict(row | {"user": "also never seen", "country": "Lemuria", "price": 1e30, "tags": "q"})
    assert strange == pytest.approx(another, rel=1e-6)


def test_gates_come_on_request_and_sum_to_one(bundle: Bundle, table: pa.Table) -> None:
    named = bundle.predict(table, gates=True)
    gates = {name: value for name, value in named.items() if name.startswith("gate/")}
    assert set(gates) == {"gate/click", "gate/buy", "gate/like", "gate/watch"}
    for gate in gates.values():
        assert gate.shape == (50, 3)
        np.testing.assert_allclose(gate.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", STRUCTURES)
def test_gates_may_be_asked_of_any_structure(bundle: Bundle, table: pa.Table, name: str) -> None:
    experiment = bundle.experiment.with_(sharing=name)
    named = Bundle(experiment, bundle.encoder, build_model(experiment, bundle.encoder)).predict(table, gates=True)
    assert named.keys() >= {"click", "buy|click"}


def test_all_kinds_of_tasks_from_a_table_in_memory(tmp_path: Path) -> None:
    """Binary with a positive text, multiclass and regression; sample weights; unknown labels; trained on a frame."""
    draw = np.random.default_rng(0)
    rows = 3000
    x = draw.normal(size=rows)
    frame = pd.DataFrame(
        {
            "x": x,
            "back": np.where(x + draw.normal(size=rows) > 0, "yes", "no"),
            "grade": np.select([x < -0.5, x < 0.5], ["bad", "fair"], "good"),
            "cost": np.exp(8 + x),
            "weight": draw.integers(0, 3, rows),
        }
    )
    frame.loc[draw.random(rows) < 0.3, "back"] = None
    schema = Schema(
        features=[Number("x")],
        tasks=[
            Task("back", positive="yes", sample_weight="weight"),
            Task("grade", kind="multiclass"),
            Task("cost", kind="regression", transform="log1p"),
        ],
    )
    optimizer = {"learning_rate": 0.01}
    experiment = Experiment(
        schema=schema, sharing=MMoE(experts=2, hidden=(16,)), optimizer=optimizer, epochs=8, batch_size=128
    )
    run = train(experiment, tmp_path / "run", tables={"train": frame}, quiet=True)
    bundle = load(tmp_path / "run")
    named = bundle.predict(frame)
    assert set(named) == {"back", "grade", "grade=bad", "grade=fair", "grade=good", "cost"}
    total = named["grade=bad"] + named["grade=fair"] + named["grade=good"]
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    assert (named["grade"] == frame["grade"]).mean() > 0.9
    assert np.corrcoef(np.log(named["cost"]), frame["x"])[0, 1] > 0.98
    assert run.best["back/auc"] > 0.75
    one = bundle.predict({"x": 3.0})
    assert one["grade"] == "good"
    assert one["back"] > 0.8
    assert 8_000 < one["cost"] < 150_000


def test_another_process_gives_the_same(run_folder: Path, bundle: Bundle, table: pa.Table, tmp_path: Path) -> None:
    moved = shutil.copytree(run_folder / "bundle", tmp_path / "moved")
    pq.write_table(table, tmp_path / "rows.parquet")
    code = (
        "import json, multigate as mg;"
        f"print(json.dumps({{k: v.tolist() for k, v in mg.load({str(moved)!r}).predict('rows.parquet').items()}}))"
    )
    done = run_program(code, tmp_path)
    assert done.code == 0, done.told
    for name, values in json.loads(done.said).items():
        np.testing.assert_allclose(values, bundle.predict(table)[name], rtol=1e-6)


def test_what_is_slow_to_import_is_imported_when_it_is_needed() -> None:
    """torch's compiler and the packages of graphs take longer than all else that predicting imports."""
    code = (
        "import sys, multigate.bundle, multigate.training.train;"
        "print(sys.modules.keys() & {'torch._dynamo', 'onnxruntime', 'onnxscript', 'pandas', 'sklearn'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "set()\n"


def test_a_missing_feature_is_named(bundle: Bundle, table: pa.Table) -> None:
    with pytest.raises(DataError, match="country"):
        bundle.predict(table.drop_columns(["country"]))
    row = table.slice(0, 1).to_pylist()[0]
    del row["country"]
    with pytest.raises(DataError, match="country"):
        bundle.predict(row)


def test_labels_are_not_needed_and_extra_columns_are_ignored(bundle: Bundle, table: pa.Table) -> None:
    features = table.select(list(bundle.schema.columns(labels=False, carried=False)))
    more = features.append_column("another", pa.array(["x"] * 50))
    np.testing.assert_array_equal(bundle.predict(more)["click"], bundle.predict(table)["click"])


def test_no_rows_give_no_predictions(bundle: Bundle, table: pa.Table) -> None:
    record = next(iter(table.to_batches())).slice(0, 0)
    answers = bundle.engines.table(arrays(bundle.encoder.columns(record, labels=False)))
    assert all(len(values) == 0 for values in bundle._named(answers, record).values())


def test_probabilities_are_exact_in_the_tails() -> None:
    logits = np.array([[-800.0, -90.0, -30.0, -1e-3, 0.0, 2.0, 40.0, 1e30, np.inf, -np.inf]], np.float32)
    expected = [math.exp(-abs(x)) / (1 + math.exp(-abs(x))) if x < 0 else 1 / (1 + math.exp(-x)) for x in logits[0]]
    np.testing.assert_allclose(sigmoid(logits)[0], np.array(expected, np.float32), rtol=1e-7)
    assert np.isnan(sigmoid(np.array([np.nan], np.float32)))


def test_probabilities_of_classes_are_their_shares() -> None:
    logits = np.random.default_rng(0).normal(0, 20, (500, 7)).astype(np.float32)
    logits[:2] = [[3e38, -3e38, 0, 1, 2, 3, 4], [-90, -91, -92, -93, -94, -95, -96]]
    for row, found in zip(logits.astype(float), softmax(logits), strict=True):
        powers = [math.exp(x - row.max()) for x in row]
        np.testing.assert_allclose(found, [x / math.fsum(powers) for x in powers], rtol=1e-5, atol=1e-37)
    assert softmax(logits).dtype == np.float32
    assert softmax(logits[:0]).shape == (0, 7)
    assert np.isnan(softmax(np.array([[np.inf, 0.0], [np.nan, 0.0]], np.float32))).any(1).all()


def test_predictions_stand_beside_their_keys_in_order(bundle: Bundle, tmp_path: Path) -> None:
    test = bundle.experiment.test
    rows = write_predictions(bundle, test, tmp_path / "p.parquet")
    written, given = pq.read_table(tmp_path / "p.parquet"), pq.read_table(test)
    assert rows == given.num_rows
    assert written.column("row_id").equals(given.column("row_id"))
    np.testing.assert_allclose(written.column("click").to_numpy(), bundle.predict(given)["click"], rtol=1e-6)
    assert not list(tmp_path.glob("*.writing"))


def test_scores_are_scikit_learns(bundle: Bundle) -> None:
    from sklearn.metrics import log_loss, r2_score, roc_auc_score

    given = pq.read_table(bundle.experiment.test).to_pandas()
    named = pd.DataFrame(bundle.predict(given))
    metrics, intervals = score_table(bundle, bundle.experiment.test, replicates=50)
    clicked = given["click"] == 1
    liked = given["like"].notna()
    assert metrics["click/auc"] == pytest.approx(roc_auc_score(given["click"], named["click"]), abs=1e-6)
    assert metrics["buy/auc"] == pytest.approx(roc_auc_score(given["buy"].fillna(0), named["buy"]), abs=1e-6)
    conditional = roc_auc_score(given["buy"][clicked], named["buy|click"][clicked])
    assert metrics["buy|click/auc"] == pytest.approx(conditional, abs=1e-6)
    assert metrics["like/log_loss"] == pytest.approx(log_loss(given["like"][liked], named["like"][liked]), abs=1e-5)
    watched = r2_score(given["watch_seconds"][clicked], named["watch"][clicked])
    assert metrics["watch/r2"] == pytest.approx(watched, abs=1e-5)
    low, high = intervals["click/auc"]
    assert low < metrics["click/auc"] < high


@pytest.mark.parametrize("place", ["load_file", "Encoder.load"])
@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't allocate memory: you tried"), pa.ArrowException("Failed to launch worker thread")],
    ids=str,
)
def test_a_bundle_is_not_called_damaged_where_the_machine_has_too_little(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    def refused(*_: Any) -> None:
        raise error

    monkeypatch.setattr(f"multigate.bundle.{place}", refused)
    with pytest.raises(type(error), match=str(error)):
        load(run_folder)


@pytest.mark.parametrize(
    "damage", ["missing", "altered", "newer", "climbing", "a link", "not JSON", "deep", "huge", "a folder"]
)
def test_damage_is_told(run_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(run_folder / "bundle", tmp_path / "bundle")
    about = json.loads((folder / "bundle.json").read_text())
    del about["checksum"]  # or no more would be told than that it was altered
    if damage == "missing":
        (folder / "encoder" / "encoder.json").unlink()
    elif damage == "altered":
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
    elif damage == "newer":
        (folder / "bundle.json").write_text(json.dumps(about | {"format": 99}))
    elif damage == "climbing":
        (tmp_path / "outside").write_text("x")
        (folder / "bundle.json").write_text(json.dumps(about | {"files": about["files"] | {"../outside": "0"}}))
    elif damage == "a link":
        (folder / "model.safetensors").rename(tmp_path / "outside")
        (folder / "model.safetensors").symlink_to(tmp_path / "outside")
    elif damage == "a folder":
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").mkdir()
    elif damage == "huge":
        with (folder / "bundle.json").open("ab") as file:
            file.truncate(10 << 30)  # a hole: takes no room
    else:
        (folder / "bundle.json").write_text("{" if damage == "not JSON" else "[" * 100_000)
    with pytest.raises(BundleError, match=str(folder)):
        load(folder)


NONSENSE = [None, 0, -1, 1e308, float("nan"), "x", "", [], {}, True, 10**30, ["a"], {"a": 1}, [[1], [2]]]


def forged(folder: Path, name: str, content: bytes) -> None:
    """A file of a bundle replaced, with a checksum that fits."""
    (folder / name).write_bytes(content)
    about = json.loads((folder / "bundle.json").read_text())
    about["files"][name] = hashlib.sha256(content).hexdigest()
    about.pop("checksum", None)  # which nonsense is planted without
    (folder / "bundle.json").write_text(json.dumps(about))


def places(tree: object, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a tree of JSON."""
    if path:
        yield path
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree[:3]) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def test_an_encoder_with_a_scale_too_few_is_refused(run_folder: Path, tmp_path: Path) -> None:
    """The one that is left would be taken for all numbers of a row."""
    folder = shutil.copytree(run_folder / "bundle", tmp_path / "bundle")
    tree = json.loads((folder / "encoder" / "encoder.json").read_bytes())
    del tree["scales"][1:]
    forged(folder, "encoder/encoder.json", json.dumps(tree).encode())
    with pytest.raises(BundleError, match="has scales of 1 numbers, its schema 2"):
        load(folder)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a forged sd of 0 divides by it
@pytest.mark.parametrize("name", ["bundle.json", "encoder/encoder.json"])
def test_nonsense_is_refused_or_harmless_wherever_it_stands(
    run_folder: Path, table: pa.Table, tmp_path: Path, name: str
) -> None:
    """Any part replaced by something else, or left out: loading raises ``BundleError``, or predicting works."""
    draw = random.Random(0)
    folder = shutil.copytree(run_folder / "bundle", tmp_path / "bundle")
    about = json.loads((folder / "bundle.json").read_text())
    del about["checksum"]  # or all would be refused for that alone
    (folder / "bundle.json").write_text(json.dumps(about))
    good = {file: (folder / file).read_bytes() for file in ("bundle.json", name)}
    refused = 0
    for _ in range(120):
        for file, content in good.items():
            (folder / file).write_bytes(content)
        tree = json.loads(good[name])
        *path, last = draw.choice(list(places(tree)))
        at = tree
        for part in path:
            at = at[part]
        if draw.random() < 0.2:
            del at[last]
        else:
            at[last] = draw.choice(NONSENSE)
        if name == "bundle.json":
            (folder / name).write_text(json.dumps(tree))
        else:
            forged(folder, name, json.dumps(tree).encode())
        try:
            load(folder).predict(table)
        except BundleError as error:
            refused += 1
            if "\n" in str(error) or ";" not in str(error):
                pytest.fail(f"{path} {last}: {error}")
    assert refused > 60


@pytest.mark.parametrize("change", ["no rows", "a column less", "other values", "lists", "not Parquet", "nothing"])
def test_a_vocabulary_that_does_not_fit_is_told(run_folder: Path, tmp_path: Path, change: str) -> None:
    folder = shutil.copytree(run_folder / "bundle", tmp_path / "bundle")
    path = folder / "encoder" / "vocabularies.parquet"
    held = pq.read_table(path)
    changed = {
        "no rows": held.slice(0, 0),
        "a column less": held.drop_columns(["count"]),
        "other values": pa.concat_tables([held, held]),
        "lists": held.set_column(1, "value", pa.array([["a"]] * held.num_rows)),
    }
    if change in changed:
        pq.write_table(changed[change], path)
    content = path.read_bytes() if change in changed else b"" if change == "nothing" else b"PAR1"
    forged(folder, "encoder/vocabularies.parquet", content)
    with pytest.raises(BundleError, match=r"; save or copy it again"):
        load(folder)


def test_files_beside_those_of_a_bundle_are_ignored(run_folder: Path, table: pa.Table, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder / "bundle", tmp_path / "bundle")
    (folder / "README.md").write_text("notes")
    (folder / "encoder" / "old.parquet").write_text("notes")
    assert load(folder).predict(table).keys()


@pytest.mark.parametrize("name", ["Dockerfile", ".git/HEAD", "encoder/notes", "model.onnx/notes", "row.onnx/notes"])
def test_what_is_no_part_of_a_bundle_is_never_lost_to_a_new_one(
    run_folder: Path, bundle: Bundle, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(run_folder / "bundle", tmp_path / "bundle")
    first = name.partition("/")[0]
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("dear")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for write in (bundle.save, bundle.export):
        with pytest.raises(BundleError, match=f"holds '{first}.* choose another folder"):
            write(folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_bundle_takes_the_place_of_another_with_or_without_a_graph(
    bundle: Bundle, exported: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported, tmp_path / "bundle")
    bundle.save(str(folder))
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        "bundle.json", "model.safetensors", "encoder.json", "vocabularies.parquet"
    }  # fmt: skip
    bundle.save(folder)
    assert load(folder).encoder.fingerprint == bundle.encoder.fingerprint


@pytest.mark.parametrize("moment", ["bundle.read_about", "bundle_files.checksum", "bundle._restored"])
def test_a_bundle_replaced_while_it_is_read_is_read_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What comes back is the new one whole, never the weights of the one with what else there is of the other."""
    other = copy.deepcopy(bundle.model)
    torch.nn.init.ones_(other.towers.layers[0].weight)
    newer = Bundle(bundle.experiment.with_(seed=77), bundle.encoder, other)
    bundle.save(tmp_path / "b")
    place, _, name = f"multigate.{moment}".rpartition(".")
    whole, calls = getattr(sys.modules[place], name), count()

    def replaced(*given: Any) -> Any:
        if next(calls) == 0:
            newer.save(tmp_path / "b")
        return whole(*given)

    monkeypatch.setattr(sys.modules[place], name, replaced)
    found = load(tmp_path / "b")
    assert found.experiment.seed == 77
    assert torch.equal(found.model.towers.layers[0].weight, other.towers.layers[0].weight)


def test_a_folder_without_a_bundle_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        load(tmp_path)


@pytest.fixture(scope="module")
def exported(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "served"
    bundle.export(folder)
    return folder


@pytest.mark.parametrize("engine", ["torch", "onnx", "auto"])
def test_an_exported_bundle_is_the_same_bundle(bundle: Bundle, table: pa.Table, exported: Path, engine: str) -> None:
    served = load(exported, engine=engine)
    if engine != "auto":
        assert {served.engines.row.name, served.engines.table.name} == {engine}
    expected, found = bundle.predict(table), served.predict(table)
    for name, values in expected.items():
        tolerance = 0 if engine == "torch" else 1e-5
        np.testing.assert_allclose(found[name], values, rtol=tolerance, atol=tolerance, err_msg=name)
    row = table.slice(3, 1).to_pylist()[0]
    expected, found = bundle.predict(row, gates=True), served.predict(row, gates=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_predictions_are_written_with_any_engine(bundle: Bundle, exported: Path, tmp_path: Path) -> None:
    for name, one in {"torch": bundle, "onnx": load(exported, engine="onnx")}.items():
        write_predictions(one, bundle.experiment.test, tmp_path / f"{name}.parquet")
    torch, onnx = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("torch", "onnx"))
    assert onnx.schema == torch.schema
    assert onnx.column("row_id").equals(torch.column("row_id"))
    np.testing.assert_allclose(onnx.column("buy"), torch.column("buy"), rtol=1e-4, atol=1e-6)


def test_a_graph_moves_with_its_bundle_and_is_left_out_when_saved(
    exported: Path, table: pa.Table, tmp_path: Path
) -> None:
    moved = load(shutil.copytree(exported, tmp_path / "moved"), engine="onnx")
    moved.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.onnx").exists()
    np.testing.assert_allclose(load(tmp_path / "saved").predict(table)["buy"], moved.predict(table)["buy"], rtol=1e-5)


@pytest.fixture(scope="module")
def exported_twice(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a graph for single rows, as of a model whose first layers are large."""
    folder = tmp_path_factory.mktemp("export") / "served"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multigate.first_layers.LEAST", 1)
        patch.setattr("multigate.bundle.faster_on_one", lambda engines, layout: engines[1])
        bundle.export(folder)
    assert (folder / "row.onnx").is_file()
    return folder


def test_no_graph_for_single_rows_is_kept_that_is_slower(
    users: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multigate.first_layers.LEAST", 1)
    monkeypatch.setattr("multigate.bundle.faster_on_one", lambda engines, layout: engines[0])
    users.export(tmp_path / "served")
    assert not (tmp_path / "served" / "row.onnx").exists()
    assert load(tmp_path / "served", engine="onnx").engines.row.of_one is None


def test_single_rows_have_a_graph_of_their_own(
    bundle: Bundle, table: pa.Table, exported: Path, exported_twice: Path
) -> None:
    assert not (exported / "row.onnx").exists(), "whose first layers are small"
    served = load(exported_twice, engine="onnx")
    asked = []
    of_one = served.engines.row.of_one
    served.engines.row.of_one = lambda rows: (asked.append(len(rows.numbers)), of_one(rows))[1]
    rows = table.to_pylist()[:20]
    for row in rows:
        found, expected = served.predict(row, gates=True), bundle.predict(row, gates=True)
        assert found == {name: pytest.approx(value, rel=1e-5, abs=1e-6) for name, value in expected.items()}
    assert asked == [1] * 20
    for name, values in served.predict(rows).items():
        np.testing.assert_allclose(values, bundle.predict(rows)[name], rtol=1e-5, atol=1e-6)
    assert asked == [1] * 20
    served.save(exported_twice.parent / "saved")
    assert not (exported_twice.parent / "saved" / "row.onnx").exists()


@pytest.mark.parametrize("change", ["another answer", "no graph", "altered"])
def test_a_graph_of_single_rows_that_is_not_of_this_model_is_never_used(
    bundle: Bundle, table: pa.Table, exported_twice: Path, tmp_path: Path, change: str
) -> None:
    folder = shutil.copytree(exported_twice, tmp_path / "bundle")
    if change == "altered":
        (folder / "row.onnx").write_bytes(b"")
        with pytest.raises(BundleError, match=r"'row.onnx' was altered or damaged"):
            load(folder)
        return
    if change == "another answer":
        curves = {"click": Curve(to=(0.001,))}
        other = Bundle(bundle.experiment, bundle.encoder, build_model(bundle.experiment, bundle.encoder), curves)
        other.export(tmp_path / "other")
    forged(folder, "row.onnx", (tmp_path / "other" / "model.onnx").read_bytes() if change == "another answer" else b"")
    served, row = load(folder, engine="onnx"), table.slice(3, 1).to_pylist()[0]
    assert served.engines.row.of_one is None
    assert served.predict(row) == pytest.approx(bundle.predict(row), rel=1e-5, abs=1e-6)


def test_a_graph_of_single_rows_that_cannot_be_had_is_left_out(
    users: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multigate.first_layers.LEAST", 1)
    monkeypatch.setattr(
        "multigate.first_layers._made",
        lambda columns, weight: torch.zeros(sum(one.size for one in columns), len(weight)),
    )
    monkeypatch.setattr("multigate.bundle.faster_on_one", lambda engines, layout: engines[1])
    users.export(tmp_path / "served")
    assert not (tmp_path / "served" / "row.onnx").exists()
    assert load(tmp_path / "served", engine="onnx").engines.row.of_one is None


def test_an_engine_that_cannot_be_had_is_told(
    run_folder: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match=r"there is no engine 'onyx'; did you mean 'onnx'\?"):
        load(run_folder, engine="onyx")
    with pytest.raises(BundleError, match=r"has no graph for engine 'onnx'; write one with Bundle.export"):
        load(run_folder, engine="onnx")
    assert load(run_folder, engine="auto").engines.row.name == "torch"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as where it is not installed
    with pytest.raises(BundleError, match=r"needs the package onnxruntime; pip install 'multigate\[onnx\]'"):
        load(exported, engine="onnx")
    with pytest.raises(BundleError, match=r"^compiling needs the package onnxruntime; pip install 'multigate\[onnx\]'"):
        load(exported).export(exported.parent / "again")
    assert load(exported, engine="auto").engines.row.name == "torch"
    assert load(exported).predict(dict.fromkeys(load(exported).schema.columns(labels=False, carried=False)))


BROKEN = {
    "of another numpy": ("raise AttributeError('_ARRAY_API not found')", "cannot be imported .*_ARRAY_API not found.*"),
    "without a library": ("raise ImportError('libonnx.so: cannot open')", "cannot be imported .*libonnx.so.*"),
    "with other names": ("", "refuses .*SessionOptions.*"),
    "on another processor": ("""
from types import SimpleNamespace
class SessionOptions:
    def add_initializer(self, *given): ...
class OrtValue:
    @staticmethod
    def ortvalue_from_numpy(*given): ...
class InferenceSession:
    def __init__(self, *given, **named): ...
    def get_inputs(self): return [SimpleNamespace(name="numbers"), SimpleNamespace(name="categories")]
    def get_outputs(self): return [SimpleNamespace(name="logits")]
    def run(self, *given): raise RuntimeError("illegal instruction")
""", "cannot run .*illegal instruction.*"),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported_users(users: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("users") / "served"
    users.export(folder)
    return folder


@pytest.mark.parametrize("how", BROKEN)
def test_where_onnx_runtime_is_broken_torch_predicts(
    users: Bundle, exported_users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    source, told = BROKEN[how]
    (tmp_path / "onnxruntime.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    with pytest.raises(BundleError, match=f"^ONNX Runtime {told}; "):
        load(exported_users, engine="onnx")
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    served = load(exported_users, engine="auto")
    assert (served.engines.row.name, served.engines.table.name) == ("torch", "torch")
    assert served.predict({"user": 3}) == users.predict({"user": 3})


@pytest.mark.parametrize("change", ["altered", "missing", "another model", "another answer", "no graph"])
def test_a_graph_that_is_not_of_this_model_is_never_used(
    bundle: Bundle, exported: Path, tmp_path: Path, change: str
) -> None:
    folder = shutil.copytree(exported, tmp_path / "bundle")
    about = json.loads((folder / "bundle.json").read_text())
    told = "copy it again"
    if change == "altered":
        content = bytearray((folder / "model.onnx").read_bytes())
        content[len(content) // 2] ^= 1
        (folder / "model.onnx").write_bytes(content)
    elif change == "missing":
        (folder / "model.onnx").unlink()
    elif change == "another model":  # the graph of before beside a calibration of now
        about["calibration"] = {"click": {"at": [0.0], "to": [0.5], "slope": 1.0}}
        del about["checksum"]
        (folder / "bundle.json").write_text(json.dumps(about))
        told = "was written for another model; export it again"
    elif change == "another answer":  # a graph that says it is of this model, and is not
        curves = {"click": Curve(to=(0.001,))}
        Bundle(bundle.experiment, bundle.encoder, build_model(bundle.experiment, bundle.encoder), curves).export(
            tmp_path / "other"
        )
        forged(folder, "model.onnx", (tmp_path / "other" / "model.onnx").read_bytes())
        told = "the outputs of engine 'onnx' are up to 1.0e-03 away from those of torch; predict with engine 'torch'"
    else:
        forged(folder, "model.onnx", b"")
        told = "ONNX Runtime refuses"
    with pytest.raises(BundleError, match=told):
        load(folder, engine="onnx")
    if change in ("altered", "missing"):
        with pytest.raises(BundleError, match=told):
            load(folder)
    else:
        assert load(folder, engine="auto").engines.table.name == "torch"


def test_an_export_that_fails_leaves_what_was_there(
    bundle: Bundle, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(exported, tmp_path / "bundle")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(BundleError, match="compiling needs the package onnxscript"):
        bundle.export(folder)
    assert load(folder, engine="onnx")
    assert list(tmp_path.iterdir()) == [folder]


def test_predictions_have_names_of_their_own() -> None:
    table = pa.table(
        {"x": [0.0, 1.0, 2.0, 3.0], "a": [0, 1, 0, 1], "size": ["big", "mid", "big", "mid"], "b": [0, 1, 0, 0]}
    )

    def build(**schema: Any) -> None:
        made = Experiment(schema=Schema(features=[Number("x")], **schema))
        build_model(made, Encoder.fit(made.schema, table.to_batches()))

    size, twin = Task("size", kind="multiclass"), Task("size=big", column="a")
    build(tasks=[size, Task("a")], keys=["x"])
    with pytest.raises(ExperimentError, match="would be named 'size=big'"):
        build(tasks=[size, twin])
    with pytest.raises(ExperimentError, match=r"would be named 'b\|a'"):
        build(tasks=[Task("a"), Task("b", given="a")], keys=["b|a"])


def test_a_copy_is_as_precise_as_what_it_was_made_of(run_folder: Path, table: pa.Table) -> None:
    bundle = load(run_folder, precision="bfloat16")
    for again in (pickle.loads(pickle.dumps(bundle)), copy.copy(bundle), copy.deepcopy(bundle)):
        assert again.precision == "bfloat16"
        assert np.array_equal(again.predict(table)["click"], bundle.predict(table)["click"])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_are_columns_whatever_their_width_and_type(kind: torch.dtype) -> None:
    schema = Schema(features=(Number("a"), Vector("v", size=3)), tasks=(Task("click"),))
    v = np.arange(12.0).reshape(4, 3)
    table = pa.table({"a": [1.0, 2.0, 3.0, 4.0], "v": v.tolist(), "click": [0, 1, 0, 1]})
    experiment = Experiment(schema=schema)
    encoder = Encoder.fit(schema, table.to_batches())
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    expected = bundle.predict(table.drop_columns(["click"]))["click"]
    found = bundle.predict({"a": torch.arange(1.0, 5.0, dtype=kind), "v": torch.tensor(v, dtype=kind)})["click"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_torch_takes_by_default_changes_nothing(run_folder: Path, table: pa.Table, tmp_path: Path) -> None:
    """Neither its type of numbers nor its device, which notebooks set for other work."""
    expected = load(run_folder).predict(table)["click"]
    rows = {"a": [0.5, 1.5, 2.5, 3.5] * 50, "click": [0, 1, 0, 1] * 50}
    schema = Schema(features=(Number("a", embedding="none"),), tasks=(Task("click"),))
    experiment = Experiment(schema=schema, epochs=1, sharing=MMoE(experts=2, hidden=(4,)), recalibrate="platt")
    try:
        torch.set_default_dtype(torch.float64)
        assert np.array_equal(load(run_folder).predict(table)["click"], expected)
        run = train(experiment, tmp_path / "run", tables={"train": rows}, quiet=True)
        bundle = run.bundle()
        assert {one.dtype for one in bundle.model.state_dict().values() if one.is_floating_point()} == {torch.float32}
        assert bundle.predict({"a": [1.0, 2.0]})["click"].shape == (2,)
        torch.set_default_dtype(torch.float32)
        curved = bundle.predict(rows)["click"]
        torch.set_default_device("meta")
        assert np.array_equal(load(run_folder).predict(table)["click"], expected)
        again = train(experiment, tmp_path / "again", tables={"train": rows}, quiet=True).bundle()
        assert np.array_equal(again.predict(rows)["click"], curved), "rows without a group, and a curve"
        assert again.predict({"a": 0.5})["click"] == pytest.approx(float(curved[0]))
        assert recalibrate(again, rows).predict(rows)["click"].shape == (200,)
        shutil.rmtree(tmp_path / "again" / "bundle")
        anew = train(experiment, tmp_path / "again", tables={"train": rows}, resume=True, quiet=True).bundle()
        assert np.array_equal(anew.predict(rows)["click"], curved)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sharing", [MMoE(experts=2, hidden=(4,)), TensorFactor(hidden=(4,))], ids=lambda one: one.name)
def test_a_bundle_loaded_where_numbers_are_short_by_default_is_the_same(
    tmp_path: Path, sharing: Structure, kind: torch.dtype
) -> None:
    """What is no weight, such as the edges of bins, is rounded to no other type; and what is drawn can be."""
    rows = {"a": [1.0 + i / 1000 for i in range(200)], "click": [i % 2 for i in range(200)]}
    schema = Schema(
        features=(Number("a", embedding="piecewise"),), tasks=(Task("click"), Task("again", column="click"))
    )
    experiment = Experiment(schema=schema, epochs=1, sharing=sharing)
    folder = train(experiment, tmp_path / "run", tables={"train": rows}, quiet=True).folder
    expected = load(folder).predict(rows)["click"]
    torch.set_default_dtype(kind)
    try:
        found = load(folder)
        assert torch.get_default_dtype() == kind
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(found.predict(rows)["click"], expected)


def test_a_graph_is_written_within_autocast(run_folder: Path, table: pa.Table, tmp_path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        load(run_folder).export(tmp_path / "served")
        assert torch.is_autocast_enabled("cpu")
    np.testing.assert_allclose(
        load(tmp_path / "served", engine="onnx").predict(table)["click"],
        load(run_folder).predict(table)["click"],
        rtol=1e-4,
    )
