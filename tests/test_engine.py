"""Engines: batches of any size, cut and put together again; who answers differently is found, who is faster chosen."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save

from multigate.assembly import build_model
from multigate.batch import Batch
from multigate.bundle import Bundle, load
from multigate.data.encoder import Arrays, Encoder
from multigate.engine import BLOCK, Answers, Engine, Engines, Onnx, Torch, arrays, disagreement, faster, made_up
from multigate.errors import BundleError
from multigate.experiment import Experiment
from multigate.model import TOGETHER
from multigate.schema import Bag, Number, Schema, Task
from multigate.score import score_table
from multigate.sharing import MMoE
from multigate.training.train import train


@pytest.fixture(scope="module")
def exported(feed_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a graph: categories, a bag, a chain."""
    folder = tmp_path_factory.mktemp("engine")
    train(feed_experiment, folder / "run", quiet=True)
    load(folder / "run").export(folder / "exported")
    return folder / "exported"


@pytest.fixture(scope="module")
def bundle(exported: Path) -> Bundle:
    return load(exported, engine="onnx")


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def check_equal(found: Answers, bundle: Bundle, batch: Batch) -> None:
    """Against the model itself."""
    with torch.no_grad():
        expected = bundle.model(batch.numbers, batch.categories, batch.bags)
    named = (expected.logits, expected.conditionals, *expected.gates)
    for one, other in zip((found.logits, found.conditionals, *found.gates), named, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-5)
    assert len(found.logits) == batch.rows


@pytest.mark.parametrize("rows", [0, 1, 64, 65, 130, BLOCK, 3 * BLOCK + 7, 5 * BLOCK, 2 * TOGETHER + 1])
def test_any_number_of_rows_is_computed_whole(bundle: Bundle, threads: int, rows: int) -> None:
    batch = made_up(bundle.encoder.layout, rows)
    for engine in (bundle.engines.table, Torch(bundle.model)):
        ((found, beside),) = engine.over([(batch, "beside")])
        check_equal(found, bundle, batch)
        check_equal(engine(arrays(batch)), bundle, batch)
        assert beside == "beside"


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_batches_come_in_order_with_what_came_beside_them(bundle: Bundle, threads: int, name: str) -> None:
    engine = {"torch": Torch(bundle.model), "onnx": bundle.engines.table}[name]
    batches = [made_up(bundle.encoder.layout, rows) for rows in (2000, 3, 0, 1100)]
    found = list(engine.over((batch, at) for at, batch in enumerate(batches)))
    assert [more for _, more in found] == [0, 1, 2, 3]
    for (outputs, _), batch in zip(found, batches, strict=True):
        check_equal(outputs, bundle, batch)
    assert list(engine.over([])) == []


def test_what_goes_wrong_between_batches_is_raised(bundle: Bundle) -> None:
    def batches() -> Iterator[tuple[Batch, int]]:
        yield made_up(bundle.encoder.layout, 200), 0
        raise LookupError("the second batch")

    with pytest.raises(LookupError, match="the second batch"):
        list(bundle.engines.table.over(batches()))


def test_a_consumer_may_stop_early(bundle: Bundle) -> None:
    made = []

    def batches() -> Iterator[tuple[Batch, int]]:
        for at in range(1000):
            made.append(at)
            yield made_up(bundle.encoder.layout, 10), at

    for _, at in bundle.engines.table.over(batches()):
        if at == 2:
            break
    assert len(made) < 10


def test_threads_of_torch_stay_as_many_as_they_were(bundle: Bundle, threads: int) -> None:
    """Of this thread and of those that come later; rows are computed on as many others, each by itself."""
    seen: list[tuple[str, int]] = []

    def look(module: object, inputs: object) -> None:
        seen.append((threading.current_thread().name, torch.get_num_threads()))

    def of_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    hook = bundle.model.register_forward_pre_hook(look)
    batches = [(made_up(bundle.encoder.layout, 3 * TOGETHER), at) for at in range(3)]
    try:
        answers = Torch(bundle.model).over(batches)
        next(answers)
        assert torch.get_num_threads() == of_a_new_thread() == threads
        answers.close()
        list(Torch(bundle.model).over(batches))
    finally:
        hook.remove()
    assert torch.get_num_threads() == of_a_new_thread() == threads
    assert len({name for name, _ in seen}) > 1
    assert {number for _, number in seen} == {1}


