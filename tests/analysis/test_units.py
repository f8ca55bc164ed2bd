"""Dead units: planted ones are counted, and only they."""

import pytest
import torch
from torch import nn

from multigate.analysis.units import Units, watching
from multigate.nn.parallel import ParallelMLP
from multigate.sharing import STRUCTURES, MMoE

D, ROWS = 6, 400


def units_of(module, *batches):
    with torch.inference_mode(), watching(module.eval()) as watch:
        for batch in batches:
            module(batch)
    return watch.units()


def planted(**options):
    """Three experts of 5 and 4 units, with two dead in the second and all of the last layer dead in the third."""
    module = MMoE(experts=3, hidden=(5, 4), **options).build(D, ("a", "b"))
    with torch.no_grad():
        for layer in module.experts.layers:
            layer.weight.abs_()  # no unit is dead by chance
            layer.bias.fill_(10)
        for layer, expert, unit in ((0, 1, 3), (1, 1, 0), *((1, 2, unit) for unit in range(4))):
            module.experts.layers[layer].weight[expert, unit] = 0
            module.experts.layers[layer].bias[expert, unit] = -1
    return module


def test_planted_units_are_counted():
    x = torch.randn(ROWS, D)
    expected = (Units(module="experts", dead=(0, 2, 4), units=9),)
    assert units_of(planted(), x) == units_of(planted(), x[:200], x[200:]) == expected


def test_a_unit_that_stirs_in_one_row_of_any_batch_is_alive():
    module = planted()
    with torch.no_grad():
        module.experts.layers[0].weight[1, 3, 0] = 1  # of an input that is above 1 in one row
    x = torch.randn(ROWS, D).clamp(max=1)
    x[150, 0] = 2
    assert units_of(module, x[:100], x[100:200], x[200:])[0].dead == (0, 1, 4)


def test_smooth_units_do_not_die():
    assert units_of(planted(activation="silu"), torch.randn(ROWS, D))[0].dead == (0, 0, 0)


def test_a_normalised_unit_is_seen_after_its_activation():
    module = planted(normalisation="layer")
    with torch.no_grad():
        module.experts.norms[0].weight[0] = 0
        module.experts.norms[0].bias[0] = -1
        module.experts.norms[1].bias.fill_(3)
    assert units_of(module, torch.randn(ROWS, D))[0].dead[0] == 5


class Stacked(nn.Module):
    """Experts on experts, and one that is never run."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList([ParallelMLP(2, D, (3,)), ParallelMLP(2, 3, (2,))])
        self.spare = ParallelMLP(2, D, (3,))

    def forward(self, x):
        for level in self.levels:
            x = level(x)
        return x


def test_every_mlp_that_runs_is_watched():
    module = Stacked()
    with torch.no_grad():
        module.levels[1].layers[0].weight.zero_()
        module.levels[1].layers[0].bias.fill_(-1)
    found = units_of(module, torch.randn(ROWS, D))
    assert [one.module for one in found] == ["levels.0", "levels.1"]
    assert found[1] == Units(module="levels.1", dead=(2, 2), units=2)


@pytest.mark.parametrize("name", STRUCTURES)
def test_watching_leaves_nothing_behind(name):
    module = STRUCTURES[name](hidden=(5, 4)).build(D, ("a", "b"))
    assert units_of(module, torch.randn(ROWS, D))
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())
