"""Intercepts: predictions of the training rows add up to what their labels do, whatever the last steps left."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import multigate as mg
from multigate.batch import output_columns
from multigate.data.prepared import Prepared
from multigate.evaluate import forward, scores, spaces
from multigate.experiment import Experiment
from multigate.run import Run
from multigate.training import intercepts
from multigate.training.fit import BEST

Rows = dict[str, list[Any]]


def rows_of(many: int, seed: int) -> Rows:
    """Tasks of all kinds: with weights, unknown labels, a chain, and one of weight 0."""
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=(2, many))
    click = draw.uniform(size=many) < 1 / (1 + np.exp(1.2 - x))
    buy = click & (draw.uniform(size=many) < 1 / (1 + np.exp(1 - y)))
    answer = np.where(draw.uniform(size=many) < 0.4, (x + y + draw.normal(size=many) > 0).astype(float), np.nan)
    return {
        "x": x.tolist(),
        "y": y.tolist(),
        "weight": draw.choice([0.0, 0.5, 3.0], many).tolist(),
        "click": click.astype(int).tolist(),
        "buy": buy.astype(int).tolist(),
        "answer": [None if math.isnan(one) else int(one) for one in answer],
        "amount": (5 + 2 * x + draw.normal(size=many)).tolist(),
        "kind": np.where(x > 1, "tall", np.where(y > 0.5, "wide", "plain")).tolist(),
        "idle": (x > 0).astype(int).tolist(),
    }


TASKS: tuple[dict[str, Any], ...] = (
    {"name": "click", "sample_weight": "weight"},
    {"name": "buy", "given": "click"},
    {"name": "answer"},
    {"name": "amount", "kind": "regression", "sample_weight": "weight"},
    {"name": "kind", "kind": "multiclass"},
    {"name": "idle", "weight": 0.0},
)


@pytest.fixture(scope="module")
def tables() -> dict[str, Rows]:
    return {"train": rows_of(3000, 0), "valid": rows_of(600, 1)}


def experiment(**changes: Any) -> Experiment:
    """Large steps to its end: outputs are left at any level."""
    optimizer = {"learning_rate": 0.02, "schedule": "constant", "intercepts": changes.pop("intercepts", "matched")}
    features = [{"name": name, "kind": "number"} for name in ("x", "y")]
    return Experiment.model_validate(
        {
            "schema": {"features": features, "tasks": TASKS},
            "sharing": {"structure": "mmoe", "experts": 2, "hidden": [8]},
            "tower": [4],
            "optimizer": optimizer,
            "epochs": 2,
            "batch_size": 128,
            "monitor": "click/auc",
        }
        | changes
    )


@pytest.fixture(scope="module")
def matched(tables: dict[str, Rows], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return mg.train(experiment(), tmp_path_factory.mktemp("matched") / "run", tables=tables, quiet=True)


@pytest.fixture(scope="module")
def trained(tables: dict[str, Rows], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trained") / "run"
    return mg.train(experiment(intercepts="trained"), folder, tables=tables, quiet=True)


def totals(run: Run, rows: Rows) -> dict[str, tuple[float, float, float]]:
    """Mean prediction, mean label and its standard error, of each task by the rows' weights where it has some; of
    classes, each."""
    found = mg.load(run.folder).predict({name: rows[name] for name in ("x", "y")})
    weights = np.array(rows["weight"])
    means: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for task in ("click", "buy", "answer", "amount", "idle"):
        known = np.array([one is not None for one in rows[task]])
        count = weights if task in ("click", "amount") else None
        labels = np.array([one for one in rows[task] if one is not None], dtype=float)
        means[task] = (np.asarray(found[task])[known], labels, np.ones(len(labels)) if count is None else count[known])
    for name in ("plain", "tall", "wide"):
        labels = np.array([one == name for one in rows["kind"]], dtype=float)
        means[name] = (np.asarray(found[f"kind={name}"]), labels, np.ones(len(labels)))
    return {name: mean_and_error(*columns) for name, columns in means.items()}


def mean_and_error(predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    shares, mean = weights / weights.sum(), np.average(labels, weights=weights)
    return float(shares @ predicted), float(mean), float(np.sqrt(shares**2 @ (labels - mean) ** 2))


def test_predictions_of_the_training_rows_add_up_to_their_labels(
    matched: Run, trained: Run, tables: dict[str, Rows]
) -> None:
    before, after = totals(trained, tables["train"]), totals(matched, tables["train"])
    for name in ("click", "answer", "amount"):
        predicted, actual, error = after[name]
        off = abs(before[name][0] - actual)
        left = error**2 / off if off > error else off  # of a difference, shrunk as James and Stein do
        assert abs(predicted - actual) == pytest.approx(left, rel=0.1, abs=1e-6), name
    assert sum(abs(before[name][0] - after[name][1]) > 3 * after[name][2] for name in before) >= 2, "nothing to move"
    for name in ("buy", "plain", "tall", "wide"):
        predicted, actual, error = after[name]
        assert abs(predicted - actual) < max(error, 0.5 * abs(before[name][0] - actual)), name
    assert after["idle"][0] == pytest.approx(before["idle"][0], rel=1e-6), "it is not trained, so it is not moved"


def test_a_transform_which_is_not_a_regressions_moves_nothing(
    matched: Run, tables: dict[str, Rows], tmp_path: Path
) -> None:
    """As the training says of it."""
    tasks = [one if one.get("kind") == "regression" else one | {"transform": "log1p"} for one in TASKS]
    schema = {"features": [{"name": name, "kind": "number"} for name in ("x", "y")], "tasks": tasks}
    run = mg.train(experiment(schema=schema), tmp_path / "run", tables=tables, quiet=True)
    biases = [load_file(one.folder / BEST)["heads.bias"] for one in (matched, run)]
    assert torch.equal(*biases)


def test_nothing_moves_but_the_last_biases_and_the_order_of_rows_is_the_same(
    matched: Run, trained: Run, tables: dict[str, Rows]
) -> None:
    one, other = (load_file(run.folder / "bundle" / "model.safetensors") for run in (matched, trained))
    moved = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert moved == ["heads.bias"]
    assert matched.best["click/auc"] == trained.best["click/auc"]
    tasks = mg.load(matched.folder).encoder.layout.tasks
    changed = set()
    for task, (start, end) in zip(tasks, output_columns(tasks), strict=True):
        before, after = (weights["heads.bias"][start:end] for weights in (other, one))
        changed |= set() if torch.equal(before, after) else {task.name}
    assert len(changed) >= 2
    for name in ("click", "answer", "kind", "amount", "idle"):
        told = f"{name}/{'mae' if name == 'amount' else 'log_loss'}"
        assert (matched.best[told] != trained.best[told]) == (name in changed), name


def test_what_is_told_and_kept_is_of_the_weights_that_were_matched(matched: Run, tables: dict[str, Rows]) -> None:
    bundle = mg.load(matched.folder)
    batches = [batch for batch, _ in bundle.batches(tables["valid"], labels=True)]
    seen = forward(bundle.model, batches, torch.device("cpu"))
    found = scores(spaces(bundle.schema, bundle.encoder, seen))
    assert found == pytest.approx({name: matched.best[name] for name in found}, rel=1e-6, nan_ok=True)
    best = load_file(matched.folder / BEST)
    assert torch.equal(best["heads.bias"], bundle.model.heads.bias)


def test_a_bundle_that_is_made_again_and_one_of_many_runs_are_matched_too(
    matched: Run, tables: dict[str, Rows], tmp_path: Path
) -> None:
    shutil.copytree(matched.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "bundle")
    again = mg.train(experiment(), tmp_path / "run", tables=tables, quiet=True, resume=True)
    assert totals(again, tables["train"]) == totals(matched, tables["train"])
    compared = mg.compare(experiment(), tmp_path / "compared", structures=("mmoe",), seeds=2, tables=tables, quiet=True)
    for seed in range(2):
        found = compared.bundle("mmoe", seed).predict({name: tables["train"][name] for name in ("x", "y")})
        labels = np.array(tables["train"]["buy"], dtype=float)
        predicted, actual, error = mean_and_error(np.asarray(found["buy"]), labels, np.ones(len(labels)))
        assert abs(predicted - actual) < error, seed


def test_of_a_long_table_some_rows_are_looked_at_and_all_labels(
    tables: dict[str, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intercepts, "LOOKED_AT", 1000)
    run = mg.train(experiment(), tmp_path / "run", tables=tables, quiet=True)
    for name, (predicted, actual, error) in totals(run, tables["train"]).items():
        if name != "idle":  # predictions of a third of the rows have the mean of all but for chance
            assert abs(predicted - actual) < 4 * error, name


def test_rows_of_a_long_table_are_looked_at_wherever_they_lie(
    tables: dict[str, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intercepts, "LOOKED_AT", 3072)
    many = 6144
    rows = rows_of(many, 2)
    shop = np.arange(many) // 512 % 2  # side by side, in turns
    draw = np.random.default_rng(3).uniform(size=many)
    rows["y"], rows["click"] = shop.astype(float).tolist(), (draw < np.where(shop == 1, 0.8, 0.2)).astype(int).tolist()
    schema = {"features": [{"name": name, "kind": "number"} for name in ("x", "y")], "tasks": [{"name": "click"}]}
    one = experiment(schema=schema, epochs=4)
    run = mg.train(one, tmp_path / "run", tables={**tables, "train": rows}, quiet=True)
    found = mg.load(run.folder).predict({name: rows[name] for name in ("x", "y")})
    assert np.mean(found["click"]) == pytest.approx(np.mean(rows["click"]), abs=0.02)


def test_no_level_is_looked_for_further_than_where_it_may_be() -> None:
    logits = np.array([-3.0, -1.0, 2.0])
    counts = np.full(3, 1 / 3)
    assert intercepts._level(logits, np.ones(3), counts, 0.99) == pytest.approx(intercepts.FURTHEST, abs=1e-6)
    assert intercepts._level(logits, np.ones(3), counts, 0.01) == pytest.approx(-intercepts.FURTHEST, abs=1e-6)
    found = intercepts._level(logits, np.ones(3), counts, 0.5)
    assert (1 / (1 + np.exp(-logits - found))).mean() == pytest.approx(0.5, abs=1e-6)
    assert intercepts._level(logits, np.ones(3), counts, 0.0) == 0, "rows of one class tell of no level"


def test_a_few_wild_predictions_do_not_move_all_others(tables: dict[str, Rows], tmp_path: Path) -> None:
    """The last training row of a regression is predicted a million: the rest stay within the labels' spread."""
    run = mg.train(experiment(intercepts="trained"), tmp_path / "run", tables=tables, quiet=True)
    bundle, prepared = mg.load(run.folder), Prepared(run.folder / "prepared")
    model, schema = bundle.model, bundle.schema
    whole, before = model.forward, model.heads.bias.detach().clone()

    def wild(*columns: Any) -> Any:
        outputs = whole(*columns)
        outputs.conditionals[-1, 3] = 1e6
        return outputs

    model.forward = wild  # type: ignore[method-assign]
    places = list(range(len(schema.tasks)))
    intercepts.match_totals(model, schema, prepared.layout.tasks, prepared.train, places, torch.device("cpu"))
    assert abs(float(model.heads.bias.detach()[3] - before[3])) <= 1.001 * intercepts.FURTHEST


