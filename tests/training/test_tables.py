"""Optimisers of large tables against plain loops over rows, and what training makes of them."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import multigate as mg
from multigate.batch import Batch
from multigate.datasets.feed import Feed, feed_schema, write_feed
from multigate.experiment import Optimizer
from multigate.nn.embedding_tables import StackedTables
from multigate.nn.kernels import kernels
from multigate.run import Run
from multigate.training import tables
from multigate.training.tables import LARGE, TableOptimizer, large_tables

ROWS, DIM, RATE = 12, 3, 0.1
BATCHES = [[0, 4, 4, 7], [4, 4, 4, 11], [0, 1, 7, 7], [3, 3, 3, 3]]


def table() -> StackedTables:
    torch.manual_seed(0)
    return StackedTables({"a": 5, "b": ROWS - 5}, DIM, 1.0)


def trained(options: Optimizer, steps: int = 4) -> tuple[StackedTables, list[Tensor]]:
    """A table after some steps, each down a gradient of its own for every id of the batch."""
    own = table()
    optimizer = TableOptimizer([own], options)
    torch.manual_seed(1)
    pulls = [torch.randn(len(ids), DIM) for ids in BATCHES]
    for ids, pull in list(zip(BATCHES, pulls, strict=True))[:steps]:
        (own(torch.tensor([ids])) * pull).sum().backward()
        optimizer.step(optimizer.touched(), RATE)
        assert own.weight.grad is None
    return own, pulls


@pytest.mark.parametrize("compiled", [True, False])
def test_lazy_adam_is_adam_of_each_row_in_the_steps_that_read_it(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled and kernels() is None:
        pytest.skip("no compiled code here")
    if not compiled:
        monkeypatch.setattr(tables, "kernels_for", lambda _: None)
    options = Optimizer(embedding="lazy_adam", learning_rate=RATE, weight_decay=0.3)
    own, pulls = trained(options)
    for row in range(ROWS):
        alone = nn.Parameter(table().weight[row].detach().clone())
        adam = torch.optim.AdamW([alone], lr=RATE, weight_decay=0.3)
        for ids, pull in zip(BATCHES, pulls, strict=True):
            if row in ids:
                alone.grad = sum(one for one, i in zip(pull, ids, strict=True) if i == row)
                adam.step()
        torch.testing.assert_close(own.weight[row].detach(), alone.detach())


def test_rowwise_adagrad_divides_by_the_root_of_summed_mean_squares() -> None:
    options = Optimizer(embedding="rowwise_adagrad", learning_rate=RATE, embedding_rate=0.5, weight_decay=0.0)
    own, pulls = trained(options)
    for row in range(ROWS):
        expected, squares = table().weight[row].detach().clone(), 0.0
        for ids, pull in zip(BATCHES, pulls, strict=True):
            if row in ids:
                gradient = sum(one for one, i in zip(pull, ids, strict=True) if i == row)
                squares += float((gradient**2).mean())
                expected -= 0.5 * gradient / squares**0.5
        torch.testing.assert_close(own.weight[row].detach(), expected)


@pytest.mark.parametrize("kind", ["lazy_adam", "rowwise_adagrad"])
def test_adam_has_no_decay_in_its_tables_unless_set(kind: Literal["lazy_adam", "rowwise_adagrad"]) -> None:
    left_out, none, usual = (
        trained(Optimizer(name="adam", embedding=kind, **decay))[0].weight
        for decay in ({}, {"weight_decay": 0.0}, {"weight_decay": 0.05})
    )
    assert torch.equal(left_out, none)
    assert not torch.equal(left_out, usual)


@pytest.mark.parametrize("kind", ["lazy_adam", "rowwise_adagrad"])
def test_rows_nobody_read_do_not_move(kind: str) -> None:
    own, _ = trained(Optimizer(embedding=kind, weight_decay=0.5))  # type: ignore[arg-type]
    unread = [row for row in range(ROWS) if not any(row in ids for ids in BATCHES)]
    assert unread
    assert torch.equal(own.weight[unread], table().weight[unread])


def test_bags_and_columns_of_one_table_add_up() -> None:
    own, plain = table(), table()
    optimizer = TableOptimizer([own], Optimizer(embedding="lazy_adam"))
    for one in (own, plain):
        column = one(torch.tensor([[1, 2], [2, 3]])).flatten(1)
        bag = one(torch.tensor([2, 2, 5]), torch.tensor([0, 2, 3]))
        other = one(torch.tensor([5, 7, 7, 7, 1]), torch.tensor([0, 1, 5]))
        (column.square().sum() + bag.square().sum() + other.pow(3).sum()).backward()
    (touched,) = optimizer.touched()
    assert touched is not None
    assert touched.rows.tolist() == [1, 2, 3, 5, 7]
    assert plain.weight.grad is not None
    torch.testing.assert_close(touched.gradient, plain.weight.grad[touched.rows])
    assert optimizer.touched() == [None], "they are taken once"


def test_which_tables_are_large() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.device("meta"):
                self.small, self.large = StackedTables({"a": 9}, 4, 1.0), StackedTables({"b": LARGE // 4}, 4, 1.0)

    model = Two()
    for kind, expected in (
        ("auto", [model.large]),
        ("dense", []),
        ("lazy_adam", [model.small, model.large]),
        ("rowwise_adagrad", [model.small, model.large]),
    ):
        assert large_tables(model, Optimizer(embedding=kind)) == expected  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_feed(Feed(rows=3_000, users=200, items=80, seed=3), folder)
    return folder


def experiment(shop: Path, **options: object) -> mg.Experiment:
    return mg.Experiment(
        schema=feed_schema(),
        train=str(shop / "train.parquet"),
        valid=str(shop / "valid.parquet"),
        sharing=mg.MMoE(experts=2, hidden=(8,)),
        epochs=2,
        patience=None,
        precision="float32",
        optimizer=Optimizer(embedding="lazy_adam").with_(**options),
    )


def weights(run: Run) -> dict[str, Tensor]:
    return run.bundle().model.state_dict()


@pytest.mark.parametrize("options", [{}, {"clip": 0.5}, {"average": 0.9}, {"embedding": "rowwise_adagrad"}])
def test_interrupted_and_resumed_is_as_if_never_stopped(
    shop: Path, tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mg.train(experiment(shop, **options), tmp_path / "whole", quiet=True)
    from multigate.training.fit import Fit

    class Stop(Exception):
        pass

    saved = Fit.save

    def save_and_stop(fitting: Fit) -> None:
        saved(fitting)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "save", save_and_stop)
        with pytest.raises(Stop):
            mg.train(experiment(shop, **options), tmp_path / "parts", quiet=True)
    resumed = mg.train(experiment(shop, **options), tmp_path / "parts", quiet=True, resume=True)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name


@pytest.mark.parametrize("balance", ["fixed", "pcgrad", "famo", "gradnorm"])
def test_balances_work_with_sparse_gradients(shop: Path, tmp_path: Path, balance: str) -> None:
    run = mg.train(experiment(shop).with_(balance=balance, epochs=1), tmp_path / "run", quiet=True)
    assert all(torch.isfinite(weight).all() for weight in weights(run).values())


def test_learns_about_as_well_as_dense_updates(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the rates that are theirs anyway; where nothing moves at one, that is told."""
    best, idle = {}, {}
    for kind, rate in (("dense", 0.002), ("lazy_adam", 0.002), ("rowwise_adagrad", 0.04)):
        run = mg.train(experiment(shop, embedding=kind, embedding_rate=rate).with_(epochs=4), tmp_path / kind)
        best[kind] = run.best["click/auc"]
        idle[kind] = "optimizer.embedding_rate moves nothing" in capsys.readouterr().err
    assert best["lazy_adam"] > best["dense"] - 0.03
    assert best["rowwise_adagrad"] > best["dense"] - 0.03
    assert idle == {"dense": True, "lazy_adam": False, "rowwise_adagrad": False}


