"""What a training says of the precision that it was told to multiply in."""

from pathlib import Path

import pytest
import torch

import multigate as mg
from multigate import Experiment, precision

TOLD = "times as long to multiply in bfloat16 as in float32"


@pytest.mark.parametrize("times", [None, 1.2, 31.0], ids=["as it is here", "fast", "slow"])
def test_a_processor_that_multiplies_bfloat16_slowly_is_told_of(
    feed_experiment: Experiment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    times: float | None,
) -> None:
    measured = precision.times_float32()
    native = torch.cpu._is_avx512_bf16_supported()
    if times is not None:
        native = False
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        monkeypatch.setattr(precision, "times_float32", lambda: times)
    mg.train(feed_experiment.with_(epochs=1, precision="bfloat16"), tmp_path / "run")
    slow = (times or measured) >= 2 and not native
    assert (TOLD in capsys.readouterr().err) == slow
    mg.train(feed_experiment.with_(epochs=1, precision="float32"), tmp_path / "other")
    assert TOLD not in capsys.readouterr().err


def test_where_auto_is_bfloat16_nothing_is_told(
    feed_experiment: Experiment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(precision, "times_float32", lambda: 31.0)  # as a busy minute may have it
    mg.train(feed_experiment.with_(epochs=1, precision="auto"), tmp_path / "run")
    assert TOLD not in capsys.readouterr().err


def test_it_is_told_once_for_all_seeds_of_a_comparison(
    feed_experiment: Experiment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(precision, "times_float32", lambda: 31.0)
    one = feed_experiment.with_(epochs=1, precision="bfloat16")
    mg.compare(one, tmp_path / "compared", structures=["shared_bottom", "mmoe"], seeds=2, boosting=False)
    assert capsys.readouterr().err.count("31 " + TOLD) == 1


def test_a_slow_processor_is_measured_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the clock of another process would say little: here bfloat16 multiplies ten times."""
    precision.times_float32.cache_clear()
    real = torch.mm

    def slow(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        for _ in range(9 if a.dtype == torch.bfloat16 else 0):
            real(a.float(), b.float())
        return real(a.float(), b.float())

    monkeypatch.setattr(torch, "mm", slow)
    try:
        assert 4 < precision.times_float32() < 100
    finally:
        precision.times_float32.cache_clear()