def test_weights_that_a_warm_start_began_with_stay_as_they_are_where_no_epoch_was_better(
    matched: Run, tables: dict[str, Rows], tmp_path: Path
) -> None:
    later = experiment(warm_start=str(matched.folder), epochs=1).with_(
        optimizer={"learning_rate": 1e-9, "weight_decay": 0.0}
    )
    shifted = {**tables["train"], "click": [1] * len(tables["train"]["click"])}
    kept = mg.train(later, tmp_path / "run", tables={**tables, "train": shifted}, quiet=True)
    one, other = (load_file(run.folder / "bundle" / "model.safetensors") for run in (matched, kept))
    assert torch.equal(one["heads.bias"], other["heads.bias"])


def test_a_warm_start_ends_no_worse_than_it_began_where_training_rows_are_at_another_level(
    tables: dict[str, Rows], tmp_path: Path
) -> None:
    one = experiment(monitor="amount/r2", epochs=1)
    slow = {"learning_rate": 1e-3, "schedule": "constant"}
    mg.train(one.with_(optimizer=slow), tmp_path / "first", tables=tables, quiet=True)
    higher = {**tables, "train": {**tables["train"], "amount": [value + 3 for value in tables["train"]["amount"]]}}
    later = one.with_(warm_start=str(tmp_path / "first"), optimizer=slow | {"learning_rate": 3e-4})
    run = mg.train(later, tmp_path / "later", tables=higher, quiet=True)
    before, after = (epoch["valid"]["valid/amount/r2"] for epoch in run.history)
    assert before < after
    assert run.best["amount/r2"] == pytest.approx(after)
    shutil.rmtree(run.folder / "bundle")
    again = mg.train(later, tmp_path / "later", tables=higher, quiet=True, resume=True)
    assert mg.score_table(again, tables["valid"], replicates=2)[0]["amount/r2"] == pytest.approx(after)


def test_a_run_begun_before_there_were_intercepts_is_gone_on_with(
    matched: Run, tables: dict[str, Rows], tmp_path: Path
) -> None:
    shutil.copytree(matched.folder, tmp_path / "run")
    file = tmp_path / "run" / "experiment.yaml"
    values = yaml.safe_load(file.read_text())
    del values["optimizer"]["intercepts"], values["schema"]["tasks"][0]["risk"]
    file.write_text(yaml.safe_dump(values))
    shutil.rmtree(tmp_path / "run" / "bundle")
    again = mg.train(experiment(), tmp_path / "run", tables=tables, quiet=True, resume=True)
    assert json.loads((again.folder / "summary.json").read_text())["best"]
    with pytest.raises(mg.MultigateError, match=r"optimizer.intercepts: null, now \"trained\""):
        mg.train(experiment(intercepts="trained"), tmp_path / "run", tables=tables, quiet=True, resume=True)
