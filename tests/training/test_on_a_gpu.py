"""What a GPU trains is what the processor trains, and lies where it is read.

The GPU is pretended: see there for what that can tell. ``benchmarks/gpu.py`` checks the rest on one that is there.
"""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import multigate as mg
from multigate.balance import BALANCES
from multigate.data.files import open_table
from multigate.data.prepared import Prepared, prepare
from multigate.sharing import STRUCTURES, VARIANTS
from multigate.training.cohort import Cohort
from multigate.training.fit import Fit
from multigate.training.interrupts import Interrupted
from multigate.training.recorded import AFTER, Recordings
from multigate.training.train import BUNDLE
from pretended_gpu import CPU, GPU, pretended_gpu

ROWS, SIZE, STEPS = 512, 64, AFTER + 3
PLAIN = {"dim": 4, "dropout": 0.0, "unseen": 0.0, "drop_numbers": 0.0}
LAUNCHED = {
    *("trace_norm", "random", "famo", "embedding", "rowwise_adagrad"),
    *("pcgrad", "gradvac", "cagrad", "mgda", "imtl_g", "aligned_mtl", "nash_mtl", "fairgrad", "upgrad", "dualproj"),
    "gradnorm",
}
"""What looks at values, looks back, or reads gradients task by task."""


@pytest.fixture(autouse=True)
def gpu() -> Iterator[torch.device]:
    with pretended_gpu() as device:
        yield device


def table(rows: int = ROWS) -> pd.DataFrame:
    random = np.random.default_rng(0)
    a, letters = random.normal(size=rows), list("pqrs")
    click = (a + random.normal(size=rows) > 0) * 1
    return pd.DataFrame(
        {
            "a": a,
            "b": random.exponential(size=rows),
            "c": random.choice(letters, rows),
            "when": pd.Timestamp("2024-05-01") + pd.to_timedelta(random.integers(0, 10**6, rows), "s"),
            "some": ["|".join(random.choice(letters, random.integers(0, 4))) for _ in range(rows)],
            "click": click,
            "buy": click * (random.random(rows) < 0.4),
            "amount": np.where(random.random(rows) < 0.2, np.nan, a + random.normal(size=rows)),
            "kind": random.choice(letters, rows),
        }
    )


