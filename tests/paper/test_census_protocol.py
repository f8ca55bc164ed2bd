"""The census study keeps to the paper's protocol, and makes the well-known mistakes only where it says so."""

import threading
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from multigate.analysis.ranges import Choice, Point, Range
from multigate.analysis.stopping import Stopped
from multigate.data.prepared import Prepared
from multigate.datasets.census_income import open_census, write_census
from multigate.errors import DataError, RunError
from multigate.paper.census.methods import BOOSTING, CAP, METHODS, SINGLE, Training, space, structure, trainings
from multigate.paper.census.one_hot import ABSENT, AS_ONE, ONE_HOT, OneHot
from multigate.paper.census.rows import (
    AUXILIARY,
    WEIGHT,
    Tables,
    label_correlation,
    prepare_education,
    prepare_raw_weight,
    prepare_runs,
    prepare_search,
    protocol,
    read_tables,
    sampled,
)
from multigate.paper.census.training import Choices, Ground, run_point, try_point

LABELS = ("education", "marital_stat", "income_50k", WEIGHT)
PAPER = {"income": 0.1768, "college": 0.2373}


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("census")
    write_census(shared_data / "census-income", folder)
    return folder


@pytest.fixture(scope="module")
def tables(folder: Path) -> Tables:
    return read_tables(folder)


def silent(stage: str, done: int, total: int | None) -> None: ...


@pytest.mark.parametrize("main", PAPER)
def test_labels_correlate_as_in_the_paper(tables: Tables, main: str) -> None:
    exact = label_correlation(tables, main)
    noise = (1 - exact**2) / np.sqrt(10_000)
    assert abs(abs(exact) - PAPER[main]) < 2 * noise
    drawn = pa.concat_tables(tables).take(np.random.default_rng(0).choice(299_285, 10_000, replace=False)).to_pandas()
    degrees = ("Associates", "Bachelors", "Masters", "Prof school", "Doctorate")
    first = {
        "income": drawn["income_50k"] == "50000+.",
        "college": drawn["education"].map(lambda value: str(value).startswith(degrees)),
    }
    r = np.corrcoef(first[main].astype(float), (drawn["marital_stat"] == "Never married").astype(float))[0, 1]
    assert abs(r - exact) < 3 * noise


def test_correlations_of_the_test_file_alone(tables: Tables) -> None:
    alone = tables._replace(train=tables.train.slice(0, 0))
    assert label_correlation(alone, "income") == pytest.approx(-0.1787, abs=5e-5)
    assert label_correlation(alone, "college") == pytest.approx(-0.2376, abs=5e-5)


def test_no_label_and_no_weight_is_read(tables: Tables, tmp_path: Path) -> None:
    """Whatever stands in those columns, the inputs of the networks are the same to the bit."""
    prepared = prepare_search(small(tables), tmp_path / "rows", silent)
    rows = tables.test.slice(0, 500)
    other = tables.train.slice(7_000, 500)
    mixed = rows
    for name in LABELS:
        mixed = mixed.set_column(mixed.column_names.index(name), name, other[name])
    assert mixed["education"] != rows["education"]
    before, after = (prepared.encoder.columns(table.combine_chunks().to_batches()[0]) for table in (rows, mixed))
    assert torch.equal(before.numbers, after.numbers)
    assert torch.equal(before.categories, after.categories)
    assert not torch.equal(before.labels, after.labels)
    assert not {feature.source for feature in protocol().features} & set(LABELS)


def test_the_test_file_is_cut_in_two_and_the_search_sees_neither_test_rows_nor_all_training_rows(
    shared_data: Path, tables: Tables, tmp_path: Path
) -> None:
    train, test = open_census(shared_data / "census-income")
    assert tables.valid.num_rows + tables.test.num_rows == test.num_rows == 99_762
    together = Counter(lines(tables.valid)) + Counter(lines(tables.test))
    assert together == Counter(lines(test)), "every row of the test file is in one half, once"
    drawn = sampled(tables, 1_000)
    assert drawn.train.num_rows == 1_000
    few = ["age", WEIGHT, "det_occ_code", "education", "state_prev_res"]
    assert not Counter(lines(drawn.train.select(few))) - Counter(lines(train.select(few)))
    assert drawn.valid is tables.valid
    assert set(prepare_search(drawn, tmp_path / "rows", silent).parts) == {"train", "valid"}
    with pytest.raises(RunError, match="the tables changed"):
        prepare_search(sampled(tables, 1_001), tmp_path / "rows", silent)


