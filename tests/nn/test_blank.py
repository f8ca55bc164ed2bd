"""Modules built to be filled draw nothing from torch's generator."""

import pytest
import torch
from torch import nn

from multigate.nn.blank import Blank
from multigate.sharing import STRUCTURES


@pytest.mark.parametrize("name", STRUCTURES)
def test_torchs_generator_stays_where_it_is(name: str) -> None:
    options = STRUCTURES[name]()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with Blank():
        options.build(12, ("a", "b", "c"))
        nn.init.trunc_normal_(nn.Linear(3, 2).weight)
    assert torch.equal(torch.get_rng_state(), before)
    options.build(12, ("a", "b", "c"))
    assert not torch.equal(torch.get_rng_state(), before)
