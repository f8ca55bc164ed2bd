"""Columns that are looked up against the same model in float64, which multiplies all of x."""

import contextlib
import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from multigate.batch import BagIds, IdColumn, Layout, NumberColumn, TaskColumn
from multigate.model import Model
from multigate.nn.compiled import Columns, Dense, Kernels, Lookups
from multigate.nn.embed import Embed, Embedding
from multigate.nn.gate import Gate
from multigate.nn.kernels import kernels
from multigate.nn.lookups import EACH, LEAST, VALUES, Embedded, small
from multigate.nn.parallel import ParallelMLP
from multigate.nn.together import together
from multigate.sharing import PLE, STRUCTURES, MMoE, SharedBottom, StackedMMoE, Structure
from multigate.sharing.mmoe import Mixture

ROWS, BIG = 700, 300
SIZES = {"user": BIG, "day": 7, "hour": 24, "city": 40, "flag": 2, "item": 30, "kind": 9}
LAYOUT = Layout(
    numbers=(NumberColumn(feature="a"), NumberColumn(feature="b", embedding="piecewise", edges=(-1.0, 0.0, 1.0))),
    categories=(
        IdColumn(feature="day", table="day"),
        IdColumn(feature="user", table="user"),
        IdColumn(feature="friend", table="user"),
        IdColumn(feature="hour", table="hour"),
        IdColumn(feature="item", table="item", dim=16),
        IdColumn(feature="city", table="city", dim=12),
        IdColumn(feature="next hour", table="hour"),
        IdColumn(feature="flag", table="flag"),
        IdColumn(feature="kind", table="kind", dim=16),
        IdColumn(feature="gated", table="kind", use="gate"),
    ),
    bags=(IdColumn(feature="tags", table="hour"),),
    tables=SIZES,
    tasks=(TaskColumn(name="buy", kind="binary", mean=0.1), TaskColumn(name="click", kind="binary", mean=0.3)),
)
UNGATED = LAYOUT.with_(categories=LAYOUT.categories[:-1])
PLAIN = Embedding(dim=8, dropout=0.0, unseen=0.0)


@pytest.fixture(autouse=True)
def found() -> Kernels:
    one = kernels()
    if one is None:
        pytest.skip("no compiled code here")
    return one


def rows(layout: Layout = UNGATED, many: int = ROWS) -> tuple[Tensor, Tensor, list[BagIds]]:
    numbers = torch.randn(many, 2)
    numbers[::7, 1] = math.nan
    ids = [torch.randint(0, SIZES[column.table], (many,), dtype=torch.int32) for column in layout.categories]
    offsets = torch.arange(0, 2 * many + 1, 2, dtype=torch.int32)
    return numbers, torch.stack(ids, 1), [BagIds(torch.randint(0, 24, (2 * many,), dtype=torch.int32), offsets)]


