"""A simulated content feed: impressions, and what a click, a purchase, a like and the watch time really depend on.

Every row is one item shown to one user. Users and items are drawn once:

- a user u has ``age``, ``country``, a main ``device``, a vector a_u of interests and a vector t_u of tastes (4 numbers
  each: one part follows the age, one the country, one is the user's own) and a scalar ``curiosity``;
- an item i has ``category``, ``publisher``, ``tags``, ``price``, vectors b_i and s_i that face the user's (one part
  from the category, one from the tags, one its own), and scalars ``lure`` and ``quality`` (publisher and own part).

The latent ones have mean 0 and variance near 1. Let interest = a_u . b_i / 2 and taste = t_u . s_i / 2, evening =
cos(2 pi (hour - 21) / 24) with the hour's fraction, dear = the standardised logarithm of the price, 0 where unknown::

    logit p(click)       = c + .6 interest + .7 lure + .6 curiosity - .3 ln(position) + .3 evening [device is phone]
    logit p(buy | click) = b + .6 interest - .7 lure - .7 curiosity - .3 dear + .3 quality
    logit p(like)        = l + .3 interest + .8 taste + .5 quality
    ln watch_seconds     = 3 + .6 taste + .3 quality - .2 lure + .5 N(0, 1)

The intercepts c, b and l are solved so that the rates asked for are met. Click and purchase share the interest; lure
and curiosity drive clicks and *lower* the purchase rate, so the rows that were clicked are not like the rest: the mean
of p(buy | click) over all rows is a third above the purchase rate among clicks, and a model that has seen clicked rows
only meets other rows when it scores all of them. Given user, item and context nothing else matters (no hidden
confounder): p(buy) = p(click) p(buy | click) in every row. ``like`` is a question put to a random share of rows, null
elsewhere; ``buy`` and ``watch_seconds`` are null unless clicked, as logs have them.

Popularity follows a power law. A share ``new`` of users and items arrives evenly over the period, so late rows hold ids
that early rows do not. Rows are ordered by time, with a daily rhythm.

Randomness is drawn in blocks of 65,536 rows, each from a generator of its own keyed by seed and block number: any
range of rows is the same whether it is asked for alone, in pieces or with the rest.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from multigate.options import Options
from multigate.progress import Progress
from multigate.schema import Bag, Category, Number, Schema, Task, Time
from multigate.writing import writing

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK = 65_536
PILOT = 65_536
FACTORS = 4
CATEGORIES = (
    *("news", "sport", "music", "film", "comedy", "games", "food", "travel", "fashion", "beauty", "health", "science"),
    *("history", "art", "books", "cars", "garden", "pets", "family", "money", "politics", "nature", "dance", "tech"),
)
DEVICES = ("phone", "desktop", "tablet", "tv")
COUNTRIES = ("IN", "US", "BR", "ID", "DE", "JP", "NG", "FR")
TAGS = 61  # a prime: the arithmetic progressions that the items' tags are then never repeat a tag
START = np.datetime64("2026-01-05T00:00:00", "ms")  # a Monday
WATCH_NOISE = 0.5


class Feed(Options):
    """What to simulate. The defaults make a log of 60,000 impressions."""

    rows: int = Field(default=60_000, ge=10)
    users: int = Field(default=4_000, ge=10)
    items: int = Field(default=2_000, ge=10)
    seed: int = Field(default=0, ge=0)
    click_rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of rows clicked."""
    buy_rate: float = Field(default=0.10, gt=0, lt=1)
    """Share of clicks that end in a purchase."""
    like_rate: float = Field(default=0.25, gt=0, lt=1)
    unknown: float = Field(default=0.3, ge=0, lt=1)
    """Share of rows whose ``like`` nobody asked for: null, at random."""
    new: float = Field(default=0.2, ge=0, lt=1)
    """Share of users, and of items, that arrive during the period."""
    item_zipf: float = Field(default=0.8, ge=0)
    """An item of popularity rank r is shown in proportion to r ** -item_zipf."""
    user_zipf: float = Field(default=0.6, ge=0)
    days: int = Field(default=28, ge=1)


