"""Balances against the ones that TorchJD implements on its own."""

import numpy as np
import pytest
import torch
from torchjd import aggregation

from multigate.balance import MGDA, AlignedMTL, FairGrad, GramianBalance, PCGrad

CASES = [
    pytest.param(PCGrad(), lambda tasks: aggregation.PCGradWeighting(), id="pcgrad"),
    pytest.param(AlignedMTL(), lambda tasks: aggregation.AlignedMTLWeighting(), id="aligned_mtl"),
    pytest.param(MGDA(), lambda tasks: aggregation.MGDAWeighting(epsilon=1e-9, max_iters=20_000), id="mgda"),
    pytest.param(FairGrad(), lambda tasks: aggregation.FairGradWeighting(alpha=2.0), id="fairgrad"),
]


@pytest.mark.parametrize(("balance", "theirs"), CASES)
@pytest.mark.parametrize("seed", range(6))
def test_weights_are_those_of_torchjd(balance: GramianBalance, theirs, seed: int) -> None:
    """Of two tasks that conflict or agree, up to the scale of the weights, which is ours."""
    gradients = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed)).double()
    gramian = gradients @ gradients.T
    ours = balance.solve(gramian.numpy() / gramian.diagonal().mean().item())
    expected = theirs(2)(gramian).numpy()
    assert ours / ours.sum() == pytest.approx(expected / np.sum(expected), abs=1e-3)