def experiment(*, bag: bool = False, **changes: Any) -> mg.Experiment:
    features = (mg.Number("a"), mg.Number("b", embedding="bins"), mg.Category("c"), mg.Time("when"))
    tasks = (mg.Task("click"), mg.Task("buy", given="click"), mg.Task("amount", kind="regression"))
    told = {"embedding": PLAIN, "tower": (4,), "precision": "float32", "epochs": 1, "batch_size": SIZE}
    return mg.Experiment(
        schema=mg.Schema(
            features=(*features, *[mg.Bag("some", separator="|")] * bag),
            tasks=(*tasks, mg.Task("kind", kind="multiclass")),
        ),
        train="memory:train",
        **{**told, "sharing": mg.MMoE(experts=3, hidden=(8, 4)), **changes},
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    one, rows = experiment(), open_table(table())
    return prepare(one.schema, rows, None, None, one.split, tmp_path_factory.mktemp("gpu") / "prepared")


def begun(one: mg.Experiment, prepared: Prepared, folder: Path, device: torch.device) -> Fit:
    torch.manual_seed(one.seed)
    folder.mkdir(exist_ok=True)
    fit = Fit(one, prepared, folder, device, None)
    fit.model.train()
    return fit


def steps_of(fit: Fit) -> torch.Tensor:
    """The losses of the first steps."""
    batches = fit.loader.epoch(0)
    torch.manual_seed(1)
    losses = torch.stack([fit.step(batch) for batch in islice(batches, STEPS)]).cpu()
    batches.close()
    return losses


def of_every_kind() -> dict[str, dict[str, Any]]:
    found = {name: {"sharing": one(hidden=(8, 4))} for name, one in STRUCTURES.items()}
    found |= {name: {"sharing": one.with_(hidden=(8, 4))} for name, one in VARIANTS.items()}
    found |= {name: {"balance": one()} for name, one in BALANCES.items()}
    optimizers = {"average": 0.9, "clip": 0.1, "embedding": "lazy_adam"}
    found |= {name: {"optimizer": {name: value}} for name, value in optimizers.items()}
    found["rowwise_adagrad"] = {"optimizer": {"embedding": "rowwise_adagrad"}}
    found["dropout"] = {"embedding": {"dim": 4}, "sharing": mg.MMoE(hidden=(8, 4), dropout=0.3)}
    return found


EVERY_KIND = of_every_kind()


@pytest.mark.parametrize("name", EVERY_KIND)
def test_steps_are_those_of_the_processor(
    name: str, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded and launched: nothing that a replay would do again as it was, or would not do."""
    one = experiment(**EVERY_KIND[name])
    there = begun(one, prepared, tmp_path / "there", GPU)
    monkeypatch.setenv("MULTIGATE_GRAPHS", "off")
    launched = begun(one, prepared, tmp_path / "launched", GPU)
    here = begun(one, prepared, tmp_path / "here", CPU)
    losses = steps_of(launched)
    assert torch.equal(steps_of(there), losses), "recorded"
    if name != "dropout" and "noisy" not in name:  # whose draws are not those of another device
        assert torch.allclose(steps_of(here), losses, rtol=1e-4)
    assert launched.recordings is None
    assert (there.recordings is not None and there.recordings.done) == (name not in LAUNCHED)


def test_seeds_as_one_stack_are_each_alone(prepared: Prepared, tmp_path: Path) -> None:
    seeds = [experiment(seed=seed) for seed in range(3)]
    folders = [tmp_path / f"{one.seed}" for one in seeds]
    alone = [steps_of(begun(one, prepared, folder, GPU)) for one, folder in zip(seeds, folders, strict=True)]
    stack = Cohort(seeds, prepared, folders, tmp_path / "checkpoint", GPU, None)
    losses = [stack.step(batch).sum(1).cpu() for batch in islice(stack.batches(0), STEPS)]
    assert stack.replicas.recorded
    assert torch.allclose(torch.stack(losses, 1), torch.stack(alone), rtol=1e-4)


def test_whole_trainings_score_as_those_of_the_processor(tmp_path: Path) -> None:
    """Of bags too, with an average of weights, curves, and last biases that are matched."""
    one = experiment(bag=True, epochs=2, optimizer={"average": 0.5}, recalibrate="platt")
    found = [mg.train(one, tmp_path / at, device=at, tables={"train": table()}, quiet=True) for at in ("cuda", "cpu")]
    there, here = (run.summary["best"] for run in found)
    assert there == pytest.approx(here, rel=1e-4, abs=1e-6)
    there, here = (run.bundle().predict(table(50)) for run in found)
    assert there.keys() == here.keys()
    told = [name for name, column in here.items() if column.dtype.kind == "f"]
    assert len(told) > 4
    assert all(np.allclose(there[name], here[name], atol=1e-5) for name in told)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, tables = experiment(epochs=2, embedding={"dim": 4}), {"train": table()}
    save = Fit.save

    def stop(fit: Fit) -> None:
        save(fit)
        raise KeyboardInterrupt

    monkeypatch.setattr(Fit, "save", stop)
    with pytest.raises(Interrupted):
        mg.train(one, tmp_path / "run", device="cuda", tables=tables, quiet=True)
    monkeypatch.setattr(Fit, "save", save)
    again = mg.train(one, tmp_path / "run", device="cuda", tables=tables, quiet=True, resume=True)
    whole = mg.train(one, tmp_path / "whole", device="cuda", tables=tables, quiet=True)
    assert again.summary["best"] == whole.summary["best"]


def test_a_bundle_that_is_gone_is_made_again(tmp_path: Path) -> None:
    one, tables = experiment(), {"train": table()}
    run = mg.train(one, tmp_path / "run", device="cuda", tables=tables, quiet=True)
    before = run.bundle().predict(table(50))
    shutil.rmtree(tmp_path / "run" / BUNDLE)
    after = mg.train(one, tmp_path / "run", device="cuda", tables=tables, quiet=True, resume=True).bundle()
    assert all(np.array_equal(before[name], column) for name, column in after.predict(table(50)).items())


def test_a_warm_start_begins_with_weights_of_the_processor(tmp_path: Path) -> None:
    tables = {"train": table()}
    mg.train(experiment(), tmp_path / "first", device="cpu", tables=tables, quiet=True)
    later = experiment(warm_start=str(tmp_path / "first"))
    found = mg.train(later, tmp_path / "later", device="cuda", tables=tables, quiet=True)
    assert found.summary["epochs"] == 1


def test_comparisons_relations_and_searches_run_there(tmp_path: Path) -> None:
    one, tables = experiment(), {"train": table()}
    told = {"device": "cuda", "tables": tables, "quiet": True}
    compared = mg.compare(one, tmp_path / "c", structures=("mmoe", "ple"), seeds=2, boosting=False, **told)
    assert tuple(compared.structures) == ("mmoe", "ple")
    related = mg.relate(one, tmp_path / "r", structures="mmoe", seeds=2, pairs=[("click", "buy")], **told)
    assert related.structures == ("mmoe",)
    tuned = mg.tune(one, {"sharing.experts": [2, 3]}, out=tmp_path / "t", trials=2, workers=1, **told)
    assert len(tuned.trials) == 2


def test_the_pretended_gpu_refuses_what_a_gpu_refuses() -> None:
    here, there = torch.ones(3), torch.ones(3, device=GPU)
    with pytest.raises(RuntimeError, match="same device"):
        here + there
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        there.uniform_(generator=torch.Generator())
    assert (there + 1).cpu().tolist() == [2.0] * 3
    recordings = Recordings()
    total = torch.zeros(3, device=GPU)
    for at in range(AFTER + 3):
        (found,) = recordings.call(lambda x: (total.add_(x),), torch.full((3,), float(at), device=GPU))
        assert found.tolist() == [at * (at + 1) / 2] * 3
    assert recordings.done
    looking = Recordings()
    for _ in range(AFTER + 1):
        looking.call(lambda x: (x * x[0].item(),), there)
    assert "capturing" in looking.failed
