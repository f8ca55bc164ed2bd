"""Runs trained as one: the same as each alone while rounding has not grown, each with rows, rate and end of its own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from multigate.batch import BagIds, Batch, IdColumn, Layout, NumberColumn, TaskColumn
from multigate.errors import ExperimentError
from multigate.experiment import Optimizer
from multigate.model import Model, Tower
from multigate.nn.embed import Embedding
from multigate.objective import Objective
from multigate.sharing import STRUCTURES, VARIANTS, HoME, MMoE, Structure
from multigate.training.optimizers import Average, build_optimizer, rate_at
from multigate.training.replicas import Replicas
from multigate.training.stacked_batches import stack_batches

ALL = {name: kind() for name, kind in STRUCTURES.items()} | VARIANTS
SETTLED = [name for name, options in ALL.items() if not options.stochastic]
"""Draws of runs together and of runs alone are different ones."""
PLAIN = Optimizer(learning_rate=0.01, schedule="constant")
ROWS, RUNS, STEPS = 40, 3, 10
TASKS = (
    TaskColumn(name="click", kind="binary", mean=0.4, known_rate=0.8),
    TaskColumn(name="buy", kind="binary", mean=0.2, known_rate=0.9),
    TaskColumn(name="price", kind="regression"),
    TaskColumn(name="size", kind="multiclass", outputs=3, class_rates=(0.5, 0.3, 0.2)),
)
LAYOUT = Layout(
    numbers=(NumberColumn(feature="age", flag=None), NumberColumn(feature="time", embedding="periodic", dim=3)),
    categories=(IdColumn(feature="user", table="user"), IdColumn(feature="shop", table="shop", dim=2)),
    bags=(IdColumn(feature="tags", table="tags"),),
    tables={"user": 9, "shop": 5, "tags": 7},
    tasks=TASKS,
)


def draw(rows: int = ROWS) -> Batch:
    """Rows with missing numbers, unknown labels and bags of one to four items."""
    numbers = torch.randn(rows, 2).masked_fill(torch.rand(rows, 2) < 0.2, torch.nan)
    categories = torch.stack((torch.randint(0, 9, (rows,)), torch.randint(0, 5, (rows,))), 1).int()
    lengths = torch.randint(1, 5, (rows,))
    bag = BagIds(torch.randint(0, 7, (int(lengths.sum()),)), torch.cat((torch.zeros(1).long(), lengths.cumsum(0))))
    click = (torch.rand(rows) < 0.4).float()
    buy = click * (torch.rand(rows) < 0.5)
    labels = torch.stack((click, buy, torch.randn(rows), torch.randint(0, 3, (rows,)).float()), 1)
    known = torch.rand(rows, 4) < 0.8
    return Batch(numbers, categories, (bag,), labels * known, known, torch.rand(rows, 4), torch.zeros(rows).long())


def make_model(structure: Structure, dropout: float = 0.0) -> Model:
    embedding = Embedding(dim=4, dropout=dropout, unseen=dropout)
    return Model(LAYOUT, structure, embedding=embedding, tower=Tower(hidden=(6,)), parents=(None, 0, None, None))


class Whole(nn.Module):
    """A model and its objective: buffers of both belong to what is stacked."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.objective = model, Objective(TASKS)


def loss(whole: Whole, batch: Batch) -> tuple[Tensor, Tensor]:
    outputs = whole.model(batch.numbers, batch.categories, batch.bags)
    losses = whole.objective(outputs.logits, batch.labels, batch.known, batch.weights)
    return losses, losses.sum() + outputs.penalty


