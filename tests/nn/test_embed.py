"""Embeddings against look-ups and formulae written row by row."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from multigate.batch import BagIds, IdColumn, Layout, NumberColumn, TaskColumn
from multigate.nn.chance import realised
from multigate.nn.dropped_copies import Copies, copies_at
from multigate.nn.embed import Embed, Embedding, OwnEmbeds
from multigate.nn.number_embeddings import Periodic, Piecewise

LAYOUT = Layout(
    numbers=(NumberColumn(feature="a"), NumberColumn(feature="b")),
    categories=(
        IdColumn(feature="user", table="user"),
        IdColumn(feature="city", table="city", dim=2),
        IdColumn(feature="friend", table="user"),
        IdColumn(feature="day", table="day"),
    ),
    bags=(IdColumn(feature="tags", table="tags", dim=2), IdColumn(feature="seen", table="user")),
    tables={"user": 6, "city": 4, "day": 9, "tags": 5},
    tasks=(TaskColumn(name="y", kind="binary"),),
)
NUMBERS = torch.tensor([[0.5, math.nan], [-1.0, 2.0], [math.nan, 0.0]])
CATEGORIES = torch.tensor([[1, 3, 5, 8], [0, 0, 0, 0], [5, 2, 1, 3]], dtype=torch.int32)
BAGS = (
    BagIds(torch.tensor([2, 4, 1, 0, 3, 3], dtype=torch.int32), torch.tensor([0, 2, 3, 6], dtype=torch.int32)),
    BagIds(torch.tensor([5, 1, 2], dtype=torch.int32), torch.tensor([0, 1, 2, 3], dtype=torch.int32)),
)


@pytest.fixture
def embed() -> Embed:
    return Embed(LAYOUT, Embedding(dim=3, dropout=0.0)).eval()


def rows_of(embed: Embed, table: str, dim: int) -> Tensor:
    """The weight of one table."""
    tables = embed.tables[str(dim)]
    start = tables.start[table]
    return tables.weight[start : start + LAYOUT.tables[table]]


def test_x_is_numbers_indicators_categories_and_bag_means(embed: Embed) -> None:
    x = embed(NUMBERS, CATEGORIES, BAGS)
    assert x.shape == (3, embed.d_out)
    user, city, day, tags = (
        rows_of(embed, table, dim) for table, dim in (("user", 3), ("city", 2), ("day", 3), ("tags", 2))
    )
    for r in range(3):
        number = [0.0 if math.isnan(v) else v for v in NUMBERS[r].tolist()]
        missing = [float(math.isnan(v)) for v in NUMBERS[r].tolist()]
        u, c, f, d = CATEGORIES[r].tolist()
        means = []
        for bag, weight in zip(BAGS, (tags, user), strict=True):
            ids = bag.values[bag.offsets[r] : bag.offsets[r + 1]].tolist()
            means.append(sum(weight[i] for i in ids) / len(ids))
        # widths in rising order, then the columns in the order of the layout
        expected = torch.cat((torch.tensor(number + missing), city[c], user[u], user[f], day[d], *means))
        torch.testing.assert_close(x[r], expected)


def test_features_of_one_table_share_its_rows(embed: Embed) -> None:
    embed(NUMBERS, CATEGORIES, BAGS).sum().backward()
    gradient = embed.tables["3"].weight.grad
    start = embed.tables["3"].start["user"]
    # id 5 is read by user in row 2, by friend in row 0 and by the bag of row 0; each cell adds 1
    torch.testing.assert_close(gradient[start + 5], torch.full((3,), 3.0))


def test_unseen_is_learnt_in_training_only() -> None:
    embed = Embed(LAYOUT, Embedding(dim=3, dropout=0.0, unseen=0.5))
    ids = torch.full((4000, 4), 3, dtype=torch.int32)
    assert abs((embed._forget(ids) == 0).float().mean().item() - 0.5) < 0.02
    assert torch.equal(embed.eval()._forget(ids), ids)


@pytest.mark.parametrize("tables", ["shared", "own"])
@pytest.mark.parametrize("drop_numbers", [False, True])
def test_dropout_is_on_all_but_the_values_of_numbers(drop_numbers: bool, tables: str) -> None:
    """Of the second number, one of a vector's, on the value as well; on all of them if told."""
    c = NumberColumn(feature="c", embedding="periodic")
    numbers = (LAYOUT.numbers[0], NumberColumn(feature="v[0]", of_vector=True), c)
    options = Embedding(dim=3, dropout=0.5, unseen=0.0, drop_numbers=drop_numbers)
    layout = LAYOUT.with_(numbers=numbers)
    embed = Embed(layout, options) if tables == "shared" else OwnEmbeds(layout, options, 2)
    cells = torch.tensor([[0.5, math.nan, 1.0]]).repeat(64, 1)
    bags = [BagIds(torch.zeros(64, dtype=torch.int32), torch.arange(65, dtype=torch.int32)) for _ in BAGS]
    rows = (cells, torch.zeros(64, 4, dtype=torch.int32), bags)
    whole, dropped = embed.eval()(*rows), embed.train()(*rows)
    stayed = (dropped == whole).flatten(0, -2).all(0)
    lost = ((dropped == 0) & (whole != 0)).flatten(0, -2).any(0)
    always = torch.zeros_like(stayed)
    always[[0, 2]] = not drop_numbers  # values: 0.5, missing as 0, 1
    zero = (whole == 0).flatten(0, -2).all(0)
    assert torch.equal(stayed, always | zero)
    assert torch.equal(lost, ~(always | zero))


