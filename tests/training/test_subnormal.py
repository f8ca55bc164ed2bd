"""Numbers too small to have all their digits count for 0 while a model is trained, in every thread, and only then."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from ways import WAYS, train_in_every_way

from multigate.training.subnormal import flushed

SMALL = 1e-39


def kept() -> int:
    """How many of a million such numbers are there after torch has multiplied them by 1, in all of its threads."""
    return int(torch.full((1_000_000,), SMALL).mul(1.0).view(torch.int32).count_nonzero())


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(1_000_000).mul(1.0)  # the threads are there from now on
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_all_threads_take_them_for_0_and_none_afterwards() -> None:
    assert kept() == 1_000_000
    with flushed():
        assert kept() == 0
        with flushed():
            assert kept() == 0
        assert kept() == 0, "the inner one changed nothing"
    assert kept() == 1_000_000
    with pytest.raises(ValueError, match="ends here"), flushed():
        raise ValueError("ends here")
    assert kept() == 1_000_000


@pytest.mark.usefixtures("two_threads")
def test_who_has_it_so_keeps_it_so() -> None:
    found = []

    def other() -> None:
        torch.set_flush_denormal(True)
        with flushed():
            pass
        found.append(float(torch.tensor([SMALL]).mul(1.0)))

    thread = Thread(target=other)
    thread.start()
    thread.join()
    assert found == [0.0]
    assert kept() == 1_000_000


def test_trainings_do_so_alone_and_stacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}

    def watched(of: type, name: str) -> None:
        plain = getattr(of, name)

        def call(*given: Any, **named: Any) -> Any:
            seen.setdefault(of.__name__, set()).add(kept())
            return plain(*given, **named)

        monkeypatch.setattr(of, name, call)

    for of in WAYS:
        watched(of, "step")
    train_in_every_way(tmp_path)
    assert seen == {"Fit": {0}, "Cohort": {0}, "_Work": {0}}
    assert kept() == 1_000_000