def alone(
    whole: Whole, batches: list[Batch], options: Optimizer, steps: int = 1
) -> tuple[list[Tensor], Average | None]:
    """One run as a loop would train it; its losses and the average of its weights."""
    optimizer = build_optimizer(whole, nn.Module(), options)
    average = Average(whole.parameters(), options.average) if options.average else None
    found = []
    for step, batch in enumerate(batches):
        losses, total = loss(whole, batch)
        optimizer.zero_grad()
        total.backward()
        if options.clip is not None:
            torch.nn.utils.clip_grad_norm_(whole.parameters(), options.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(options, step, steps)
        optimizer.step()
        if average is not None:
            average.update()
        found.append(losses.detach())
    return found, average


def assert_alike(found: nn.Module, expected: nn.Module) -> None:
    """By what they predict: Adam also moves weights whose gradient is nothing but rounding, which do not matter (biases
    before a normaliser: so rows are normalised by their batch here, and running means are not compared)."""
    batch = draw()
    assert found.state_dict().keys() == expected.state_dict().keys()
    for (name, here), (_, there) in zip(found.named_buffers(), expected.named_buffers(), strict=True):
        if not name.endswith(".mean"):
            torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-3, msg=name)
    with torch.no_grad():
        here, there = (one.train().model(batch.numbers, batch.categories, batch.bags) for one in (found, expected))
    torch.testing.assert_close(here.logits, there.logits, atol=1e-4, rtol=1e-4)


def small(options: Structure) -> Structure:
    changes: dict[str, Any] = {"hidden": (8, 5)}
    return options.with_(**changes)


@pytest.mark.parametrize("name", SETTLED)
def test_ten_steps_are_those_of_separate_runs(name: str) -> None:
    """With categories, bags, missing numbers and labels, a chain, a regression, classes: every structure there is."""
    wholes = [Whole(make_model(small(ALL[name]))) for _ in range(RUNS)]
    batches = [[draw() for _ in range(RUNS)] for _ in range(STEPS)]
    replicas = Replicas(wholes, loss, PLAIN)
    together = torch.stack([replicas.step(stack_batches(each)) for each in batches], 1)
    for run, whole in enumerate(wholes):
        expected, _ = alone(whole, [each[run] for each in batches], PLAIN)
        torch.testing.assert_close(together[run], torch.stack(expected), atol=2e-6, rtol=2e-5)
        assert_alike(replicas.module(run), whole)


@pytest.mark.parametrize("name", [name for name in ALL if name not in SETTLED])
def test_what_is_drawn_is_each_runs_own(name: str) -> None:
    """Runs that are alike and read the same rows differ after a step by their draws alone."""
    whole, batch = Whole(make_model(small(ALL[name]))), draw()
    replicas = Replicas([whole, whole], loss, PLAIN)
    losses = torch.stack([replicas.step(stack_batches([batch, batch])) for _ in range(3)], 1)
    assert not torch.equal(losses[0], losses[1])
    assert losses.isfinite().all()


