"""The whole model: heads start at base rates, chains are folded, one row at a time is the same as many."""

import math
from typing import Any, cast

import pytest
import torch

from multigate.batch import BagIds, IdColumn, Layout, NumberColumn, TaskColumn, output_columns
from multigate.errors import ExperimentError
from multigate.model import Heads, Model, Tower
from multigate.nn.embed import Embedding
from multigate.schema import Risk
from multigate.sharing import STRUCTURES, MMoE, Shared, SharedBottom, SingleTask, Structure

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


def test_a_structure_of_ones_own_has_a_representation_for_each_task() -> None:
    """More would be left out without a word, and a single one would be all tasks'."""
    model = build(SharedBottom(hidden=(8,)))
    for shape in ((7, 1, 8), (7, 8, 8), (7, 8), (7, 4, 6)):
        wrong = Shared(torch.zeros(shape), (), torch.zeros(()))
        model.sharing.forward = lambda x, wrong=wrong: wrong
        with pytest.raises(
            ExperimentError, match=r"wants to return z of \(rows, 4 tasks, d_out 8\), found a tensor of"
        ):
            model(*rows(7))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (torch.zeros(7, 4, 8), r"wants to return Shared\(z, gates, penalty\), of multigate.sharing, found Tensor"),
        ((torch.zeros(7, 4, 8), (), torch.zeros(())), "wants to return Shared.*, found tuple"),
        (
            Shared(torch.zeros(6, 4, 8), (), torch.zeros(())),
            r"wants to return z of \(7 rows, 4 tasks, d_out 8\), found",
        ),
        (Shared(torch.zeros(7, 4, 8), (), torch.zeros(7)), r"one penalty, a scalar, found a tensor of \(7,\)"),
        (Shared(torch.zeros(7, 4, 8), (), cast(Any, None)), "one penalty, a scalar, found None"),
        (Shared(torch.zeros(7, 4, 8).double(), (), torch.zeros(())), r"of the type of x, found torch\.float64"),
    ],
)
def test_a_structure_of_ones_own_is_told_what_to_return(wrong: object, told: str) -> None:
    model = build(SharedBottom(hidden=(8,))).train()
    model.sharing.forward = lambda x: wrong
    with pytest.raises(ExperimentError, match=told):
        model(*rows(7))


@pytest.mark.parametrize(
    ("gates", "told"),
    [
        (None, "found NoneType"),
        (torch.ones(7, 4, 1), "found Tensor"),
        ((torch.ones(7, 1, 4),), r"found \[\(7, 1, 4\)\]"),
        ((torch.ones(4, 1),), r"found \[\(4, 1\)\]"),
        ((torch.ones(7, 4, 1),) * 2, r"found \[\(7, 4, 1\), \(7, 4, 1\)\]"),
    ],
)
def test_gates_that_no_bundle_could_name_are_told_of_in_training(gates: Any, told: str) -> None:
    model = build(SharedBottom(hidden=(8,))).train()
    z, penalty = torch.zeros(7, 4, 8), torch.zeros(())
    model.sharing.forward = lambda x: Shared(z, gates, penalty)
    with pytest.raises(ExperimentError, match=rf"or an empty tuple: \[\(7, 4, 1\)\], {told}$"):
        model(*rows(7))
    for right in ((), (torch.ones(7, 4, 1),), [torch.ones(7, 4, 1)]):
        model.sharing.forward = lambda x, right=right: Shared(z, right, penalty)
        assert model(*rows(7)).gates is right


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