def test_a_vector_has_one_flag_for_the_share_of_it_that_is_missing() -> None:
    """And numbers beside it their own; two vectors side by side have two."""
    names = {"a": "", "v[0]": "v", "v[1]": "v", "w[0]": "w", "w[1]": "w", "w[2]": "w", "w[3]": "w", "b": "", "c": ""}
    numbers = tuple(NumberColumn(feature=name, of_vector=bool(flag), flag=flag) for name, flag in names.items())
    embed = Embed(LAYOUT.with_(numbers=numbers, categories=(), bags=(), tables={}), Embedding(dropout=0.0)).eval()
    cells = torch.arange(9.0).repeat(3, 1)
    cells[1, 1:3], cells[2, 3], cells[2, 8], cells[0, 0] = math.nan, math.nan, math.nan, math.nan
    x = embed(cells, torch.empty(3, 0, dtype=torch.int32))
    assert embed.d_out == x.shape[1] == 9 + 5
    assert torch.equal(x[:, :9], cells.nan_to_num(0))
    assert x[:, 9:].tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0.25, 0, 1]]
    assert embed.origins == (*range(9), 0, 1, 3, 7, 8)


def test_numbers_that_were_never_missing_have_no_flag() -> None:
    flags = {"a": None, "b": "", "v[0]": None, "v[1]": None, "c": "", "w[0]": "w", "w[1]": "w"}
    numbers = tuple(NumberColumn(feature=name, of_vector="[" in name, flag=flag) for name, flag in flags.items())
    cells = torch.arange(7.0).repeat(2, 1)
    cells[0, :3], cells[1, 6] = math.nan, math.nan
    for only, told in ((numbers, [[1, 0, 0], [0, 0, 0.5]]), (numbers[:1], [[], []]), (numbers[2:4], [[], []])):
        embed = Embed(LAYOUT.with_(numbers=only, categories=(), bags=(), tables={}), Embedding(dropout=0.5))
        first = numbers.index(only[0])
        part = cells[:, first : first + len(only)]
        x = embed.eval()(part, torch.empty(2, 0, dtype=torch.int32))
        assert torch.equal(x[:, : len(only)], part.nan_to_num(0))
        assert x[:, len(only) :].tolist() == told
        assert embed.d_out == x.shape[1] == len(embed.origins)
        assert embed.origins == (*range(len(only)), *((1, 4, 5) if only is numbers else ()))