@pytest.mark.parametrize("name", ["mmoe_noisy_top_k", "home", "aitm", "shared_bottom"])
def test_traced_steps_are_plain_ones_but_for_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, draws and running means included; batches of another shape between them are not what was traced."""
    monkeypatch.setattr("multigate.training.traced.MANY", 0)
    wholes = [Whole(make_model(small(ALL[name]), dropout=0.3)) for _ in range(2)]
    batches = [stack_batches([draw(rows), draw(rows)]) for rows in (ROWS, ROWS, 7)]
    batches[1] = batches[1]._replace(bags=batches[0].bags)
    found = []
    for after in (3, 1_000):
        monkeypatch.setattr("multigate.training.traced.TRACE_AFTER", after)
        traced = []
        monkeypatch.setattr("multigate.training.traced.make_fx", lambda f, t=traced: t.append(f) or make_fx(f))
        replicas = Replicas(wholes, loss, PLAIN)
        torch.manual_seed(5)
        losses = [replicas.step(batches[at]) for at in (0, 1, 2, 0, 1, 2, 0)]
        assert len(traced) == (after == 3)
        # a bias before a batch norm has no gradient but rounding, of which Adam makes whole steps, and means follow it
        kept = {name: buffer for name, buffer in replicas.buffers.items() if not name.endswith("mean")}
        found.append((torch.stack(losses), kept, torch.rand(3)))
    torch.testing.assert_close(found[0][:2], found[1][:2], atol=1e-5, rtol=1e-4)
    assert torch.equal(found[0][2], found[1][2]), "as many draws"


def test_a_gradient_read_by_one_of_several_copies_is_not_laid_among_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multigate.training.traced.TRACE_AFTER", 1)
    replicas = Replicas([Whole(make_model(small(ALL["shared_bottom"]))) for _ in range(2)], loss, PLAIN)
    replicas.step(stack_batches([draw(), draw()]))
    (graph,) = replicas._tracings.graphs.values()
    nodes = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.select_backward.default)  # heads have some
    assert torch.ops.aten.sum.dim_IntList not in {user.target for node in nodes for user in node.users}


def test_dropout_falls_differently_on_every_run_and_step_and_keeps_the_mean() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5_000))

    def read(module: Dropped) -> tuple[Tensor, Tensor]:
        from multigate.nn.chance import dropout

        out = dropout(module.weight, 0.3, True)
        return out.detach(), out.sum() * 0

    replicas = Replicas([Dropped(), Dropped()], read, PLAIN.with_(weight_decay=0.0))
    one, other = replicas.step()
    again, _ = replicas.step()
    for mask in (one, other, again):
        assert abs((mask == 0).float().mean() - 0.3) < 0.03
        assert abs(mask.mean() - 1) < 0.05
    assert 0.3 < ((one == 0) == (other == 0)).float().mean() < 0.7
    assert 0.3 < ((one == 0) == (again == 0)).float().mean() < 0.7


@pytest.mark.parametrize(
    "options",
    [
        PLAIN.with_(name="adam", weight_decay=0.0),
        PLAIN.with_(clip=0.05),
        PLAIN.with_(schedule="one_cycle"),
        PLAIN.with_(average=0.7),
    ],
    ids=["adam", "clipped", "one_cycle", "averaged"],
)
def test_runs_of_three_learning_rates_move_as_those_rates_alone(options: Optimizer) -> None:
    """Two of one rate beside each other, and one of theirs apart from them; clipped by the norm of each run alone."""
    rates = [0.01, 0.01, 0.003, 0.02, 0.01]
    wholes = [Whole(make_model(MMoE(experts=2, hidden=(4,)))) for _ in rates]
    batches = [[draw() for _ in rates] for _ in range(STEPS)]
    replicas = Replicas(wholes, loss, options, rates=rates, steps=STEPS)
    together = torch.stack([replicas.step(stack_batches(each)) for each in batches], 1)
    for run, (whole, rate) in enumerate(zip(wholes, rates, strict=True)):
        own = options.with_(learning_rate=rate)
        expected, average = alone(whole, [each[run] for each in batches], own, STEPS)
        torch.testing.assert_close(together[run], torch.stack(expected), atol=2e-6, rtol=2e-5)
        assert_alike(replicas.module(run), whole)
        if average is not None:
            averages = replicas.averages(run)
            for (name, _), value in zip(whole.named_parameters(), average.values, strict=True):
                torch.testing.assert_close(averages[name], value, atol=1e-3, rtol=0)
                assert not torch.equal(averages[name], replicas.state(run)[name])


def test_a_stopped_run_stays_and_the_others_go_on_as_if_nothing_were() -> None:
    """Run 1 of four stops after three steps, in the middle of a bucket; optimiser states stay with their runs."""
    rates = [0.01, 0.01, 0.01, 0.003]
    wholes = [Whole(make_model(HoME(hidden=(4, 3)))) for _ in rates]
    batches = [[draw() for _ in rates] for _ in range(7)]
    replicas = Replicas(wholes, loss, PLAIN.with_(average=0.5), rates=rates)
    for each in batches[:3]:
        replicas.step(stack_batches(each))
    replicas.stop([1])
    then = {name: tensor.clone() for name, tensor in replicas.state(1).items()}
    assert replicas.active == [0, 2, 3]
    late = [replicas.step(stack_batches([each[run] for run in (0, 2, 3)])) for each in batches[3:]]
    for name, tensor in replicas.state(1).items():
        assert torch.equal(tensor, then[name]), name
    for at, run in enumerate((0, 2, 3)):
        expected, _ = alone(wholes[run], [each[run] for each in batches], PLAIN.with_(learning_rate=rates[run]))
        torch.testing.assert_close(
            torch.stack([one[at] for one in late]), torch.stack(expected[3:]), atol=2e-6, rtol=2e-5
        )
        assert_alike(replicas.module(run), wholes[run])
    alone(wholes[1], [each[1] for each in batches[:3]], PLAIN)
    assert_alike(replicas.module(1), wholes[1])


def test_what_is_saved_goes_on_bit_by_bit() -> None:
    """Saved after two steps and one stop, put back into replicas of fresh weights: the same from there on."""
    options, rates = PLAIN.with_(average=0.5), [0.01, 0.003, 0.01]
    wholes = [Whole(make_model(HoME(hidden=(4, 3)))) for _ in rates]
    batches = [[draw() for _ in rates] for _ in range(5)]
    replicas = Replicas(wholes, loss, options, rates=rates)
    replicas.step(stack_batches(batches[0]))
    replicas.stop([0])
    replicas.step(stack_batches(batches[1][1:]))
    saved = {name: tensor.clone() for name, tensor in replicas.tensors().items()}
    other = Replicas([Whole(make_model(HoME(hidden=(4, 3)))) for _ in rates], loss, options, rates=rates)
    other.restore(saved, replicas.active, replicas.step_done)
    for each in batches[2:]:
        assert torch.equal(replicas.step(stack_batches(each[1:])), other.step(stack_batches(each[1:])))
    for name, tensor in replicas.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


def test_what_is_saved_is_traced_from_the_same_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multigate.training.traced.TRACE_AFTER", 4)
    monkeypatch.setattr("multigate.training.traced.MANY", 0)
    wholes = [Whole(make_model(MMoE(experts=3, hidden=(8,)))) for _ in range(2)]
    batches = [stack_batches([draw(), draw()]) for _ in range(7)]
    batches = [batch._replace(bags=batches[0].bags) for batch in batches]
    for stop in range(1, 7):
        whole, pieces = Replicas(wholes, loss, PLAIN), Replicas(wholes, loss, PLAIN)
        losses = [whole.step(batch) for batch in batches]
        found = [pieces.step(batch) for batch in batches[:stop]]
        on = Replicas(wholes, loss, PLAIN)
        on.restore(pieces.tensors(), pieces.active, pieces.step_done, pieces.seen)
        found += [on.step(batch) for batch in batches[stop:]]
        assert len(on._tracings.graphs) == 1
        for one, other in zip(losses, found, strict=True):
            assert torch.equal(one, other)


def to_zero(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    losses = module(x).square().mean(0)
    return losses, losses.sum()


def test_a_single_run_and_inputs_alone() -> None:
    """A loss of one's own over tensors; outputs in evaluation mode; the module that comes back is a copy."""
    modules = [nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)) for _ in range(2)]
    replicas = Replicas(modules, to_zero, PLAIN)
    x = torch.randn(2, 6, 4)
    assert replicas.step(x).shape == (2, 3)
    out = replicas.outputs(lambda module, rows: module(rows), x)
    for run in range(2):
        back = replicas.module(run).eval()
        torch.testing.assert_close(out[run], back(x[run]))
        back[0].weight.data.zero_()
    assert replicas.state(0)["0.weight"].abs().sum() > 0
    assert not torch.equal(replicas.state(0)["0.weight"], modules[0][0].weight), "the modules given are left alone"


