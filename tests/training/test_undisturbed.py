"""What a caller has set of torch for other work changes nothing in a training, and is as it was afterwards."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tied import Tied
from torch import Tensor

from multigate.analysis.compare import compare
from multigate.analysis.inspection import inspect_model
from multigate.analysis.relate import relate
from multigate.experiment import Experiment
from multigate.training.train import train

Setting = Callable[[], AbstractContextManager[object]]


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, Setting] = {
    "float64": float64,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
}


def weights(experiment: Experiment, folder: Path) -> dict[str, Tensor]:
    train(experiment, folder, quiet=True)
    return load_file(folder / "bundle" / "model.safetensors")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_are_those_of_torch_as_it_comes(feed_experiment: Experiment, tmp_path: Path, precision: str) -> None:
    """In bfloat16 within an autocast of the caller's, too, which keeps what weights were when it was entered."""
    experiment = feed_experiment.with_(epochs=1, sharing=Tied(hidden=(16,)), precision=precision)
    expected = weights(experiment, tmp_path / "plain")
    for name, setting in SETTINGS.items():
        with setting():
            found = weights(experiment, tmp_path / name)
        assert all(torch.equal(found[one], expected[one]) for one in expected), name


def test_runs_trained_together_are_those_of_torch_as_it_comes(feed_experiment: Experiment, tmp_path: Path) -> None:
    features = [one for one in feed_experiment.schema.features if one.kind != "bag"]
    experiment = feed_experiment.with_(epochs=1, schema=feed_experiment.schema.with_(features=features))
    expected = None
    for name, setting in {"plain": torch.enable_grad, **SETTINGS}.items():
        if name == "meta":
            continue  # widths are counted before any is trained, on the device that is set
        with setting():
            rows = compare(experiment, tmp_path / name, structures="mmoe", seeds=3, boosting=False, quiet=True).rows
        found = [row["click/auc"] for row in rows]
        assert found == (expected := expected or found), name


def test_what_is_looked_at_is_so_as_torch_comes(feed_experiment: Experiment, tmp_path: Path) -> None:
    """Between trainings and after them: gradients are taken where the caller wants none."""
    experiment = feed_experiment.with_(epochs=1)
    train(experiment, tmp_path / "run", quiet=True)
    seen = inspect_model(tmp_path / "run", repeats=1)
    related = relate(experiment, tmp_path / "plain", train=False, seeds=1, quiet=True)
    for name in ("inference_mode", "autocast"):
        with SETTINGS[name]():
            assert inspect_model(tmp_path / "run", repeats=1) == seen, name
            assert relate(experiment, tmp_path / name, train=False, seeds=1, quiet=True) == related, name