def dropped(many: int, rate: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """ids (B, C) of few values; what a layout makes of them without dropout, and with it; (B, C, dim)."""
    sizes = {f"c{i}": 3 + i for i in range(8)}
    columns = tuple(IdColumn(feature=name, table=name) for name in sizes)
    layout = Layout(numbers=(), categories=columns, bags=(), tables=sizes, tasks=LAYOUT.tasks)
    embed = Embed(layout, Embedding(dim=16, dropout=rate, unseen=0.0)).train()
    ids = torch.stack([torch.randint(0, size, (many,), dtype=torch.int32) for size in sizes.values()], 1)
    made = embed(torch.empty(many, 0), ids)
    return ids, embed.eval()(torch.empty(many, 0), ids).view(many, 8, 16), made.view(many, 8, 16)


@pytest.mark.parametrize(("rate", "copies"), [(0.05, 7), (0.1, 6), (0.15, 5), (0.3, 3), (0.9, 6)])
def test_of_its_copies_an_element_is_lost_in_as_many_as_the_rate_says(rate: float, copies: int) -> None:
    torch.manual_seed(0)
    assert copies_at(rate) == copies
    made = Copies.of(torch.ones(200, 16), rate, (3000, 4))
    times = (made.weight.view(200, copies, 16) == 0).sum(1)
    assert set(times.unique().tolist()) == {math.floor(rate * copies), math.ceil(rate * copies)}
    assert abs(times.float().mean() / copies - rate) < 0.01
    assert torch.bincount(made.read.flatten()).min() > 0.9 * 12_000 / copies, "rows read each alike"


@pytest.mark.parametrize(("rate", "copies"), [(0.2, 4), (0.25, 4), (0.3, 3), (0.4, 3), (0.5, 2), (0.7, 3)])
def test_in_large_batches_a_value_has_few_embeddings(rate: float, copies: int) -> None:
    """An element is lost in as many of them as the rate says, one more or less at most."""
    torch.manual_seed(0)
    ids, whole, made = dropped(2048, rate)
    kept = made != 0
    torch.testing.assert_close(made[kept], whole[kept] / realised(1 - rate), rtol=1e-6, atol=0)
    assert abs((~kept).float().mean() - rate) < 0.03
    lost = []
    for c in range(8):
        for value in range(3 + c):
            different = kept[ids[:, c] == value, c].unique(dim=0)
            assert len(different) == copies
            times = (~different).sum(0)
            assert (times >= math.floor(rate * copies)).all()
            assert (times <= math.ceil(rate * copies)).all()
            lost.append(~different)
    assert len(torch.cat(lost).unique(dim=0)) > 0.8 * len(torch.cat(lost)), "each value has its own"


def test_rows_drop_whatever_other_rows_do() -> None:
    """Over batches, of two rows with one value: each drops an element with the rate, and both with its square."""
    torch.manual_seed(0)
    pairs = []
    for _ in range(60):
        ids, _, made = dropped(1024)
        of_one = made[ids[:, 0] == 0, 0] == 0
        pairs.append(torch.stack([of_one[0:200:2], of_one[1:200:2]]))
    one, other = torch.cat(pairs, dim=1).float().flatten(1)
    assert abs(one.mean() - 0.3) < 0.01
    assert abs((one * other).mean() - 0.1) < 0.01, "0.09, were they independent within a batch, too"


@pytest.mark.parametrize(("many", "rate"), [(100, 0.3), (1024, 0.02), (1024, 0.98)])
def test_in_small_batches_and_at_other_rates_every_row_drops_its_own(many: int, rate: float) -> None:
    torch.manual_seed(0)
    ids, _, made = dropped(many, rate)
    kept = made[ids[:, 0] == 0, 0] != 0
    assert len(kept.unique(dim=0)) > 5
    assert abs((made == 0).float().mean() - rate) < 0.03


def test_masks_are_the_same_without_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    _, _, made = dropped(1024)
    monkeypatch.setattr("multigate.nn.table_rows.kernels", lambda: None)
    torch.manual_seed(0)
    _, _, without = dropped(1024)
    assert torch.equal(made, without)


def test_piecewise_is_the_progress_through_each_interval() -> None:
    """Gorishniy et al. 2022, Eq. 1, one value and one knot at a time."""
    edges = [(-1.0, 0.0, 2.0), (-3.0, 1.0)]
    module = Piecewise([1, 0], edges, dim=3)
    numbers = torch.tensor([[0.5, -2.0], [-9.0, 1.0], [9.0, 0.5]])
    out = module(numbers).unflatten(1, (2, 3))
    for b in range(3):
        for i, column in enumerate((1, 0)):
            v, knots = numbers[b, column].item(), edges[i]
            progress = [min(max((v - a) / (z - a), 0.0), 1.0) for a, z in pairwise(knots)]
            progress += [0.0] * (2 - len(progress))
            expected = torch.relu(torch.tensor(progress) @ module.weight[i] + module.bias[i])
            torch.testing.assert_close(out[b, i], expected)


def test_periodic_is_waves_of_learnt_frequencies() -> None:
    module = Periodic([0], dim=2, frequencies=3)
    out = module(torch.tensor([[0.7, 5.0]]))
    angles = 2 * math.pi * 0.7 * module.frequency[0]
    expected = torch.relu(torch.cat((angles.cos(), angles.sin())) @ module.weight[0] + module.bias[0])
    torch.testing.assert_close(out[0], expected)


def test_a_table_of_numbers_alone_or_of_categories_alone_embeds() -> None:
    only_numbers = LAYOUT.with_(categories=(), bags=(), tables={})
    x = Embed(only_numbers, Embedding())(NUMBERS, torch.zeros(3, 0, dtype=torch.int32))
    assert x.shape == (3, 4)
    only_ids = LAYOUT.with_(numbers=(), bags=())
    x = Embed(only_ids, Embedding(dim=3))(torch.zeros(3, 0), CATEGORIES)
    assert x.shape == (3, 11)


def test_columns_of_one_use_are_embedded_as_if_there_were_no_others() -> None:
    def used(column, use):
        return column.with_(use=use)

    numbers = (LAYOUT.numbers[0], used(LAYOUT.numbers[1], "gate"))
    categories = tuple(used(one, "gate" if at in (0, 3) else "shared") for at, one in enumerate(LAYOUT.categories))
    bags = (used(LAYOUT.bags[0], "gate"), LAYOUT.bags[1])
    mixed = LAYOUT.with_(numbers=numbers, categories=categories, bags=bags)
    places = {"shared": ([0], [1, 2], [1]), "gate": ([1], [0, 3], [0])}
    for use, (of_numbers, of_categories, of_bags) in places.items():
        alone = LAYOUT.with_(
            numbers=tuple(LAYOUT.numbers[i] for i in of_numbers),
            categories=tuple(LAYOUT.categories[i] for i in of_categories),
            bags=tuple(LAYOUT.bags[i] for i in of_bags),
        )
        torch.manual_seed(1)
        one = Embed(mixed, Embedding(dim=3), use).eval()
        torch.manual_seed(1)
        other = Embed(alone, Embedding(dim=3)).eval()
        expected = other(NUMBERS[:, of_numbers], CATEGORIES[:, of_categories], [BAGS[i] for i in of_bags])
        assert torch.equal(one(NUMBERS, CATEGORIES, BAGS), expected)
    assert Embed(LAYOUT, Embedding(), "gate").d_out == 0


def test_own_embeddings_have_nothing_in_common() -> None:
    embeds = OwnEmbeds(LAYOUT, Embedding(dim=3, dropout=0.0), 3).eval()
    x = embeds(NUMBERS, CATEGORIES, BAGS)
    assert x.shape == (3, 3, embeds.d_out)
    for k, embed in enumerate(embeds.each):
        assert torch.equal(x[:, k], embed(NUMBERS, CATEGORIES, BAGS))
    assert not torch.equal(x[:, 0], x[:, 1])
    x[:, 1].sum().backward()
    moved = {name.split(".")[1] for name, p in embeds.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"1"}