def test_modules_of_two_kinds_are_refused() -> None:
    with pytest.raises(ExperimentError, match="one kind"):
        Replicas([nn.Linear(3, 2), nn.Linear(4, 2)], loss, PLAIN)
    with pytest.raises(ExperimentError, match="learning rate for each"):
        Replicas([nn.Linear(3, 2)] * 2, loss, PLAIN, rates=[0.1])
    with pytest.raises(ExperimentError, match="how many steps schedule 'one_cycle' is spread over; give steps"):
        Replicas([nn.Linear(3, 2)] * 2, loss, Optimizer())  # it would be over after one step, and nothing learnt


class Small(nn.Module):
    """Two layers and a scale that is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(torch.tanh(self.l1(x))) * self.scale


@pytest.mark.parametrize("changes", [{}, {"clip": 0.05}, {"average": 0.7}], ids=["plain", "clipped", "averaged"])
def test_weights_that_are_frozen_stay_and_numbers_alone_are_weights(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each run alone has it, through a stop, a save and traced steps; decay, too, leaves frozen weights alone."""
    monkeypatch.setattr("multigate.training.traced.TRACE_AFTER", 4)
    options, rates = PLAIN.with_(weight_decay=0.5, **changes), [0.01, 0.01, 0.02]
    wholes = [Small() for _ in rates]
    for whole in wholes:
        whole.l1.weight.requires_grad_(False)
    frozen = [whole.l1.weight.clone() for whole in wholes]
    inputs = torch.randn(6, len(rates), 8, 4)
    stacked = Replicas(wholes, to_zero, options, rates=rates)
    for x in inputs[:2]:
        stacked.step(x)
    on = Replicas(wholes, to_zero, options, rates=rates)
    on.restore(stacked.tensors(), stacked.active, stacked.step_done)
    on.stop([0])
    for x in inputs[2:]:
        on.step(x[1:])
    for run, (whole, rate) in enumerate(zip(wholes, rates, strict=True)):
        optimizer = build_optimizer(whole, nn.Module(), options.with_(learning_rate=rate))
        for x in inputs[: 2 if run == 0 else 6, run]:
            optimizer.zero_grad()
            to_zero(whole, x)[1].backward()
            if options.clip is not None:
                torch.nn.utils.clip_grad_norm_(whole.parameters(), options.clip)
            optimizer.step()
        found = on.module(run) if run else stacked.module(0)
        assert torch.equal(found.l1.weight, frozen[run])
        assert torch.equal(whole.l1.weight, frozen[run])
        assert not found.l1.weight.requires_grad
        assert found.scale != 1
        for (name, here), there in zip(found.named_parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-4, msg=name)