def test_where_no_more_threads_can_begin_none_waits_for_ever(
    bundle: Bundle, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, begun = threading.Thread.start, []

    def start(self: threading.Thread) -> None:
        if len(begun) == threads - 1:
            raise RuntimeError("can't start new thread")
        begun.append(self)
        begin(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(Torch(bundle.model).over([(made_up(bundle.encoder.layout, 3 * TOGETHER), 0)]))
    assert len(begun) == threads - 1
    assert not any(thread.is_alive() for thread in begun)
    assert torch.get_num_threads() == threads


def test_tables_may_be_computed_in_bfloat16(bundle: Bundle, exported: Path) -> None:
    table = pq.read_table(bundle.experiment.test)
    exact, rough = load(exported), load(exported, precision="bfloat16")
    expected, found = exact.predict(table), rough.predict(table)
    assert any(not np.array_equal(found[name], values) for name, values in expected.items())
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() < 0.02 * max(1, np.abs(values).max())
    for row in table.slice(0, 3).to_pylist():
        assert rough.predict(row) == exact.predict(row)
    assert rough.with_outputs().predict(table)["click"].tolist() == found["click"].tolist()
    scores, _ = score_table(rough, table, replicates=0)
    precise, _ = score_table(exact, table, replicates=0)
    assert scores != precise
    assert scores["click/auc"] == pytest.approx(precise["click/auc"], abs=0.01)


def test_precision_auto_is_what_the_processor_multiplies(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for native, named in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert load(exported, precision="auto").precision == named
        assert load(exported, engine="onnx", precision="auto").engines.table.name == "onnx"


@pytest.mark.parametrize(
    ("engine", "precision", "told"),
    [
        ("torch", "bfloat", "there is no precision 'bfloat'; did you mean 'bfloat16'?"),
        ("onnx", "bfloat16", "engine 'onnx' computes in float32 alone; take engine 'auto' or 'torch' for bfloat16"),
    ],
)
def test_a_precision_that_cannot_be_had_is_told(exported: Path, engine: str, precision: str, told: str) -> None:
    with pytest.raises(BundleError, match=re.escape(told)):
        load(exported, engine=engine, precision=precision)  # type: ignore[arg-type]


def test_other_weights_are_found_out(bundle: Bundle) -> None:
    layout = bundle.encoder.layout
    assert disagreement(Torch(bundle.model), bundle.engines.row, layout) is None
    other = build_model(bundle.experiment, bundle.encoder).eval()
    other.load_state_dict(bundle.model.state_dict())
    with torch.no_grad():
        other.heads.bias[1] += 1e-3
    apart = disagreement(Torch(other), bundle.engines.row, layout)
    assert apart == pytest.approx(1e-3, rel=0.1)
    with torch.no_grad():
        other.heads.bias[1] = torch.nan
    assert disagreement(Torch(other), bundle.engines.row, layout) is not None


class Slow:
    """Torch after a pause that depends on the number of rows."""

    name = "slow"

    def __init__(self, engine: Engine, one: float, many: float) -> None:
        self.engine, self.one, self.many = engine, one, many

    def __call__(self, rows: Arrays) -> Answers:
        time.sleep(self.one if len(rows.numbers) == 1 else self.many)
        return self.engine(rows)

    def over(self, batches: Iterable[tuple[Batch, object]]) -> Iterator[tuple[Answers, object]]:
        for batch, more in batches:
            yield self(arrays(batch)), more


def test_the_faster_one_is_chosen_for_one_row_and_for_many(bundle: Bundle) -> None:
    engine = Torch(bundle.model)
    first, second = Slow(engine, one=0.0, many=0.03), Slow(engine, one=0.005, many=0.0)
    chosen = faster([Engines(first, first), Engines(second, second)], bundle.encoder.layout)
    assert (chosen.row, chosen.table) == (first, second)
    chosen = faster([Engines(second, second), Engines(first, first)], bundle.encoder.layout)
    assert (chosen.row, chosen.table) == (first, second)


def test_made_up_rows_are_rows_of_the_layout(bundle: Bundle) -> None:
    layout = bundle.encoder.layout
    batch = made_up(layout, 2000)
    sizes = torch.tensor([layout.tables[column.table] for column in layout.categories])
    assert (batch.categories >= 0).all()
    assert (batch.categories < sizes).all()
    assert (batch.categories.max(0).values >= sizes * 0.5).all()
    assert 0.05 < batch.numbers.isnan().float().mean() < 0.15
    for bag in batch.bags:
        assert (bag.offsets.diff() >= 1).all()
        assert bag.offsets[-1] == len(bag.values)
    assert torch.equal(batch.categories, made_up(layout, 2000).categories)


def test_a_file_that_is_no_graph_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"ONNX Runtime refuses .*model\.onnx .*; export the bundle again"):
        Onnx(tmp_path / "model.onnx")


def test_weights_that_are_written_over_change_nothing_that_was_loaded(exported: Path, tmp_path: Path) -> None:
    row = dict.fromkeys(load(exported).schema.columns(labels=False, carried=False)) | {"price": 9.5}
    shutil.copytree(exported, tmp_path / "served")
    bundle = load(tmp_path / "served", engine="onnx")
    before = bundle.predict(row)
    path = tmp_path / "served" / "model.safetensors"
    weights = load_file(path)
    path.write_bytes(save({name: 2 * one for name, one in weights.items()}))  # as cp does: the file stays the same one
    assert bundle.predict(row) == before


def test_predictions_are_those_of_torch(bundle: Bundle) -> None:
    table = pq.read_table(bundle.experiment.test)
    plain = Bundle(bundle.experiment, bundle.encoder, bundle.model, bundle.curves)
    expected, found = plain.predict(table, gates=True), bundle.predict(table, gates=True)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)
    for row in table.slice(0, 5).to_pylist():
        assert bundle.predict(row) == pytest.approx(plain.predict(row), rel=1e-5, abs=1e-6)


FORKED = """
import os, signal, sys
import pyarrow.parquet as pq, torch
from multigate.bundle import load

torch.set_num_threads(2)
torch.randn(1_000_000).exp()  # which starts them
table = pq.read_table(sys.argv[2])
rows = len(table)
bundle = load(sys.argv[1], engine="onnx")
child = os.fork()
if child == 0:
    signal.alarm(30)
    bundle.predict({"x": 0.5, "tags": ["a"]})
    size = bundle.predict(table)["size"]
    os._exit(0 if len(size) == rows else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_graph_loaded_before_a_fork_computes_after_it(tmp_path: Path) -> None:
    """Every kind of task, where the parent's torch has threads that the child has not."""
    draw = np.random.default_rng(0)
    rows = 20_000
    table = pa.table(
        {
            "x": draw.normal(size=rows), "tags": [["a", "b"][: at % 3] for at in range(rows)],
            "click": draw.integers(0, 2, rows), "size": draw.choice(["big", "mid", "small"], rows),
            "cost": draw.normal(size=rows),
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "rows.parquet")
    tasks = [Task("click"), Task("size", kind="multiclass"), Task("cost", kind="regression")]
    schema = Schema(features=[Number("x"), Bag("tags")], tasks=tasks)
    experiment = Experiment(schema=schema, sharing=MMoE(experts=3, hidden=(64, 64)))
    encoder = Encoder.fit(schema, table.to_batches())
    Bundle(experiment, encoder, build_model(experiment, encoder)).export(tmp_path / "served")
    code = [sys.executable, "-c", FORKED, tmp_path / "served", tmp_path / "rows.parquet"]
    done = subprocess.run(code, capture_output=True, check=True, text=True)
    assert done.stdout == "0\n"
