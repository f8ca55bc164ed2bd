"""The whole model: heads start at base rates, chains are folded, one row at a time is the same as many."""

import math

import pytest
import torch

from multigate.batch import BagIds, IdColumn, Layout, NumberColumn, TaskColumn, output_columns
from multigate.model import Model, Tower
from multigate.nn.embed import Embedding
from multigate.sharing import STRUCTURES, MMoE, Structure

LAYOUT = Layout(
    numbers=(NumberColumn(feature="a", embedding="piecewise", edges=(-1.0, 0.0, 1.0)), NumberColumn(feature="b")),
    categories=(IdColumn(feature="u", table="u"), IdColumn(feature="v", table="v", dim=4)),
    bags=(IdColumn(feature="t", table="u"),),
    tables={"u": 10, "v": 5},
    tasks=(
        TaskColumn(name="buy", kind="binary", mean=0.02),
        TaskColumn(name="click", kind="binary", mean=0.2),
        TaskColumn(name="topic", kind="multiclass", outputs=3, class_rates=(0.2, 0.3, 0.5)),
        TaskColumn(name="watch", kind="regression"),
    ),
)
PARENTS, ORDER = (1, None, None, None), (1, 0, 2, 3)


def build(structure: Structure) -> Model:
    return Model(
        LAYOUT, structure, embedding=Embedding(dim=6), tower=Tower(hidden=(5,)), parents=PARENTS, order=ORDER
    ).eval()


def rows(count: int) -> tuple[torch.Tensor, torch.Tensor, tuple[BagIds, ...]]:
    numbers, categories = torch.randn(count, 2), torch.randint(0, 5, (count, 2), dtype=torch.int32)
    offsets = torch.arange(0, 2 * count + 1, 2, dtype=torch.int32)
    return numbers, categories, (BagIds(torch.randint(0, 10, (2 * count,), dtype=torch.int32), offsets),)


@pytest.mark.parametrize("name", STRUCTURES)
def test_outputs_are_folded_and_rows_are_independent(name: str) -> None:
    model = build(STRUCTURES[name]())
    numbers, categories, bags = rows(7)
    out = model(numbers, categories, bags)
    assert out.logits.shape == out.conditionals.shape == (7, 6)
    p, c = torch.sigmoid(out.logits), torch.sigmoid(out.conditionals)
    torch.testing.assert_close(p[:, 0], c[:, 0] * c[:, 1])
    torch.testing.assert_close(out.logits[:, 1:], out.conditionals[:, 1:])
    for r in range(7):
        bag = (BagIds(bags[0].values[2 * r : 2 * r + 2], torch.tensor([0, 2], dtype=torch.int32)),)
        one = model(numbers[r : r + 1], categories[r : r + 1], bag)
        torch.testing.assert_close(one.logits[0], out.logits[r], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", STRUCTURES)
def test_no_rows_give_no_outputs(name: str) -> None:
    assert build(STRUCTURES[name]())(*rows(0)).logits.shape == (0, 6)


def test_heads_start_at_the_base_rates() -> None:
    bias = build(MMoE()).heads.bias
    assert torch.sigmoid(bias[0]).item() == pytest.approx(0.1), "p(buy | click) = .02 / .2"
    assert torch.sigmoid(bias[1]).item() == pytest.approx(0.2)
    torch.testing.assert_close(torch.softmax(bias[2:5], 0), torch.tensor([0.2, 0.3, 0.5]))
    assert bias[5].item() == 0.0


def test_output_columns_follow_the_tasks() -> None:
    assert output_columns(LAYOUT.tasks) == [(0, 1), (1, 2), (2, 5), (5, 6)]


@pytest.mark.parametrize("name", STRUCTURES)
def test_multiply_adds_are_counted_by_torch_too(name: str) -> None:
    """All matmuls of one row but the numbers' own embedding; the heads are a product and a sum, not a matmul."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build(STRUCTURES[name]())
    with FlopCounterMode(display=False) as counter:
        model(*rows(1))
    embedding = math.prod(model.embed.embedded_numbers[0].weight.shape)
    assert model.multiply_adds() == counter.get_total_flops() // 2 - embedding + model.heads.weight.numel()


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_whole_model_exports(name: str) -> None:
    model = build(STRUCTURES[name]())
    example = rows(4)
    exported = torch.export.export(model, example).module()
    torch.testing.assert_close(exported(*example)[0], model(*example).logits)


def test_a_model_learns_a_rule_that_needs_its_features() -> None:
    """y = (u is 3) xor (a > 0): no single feature tells."""
    layout = LAYOUT.with_(tasks=(TaskColumn(name="y", kind="binary", mean=0.5),), bags=())
    model = Model(layout, MMoE(experts=2, hidden=(16,)), embedding=Embedding(dim=6, dropout=0.0))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    numbers = torch.randn(512, 2)
    categories = torch.randint(2, 4, (512, 2), dtype=torch.int32)
    labels = ((categories[:, 0] == 3) ^ (numbers[:, 0] > 0)).float()
    for _ in range(150):
        optimiser.zero_grad()
        logits = model(numbers, categories).logits[:, 0]
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimiser.step()
    assert ((model.eval()(numbers, categories).logits[:, 0] > 0).float() == labels).float().mean() > 0.97