def test_weights_that_are_one_tensor_are_refused_by_both_names() -> None:
    tied = Small()
    tied.l2.weight = tied.l1.weight
    with pytest.raises(ExperimentError, match=r"'l2\.weight' is the same tensor as 'l1\.weight'"):
        Replicas([tied, tied], to_zero, PLAIN)


def test_modules_that_have_constants_of_their_own_are_refused() -> None:
    """All would be computed with those of the first."""
    for plain in (True, False):
        modules = [nn.Sequential(nn.Linear(3, 2)) for _ in range(2)]
        for module in modules:
            drawn = torch.cat((torch.rand(2), torch.tensor([torch.nan])))
            if plain:
                module[0].drawn = drawn
            else:
                module[0].register_buffer("drawn", drawn, persistent=False)
        with pytest.raises(ExperimentError, match=r"'0\.drawn' differs between the first and module 1; keep it by"):
            Replicas(modules, to_zero, PLAIN)
        modules[1][0].drawn = modules[0][0].drawn.clone()
        Replicas(modules, to_zero, PLAIN)


class Counted(nn.Linear):
    """Multiplies by how often it was called, kept in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__(3, 2)
        self.how, self.calls = how, 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "python":
            self.calls += 1
        elif self.how == "set":
            self.count = self.count + 1
        else:
            self.count.add_(1)
        return super().forward(x) * (self.calls + self.count)


@pytest.mark.parametrize(("how", "name"), [("python", "calls"), ("set", "count"), ("in place", "")])
def test_what_a_step_changes_is_kept_or_told_of(how: str, name: str) -> None:
    """A buffer that is set anew would be as before in the next step, a number in Python once steps are traced."""
    modules = [Counted(how) for _ in range(2)]
    replicas = Replicas(modules, to_zero, PLAIN)
    x = torch.randn(2, 5, 3)
    if name:
        with pytest.raises(ExperimentError, match=f"'{name}' is set anew in a step, and replicas keep"):
            replicas.step(x)
    else:
        for _ in range(3):
            replicas.step(x)
        assert replicas.module(1).count == 3