def test_the_norm_that_is_clipped_is_that_of_tables_and_weights_together(shop: Path, tmp_path: Path) -> None:
    """Lazy and dense gradients are the same numbers, so clipping must scale the dense weights of both alike."""
    from multigate.training.fit import Fit
    from multigate.training.progress import Reporter
    from multigate.training.train import open_sources, prepare_sources

    own = experiment(shop, clip=0.01, weight_decay=0.0)
    with Reporter(quiet=True) as report:
        prepared = prepare_sources(own, open_sources(own, {}), tmp_path / "prepared", report)
    moved = {}
    for kind in ("dense", "lazy_adam"):
        one = own.with_(
            optimizer=own.optimizer.with_(embedding=kind), embedding=own.embedding.with_(unseen=0, dropout=0)
        )
        torch.manual_seed(0)
        fitting = Fit(one, prepared, tmp_path, torch.device("cpu"), None)
        batch: Batch = next(iter(fitting.loader.epoch(0)))
        fitting.model.train()
        fitting.step(batch)
        moved[kind] = [p.grad.clone() for p in fitting.trained if p.grad is not None and p.shape[-1] != 16]
    for dense, lazy in zip(moved["dense"], moved["lazy_adam"], strict=True):
        torch.testing.assert_close(dense, lazy)


@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (1 << 18, 4)])
@pytest.mark.parametrize("written", [True, False])
def test_large_pages_leave_the_numbers_alone(shape: tuple[int, int], written: bool) -> None:
    from multigate.training.allocator import in_large_pages

    tensor = torch.randn(shape)
    kept = tensor.clone()
    assert in_large_pages(tensor, written=written) is tensor
    assert torch.equal(tensor, kept)
    tensor.mul_(2)
    assert torch.equal(tensor, 2 * kept)
