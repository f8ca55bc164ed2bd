"""Checkpoints: what was written is what is read, or it is told."""

import errno
import json
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from multigate.errors import RunError
from multigate.training.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights

CPU = torch.device("cpu")
STATE = {"step": 7, "best": {"click/auc": 0.5}}


def tensors() -> dict[str, Tensor]:
    """Of every kind there may be: a scalar, none at all, half precision, truths."""
    return {
        "model/weight": torch.arange(6.0).view(2, 3).t(),
        "model/half": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
        "losses": torch.tensor(0.25),
        "empty": torch.empty(0, 3),
        "known": torch.tensor([True, False, True]),
        "random": torch.arange(250, 256, dtype=torch.uint8),
    }


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        one.dtype == wanted[name].dtype
        and one.shape == wanted[name].shape
        and one.reshape(-1).view(torch.uint8).equal(wanted[name].reshape(-1).view(torch.uint8))
        for name, one in found.items()
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tensors(), STATE)
    found, state = load_checkpoint(tmp_path / "checkpoint")
    assert same(found, tensors())
    assert state == STATE
    save_weights(tmp_path / "best", tensors())
    assert same(load_weights(tmp_path / "best", CPU), tensors())


def test_a_bit_that_flipped_anywhere_is_told_or_changes_nothing(tmp_path: Path) -> None:
    checkpoint, best = tmp_path / "checkpoint", tmp_path / "best"
    save_checkpoint(checkpoint, tensors(), STATE)
    save_weights(best, tensors())
    told = 0
    for path in (checkpoint, best):
        whole = path.read_bytes()
        for at in range(0, len(whole), 3):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            try:
                found = load_checkpoint(path) if path == checkpoint else (load_weights(path, CPU), STATE)
            except RunError:
                told += 1
            else:
                assert same(found[0], tensors()), at
                assert found[1] == STATE, at
    assert told > 300


def test_what_to_do_is_said(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tensors(), STATE)
    save_weights(tmp_path / "best", tensors())
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"checkpoint cannot be read \(it is not what was written\); delete it and "):
        load_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(RunError, match=r"best cannot be read \(it is not what was written\); train again in another"):
        load_weights(tmp_path / "best", CPU)


def test_a_file_that_may_not_be_read_is_not_to_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for all but the almighty, of whom no right is asked."""

    def refused(*given: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    save_checkpoint(tmp_path / "checkpoint", tensors(), STATE)
    save_weights(tmp_path / "best", tensors())
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(RunError, match=r"checkpoint cannot be read \(Permission denied\); ask its owner for it"):
        load_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(RunError, match=r"best cannot be read \(Permission denied\); ask their owner for them"):
        load_weights(tmp_path / "best", CPU)


def test_files_from_before_there_were_checksums_are_read(tmp_path: Path) -> None:
    held = {name: tensor.contiguous() for name, tensor in tensors().items()}
    save_file(held, tmp_path / "checkpoint", {"state": json.dumps(STATE)})
    found, state = load_checkpoint(tmp_path / "checkpoint")
    assert same(found, tensors())
    assert state == STATE
    save_file(held, tmp_path / "best")
    assert same(load_weights(tmp_path / "best", CPU), tensors())


def test_tensors_that_are_one_are_written_each(tmp_path: Path) -> None:
    one = torch.randn(3, 4)
    given = {"a": one, "b": one, "turned": one.t(), "flat": one.view(-1), "row": one[1], "none": one[:0]}
    save_weights(tmp_path / "best", given)
    assert same(load_weights(tmp_path / "best", CPU), {name: tensor.clone() for name, tensor in given.items()})