def learnt(model: Model, read: tuple[Tensor, Tensor, list[BagIds]], *, apart: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits that a model in training makes of rows, and the gradients of a loss of them, pulls of rows added up."""
    torch.manual_seed(7)
    out = model.decide(model.represent(*read, apart=apart))
    (out.logits.square().mean() + out.penalty).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, tables in model.embed.tables.items():
        if tables.sparse:
            assert tables.weight.grad is None
            gradients[f"embed.tables.{name}.weight"] = found = torch.zeros_like(tables.weight)
            for rows, gradient, which in tables.pulls:
                found.index_add_(0, rows, gradient if which is None else gradient[which])
    return out.logits, gradients


def looked_up(model: Model, read: tuple[Tensor, Tensor, list[BagIds]]) -> bool:
    return isinstance(model.represent(*read, apart=True).x, Embedded)


def structures() -> list[Structure]:
    mixtures = [kind for kind in STRUCTURES.values() if issubclass(kind, Mixture)]
    return [
        *(kind() for kind in STRUCTURES.values()),
        *(kind(bottom=(16,)) for kind in mixtures),
        MMoE(gating="top_k"),
        MMoE(dropout=0.5),
        MMoE(activation="silu"),
        MMoE(normalisation="layer"),
        MMoE(temperature=2.0, exclusive=0.5),
        SharedBottom(hidden=(19,)),
        StackedMMoE(gates_read="input"),
    ]


@pytest.mark.parametrize(
    "structure", structures(), ids=lambda one: f"{one.name} {sorted(one.to_dict().values(), key=str)}"
)
def test_a_model_makes_and_learns_what_it_does_in_float64(structure: Structure) -> None:
    model, read = Model(UNGATED, structure, embedding=PLAIN), rows()
    exact = copy.deepcopy(model).double()
    assert looked_up(model.train(), read)
    with torch.no_grad():
        assert looked_up(model.eval(), read)
        made, wanted = model(*read), exact.eval()(read[0].double(), *read[1:])
    torch.testing.assert_close(made.logits.double(), wanted.logits, atol=1e-5, rtol=1e-4)
    draws = structure.stochastic or structure.dropout  # whose draws are others in float64
    other = copy.deepcopy(model) if draws else exact
    out, found = learnt(model.train(), read, apart=True)
    right, sought = learnt(other.train(), (read[0].to(other.heads.weight.dtype), *read[1:]), apart=False)
    torch.testing.assert_close(out.to(right.dtype), right, atol=1e-5, rtol=1e-4)
    assert found.keys() == sought.keys()
    for name, gradient in found.items():
        near = max(1e-4 * float(sought[name].abs().max()), 1e-6)
        torch.testing.assert_close(gradient.to(right.dtype), sought[name], atol=near, rtol=1e-3)


@pytest.mark.parametrize(
    "structure", structures(), ids=lambda one: f"{one.name} {sorted(one.to_dict().values(), key=str)}"
)
def test_structures_look_up_what_their_layers_read(
    found: Kernels, monkeypatch: pytest.MonkeyPatch, structure: Structure
) -> None:
    """Who hands on another x than the one that was made would multiply all of it, and nobody would see."""
    calls: list[str] = []
    for name in ("add_looked_up_", "of_looked_up_"):
        real = getattr(found, name)
        monkeypatch.setattr(found, name, lambda *given, real=real, name=name: (calls.append(name), real(*given))[1])
    model, read = Model(UNGATED, structure, embedding=PLAIN), rows()
    with torch.inference_mode():  # what is kept from here is read in training too
        model.eval()(*read)
    evaluated = set(calls)
    calls.clear()
    learnt(model.train(), read, apart=True)
    of_its_own = structure.name == "home"  # gates of inputs
    sparse = structure.conditional  # in evaluation experts then read the rows that chose them
    assert bool(evaluated) == (not of_its_own and not sparse)
    assert (set(calls) == {"add_looked_up_", "of_looked_up_"}) == (not of_its_own)


SMALL = tuple(one for one in UNGATED.categories if one.table not in ("user", "city"))
FEW_DENSE = {
    "numbers and a bag": UNGATED.with_(categories=SMALL),
    "numbers alone": UNGATED.with_(categories=SMALL, bags=()),
    "none": UNGATED.with_(categories=SMALL, bags=(), numbers=()),
}


@pytest.mark.parametrize("few", FEW_DENSE)
@pytest.mark.parametrize("structure", [MMoE(), SharedBottom(hidden=(19,)), STRUCTURES["ple"]()], ids=lambda s: s.name)
def test_few_dense_columns_are_multiplied_beside_those_looked_up(structure: Structure, few: str) -> None:
    model, read = Model(FEW_DENSE[few], structure, embedding=PLAIN), rows(FEW_DENSE[few])
    read = (read[0][:, : len(FEW_DENSE[few].numbers)], read[1], read[2][: len(FEW_DENSE[few].bags)])
    exact = copy.deepcopy(model).double()
    x = model.train().represent(*read, apart=True).x
    assert isinstance(x, Embedded)
    assert x.parts.few
    with torch.no_grad():
        made, wanted = model.eval()(*read), exact.eval()(read[0].double(), *read[1:])
    torch.testing.assert_close(made.logits.double(), wanted.logits, atol=1e-5, rtol=1e-4)
    (out, found), (right, sought) = (
        learnt(model.train(), read, apart=True),
        learnt(exact.train(), (read[0].double(), *read[1:]), apart=False),
    )
    torch.testing.assert_close(out.double(), right, atol=1e-5, rtol=1e-4)
    assert found.keys() == sought.keys()
    for name, gradient in found.items():
        near = 3e-3 * float(sought[name].abs().max())  # a row whose unit is at 0 is one of 700
        torch.testing.assert_close(gradient.double(), sought[name], atol=near, rtol=1e-3)


@pytest.mark.parametrize(
    ("structure", "layout"),
    [
        *((structure, UNGATED) for structure in structures()),
        *((STRUCTURES[name](), one) for name in ("mmoe", "ple", "tensor_factor") for one in FEW_DENSE.values()),
    ],
    ids=lambda one: one.name if isinstance(one, Structure) else str(len(one.columns)),
)
def test_in_bfloat16_a_model_makes_and_learns_what_it_does_when_it_multiplies(
    monkeypatch: pytest.MonkeyPatch, structure: Structure, layout: Layout
) -> None:
    """What is looked up is to be no further from the model in float32 than what is multiplied."""
    model, (numbers, ids, bags) = Model(layout, structure, embedding=PLAIN), rows(layout)
    read = (numbers[:, : len(layout.numbers)], ids, bags[: len(layout.bags)])
    true = learnt(copy.deepcopy(model).train(), read, apart=False)
    found = {}
    for tiles in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        one = copy.deepcopy(model).train()
        with torch.autocast("cpu", torch.bfloat16):
            assert looked_up(one, read) != tiles
            found[tiles] = learnt(one, read, apart=True)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert looked_up(one.eval(), read) != tiles
            found[tiles][1]["predictions"] = one(*read).logits
    with torch.no_grad():
        true[1]["predictions"] = copy.deepcopy(model).eval()(*read).logits
    for name, right in (("logits", true[0]), *true[1].items()):
        multiplied, looked = (
            (learnt[0] if name == "logits" else learnt[1][name]).float() for learnt in (found[True], found[False])
        )
        off = (multiplied - right).norm()
        assert (looked - right).norm() <= 1.5 * off + 0.01 * right.norm() + 1e-6, name


def test_columns_that_only_gates_read_stay_theirs(threads: int) -> None:
    model, read = Model(LAYOUT, MMoE(), embedding=PLAIN), rows(LAYOUT)
    exact = copy.deepcopy(model).double().train()
    assert looked_up(model.train(), read)
    (_, found), (_, sought) = learnt(model, read, apart=True), learnt(exact, (read[0].double(), *read[1:]), apart=False)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient.double(), sought[name], atol=1e-6, rtol=1e-3)


def test_values_never_seen_are_looked_up_as_such() -> None:
    model, read = Model(UNGATED, SharedBottom(), embedding=PLAIN.with_(unseen=0.5)), rows()
    torch.manual_seed(3)
    made = model.train()(*read).logits
    torch.manual_seed(3)
    wanted = model.decide(model.represent(*read)).logits
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-4)


def test_two_threads_learn_what_one_does_and_the_same_each_time() -> None:
    model, read, before = Model(UNGATED, MMoE(), embedding=PLAIN), rows(), torch.get_num_threads()
    each = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        model.zero_grad()
        each.append({name: one.clone() for name, one in learnt(model.train(), read, apart=True)[1].items()})
    torch.set_num_threads(before)
    for name, one in each[0].items():
        torch.testing.assert_close(each[1][name], one, atol=1e-6, rtol=1e-4)
        if "tables" in name:
            assert torch.equal(each[1][name], each[2][name])


@pytest.mark.parametrize("structure", [MMoE(), SharedBottom(), StackedMMoE()], ids=lambda one: one.name)
def test_what_is_dropped_is_not_there_and_learns_nothing(structure: Structure) -> None:
    """As where x is multiplied by its masks, told from an x of ones."""
    layout = UNGATED.with_(numbers=UNGATED.numbers[:1], bags=())
    read = (torch.randn(ROWS, 1), rows()[1], [])
    model = Model(layout, structure, embedding=PLAIN.with_(dim=16, dropout=0.3)).train()
    plain = Model(layout, structure, embedding=PLAIN.with_(dim=16)).train()
    plain.load_state_dict(model.state_dict())
    ones = copy.deepcopy(model.embed)
    for tables in ones.tables.values():
        torch.nn.init.ones_(tables.weight)
    torch.manual_seed(7)
    masks = ones(*read)
    masks[:, :2] = 1  # numbers and whether they are missing
    assert 0.25 < (masks[:, 2:] == 0).float().mean() < 0.35
    plain.embed.register_forward_hook(lambda module, given, x: x * masks)
    assert looked_up(model, read)
    (made, gradients), (wanted, by_masks) = learnt(model, read, apart=True), learnt(plain, read, apart=False)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-4)
    for name, gradient in by_masks.items():
        near = 1e-3 * float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, atol=near, rtol=1e-3)


@pytest.mark.parametrize("layout", [UNGATED, LAYOUT], ids=["read by all", "some by gates alone"])
@pytest.mark.parametrize("structure", [MMoE(), PLE(hidden=(19, 8))], ids=lambda one: one.name)
@pytest.mark.parametrize(("rate", "looked"), [(0.02, False), (0.1, True), (0.2, True), (0.3, True), (0.5, True)])
def test_what_is_dropped_of_all_kinds_of_columns_is_looked_up_as_multiplied(
    layout: Layout, structure: Structure, rate: float, looked: bool
) -> None:
    options = PLAIN.with_(dim=16, dropout=rate, unseen=0.05)
    model, read = Model(layout, structure, embedding=options).train(), rows(layout)
    plain = copy.deepcopy(model)
    assert looked_up(model, read) == looked
    (made, gradients), (wanted, by_plain) = learnt(model, read, apart=True), learnt(plain, read, apart=False)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-4)
    for name, gradient in by_plain.items():
        near = 1e-3 * float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, atol=near, rtol=1e-3)


def test_who_asks_for_x_alone_gets_a_plain_one_with_its_gradient() -> None:
    model, read = Model(UNGATED, MMoE(), embedding=PLAIN).train(), rows()
    seen = model.represent(*read)
    assert type(seen.x) is Tensor
    (gradient,) = torch.autograd.grad(model.decide(seen).logits.sum(), seen.x)
    assert gradient.abs().sum() > 0


def test_whatever_is_made_of_it_is_a_plain_tensor_and_right() -> None:
    embed, read = Embed(UNGATED, PLAIN).train(), rows()
    x = embed(*read, apart=True)
    assert isinstance(x, Embedded)
    plain = embed(*read)
    for made, wanted in ((x * 2, plain * 2), (x[:3], plain[:3]), (x.detach(), plain), (x.double(), plain.double())):
        assert type(made) is Tensor
        assert torch.equal(made, wanted)
    (by_x,) = torch.autograd.grad(x.square().sum(), embed.tables["8"].weight)
    (by_plain,) = torch.autograd.grad(plain.square().sum(), embed.tables["8"].weight)
    assert torch.equal(by_x, by_plain)


def test_it_is_left_to_the_matmul_where_it_would_not_pay_or_not_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    read = rows()
    model = Model(UNGATED, MMoE(), embedding=PLAIN)
    assert looked_up(model.train(), read)
    assert not looked_up(model, rows(many=100)), "too few rows"
    assert not looked_up(model.eval(), read), "a gradient may be asked for"
    with torch.no_grad():
        assert looked_up(model, read)
        assert not looked_up(model, rows(many=511)), "few rows need nothing compiled"
        for tiles in (True, False):
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
            with torch.autocast("cpu", torch.bfloat16):
                assert looked_up(model, read) != tiles, "faster than sums"
        assert not looked_up(copy.deepcopy(model).double(), (read[0].double(), *read[1:]))
    dropping = Model(UNGATED, MMoE(), embedding=PLAIN.with_(dropout=0.3))
    assert looked_up(dropping.train(), read), "rows of a value drop one of few things"
    with torch.no_grad():
        assert looked_up(dropping.eval(), read)
    alike = UNGATED.with_(categories=tuple(one.with_(dim=None) for one in UNGATED.categories))
    for width, is_so in ((2, False), (4, True), (5, False), (10, True), (12, True), (15, False), (20, True)):
        assert looked_up(Model(alike, MMoE(), embedding=PLAIN.with_(dim=width)).train(), read) == is_so, width


def test_what_is_looked_up_may_be_multiplied_in_another_precision() -> None:
    model, read = Model(UNGATED, MMoE(), embedding=PLAIN).train(), rows()
    represented = model.represent(*read, apart=True)
    assert isinstance(represented.x, Embedded)
    wanted = model.decide(represented).logits
    for kind, near in ((torch.float16, 0.02), (torch.bfloat16, 0.1)):  # compiled code knows the second alone
        with torch.autocast("cpu", kind):
            torch.testing.assert_close(model.decide(represented).logits.float(), wanted, atol=near, rtol=near)


def test_ids_of_another_kind_are_multiplied_and_give_the_same() -> None:
    model, (numbers, ids, bags) = Model(UNGATED, MMoE(), embedding=PLAIN).train(), rows()
    assert not looked_up(model, (numbers, ids.long(), bags))
    made, wanted = model(numbers, ids.long(), bags), model(numbers, ids, bags)
    torch.testing.assert_close(made.logits, wanted.logits, atol=1e-5, rtol=1e-4)


WITH_LARGE = UNGATED.with_(tables={**SIZES, "user": 100_000})


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "rows"])
@pytest.mark.parametrize("layout", [WITH_LARGE, FEW_DENSE["none"]], ids=["beside a large table", "all are small"])
def test_small_tables_are_looked_up_whatever_lies_in_their_weight(layout: Layout, sparse: bool, rate: float) -> None:
    options = PLAIN.with_(dim=16, dropout=rate, unseen=0.05)
    model, (numbers, ids, bags) = Model(layout, MMoE(), embedding=options).train(), rows(layout)
    read = (numbers[:, : len(layout.numbers)], ids, bags[: len(layout.bags)])
    plain = copy.deepcopy(model)
    for tables in model.embed.tables.values():
        tables.sparse = sparse
    assert looked_up(model, read)
    (made, gradients), (wanted, by_plain) = learnt(model, read, apart=True), learnt(plain, read, apart=False)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-4)
    for name, gradient in by_plain.items():
        near = 1e-3 * float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, atol=near, rtol=1e-3)


def test_what_an_optimiser_of_rows_is_given_are_those_that_a_batch_reads() -> None:
    model, (numbers, ids, bags) = Model(WITH_LARGE, MMoE(), embedding=PLAIN).train(), rows(WITH_LARGE)
    for tables in model.embed.tables.values():
        tables.sparse = True
    places = [at for at, column in enumerate(WITH_LARGE.categories) if column.dim is None]
    ids[:, places] %= 5  # of tables of 7 and more
    bags = [bags[0]._replace(values=bags[0].values % 5)]
    learnt(model, (numbers, ids, bags), apart=True)
    tables = model.embed.tables["8"]
    names = {WITH_LARGE.categories[at].table: at for at in places}
    read = {tables.start[name] + one for name, at in names.items() for one in ids[:, at].unique().tolist()}
    assert {row for one in tables.pulls for row in one.rows.tolist()} == read


def test_hooks_see_the_tables_asked() -> None:
    model, read, seen = Model(UNGATED, MMoE(), embedding=PLAIN).train(), rows(), []
    for tables in model.embed.tables.values():
        tables.register_forward_hook(lambda *one: seen.append(one))
    assert not looked_up(model, read)
    assert len(seen) == 4, "categories of each width, and the bag"


@pytest.mark.parametrize(
    ("structure", "dtype"),
    [
        *itertools.product((MMoE(), SharedBottom()), (torch.bfloat16, torch.float64)),
        (STRUCTURES["tensor_factor"](), torch.bfloat16),  # autocast leaves products of its factors in float64
    ],
    ids=lambda one: one.name if isinstance(one, Structure) else str(one),
)
@pytest.mark.parametrize("layout", [UNGATED, FEW_DENSE["numbers alone"]], ids=["many dense", "few dense"])
def test_layers_of_another_kind_are_read_as_they_are(structure: Structure, layout: Layout, dtype: torch.dtype) -> None:
    """As a loop of one's own moves a structure, and autocast multiplies what it reads."""
    model, (numbers, ids, bags) = Model(layout, structure, embedding=PLAIN), rows(layout)
    read = (numbers[:, : len(layout.numbers)], ids, bags[: len(layout.bags)])
    model.sharing.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        plain = copy.deepcopy(model)
        (made, found), (wanted, sought) = (
            learnt(one.train(), read, apart=apart) for one, apart in ((model, True), (plain, False))
        )
        with torch.no_grad():
            assert looked_up(model.eval(), read)
            torch.testing.assert_close(model(*read).logits, made, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(made, wanted, atol=1e-2, rtol=1e-2)
    assert found.keys() == sought.keys()
    for name, gradient in found.items():
        assert gradient.dtype == sought[name].dtype
        assert (gradient - sought[name]).norm() <= 0.05 * sought[name].norm() + 1e-6, name


@pytest.mark.parametrize(
    "structure", structures(), ids=lambda one: f"{one.name} {sorted(one.to_dict().values(), key=str)}"
)
def test_weights_may_lie_as_they_like(structure: Structure) -> None:
    model, read = Model(UNGATED, structure, embedding=PLAIN), rows()
    other = copy.deepcopy(model)
    for parameter in other.sharing.parameters():
        last = parameter.dim() - 1
        parameter.data = parameter.data.movedim(last, 0).contiguous().movedim(0, last)
    with torch.no_grad():
        assert looked_up(other.eval(), read)
        torch.testing.assert_close(other(*read).logits, model.eval()(*read).logits, atol=1e-5, rtol=1e-4)
    if structure.stochastic:
        return  # draws lie as the weights do that they are for
    (made, found), (wanted, sought) = (learnt(one.train(), read, apart=True) for one in (other, model))
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-4)
    for name, gradient in found.items():
        near = max(1e-4 * float(sought[name].abs().max()), 1e-6)
        torch.testing.assert_close(gradient, sought[name], atol=near, rtol=1e-3)


@pytest.mark.parametrize(
    "structure", structures(), ids=lambda one: f"{one.name} {sorted(one.to_dict().values(), key=str)}"
)
def test_autocast_leaves_float64_alone(structure: Structure) -> None:
    model, (numbers, *others) = Model(UNGATED, structure, embedding=PLAIN).double(), rows()
    read = (numbers.double(), *others)
    found = []
    for cast in (False, True):
        one = copy.deepcopy(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            made, gradients = learnt(one.train(), read, apart=True)
            with torch.no_grad():
                found.append([made, *gradients.values(), one.eval()(*read).logits])
    for made, wanted in zip(*found, strict=True):
        torch.testing.assert_close(made, wanted, atol=1e-12, rtol=1e-9)


def scaled(module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
    """A hook that writes into what a module is about to read."""
    given[0][:, 40:].mul_(3)


@pytest.mark.parametrize("where", ["sharing", "sharing.experts"])
@pytest.mark.parametrize("mode", ["training", "no_grad", "inference_mode"])
def test_what_is_written_into_x_is_read(where: str, mode: str) -> None:
    model, read = Model(UNGATED, MMoE(), embedding=PLAIN), rows()
    model.get_submodule(where).register_forward_pre_hook(scaled)
    model.train(mode == "training")
    with contextlib.nullcontext() if mode == "training" else getattr(torch, mode)():
        assert looked_up(model, read)
        made, wanted = (model.decide(model.represent(*read, apart=apart)).logits for apart in (True, False))
    torch.testing.assert_close(made, wanted, atol=1e-6, rtol=1e-6)


def test_who_waits_for_the_gradient_of_x_gets_it() -> None:
    model, read = Model(UNGATED, MMoE(), embedding=PLAIN).train(), rows()
    seen: list[Tensor] = []
    model.embed.register_forward_hook(lambda module, given, x: (x.register_hook(seen.append), None)[1])
    model.sharing.register_forward_pre_hook(lambda module, given: given[0].retain_grad())
    learnt(model, read, apart=True)
    assert len(seen) == 1
    assert seen[0].abs().sum() > 0


def test_hooks_into_columns_of_a_width_are_called() -> None:
    model, read, seen = Model(UNGATED, MMoE(), embedding=PLAIN).train(), rows(), []
    for part in model.embed.categories:
        part.register_forward_hook(lambda *one: seen.append(one))
    assert not looked_up(model, read)
    assert len(seen) == len(model.embed.categories)


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize("layout", [UNGATED, FEW_DENSE["numbers alone"]], ids=["many dense", "few dense"])
def test_layers_of_another_width_are_refused(layout: Layout, more: int) -> None:
    """They would read, and write, beside their weights."""
    embed, (numbers, ids, bags) = Embed(layout, PLAIN), rows(layout)
    x = embed.train()(numbers[:, : len(layout.numbers)], ids, bags[: len(layout.bags)], apart=True)
    assert isinstance(x, Embedded)
    d_in = embed.d_out + more
    for training in (True, False):
        experts, gate = ParallelMLP(2, d_in, (16,)).train(training), Gate(2, 2, d_in)
        with torch.set_grad_enabled(training):
            for given in (x, x.as_subclass(Tensor)):
                with pytest.raises(RuntimeError, match=f"read {d_in} columns cannot read {embed.d_out}"):
                    experts(given)
                with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                    together(ParallelMLP(2, embed.d_out, (16,)).train(training), [gate], given)


def columns_of(sizes: list[int], read: list[int] | None = None) -> Columns:
    """Columns of so many values each, whose tables lie one after the other."""
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    return Columns(torch.tensor(read or range(len(sizes))), starts, torch.tensor(sizes), torch.arange(len(sizes)) * 8)


@pytest.mark.parametrize("lost", [-1, 24])
def test_an_id_beyond_its_own_table_is_told(found: Kernels, lost: int) -> None:
    ids = torch.zeros(ROWS, 4, dtype=torch.int32)
    ids[5, 2] = lost
    with pytest.raises(IndexError, match="1 ids are out of range"):
        found.number_terms(ids, columns_of([7, 24, 3], [0, 2, 3]), 34)
    assert found.number_terms(ids, columns_of([7, 24, 3], [0, 1, 3]), 34).at.shape == (ROWS, 1)


def test_a_graph_of_the_model_multiplies_x() -> None:
    model, read = Model(UNGATED, MMoE(), embedding=PLAIN).eval(), rows()
    with torch.no_grad():
        program = torch.export.export(model, (read[0], read[1], tuple(read[2])))
        assert looked_up(model, read)
        made, wanted = program.module()(read[0], read[1], tuple(read[2])), model(*read)
    torch.testing.assert_close(made.logits, wanted.logits, atol=1e-5, rtol=1e-4)


class Traced(torch.nn.Module):
    """Logits of a model, from numbers and ids alone."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(numbers, ids).logits
        return logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("large", [False, True], ids=["looked up", "multiplied"])
@pytest.mark.parametrize("structure", [MMoE(), SharedBottom(), STRUCTURES["home"]()], ids=lambda one: one.name)
def test_a_trace_of_the_model_computes_what_it_does(structure: Structure, large: bool) -> None:
    """Compiled code is nothing that a trace sees."""
    layout = FEW_DENSE["numbers alone"]
    if large:
        layout = layout.with_(tables=dict.fromkeys(SIZES, 100_000))
    model, (numbers, ids, _) = Model(layout, structure, embedding=PLAIN).eval(), rows(layout)
    with torch.no_grad():
        assert looked_up(model, (numbers, ids, [])) != large
        traced = torch.jit.trace(Traced(model), (numbers, ids), check_trace=False)
        numbers, ids = numbers.flip(0).nan_to_num(), ids.flip(0)
        torch.testing.assert_close(traced(numbers, ids), model(numbers, ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("structure", [MMoE(), SharedBottom(), STRUCTURES["home"]()], ids=lambda one: one.name)
def test_operators_that_are_written_down_or_have_no_numbers_are_torchs(structure: Structure) -> None:
    """Compiled code would read where nothing lies."""
    sharing, x = structure.build(20, ("buy", "click")).eval(), torch.randn(ROWS, 20)
    with torch.no_grad():
        graph = make_fx(lambda x: sharing(x).z)(x)
        torch.testing.assert_close(graph(x.flip(0)), sharing(x.flip(0)).z, atol=1e-5, rtol=1e-4)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            made = sharing(mode.from_tensor(x)).z
    assert isinstance(made, FakeTensor)
    assert made.shape == (ROWS, 2, sharing.d_out)


def values_of(of: Lookups) -> list[list[int]]:
    """The rows of the table that each term is the sum of."""
    each = [[row] for row in of.row[: int(of.first[-1])].tolist()]
    for one, other in zip(of.one.tolist(), of.other.tolist(), strict=True):
        each.append(each[one] + each[other])
    return each


@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=40),
    many=st.sampled_from([1, 2, 300, 700]),
    alike=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_terms_of_a_row_are_its_values_each_once(sizes: list[int], many: int, alike: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 1 << 30, (many, 1), generator=draw)  # what columns have in common
    own = torch.randint(0, 1 << 30, (many, len(sizes)), generator=draw)
    shared = torch.rand((many, len(sizes)), generator=draw) < alike
    ids = (torch.where(shared, kind, own) % torch.tensor(sizes)).int()
    code, columns = kernels(), columns_of(sizes)
    assert code is not None
    of = code.number_terms(ids, columns, sum(sizes))
    each, values = values_of(of), int(of.first[-1])
    wanted = (ids + columns.starts).tolist()
    assert [sorted(row for term in terms for row in each[term]) for terms in of.at.tolist()] == wanted
    found = [sorted(ids[:, k].unique().tolist()) for k in range(len(sizes))]
    starts = columns.starts.tolist()
    held = [sorted(of.row[a:b].tolist()) for a, b in itertools.pairwise(of.first.tolist())]
    assert held == [[start + one for one in ones] for start, ones in zip(starts, found, strict=True)]
    for place in of.at.t():
        used = place.unique()
        assert len(used) <= code.most_pairs or int(used.max()) < values, "sums are few"
    again = code.number_terms(ids, columns, sum(sizes))
    assert all(
        torch.equal(a, b) for a, b in zip((of.at, of.one, of.other), (again.at, again.one, again.other), strict=True)
    )


def test_columns_that_follow_from_one_another_are_one_term(found: Kernels) -> None:
    code = torch.randint(0, found.most_pairs, (ROWS,))
    told = torch.stack([code, code % 7, code // 9, code % 2, torch.randint(0, 100, (ROWS,))], 1).int()
    of = found.number_terms(told, columns_of([found.most_pairs, 7, 9, 2, 100]), 200)
    assert of.at.shape == (ROWS, 2)
    apart = found.number_terms(torch.randint(0, 40, (ROWS, 5)).int(), columns_of([40] * 5), 200)
    assert apart.at.shape == (ROWS, 5)
    assert not len(apart.one)


EVEN = range(4, 65, 2)


@given(sizes=st.lists(st.integers(2, 10_000), max_size=60), dim=st.integers(1, 64), many=st.integers(1, 10_000))
def test_columns_are_looked_up_by_the_rows_of_their_tables(sizes: list[int], dim: int, many: int) -> None:
    chosen = small(sizes, dim, many)
    assert len(chosen) * dim * many >= LEAST or not chosen
    assert sorted(set(chosen)) == list(chosen)
    assert sum(sizes[at] for at in chosen) <= VALUES
    able = [at for at, size in enumerate(sizes) if size * EACH <= many * dim] if dim in EVEN else []
    assert set(chosen) <= set(able)
    if sum(sizes[at] for at in able) <= VALUES and len(able) * dim * many >= LEAST:
        assert list(chosen) == able


@pytest.mark.parametrize("dim", [2, 4, 6, 8, 12, 16, 24, 48])
@pytest.mark.parametrize("shape", [(1, 1), (15, 127), (16, 128), (17, 129), (70, 643), (3, 0)])
def test_products_and_their_gradients_are_those_of_matmuls(
    found: Kernels, threads: int, dim: int, shape: tuple[int, int]
) -> None:
    (m, b), sizes = shape, [3, 50, 2, 11]
    starts, places = torch.tensor([50, 0, 53, 60]), torch.tensor([2, 2 + dim, 4 + 3 * dim, 4 + 2 * dim])
    ids = torch.stack([torch.randint(0, size, (b,)) for size in sizes], 1).int()
    table, weight = torch.randn(75, dim), torch.randn(m, 5 + 4 * dim)
    of = found.number_terms(ids, Columns(torch.arange(4), starts, torch.tensor(sizes), places), sum(sizes))
    x = torch.zeros(b, weight.shape[1], dtype=torch.float64)
    for k in range(4):
        x[:, places[k] : places[k] + dim] = table.double()[starts[k] + ids[:, k].long()]
    made, pull = torch.randn(m, b), torch.randn(m, b)
    active = m // 2
    wanted = made.double() + weight.double() @ x.t()
    wanted[:active] = wanted[:active].relu()
    got = found.add_looked_up_(made.clone(), weight, table, of, None, active)
    torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=1e-5)
    grown = torch.full_like(weight, torch.nan)
    of_table = found.of_looked_up_(pull, weight, table, of, grown)
    read = torch.cat([torch.arange(place, place + dim) for place in places.tolist()])
    torch.testing.assert_close(grown[:, read].double(), (pull.double() @ x)[:, read], atol=1e-3, rtol=1e-5)
    others = torch.ones(weight.shape[1], dtype=torch.bool).index_fill(0, read, False)
    assert grown[:, others].isnan().all(), "columns that are not looked up are not written"
    for few in (0, 1, 5):
        dense, bias, of_bias = (
            Dense(torch.randn(b, few), others.nonzero().flatten()[:few]),
            torch.randn(m),
            torch.ones(m),
        )
        x[:, dense.places] = dense.x.double()
        wanted = weight.double() @ x.t() + bias.double().unsqueeze(1)
        wanted[:active] = wanted[:active].relu()
        got = found.add_looked_up_(torch.full_like(made, torch.nan), weight, table, of, dense, active, bias)
        torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=1e-5)
        with_dense = torch.full_like(weight, torch.nan)
        again = found.of_looked_up_(pull, weight, table, of, with_dense, dense, of_bias)
        of_dense = pull.double() @ x[:, dense.places]
        torch.testing.assert_close(with_dense[:, dense.places].double(), of_dense, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(of_bias.double(), pull.double().sum(1), atol=1e-3, rtol=1e-5)
        assert torch.equal(again, of_table)
        assert torch.equal(with_dense[:, read], grown[:, read])
    of_x, expected = pull.double().t() @ weight.double(), torch.zeros(75, dim, dtype=torch.float64)
    for k in range(4):
        expected.index_add_(0, starts[k] + ids[:, k].long(), of_x[:, places[k] : places[k] + dim])
    torch.testing.assert_close(of_table.double(), expected, atol=1e-3, rtol=1e-5)
