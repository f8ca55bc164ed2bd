"""A training that is stopped on its way and gone on with."""

import os
import signal
from pathlib import Path

import pytest
from torch import Tensor

from multigate.batch import Batch
from multigate.experiment import Experiment
from multigate.run import Run
from multigate.training.fit import Fit
from multigate.training.interrupts import Interrupted
from multigate.training.train import train


def resumed(experiment: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch, after: int = 7) -> Run:
    """Trained for some steps, with a signal before the next one, and then to its end."""
    step = Fit.step

    def stopping(fit: Fit, batch: Batch) -> Tensor:
        if fit.step_done == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(fit, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Fit, "step", stopping)
        with pytest.raises(Interrupted):
            train(experiment, folder, quiet=True)
    return train(experiment, folder, resume=True, quiet=True)