class Rows(NamedTuple):
    """R impressions before any outcome: indices into users and items (in order of arrival) and the context."""

    user: Ints
    item: Ints
    seconds: Doubles
    """Since the start of the log."""
    position: Ints
    """1 (top of the page) to 10."""
    device: Ints


class Truth(NamedTuple):
    """What each of R rows' outcomes are drawn from, (R,) each; the conditional ones are defined for every row."""

    p_click: Floats
    p_buy_given_click: Floats
    p_like: Floats
    watch_mean: Floats
    """Mean of ln(watch_seconds), given a click."""


def feed_schema() -> Schema:
    """Features and tasks of the tables that ``write_feed`` writes."""
    return Schema(
        features=(
            Category(name="user"),
            Category(name="item"),
            Category(name="category"),
            Category(name="publisher"),
            Bag(name="tags"),
            Number(name="price", transform="log"),
            Number(name="age"),
            Category(name="device"),
            Category(name="country"),
            Category(name="position"),
            Time(name="time", parts=("hour",)),
        ),
        tasks=(
            Task(name="click"),
            Task(name="buy", given="click"),
            Task(name="like"),
            Task(name="watch", column="watch_seconds", kind="regression", where="click", transform="log1p"),
        ),
        keys=("row_id",),
        time="time",
        group="user",
    )


def feed_table(feed: Feed, start: int = 0, stop: int | None = None) -> pa.Table:
    """Rows ``start`` to ``stop`` (all by default) as one table in memory, without the truth."""
    return pa.Table.from_batches([table for table, _ in feed_batches(feed, start, stop)], schema=TABLE)


def feed_truth(feed: Feed, start: int = 0, stop: int | None = None) -> pa.Table:
    """What the outcomes of those rows were drawn from, known in every row.

    Columns: row_id, p_click, p_buy_given_click, p_buy (their product), p_like, expected_watch_seconds (given a click).
    """
    return pa.Table.from_batches([truth for _, truth in feed_batches(feed, start, stop)], schema=TRUTH)


