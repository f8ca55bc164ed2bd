"""Copies of training rows are told where there are more than chance has, and only there."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import multigate as mg
from multigate.data.copies import copies
from multigate.data.files import open_table
from multigate.data.prepared import prepare
from multigate.data.split import Split

ROWS = 3000


def table(seed: int, rows: int = ROWS, few: bool = False) -> pa.Table:
    """Numbers, categories, bags, gaps and two labels, one of them known in half of the rows; with ``few``, 64 kinds."""
    random = np.random.default_rng(seed)
    x = random.normal(size=rows)
    columns = {
        "x": np.round(x > 0) if few else x,
        "gaps": np.where(random.random(rows) < 0.3, np.nan, 1.0 if few else random.normal(size=rows)),
        "c": random.choice(["a", "b"], rows),
        "items": [[] if few else random.choice(["p", "q", "r"], random.integers(3)).tolist() for _ in range(rows)],
        "y": (x + random.normal(size=rows) > 0).astype(int),
        "z": np.where(random.random(rows) < 0.5, np.nan, (random.random(rows) < 0.3).astype(float)),
    }
    return pa.table(columns)


SCHEMA = mg.Schema(
    features=[mg.Number("x"), mg.Number("gaps"), mg.Category("c"), mg.Bag("items")], tasks=[mg.Task("y"), mg.Task("z")]
)


def found(
    folder: Path, train: pa.Table, valid: pa.Table, test: pa.Table | None = None, **options: int
) -> dict[str, float]:
    tables = [None if one is None else open_table(one) for one in (train, valid, test)]
    return copies(prepare(SCHEMA, *tables, Split(), folder / "rows", **options))


@pytest.mark.parametrize("shard_rows", [65_536, 500])
def test_the_share_of_copies_is_told_of_each_part(tmp_path: Path, shard_rows: int) -> None:
    """Also where not all training rows are looked at."""
    train = table(0, 10_000)
    chosen = np.random.default_rng(1).permutation(len(train))
    half = pa.concat_tables([train.take(chosen[:1500]), table(2, 1500)]).take(
        np.random.default_rng(3).permutation(3000)
    )
    shares = found(tmp_path, train, train.take(chosen), half, shard_rows=shard_rows)
    assert shares["valid"] == pytest.approx(1, abs=0.15)
    assert shares["test"] == pytest.approx(0.5, abs=0.3 if shard_rows == 500 else 0.05)


def test_rows_of_the_same_source_are_no_copies(tmp_path: Path) -> None:
    """Nor are those that are alike because there are few kinds of them, however many these are."""
    assert found(tmp_path / "many", table(0), table(1), table(2)) == {}
    assert found(tmp_path / "few", table(0, few=True), table(1, few=True), table(2, few=True)) == {}
    assert found(tmp_path / "tiny", table(0, 40, few=True), table(1, 10, few=True)) == {}


def test_a_row_that_differs_in_one_column_is_no_copy(tmp_path: Path) -> None:
    train = table(0)
    for at, name in enumerate(train.column_names):
        other = train.take(np.roll(np.arange(ROWS), 1)).column(name)
        moved = train.set_column(at, name, other)
        kept = np.array(
            [repr(a) != repr(b) for a, b in zip(other.to_pylist(), train.column(name).to_pylist(), strict=True)]
        )
        assert found(tmp_path / name, train, moved.filter(pa.array(kept))) == {}, name


def test_a_table_that_holds_rows_twice_has_copies_on_both_sides_of_its_split(tmp_path: Path) -> None:
    once = table(0)
    rows = np.concatenate([np.arange(ROWS), np.arange(ROWS // 4)])
    whole = once.take(np.random.default_rng(1).permutation(rows))
    parts = prepare(SCHEMA, open_table(whole), None, None, Split(valid=0.2), tmp_path / "rows")
    assert copies(parts)["valid"] == pytest.approx(0.4 * 0.8, abs=0.06)
    assert found(tmp_path / "apart", whole, table(1)) == {}, "those of the training rows alone are none of the others"


def test_rows_that_are_alike_by_nature_are_no_copies_where_they_are_split(tmp_path: Path) -> None:
    """Users who meet the same things: some three rows of a kind, whose labels chance decides; and a few kinds, whose
    labels their features decide."""
    random = np.random.default_rng(0)
    user, thing = random.integers(0, 50, ROWS), random.integers(0, 20, ROWS)
    schema = mg.Schema(
        features=[mg.Category("user"), mg.Category("thing")], tasks=[mg.Task("y"), mg.Task("sure", column="known")]
    )
    for name, likely in {"often": 0.5, "seldom": 0.05}.items():
        chance = (random.random(ROWS) < likely).astype(int)
        rows = pa.table({"user": user, "thing": thing, "y": chance, "known": thing % 2})
        assert copies(prepare(schema, open_table(rows), None, None, Split(), tmp_path / name)) == {}
    rows = pa.table({"user": user % 4, "thing": thing, "y": thing % 2, "known": thing % 2})
    assert copies(prepare(schema, open_table(rows), None, None, Split(), tmp_path / "few")) == {}


def test_few_rows_are_enough_and_training_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = table(0, 400)
    experiment = mg.Experiment(schema=SCHEMA, epochs=1, sharing=mg.MMoE(experts=2, hidden=(8,)), tower=(4,))
    mg.train(experiment, tmp_path / "run", tables={"train": train, "valid": train.slice(0, 60)})
    assert "valid: 100% of the rows are copies of training rows" in capsys.readouterr().err
    chain = SCHEMA.with_(tasks=[mg.Task("y"), mg.Task("z", given="y")], funnel="loose")
    tables = {"train": train, "valid": train}
    mg.compare(
        experiment.with_(schema=chain),
        tmp_path / "compare",
        tables=tables,
        structures=["single_task"],
        seeds=1,
        boosting=False,
    )
    assert capsys.readouterr().err.count("valid: 100% of the rows") == 1, "though rows under y are prepared once more"
    mg.train(experiment, tmp_path / "other", tables={"train": train, "valid": table(1, 60)})
    assert "copies" not in capsys.readouterr().err
    mg.train(experiment, tmp_path / "split", tables={"train": pa.concat_tables([train, train])})
    told = capsys.readouterr().err
    assert "so keep each row once in the table" in told
    assert "unless they are rows of their own" in told, "the maker of a plane follows from its model"
