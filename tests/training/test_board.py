"""Curves for TensorBoard."""

import json
import threading
from pathlib import Path

import pytest

from multigate.errors import RunError
from multigate.experiment import Experiment
from multigate.training.board import Board
from multigate.training.train import train

pytest.importorskip("tensorboard")


def drawn(folder: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard itself reads, by name and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {(name, one.step): one.value for name in read.Tags()["scalars"] for one in read.Scalars(name)}


def test_curves_are_those_of_the_metrics_file(feed_experiment: Experiment, tmp_path: Path) -> None:
    train(feed_experiment, tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    wanted = {
        (name, line["step"]): value
        for line in lines
        for name, value in {**line["train"], **line["valid"]}.items()
        if value is not None
    }
    assert len({step for _, step in wanted}) == 2
    assert drawn(tmp_path / "run" / "tensorboard") == pytest.approx(wanted, rel=1e-6)


def test_every_board_has_a_file_of_its_own_and_no_thread(tmp_path: Path) -> None:
    threads = threading.active_count()
    boards = [Board(tmp_path / "new") for _ in range(2)]
    for at, board in enumerate(boards):
        board.draw({"a": at, "b": None}, at)
    assert threading.active_count() == threads
    for board in boards:
        board.close()
    assert drawn(tmp_path / "new") == {("a", 0): 0.0, ("a", 1): 1.0}


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write .*file.*choose another place"):
        Board(tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_disk_that_becomes_full_is_told_with_the_file(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board._file.close()
    board._file = open("/dev/full", "wb")  # noqa: SIM115 (the board closes it)
    board._writer._writer = board._file
    with pytest.raises(RunError, match=r"cannot write .*events.*No space left on device"):
        board.draw({"a": 1.0}, 1)
    board.close()