def test_a_folder_without_the_data_set_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="multigate fetch census-income"):
        read_tables(tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_no_point_of_a_space_is_wider_than_the_cap(method: str) -> None:
    """Units counted in the modules that are built: each layer of experts or networks has one bias a unit."""
    random = np.random.default_rng(0)
    ends = {
        name: one.values if isinstance(one, Choice) else (one.low, one.high) for name, one in spaced(method).items()
    }
    corners = [dict(zip(ends, values, strict=True)) for values in product(*ends.values())]
    inside = [{name: one.at(random.random()) for name, one in spaced(method).items()} for _ in range(50)]
    widest = 0
    for point in (*corners, *inside):
        units = layers(method, point)
        assert min(units) > 0
        assert max(units) <= CAP
        widest = max(widest, *units)
    assert widest >= 0.99 * CAP, "every method may be as wide as any other"


def spaced(method: str) -> dict[str, Range | Choice]:
    return dict(space(method, CAP, 12))


def layers(method: str, point: Point) -> list[int]:
    tasks = ("a",) if method == SINGLE else ("a", "b")
    with torch.device("meta"):
        built = structure(method, point).build(8, tasks)
    assert isinstance(built, nn.Module)
    return [weight.numel() for name, weight in built.named_parameters() if name.endswith("bias")]


def test_methods_with_a_model_a_task_have_one_of_the_auxiliary_task_for_both_groups() -> None:
    found = {one.name: one.tasks for one in trainings(("income", "college"), AUXILIARY, (SINGLE, "mmoe", BOOSTING))}
    assert found == {
        "income-single_task": ("income",),
        "income-mmoe": ("income", AUXILIARY),
        "income-boosting": ("income",),
        "college-single_task": ("college",),
        "college-mmoe": ("college", AUXILIARY),
        "college-boosting": ("college",),
        f"{AUXILIARY}-single_task": (AUXILIARY,),
        f"{AUXILIARY}-boosting": (AUXILIARY,),
    }


def test_columns_shift_as_in_the_demo(folder: Path) -> None:
    """The demo's own steps in pandas: dummies of each table, and the missing one appended at the end of the test's."""
    train, valid, test = (pq.read_table(folder / f"{name}.parquet") for name in ("train", "valid", "test"))
    fitted_on, other = (dummies(one) for one in (train, pa.concat_tables((valid, test))))
    lacking = [name for name in fitted_on.columns if name not in other.columns]
    assert lacking == ["=".join(ABSENT)]
    names = list(fitted_on.columns)
    assert len(names) + 17 + 11 == 499, "with the 17 of education and the 11 numbers that the demo also has"
    assert len(names) - names.index(lacking[0]) - 1 == 207
    other[lacking[0]] = 0
    columns = OneHot(train)
    assert columns.names == names
    rows = 300
    assert columns.shifted(valid.slice(0, rows))[AS_ONE].to_pylist() == read_as(other.iloc[:rows], names)
    assert columns.added(valid.slice(0, rows))[AS_ONE].to_pylist() == read_as(other.iloc[:rows][names], names)


def dummies(table: pa.Table) -> pd.DataFrame:
    frame = table.select(ONE_HOT).to_pandas()
    frame = frame.apply(lambda column: column if column.dtype.kind == "i" else column.astype(object).fillna("?"))
    return pd.get_dummies(frame, columns=list(ONE_HOT), prefix_sep="=")


def read_as(matrix: pd.DataFrame, names: list[str]) -> list[str]:
    """Names, in the order of ``names``, of what a network finds to be 1 that reads columns by their place."""
    place = {column: at for at, column in enumerate(dict.fromkeys(name.partition("=")[0] for name in names))}
    found = [[names[at] for at in np.flatnonzero(row)] for row in matrix.to_numpy()]
    return ["|".join(sorted(row, key=lambda name: (place[name.partition("=")[0]], name))) for row in found]


def test_mistakes_are_made_where_they_are_asked_for(tables: Tables, tmp_path: Path) -> None:
    rows = small(tables)
    kept = prepare_education(rows, tmp_path / "education", silent)
    assert "education" in {feature.source for feature in kept.encoder.schema.features}
    raw = prepare_raw_weight(rows, tmp_path / "raw", silent)
    assert weights(raw) == pytest.approx(rows.train[WEIGHT].to_numpy(), rel=1e-4)
    assert weights(prepare_raw_weight(rows, tmp_path / "raw", silent)) == pytest.approx(weights(raw), rel=1e-12)


def test_weights_are_scaled_back_once_wherever_that_was_stopped(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, saved = small(tables), []

    def stopped(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        if saved:
            raise KeyboardInterrupt
        saved.append(path)
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patched:
        patched.setattr("multigate.paper.census.rows.save_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare_raw_weight(rows, tmp_path / "raw", silent)
    raw = prepare_raw_weight(rows, tmp_path / "raw", silent)
    for part, table in zip(("train", "valid", "test"), rows, strict=True):
        assert weights(raw, part) == pytest.approx(table[WEIGHT].to_numpy(), rel=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


MMOE = Training("mmoe", ("income", AUXILIARY))
POINT = {"units": 8, "second": 0.5, "learning_rate": 0.01, "epochs": 4, "experts": 2}


@pytest.mark.parametrize(("epochs", "quarters"), [(1, []), (2, [2]), (3, [1, 2]), (4, [1, 2, 3]), (9, [1, 2, 3])])
def test_a_trial_tells_its_value_at_the_quarters_of_its_own_length(
    tables: Tables, tmp_path: Path, epochs: int, quarters: list[int]
) -> None:
    told: dict[int, float] = {}
    best = try_point(ground(tables, tmp_path), MMOE, POINT | {"epochs": epochs}, told.__setitem__)
    assert list(told) == quarters
    assert all(0 < value <= best for value in told.values())


def test_a_trial_that_is_stopped_leaves_nothing(tables: Tables, tmp_path: Path) -> None:
    def tell(step: int, value: float) -> None:
        raise Stopped

    place = ground(tables, tmp_path)
    threads = set(threading.enumerate())
    with pytest.raises(Stopped):
        try_point(place, MMOE, POINT, tell)
    assert list(place.work.iterdir()) == []
    assert set(threading.enumerate()) <= threads, "of TensorBoard's writer, which would write where nothing is any more"


def test_a_run_whose_loss_is_no_number_is_no_better_than_chance(tables: Tables, tmp_path: Path) -> None:
    row = run_point(ground(tables, tmp_path), MMOE, POINT | {"learning_rate": 1e30}, seed=0)
    assert row["income/auc"] == row[f"{AUXILIARY}/auc"] == row["valid"] == 0.5


def test_weights_that_are_no_numbers_after_the_last_look_at_the_loss_are_no_better_than_chance(
    tables: Tables, tmp_path: Path
) -> None:
    """All rows are one batch: the loss of the only step is a number, and then the weights are none."""
    place = ground(tables, tmp_path)
    place = place._replace(choices=place.choices.with_(batch_size=2_000))
    point = POINT | {"learning_rate": 1e38, "epochs": 1}
    assert try_point(place, MMOE, point, lambda step, value: None) == 0.5
    row = run_point(place, MMOE, point, seed=0)
    assert row["income/auc"] == row[f"{AUXILIARY}/auc"] == row["valid"] == 0.5


def test_a_run_is_scored_on_the_test_rows(tables: Tables, tmp_path: Path) -> None:
    """Other test rows, another score, and nothing else: they choose nothing."""
    place = ground(tables, tmp_path)
    row = run_point(place, MMOE, POINT, seed=1)
    again = run_point(place, MMOE, POINT, seed=1)
    assert {**again, "seconds": 0} == {**row, "seconds": 0}
    others = tables._replace(test=tables.test.slice(20_000))
    other = run_point(ground(others, tmp_path / "other"), MMOE, POINT, seed=1)
    assert other["valid"] == row["valid"]
    assert other["income/auc"] != row["income/auc"]


def ground(tables: Tables, folder: Path) -> Ground:
    prepared = prepare_runs(small(tables), folder / "rows", silent)
    return Ground(prepared.folder, Choices(embedding={"dim": 2}), folder / "work", "cpu")


def small(tables: Tables) -> Tables:
    return Tables(sampled(tables, 2_000).train, tables.valid.slice(0, 500), tables.test.slice(0, 500))


def weights(prepared: Prepared, part: str = "train") -> np.ndarray:
    at = [column.feature for column in prepared.layout.numbers].index(WEIGHT)
    return prepared.parts[part].shards[0].numbers[:, at].numpy().astype(np.float64)


def lines(table: pa.Table) -> list[tuple[object, ...]]:
    """Rows as tuples, missing as "?"."""
    columns = [table[name].cast(pa.string()).fill_null("?").to_pylist() for name in table.column_names]
    return list(zip(*columns, strict=True))