@pytest.mark.parametrize("name", [name for name, kind in STRUCTURES.items() if not kind.conditional])
def test_multiply_adds_are_counted_by_torch_too(name: str) -> None:
    """All matmuls of one more row, among many, but the numbers' own embedding; the heads of one output each are a
    product and a sum, not a matmul."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build(STRUCTURES[name]()).eval()

    def counted(count: int) -> int:
        with FlopCounterMode(display=False) as counter:
            model(*rows(count))
        return counter.get_total_flops() // 2

    embedding = math.prod(model.embed.embedded_numbers[0].weight.shape)
    heads = sum(task.outputs == 1 for task in LAYOUT.tasks) * model.towers.d_out
    assert model.multiply_adds() == counted(4001) - counted(4000) - embedding + heads


@pytest.mark.parametrize("outputs", [(4,), (3, 3), (1, 4, 4, 1, 1, 2), (1, 1)])
@pytest.mark.parametrize("last", [False, True])
def test_heads_are_a_linear_map_of_each_tower(outputs: tuple[int, ...], last: bool) -> None:
    """And so are their gradients, wherever the batch lies."""
    kinds = ("binary" if many == 1 else "multiclass" for many in outputs)
    tasks = [TaskColumn(name=f"t{i}", kind=kind, outputs=outputs[i]) for i, kind in enumerate(kinds)]
    heads = Heads(tasks, [None] * len(tasks), 5).double()
    towers = torch.randn(7, len(outputs), 5, dtype=torch.float64)
    if last:
        towers = towers.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    spans = output_columns(tasks)

    def plain(towers: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        one_each = (towers[:, i] @ weight[start:end].T + bias[start:end] for i, (start, end) in enumerate(spans))
        return torch.cat([*one_each], dim=1)

    given = (towers.requires_grad_(), heads.weight, heads.bias)
    torch.testing.assert_close(heads(towers), plain(*given))
    pull = torch.randn(7, sum(outputs), dtype=torch.float64)
    found, wanted = (torch.autograd.grad(made, given, pull) for made in (heads(towers), plain(*given)))
    torch.testing.assert_close(found, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert heads.float()(towers.bfloat16()).dtype == torch.float32, "logits are not rounded"


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


USED = LAYOUT.with_(
    numbers=(LAYOUT.numbers[0], LAYOUT.numbers[1].with_(use="bias:topic")),
    categories=(LAYOUT.categories[0], LAYOUT.categories[1].with_(use="gate")),
    bags=(LAYOUT.bags[0].with_(use="bias:topic"),),
)
"""One number and one category that all tasks read, a category for gates, a number and a bag that bias the topic."""


def used(structure: Structure | None = None, tables: str = "shared") -> Model:
    model = Model(
        USED,
        structure or MMoE(experts=3, hidden=(8,)),
        embedding=Embedding(dim=6, dropout=0, unseen=0, tables=tables),
        tower=Tower(hidden=(5,)),
        parents=PARENTS,
        order=ORDER,
    )
    for bias in model.biases:
        torch.nn.init.normal_(bias.out.weight)  # as if it had been trained
    return model


def test_features_for_gates_move_gates_and_never_x() -> None:
    model = used().eval()
    numbers, categories, bags = rows(7)
    other = torch.stack([categories[:, 0], (categories[:, 1] + 1) % 5], dim=1)
    assert torch.equal(model.represent(numbers, categories, bags).x, model.represent(numbers, other, bags).x)
    here, there = model(numbers, categories, bags), model(numbers, other, bags)
    assert (here.gates[0] != there.gates[0]).any(-1).all()
    assert (here.logits != there.logits).all()
    assert model.context.d_out == USED.categories[1].dim


def test_what_biases_a_task_moves_its_outputs_in_training_and_no_prediction() -> None:
    model = used()
    numbers, categories, bags = rows(2000)
    other = torch.stack([numbers[:, 0], numbers[:, 1] + 1], dim=1)
    torch.manual_seed(5)
    here = model(numbers, categories, bags).conditionals
    torch.manual_seed(5)
    there = model(other, categories, bags).conditionals
    moved = here != there
    assert not moved[:, [0, 1, 5]].any()
    assert 0.88 < moved[:, 2:5].all(1).float().mean() < 0.92, "a tenth of the rows do not tell"
    model.eval()
    items = (BagIds(torch.randint(0, 10, bags[0].values.shape, dtype=torch.int32), bags[0].offsets),)
    assert torch.equal(model(numbers, categories, bags).logits, model(other, categories, items).logits)


def test_an_unknown_bias_is_that_of_missing_values() -> None:
    """By hand: the value 0, its indicator 1, and the mean of a bag that holds the id 1 alone."""
    model = used().eval()
    bias = model.biases[0]
    table = bias.embed.tables["6"]
    read = torch.cat([torch.tensor([0.0, 1.0]), table.weight[table.start["u"] + 1]])
    expected = bias.out.weight @ torch.relu(bias.hidden.weight @ read + bias.hidden.bias)
    numbers, categories, bags = rows(3)
    seen = model.represent(numbers, categories, bags)
    ((added, unknown),) = seen.biases
    torch.testing.assert_close(added, torch.cat([torch.zeros(2), expected, torch.zeros(1)]).expand(3, -1))
    assert unknown is None
    without = model.decide(seen._replace(biases=())).conditionals
    torch.testing.assert_close(model.decide(seen).conditionals - without, added)


def test_a_bias_starts_at_nothing() -> None:
    model = Model(USED, MMoE())
    assert not model.represent(*rows(50)).biases[0].bias.any()


def test_where_a_bias_is_unknown_nothing_else_learns() -> None:
    model = used()
    seen = model.represent(*rows(500))
    x = seen.x.detach().requires_grad_()
    model.decide(seen._replace(x=x)).logits[:, 2:5].sum().backward()
    unknown = seen.biases[0].unknown
    assert torch.equal(unknown, unknown[:, 2:3] & torch.tensor([0, 0, 1, 1, 1, 0]).bool())
    assert torch.equal(x.grad.any(1), ~unknown[:, 2])
    model.zero_grad()
    seen = model.represent(*rows(500))
    model.decide(seen).conditionals[seen.biases[0].unknown].sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved
    assert all(name.startswith("biases.") for name in moved)


def test_a_place_on_the_page_is_not_taken_for_the_worth_of_what_stands_there() -> None:
    """The better item stands low on the page and is clicked less; only the bias tells why."""
    layout = Layout(
        numbers=(),
        categories=(IdColumn(feature="item", table="item"), IdColumn(feature="place", table="place", use="bias:click")),
        bags=(),
        tables={"item": 4, "place": 4},
        tasks=(TaskColumn(name="click", kind="binary", mean=0.5),),
    )
    item = torch.randint(2, 4, (2048,))
    low = torch.rand(2048) < torch.where(item == 3, 0.85, 0.15)
    logit = (item == 3) * 1.0 - low * 2.5 + 0.5
    label = (torch.rand(2048) < torch.sigmoid(logit)).float()
    assert label[item == 3].mean() < label[item == 2].mean()
    ids = torch.stack([item, 2 + low.long()], dim=1).int()
    model = Model(layout, MMoE(experts=1, hidden=(8,)), embedding=Embedding(dim=4, dropout=0))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        logits = model(torch.zeros(2048, 0), ids).logits[:, 0]
        torch.nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
        optimiser.step()
    worse, better = model.eval()(torch.zeros(2, 0), torch.tensor([[2, 3], [3, 3]])).logits[:, 0].tolist()
    assert better - worse == pytest.approx(1.0, abs=0.4)


def test_tables_of_the_tasks_own_give_every_task_an_input() -> None:
    model = Model(LAYOUT, SingleTask(), embedding=Embedding(tables="own"))
    assert model.represent(*rows(7)).x.shape == (7, 4, model.embed.d_out)
    assert model(*rows(7)).logits.shape == (7, 6)


def test_a_structure_that_cannot_read_it_says_which_can() -> None:
    with pytest.raises(ExperimentError, match=r"'mmoe' has one input .* take one of single_task, .*leave 'tables' out"):
        used(tables="own")
    with pytest.raises(ExperimentError, match=r"'shared_bottom' has no gates to read feature 'v'.* omoe, mmoe"):
        used(SharedBottom())


@pytest.mark.parametrize("tables", ["shared", "own"])
def test_models_with_all_uses_export(tables: str) -> None:
    model = Model(LAYOUT, SingleTask(), embedding=Embedding(tables="own")) if tables == "own" else used()
    model.eval()
    dim = torch.export.Dim("rows", min=2, max=4096)
    numbers, categories, bags = rows(4)
    shapes = {"numbers": {0: dim}, "categories": {0: dim}, "bags": (BagIds({0: 2 * dim}, {0: dim + 1}),)}
    exported = torch.export.export(model, (numbers, categories, bags), dynamic_shapes=shapes).module()
    for count in (4, 9):
        example = rows(count)
        torch.testing.assert_close(exported(*example)[0], model(*example).logits)


def test_errors_are_imputed_in_training_alone_and_start_at_the_entropy_of_the_rate() -> None:
    risks = (
        Risk(task=0, parent=1, kind="dr", weight=0.1, clip=0.1),
        Risk(task=1, parent=0, kind="ips", weight=1, clip=1),
    )
    torch.manual_seed(3)
    plain = build(SingleTask())
    torch.manual_seed(3)
    model = Model(
        LAYOUT,
        SingleTask(),
        embedding=Embedding(dim=6),
        tower=Tower(hidden=(5,)),
        parents=PARENTS,
        order=ORDER,
        risks=risks,
    ).eval()
    example = rows(7)
    assert torch.equal(model(*example).logits, plain(*example).logits), "the rest begins as it always did"
    assert model(*example).imputed is None
    with torch.no_grad():
        model.imputation.weight.zero_()
    imputed = model.train()(*example).imputed
    p = 0.02 / 0.2
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    torch.testing.assert_close(imputed, torch.full((7, 1), entropy))
    model.imputation.weight.data.normal_()
    imputed = model(*example).imputed
    assert (imputed > 0).all()
    imputed.sum().backward()
    read = model.sharing.networks.layers[0].weight.grad.flatten(1).any(1)
    assert read.tolist() == [True, False, False, False], "what the child's tower reads"
    assert model.towers.layers[0].weight.grad is None


def test_a_model_is_costed_without_allocating_anything() -> None:
    """Comparisons search for a budget with models on the meta device, whatever the features are used for."""
    risks = (Risk(task=0, parent=1, kind="dr", weight=0.1, clip=0.1),)
    for layout, structure, tables in ((USED, MMoE(), "shared"), (LAYOUT, SingleTask(), "own")):

        def built(
            device: str, layout: Layout = layout, structure: Structure = structure, tables: str = tables
        ) -> Model:
            with torch.device(device):
                return Model(
                    layout, structure, embedding=Embedding(tables=tables), parents=PARENTS, order=ORDER, risks=risks
                )

        there = built("meta")
        assert there.multiply_adds() == built("cpu").multiply_adds()
        assert all(parameter.is_meta for parameter in there.parameters())
