"""First layers that read what they make of small tables: the same answers as multiplying, of every structure."""

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from multigate import first_layers
from multigate.data.encoder import Encoder
from multigate.engine import made_up
from multigate.first_layers import FirstLayers, worth_reading
from multigate.model import Model
from multigate.nn.embed import Embed, Embedding
from multigate.schema import Bag, Category, Number, Schema, Task
from multigate.sharing import CGC, STRUCTURES, MMoE, Structure, structure_named

ROWS = 60
SCHEMA = Schema(
    features=[
        Number("price", bins=4), Number("waves", embedding="periodic"), Category("colour"), Category("shop"),
        Category("narrow", dim=3), Category("wide", dim=12), Bag("bag"), Category("gated", use="gate"),
        Category("place", use="bias:click"),
    ],
    tasks=[Task("buy", given="click"), Task("click"), Task("cost", kind="regression")],
)  # fmt: skip
EVERYWHERE = SCHEMA.with_(features=tuple(one for one in SCHEMA.features if one.name not in ("gated", "place")))
"""What every structure can read."""
TABLE = pa.table(
    {name: [float(i % 7) for i in range(ROWS)] for name in ("price", "waves")}
    | {name: [str(i % n) for i in range(ROWS)] for name, n in {"colour": 3, "shop": 40, "narrow": 2}.items()}
    | {name: [str(i % n) for i in range(ROWS)] for name, n in {"wide": 5, "gated": 4, "place": 6}.items()}
    | {"bag": [",".join(map(str, range(i % 4))) for i in range(ROWS)], "click": [i % 2 for i in range(ROWS)]}
    | {"buy": [int(i % 4 == 1) for i in range(ROWS)], "cost": [float(i) for i in range(ROWS)]}
)


def model_of(structure: Structure, schema: Schema = SCHEMA, tables: str = "shared") -> tuple[Model, Encoder]:
    torch.manual_seed(0)
    encoder = Encoder.fit(schema, TABLE.to_batches())
    more = {"parents": schema.parents(), "order": schema.order()}
    return Model(encoder.layout, structure, embedding=Embedding(dim=8, tables=tables), **more).eval(), encoder


class Plain(nn.Module):
    """An embedding and a linear map of it, of which nothing is looked up."""

    def __init__(self, embed: Embed, bias: bool) -> None:
        super().__init__()
        self.embed, self.linear = embed, nn.Linear(embed.d_out, 5, bias=bias)

    def forward(self, *columns: object) -> Tensor:
        return self.linear(self.embed(*columns))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [10, 35, 10_000])
def test_a_linear_map_reads_the_smallest_tables(monkeypatch: pytest.MonkeyPatch, rows: int, bias: bool) -> None:
    """sum over columns of x_d w_d, as loops, whatever is read and whatever is multiplied."""
    model, encoder = model_of(MMoE())
    assert isinstance(model.embed, Embed)
    plain, batch = Plain(model.embed, bias).eval(), made_up(encoder.layout, 7)
    inputs = (batch.numbers, batch.categories, batch.bags)
    monkeypatch.setattr(first_layers, "MOST", model.embed.d_out * rows)
    with torch.no_grad(), FirstLayers(plain) as layers:
        found = plain(*inputs)
    x, weight = plain.embed(*inputs).tolist(), plain.linear.weight.tolist()
    constant = plain.linear.bias.tolist() if bias else [0.0] * 5
    for b in range(7):
        for unit in range(5):
            expected = constant[unit] + sum(one * w for one, w in zip(x[b], weight[unit], strict=True))
            assert found[b, unit].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    # colour has 5 rows, wide 7, shop 42, with those for "missing" and "unseen"; narrow is too narrow
    assert layers.spared == 5 * {10: 8, 35: 8 + 12, 10_000: 8 + 12 + 8}[rows]


@pytest.mark.parametrize(("left", "read"), [(0, 0), (1, 28)])
def test_maps_share_what_may_be_made(monkeypatch: pytest.MonkeyPatch, left: int, read: int) -> None:
    """Experts, of 512 units, and three tasks' gates for 8 of them, of the same x."""
    model, encoder = model_of(MMoE(experts=8, hidden=(64, 4)), EVERYWHERE)
    batch, tables = made_up(encoder.layout, 7), 5 + 7 + 42
    monkeypatch.setattr(first_layers, "MOST", tables * (512 + left * model.embed.d_out))
    with torch.no_grad(), FirstLayers(model) as layers:
        model(batch.numbers, batch.categories, batch.bags)
    assert layers.spared == 512 * 28 + 24 * read


def test_afterwards_everything_is_multiplied_again() -> None:
    model, encoder = model_of(MMoE())
    batch = made_up(encoder.layout, 7)
    with torch.no_grad(), FirstLayers(model) as layers:
        model(batch.numbers, batch.categories, batch.bags)
    spared = layers.spared
    assert spared > 0
    with torch.no_grad():
        model(batch.numbers, batch.categories, batch.bags)
    assert layers.spared == spared
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_answers_the_same(name: str) -> None:
    model, encoder = model_of(structure_named(name), EVERYWHERE)
    batch = made_up(encoder.layout, 50)
    with torch.no_grad():
        expected = model(batch.numbers, batch.categories, batch.bags)
        with FirstLayers(model) as layers:
            found = model(batch.numbers, batch.categories, batch.bags)
    assert (layers.spared > 0) == (name != "tensor_factor"), "which multiplies by factors, not by a weight"
    for one, other in zip((found.logits, *found.gates), (expected.logits, *expected.gates), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_tables_of_the_tasks_own_are_left_as_they_are() -> None:
    model, encoder = model_of(CGC(), EVERYWHERE, tables="own")
    batch = made_up(encoder.layout, 50)
    with torch.no_grad():
        expected = model(batch.numbers, batch.categories, batch.bags)
        with FirstLayers(model) as layers:
            found = model(batch.numbers, batch.categories, batch.bags)
    assert torch.equal(found.logits, expected.logits)
    assert not layers.spared


def test_only_what_is_large_pays() -> None:
    model, encoder = model_of(MMoE(experts=2, hidden=(8, 4)))
    assert not worth_reading(model, made_up(encoder.layout, 3))
    model, encoder = model_of(MMoE(experts=16, hidden=(256, 4)))
    assert worth_reading(model, made_up(encoder.layout, 3))