def feed_batches(
    feed: Feed, start: int = 0, stop: int | None = None
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """The rows in order as (table, truth), at most 65,536 at a time."""
    stop = feed.rows if stop is None else min(stop, feed.rows)
    if stop <= start:
        return
    world = World(feed)
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        first = block * BLOCK
        low, high = max(start - first, 0), min(stop - first, BLOCK)
        table, truth = world.block(block)
        yield table.slice(low, high - low), truth.slice(low, high - low)


def write_feed(feed: Feed, folder: Path, progress: Progress | None = None) -> None:
    """Write train, valid and test.parquet: the first 80, next 10 and last 10 % of the rows in order of time.

    The truth of each goes to a file of its own, <split>_truth.parquet. Memory does not grow with the number of rows.
    """
    bounds = (0, feed.rows * 8 // 10, feed.rows * 9 // 10, feed.rows)
    names = [name for split in ("train", "valid", "test") for name in (split, f"{split}_truth")]
    with ExitStack() as stack:
        paths = [stack.enter_context(writing(folder / f"{name}.parquet")) for name in names]
        with ExitStack() as closed_first:
            writers = [
                closed_first.enter_context(pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeated))
                for path, (schema, repeated) in zip(paths, ((TABLE, REPEATED), (TRUTH, False)) * 3, strict=True)
            ]
            done = 0
            for pair in feed_batches(feed):
                rows = pair[0].num_rows
                for split, (low, high) in enumerate(pairwise(bounds)):
                    first, last = max(low - done, 0), min(high - done, rows)
                    if first < last:
                        for writer, batch in zip(writers[2 * split : 2 * split + 2], pair, strict=True):
                            writer.write_batch(batch.slice(first, last - first))
                done += rows
                if progress is not None:
                    progress("writing the feed", done, feed.rows)


class World:
    """The users and items of a feed, and the laws that its outcomes follow."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        rng = np.random.default_rng([feed.seed, 0])
        self.user_shares = _power_law(feed.users, feed.user_zipf, rng)
        self.item_shares = _power_law(feed.items, feed.item_zipf, rng)
        self._draw_users(rng)
        self._draw_items(rng)
        self.clock = _clock(feed.days)
        self.intercepts = (0.0, 0.0, 0.0)
        self.intercepts = self._solve_intercepts(np.random.default_rng([feed.seed, 1]))

    def _draw_users(self, rng: np.random.Generator) -> None:
        n = self.feed.users
        self.user_id = 100_000 + rng.permutation(n)  # the id must not tell when its user arrived
        age = (18 + 58 * rng.beta(1.6, 3.0, n)).astype(np.int64)
        self.age = age
        self.age_known = rng.random(n) >= 0.08
        self.country = rng.choice(len(COUNTRIES), n, p=_falling(len(COUNTRIES)))
        self.home_device = rng.choice(len(DEVICES), n, p=(0.62, 0.24, 0.09, 0.05))
        self.interest_of_user = _vectors(rng, age, self.country, len(COUNTRIES))
        self.taste_of_user = _vectors(rng, age, self.country, len(COUNTRIES))
        youth = (38 - age) / 12
        self.curiosity = (0.8 * youth + 0.6 * rng.standard_normal(n)).astype(np.float32)

    def _draw_items(self, rng: np.random.Generator) -> None:
        n = self.feed.items
        publishers = min(max(8, n // 20), 1_000)
        self.item_id = 500_000 + rng.permutation(n)
        self.category = rng.choice(len(CATEGORIES), n, p=_falling(len(CATEGORIES)))
        self.publisher = rng.choice(publishers, n, p=_falling(publishers))
        self.publishers = pa.array([f"p{number:03d}" for number in range(publishers)])
        count = rng.integers(0, 5, n)  # tags of an item
        place = np.arange(FACTORS)
        tags = (rng.integers(0, TAGS, (n, 1)) + place * rng.integers(1, TAGS, (n, 1))) % TAGS
        self.tags = pa.array(
            [",".join(map(str, row[:k])) if k else None for row, k in zip(tags.tolist(), count, strict=True)],
            pa.string(),
        )
        held = (place < count[:, None]) / np.sqrt(np.maximum(count, 1))[:, None]
        self.interest_of_item = _facing(rng, self.category, tags, held)
        self.taste_of_item = _facing(rng, self.category, tags, held)
        by_publisher = rng.standard_normal((2, publishers))[:, self.publisher]
        own = rng.standard_normal((2, n))
        self.lure, self.quality = (0.8 * by_publisher + 0.6 * own).astype(np.float32)
        by_category = rng.standard_normal(len(CATEGORIES))[self.category]
        dear = 0.6 * by_category + 0.8 * rng.standard_normal(n)
        self.price = np.round(np.exp(3.0 + 1.3 * dear), 2)
        self.price_known = rng.random(n) >= 0.05
        self.dear = np.where(self.price_known, dear, 0).astype(np.float32)

    def rows(self, rng: np.random.Generator, progress: Doubles) -> Rows:
        """Who is shown what, where and on which device at moments (R,) between 0 (start of the period) and 1."""
        count = progress.size
        user = _draw(self.user_shares, self.feed.new, progress, rng)
        item = _draw(self.item_shares, self.feed.new, progress, rng)
        seconds = np.interp(progress, *self.clock)
        position = rng.integers(1, 11, count)
        away = rng.random(count) < 0.15
        device = np.where(away, rng.integers(0, len(DEVICES), count), self.home_device[user])
        return Rows(user, item, seconds, position, device)

    def truth(self, rows: Rows) -> Truth:
        """The laws in the module's docstring."""
        user, item = rows.user, rows.item
        interest = np.einsum("rk,rk->r", self.interest_of_user[user], self.interest_of_item[item]) / 2
        taste = np.einsum("rk,rk->r", self.taste_of_user[user], self.taste_of_item[item]) / 2
        lure, quality, curiosity = self.lure[item], self.quality[item], self.curiosity[user]
        hour = (rows.seconds % 86_400 / 3_600).astype(np.float32)
        evening = np.cos(2 * np.pi / 24 * (hour - 21)) * (rows.device == 0)
        high = np.log(rows.position).astype(np.float32)
        c, b, like = self.intercepts
        return Truth(
            _sigmoid(c + 0.6 * interest + 0.7 * lure + 0.6 * curiosity - 0.3 * high + 0.3 * evening),
            _sigmoid(b + 0.6 * interest - 0.7 * lure - 0.7 * curiosity - 0.3 * self.dear[item] + 0.3 * quality),
            _sigmoid(like + 0.3 * interest + 0.8 * taste + 0.5 * quality),
            (3 + 0.6 * taste + 0.3 * quality - 0.2 * lure).astype(np.float32),
        )

    def block(self, number: int) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Rows ``number * 65,536`` and on as (table, truth)."""
        feed = self.feed
        first = number * BLOCK
        row_id = np.arange(first, min(first + BLOCK, feed.rows))
        count = row_id.size
        rng = np.random.default_rng([feed.seed, 2, number])
        rows = self.rows(rng, (row_id + rng.random(count)) / feed.rows)
        truth = self.truth(rows)

        click = rng.random(count, np.float32) < truth.p_click
        buy = rng.random(count, np.float32) < truth.p_buy_given_click
        like = rng.random(count, np.float32) < truth.p_like
        asked = rng.random(count, np.float32) >= feed.unknown
        watch = np.exp(truth.watch_mean + WATCH_NOISE * rng.standard_normal(count, np.float32))

        user, item = rows.user, rows.item
        table = pa.record_batch(
            [
                pa.array(row_id),
                pa.array(START + (rows.seconds * 1000).astype("timedelta64[ms]")),
                pa.array(self.user_id[user]),
                pa.array(self.item_id[item]),
                _words(CATEGORIES, self.category[item]),
                _words(self.publishers, self.publisher[item]),
                self.tags.take(pa.array(item)),
                pa.array(self.price[item], mask=~self.price_known[item]),
                pa.array(self.age[user].astype(np.int16), mask=~self.age_known[user]),
                _words(DEVICES, rows.device),
                _words(COUNTRIES, self.country[user]),
                pa.array(rows.position.astype(np.int8)),
                pa.array(click.astype(np.int8)),
                pa.array(buy.astype(np.int8), mask=~click),
                pa.array(like.astype(np.int8), mask=~asked),
                pa.array(watch, mask=~click),
            ],
            schema=TABLE,
        )
        secrets = pa.record_batch(
            [
                pa.array(row_id),
                pa.array(truth.p_click),
                pa.array(truth.p_buy_given_click),
                pa.array(truth.p_click * truth.p_buy_given_click),
                pa.array(truth.p_like),
                pa.array(np.exp(truth.watch_mean + np.float32(WATCH_NOISE**2 / 2))),
            ],
            schema=TRUTH,
        )
        return table, secrets

    def _solve_intercepts(self, rng: np.random.Generator) -> tuple[float, float, float]:
        """The intercepts that meet the rates on a pilot of 65,536 impressions spread over the period."""
        truth = self.truth(self.rows(rng, (np.arange(PILOT) + 0.5) / PILOT))
        click, buy, like = (np.log(p / (1 - p)) for p in map(np.float64, truth[:3]))
        c = _intercept(click, self.feed.click_rate, np.ones(PILOT))
        b = _intercept(buy, self.feed.buy_rate, 1 / (1 + np.exp(-c - click)))
        return c, b, _intercept(like, self.feed.like_rate, np.ones(PILOT))


def _vectors(rng: np.random.Generator, age: Ints, group: Ints, groups: int) -> Floats:
    """(U, 4) of mean 0 and variance 1: .4 from the age, .3 from the group, .3 of one's own."""
    by_age = 2**0.5 * np.sin(age[:, None] / 12 + 2 * np.pi * rng.random(FACTORS))
    by_group = rng.standard_normal((groups, FACTORS))[group]
    own = rng.standard_normal((age.size, FACTORS))
    vectors: Doubles = 0.4**0.5 * by_age + 0.3**0.5 * by_group + 0.3**0.5 * own
    return vectors.astype(np.float32)


def _facing(rng: np.random.Generator, group: Ints, tags: Ints, held: Doubles) -> Floats:
    """(I, 4) of mean 0 and variance 1: .5 from the group, .2 from the tags held (I, 4), .3 of one's own."""
    by_group = rng.standard_normal((len(CATEGORIES), FACTORS))[group]
    by_tag = np.einsum("it,itk->ik", held, rng.standard_normal((TAGS, FACTORS))[tags])
    own = rng.standard_normal((group.size, FACTORS))
    vectors: Doubles = 0.5**0.5 * by_group + 0.2**0.5 * by_tag + 0.3**0.5 * own
    return vectors.astype(np.float32)


def _falling(count: int) -> Doubles:
    """Shares that fall with the square root of the rank."""
    weights = np.arange(1, count + 1) ** -0.5
    shares: Doubles = weights / weights.sum()
    return shares


def _power_law(count: int, exponent: float, rng: np.random.Generator) -> Doubles:
    """Cumulative weights of ids in order of arrival, their popularity ranks being a random order."""
    return np.cumsum((rng.permutation(count) + 1.0) ** -exponent)


def _draw(shares: Doubles, new: float, progress: Doubles, rng: np.random.Generator) -> Ints:
    """For each moment one of the ids that have arrived by then, in proportion to its weight."""
    late = int(shares.size * new)
    present = shares.size - late + (progress * late).astype(np.int64)
    chosen = np.searchsorted(shares, rng.random(progress.size) * shares[present - 1], side="right")
    return np.minimum(chosen, present - 1)


def _clock(days: int) -> tuple[Doubles, Doubles]:
    """Share of the rows shown by each full hour, and the second of that hour; evenings are busiest."""
    hours = np.arange(days * 24)
    busy = 1.2 + np.cos(2 * np.pi / 24 * (hours + 0.5 - 20))
    shown: Doubles = np.concatenate(([0.0], np.cumsum(busy) / busy.sum()))
    full_hours = np.arange(hours.size + 1) * np.float64(3_600)
    return shown, full_hours


def _sigmoid(logit: Floats) -> Floats:
    return (1 / (1 + np.exp(-logit))).astype(np.float32)


def _intercept(logit: Doubles, rate: float, weight: Doubles) -> float:
    """The number to add to the logits for their weighted mean probability to be ``rate``, by bisection."""
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = np.average(1 / (1 + np.exp(-middle - logit)), weights=weight)
        low, high = (middle, high) if mean < rate else (low, middle)
    return (low + high) / 2


def _words(values: tuple[str, ...] | pa.Array, index: Ints) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pa.array(values))


_WORD = pa.dictionary(pa.int32(), pa.string())
TABLE = pa.schema(
    [
        ("row_id", pa.int64()),
        ("time", pa.timestamp("ms")),
        ("user", pa.int64()),
        ("item", pa.int64()),
        ("category", _WORD),
        ("publisher", _WORD),
        ("tags", pa.string()),
        ("price", pa.float64()),
        ("age", pa.int16()),
        ("device", _WORD),
        ("country", _WORD),
        ("position", pa.int8()),
        ("click", pa.int8()),
        ("buy", pa.int8()),
        ("like", pa.int8()),
        ("watch_seconds", pa.float32()),
    ]
)
TRUTH = pa.schema(
    [("row_id", pa.int64())]
    + [(name, pa.float32()) for name in ("p_click", "p_buy_given_click", "p_buy", "p_like", "expected_watch_seconds")]
)
REPEATED = ["user", "item", "category", "publisher", "tags", "price", "age", "device", "country", "position"]
"""Columns of few values each, worth a dictionary in the files."""
