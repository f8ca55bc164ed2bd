"""Effects to first order against moves made one at a time, and where functions have saturated."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from multigate.analysis import importance as module
from multigate.analysis.effects import most_moving, shuffle_effects
from multigate.analysis.importance import permutation_importance
from multigate.assembly import build_model
from multigate.bundle import Bundle
from multigate.data.encoder import Encoder
from multigate.data.names import feature_columns
from multigate.data.rows import join, pick
from multigate.evaluate import forward
from multigate.experiment import Experiment
from multigate.model import Embedding
from multigate.schema import Bag, Category, Hashed, Number, Schema, Task, Time, Vector
from multigate.sharing import STRUCTURES, MMoE, Shared, SingleTask, structure_named

FEATURES = (
    Number("x", embedding="none"),
    Number("binned", bins=4, values=50, dim=3),
    Number("pieces", embedding="piecewise", dim=2),
    Number("waves", embedding="periodic", dim=5),
    Category("colour"),
    Hashed("user", buckets=50, dim=3),
    Bag("tags"),
    Time("at"),
    Vector("v", size=2),
)
TASKS = (Task("click"), Task("buy", given="click"), Task("watch", kind="regression"), Task("kind", kind="multiclass"))


def table_of(rows, seed=0):
    random = np.random.default_rng(seed)
    click = random.random(rows) < 0.5
    return pa.table(
        {
            "x": np.where(random.random(rows) < 0.1, np.nan, random.normal(size=rows)),
            "binned": random.integers(0, 20, rows).astype(float),
            "pieces": random.normal(size=rows),
            "waves": random.normal(size=rows),
            "colour": random.choice(["red", "blue"], rows),
            "user": random.integers(0, 1000, rows).astype(str),
            "tags": [",".join(random.choice(["a", "b", "c"], random.integers(0, 4))) for _ in range(rows)],
            "at": [f"2026-01-{1 + hour // 4:02} {hour:02}:00" for hour in random.integers(0, 24, rows)],
            "v": list(random.normal(size=(rows, 2))),
            "click": click,
            "buy": click & (random.random(rows) < 0.5),
            "watch": random.normal(size=rows),
            "kind": random.choice(["p", "q", "r"], rows),
        }
    )


def bundle_of(table, features=FEATURES, tasks=TASKS, sharing=None, **options):
    """An untrained model."""
    schema = Schema(features=features, tasks=tasks)
    sharing = sharing or MMoE(experts=2, hidden=(8,))
    options = {"tower": (4,), "embedding": Embedding(dim=4)} | options
    experiment = Experiment(schema=schema, train="rows.parquet", sharing=sharing, **options)
    encoder = Encoder.fit(schema, table.to_batches())
    torch.manual_seed(0)
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    return bundle, join([encoder.columns(batch) for batch in table.combine_chunks().to_batches()])


def shuffles_of(batch, repeats=2):
    random = np.random.default_rng(0)
    return [pick(batch, torch.from_numpy(random.permutation(batch.rows))) for _ in range(repeats)]


def read_of(bundle):
    return [columns for columns in feature_columns(bundle.encoder) if columns.feature.biased is None]


class Hand(nn.Module):
    """A sharing that says what a function of x (B, D) -> (B, T) says."""

    d_out = 1

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return Shared(self.function(x).unsqueeze(-1), (), x.new_zeros(()))


def says(bundle, function):
    """The model of the bundle made to say it."""
    model, tasks = bundle.model, len(bundle.schema.tasks)
    model.sharing, model.towers = Hand(function), nn.Identity()
    model.heads.weight, model.heads.bias = nn.Parameter(torch.ones(tasks, 1)), nn.Parameter(torch.zeros(tasks))


@pytest.mark.parametrize("tables", ["shared", "own"])
def test_columns_of_x_belong_to_the_feature_that_moves_them(tables):
    sharing = SingleTask(hidden=(8,))  # which can have either
    bundle, batch = bundle_of(table_of(300), sharing=sharing, embedding=Embedding(dim=4, tables=tables))
    (other,) = shuffles_of(batch, 1)
    embed, layout = bundle.model.eval().embed, bundle.encoder.layout
    origins = np.array(embed.origins)
    assert len(origins) == embed.d_out
    first_bag = len(layout.numbers) + len(layout.categories)
    with torch.no_grad():
        before = embed(batch.numbers, batch.categories, batch.bags)
        for columns in feature_columns(bundle.encoder):
            moved = module._replaced(batch, other, columns)
            after = embed(moved.numbers, moved.categories, moved.bags)
            numbers, ids, bags = columns.numbers, columns.categories, columns.bags
            own = [*numbers, *(len(layout.numbers) + at for at in ids), *(first_bag + at for at in bags)]
            stirred = (after != before).flatten(0, -2).any(0).numpy()
            still = (before == before[0]).flatten(0, -2).all(0).numpy()  # such as an indicator of what is never missing
            assert set(origins[stirred]) == set(own), columns.feature.name
            assert stirred[np.isin(origins, own) & ~still].all(), columns.feature.name


def test_of_a_linear_model_they_are_the_moves_of_its_outputs():
    tasks = (Task("click"), Task("watch", kind="regression"))
    bundle, batch = bundle_of(table_of(300), tasks=tasks)
    weight = torch.randn(bundle.model.embed.d_out, 2, generator=torch.Generator().manual_seed(1))
    says(bundle, lambda x: x @ weight)
    shuffles = shuffles_of(batch)
    found = shuffle_effects(bundle, batch, shuffles, read_of(bundle))
    device = torch.device("cpu")
    before = forward(bundle.model, [batch], device).logits
    for at, columns in enumerate(feature_columns(bundle.encoder)):
        moved = [forward(bundle.model, [module._replaced(batch, one, columns)], device).logits for one in shuffles]
        by_hand = sum(np.square(one - before).sum(0) for one in moved)
        assert found[:, at] == pytest.approx(by_hand, rel=1e-3), columns.feature.name


def test_a_step_between_two_values_a_product_and_a_fold_are_seen_beside_many_that_do_little():
    random = np.random.default_rng(0)
    numbers = random.normal(size=(600, 60))
    numbers[:, :3] = random.integers(0, 2, (600, 3))
    table = pa.table({f"x{i}": numbers[:, i] for i in range(60)} | {"watch": random.normal(size=600)})
    features = tuple(Number(f"x{i}", embedding="none") for i in range(60))
    bundle, batch = bundle_of(table, features, (Task("watch", kind="regression"),))
    little = torch.zeros(60).index_fill_(0, torch.arange(7, 60), 0.05)

    def steep(x):
        step, product, fold = torch.tanh(40 * x[:, 0]), torch.tanh(40 * x[:, 1]) * torch.tanh(40 * x[:, 2]), x[:, 5]
        return (0.5 * step + 0.5 * product + 0.3 * x[:, 3] * x[:, 4] + 0.3 * fold.abs() + x[:, :60] @ little)[:, None]

    says(bundle, steep)
    effects = shuffle_effects(bundle, batch, shuffles_of(batch), read_of(bundle))
    assert most_moving(effects, 6) == [0, 1, 2, 3, 4, 5]
    assert effects[0, 6] == 0, "nothing reads it"


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("tables", ["shared", "own"])
def test_every_structure_tells_what_it_reads(name, tables):
    structure = structure_named(name).with_(hidden=(8, 4))
    if tables == "own" and structure.inputs(2) is None:
        pytest.skip("has one input for all tasks")
    bundle, batch = bundle_of(table_of(200), sharing=structure, embedding=Embedding(dim=4, tables=tables))
    blind = torch.tensor([origin == 3 for origin in bundle.model.embed.origins])
    embed = bundle.model.embed.forward
    bundle.model.embed.forward = lambda *given, apart: embed(*given).masked_fill(blind, 0)
    effects = shuffle_effects(bundle, batch, shuffles_of(batch), read_of(bundle))
    assert effects.shape == (5, len(FEATURES)), "click, buy, buy|click, watch, kind"
    assert np.isfinite(effects).all()
    assert (effects[:, 3] == 0).all()
    assert (np.delete(effects, 3, axis=1).max(axis=0) > 0).all()


def test_what_only_gates_read_counts_and_what_only_biases_does_not():
    table = table_of(200)
    features = (Number("x"), Number("pieces", use="gate"), Category("colour", use="bias:click"))
    bundle, batch = bundle_of(table, features)
    effects = shuffle_effects(bundle, batch, shuffles_of(batch), read_of(bundle))
    assert [one.feature.name for one in read_of(bundle)] == ["x", "pieces"]
    assert (effects > 0).all()


def test_of_classes_it_is_the_log_odds_of_the_one_predicted():
    bundle, batch = bundle_of(table_of(50), (Number("x", embedding="none"),), (Task("kind", kind="multiclass"),))
    slopes, (other,) = torch.tensor([1.0, 0.0, -2.0]), shuffles_of(batch, 1)
    says(bundle, lambda x: x[:, :1])
    bundle.model.heads.weight = nn.Parameter(slopes[:, None])
    bundle.model.heads.bias = nn.Parameter(torch.tensor([9.0, 0.0, 0.0]))  # far ahead wherever x is
    found = shuffle_effects(bundle, batch, [other], read_of(bundle))
    x, there = batch.numbers[:, 0].nan_to_num(), other.numbers[:, 0].nan_to_num()
    way = (2 * torch.rand(50, generator=torch.Generator().manual_seed(0)) - 1).clamp(min=0)
    at = x + way * (there - x)
    share = torch.sigmoid(-2 * at)  # of the last among the two others
    by_hand = (((1 + 2 * share) * (there - x)) ** 2).sum()
    assert found[0, 0] == pytest.approx(float(by_hand), rel=1e-4)


def test_targets_take_turns():
    effects = np.array([[9.0, 8.0, 7.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 2.0, 1.0], [0.0] * 6])
    assert most_moving(effects, 2) == [0, 4]
    assert most_moving(effects, 4) == [0, 1, 4, 5]
    assert most_moving(effects, 5) == [0, 1, 2, 4, 5]
    assert most_moving(effects, 9) == list(range(6))


def test_of_many_features_those_shuffled_have_the_numbers_they_have_among_all(monkeypatch):
    bundle, batch = bundle_of(table_of(300))
    everything = permutation_importance(bundle, batch, repeats=2)
    monkeypatch.setattr(module, "FEATURES", 4)
    told = []
    some = permutation_importance(bundle, batch, repeats=2, progress=lambda *one: told.append(one))
    shuffled = {one.feature for one in some}
    assert len(shuffled) == 4
    assert some == tuple(one for one in everything if one.feature in shuffled)
    assert [at for _, at, many in told if many == 4] == [0, 1, 2, 3]
    monkeypatch.setattr(module, "FEATURES", len(FEATURES))
    monkeypatch.setattr(module, "shuffle_effects", None)  # not asked where all can be shuffled
    assert permutation_importance(bundle, batch, repeats=2) == everything
