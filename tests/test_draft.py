"""Drafted experiments: what they say to their reader, and that they are experiments."""

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow.feather import write_feather

from multigate.data.encoder import Encoder
from multigate.draft import draft
from multigate.errors import DataError, ExperimentError
from multigate.experiment import make_experiment
from multigate.schema import Task


@pytest.fixture
def table(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    rows = 3000
    click = draw.integers(0, 2, rows)
    columns = {
        "row_id": np.arange(rows),
        "colour": draw.choice(["red", "green", "blue"], rows),
        "amount": draw.lognormal(size=rows),
        "told_afterwards": click * 2.0 + draw.normal(size=rows) * 0.01,
        "always": ["same"] * rows,
        "click": click,
        "grade": draw.choice(["a", "b", "c"], rows),
    }
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return path


TOLD = "# Numbers, days and lists to people, text here:\n"


def told_of(text: str) -> dict[str, str]:
    """What the head of a draft says of columns that people would read otherwise, by column."""
    told = text.partition(TOLD)[2].partition("\n\n")[0].partition("\n#\n")[0].splitlines()
    return dict(line.removeprefix("#   ").split(": ", 1) for line in told)


def test_numbers_written_for_people_are_told(tmp_path: Path) -> None:
    rows = [f'"{1000 + i:,}.50",{i % 40}%,${i % 30}.99,{i % 20},"a,{i % 5}",{i % 2}' for i in range(2000)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["unique,share,price,plain,mixed,click", *rows]))
    said = told_of(draft(path, ["click"]))
    assert list(said) == ["unique", "share", "price"]
    assert "such as '1,000.50'; write plain numbers" in said["unique"]


def test_labels_whose_predictions_are_too_low_in_total_are_told_where_their_logarithm_is_fitted(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    buy = draw.random(2000) < 0.05
    spent = np.where(buy, draw.lognormal(3, size=2000), 0.0)
    seconds = draw.lognormal(3, 2, size=2000)
    level = np.append(draw.normal(100, 5, size=1999), 400)  # one is far off, and the logarithm says the total
    columns = {"x": draw.normal(size=2000), "buy": buy, "revenue": spent, "seconds": seconds, "level": level}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    said = draft(path, ["buy", "revenue", "seconds", "level"])
    assert said.count("transform: log1p") == 3
    assert "% of the labels are 0; set transform: standard or recalibrate: platt" in said
    assert "#   revenue: 9" in said
    share = np.expm1(np.log1p(seconds).mean()) / seconds.mean()
    assert f"#   seconds: the mean of the logarithm stands for {share:.0%} of the mean of the labels; set" in said
    assert "#   level:" not in said
    for name in ("revenue", "seconds"):
        for more in ({"transform": "log1p"}, {"where": "buy"}):
            task = Task.model_validate({"name": name, "kind": "regression"} | more)
            assert f"#   {name}:" not in draft(path, ["buy", task])


def test_numbers_in_text_are_told(tmp_path: Path) -> None:
    """Decimal commas, other separators, numbers but for a few texts, and plain numbers whose column is text."""
    n = 2000
    columns = {
        "comma": [f"{i % 70},{i % 10}" for i in range(n)],
        "german": [f"{1 + i % 7}.{i % 900 + 100},50" for i in range(n)],
        "swiss": [f"{1 + i % 7}'{i % 90 + 100}" for i in range(n)],
        "quoted": [f"{1 + i % 7}\u2019{i % 90 + 100}.5" for i in range(n)],
        "millions": [f"{1 + i % 7}.{i % 900 + 100}.000" for i in range(n)],
        "debit": [f"{i % 70},{i % 10}" + "-" * (i % 2) for i in range(n)],
        "euros": [f"{i % 70},{i % 10} EUR" for i in range(n)],
        "power": [f"{1 + i % 9},{i % 70}E+0{i % 9}" for i in range(n)],
        "french": [f"{1 + i % 7}\u202f{i % 90 + 100},5" for i in range(n)],
        "ledger": [f"({i % 70}.5)" if i % 3 else f"{i % 70}.5" for i in range(n)],
        "below": ["<0.5" if i % 5 == 0 else f"{i % 70}.{i % 9}" for i in range(n)],
        "blank": [" " if i % 50 == 7 else f"{i}.25" for i in range(n)],
        "plain": [None if i % 9 == 0 else "" if i % 9 == 1 else f"{i % 70}.5" for i in range(n)],
        "code": [f"{i % 70:03d}" for i in range(n)],
        "flat": [f"{i % 70}{'a' if i % 2 else ''}" for i in range(n)],
        "place": [f"{i % 40}.{i % 9},{i % 30}.{i % 7}" for i in range(n)],
        "version": [f"{i % 30}.{i % 7}" + (f".{i % 4}" if i % 2 else "") for i in range(n)],
        "clock": [f"{i % 24:02d}:{i % 60:02d}" for i in range(n)],
        "few": [f"{i % 3}.5" for i in range(n)],
        "change": [f"{i % 70 - 35:+d}" for i in range(n)],
        "telephone": [f"+49{i % 70 + 1000}" for i in range(n)],
        "click": [i % 2 for i in range(n)],
    }
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    text = draft(path, ["click"])
    said = told_of(text)
    formats = ["comma", "german", "swiss", "quoted", "millions", "debit", "euros", "power", "french", "ledger"]
    assert list(said) == [*formats, "below", "blank", "plain", "change"]
    assert said["comma"] == "holds text such as '0,0'; write plain numbers (1234.56) to have it as one"
    assert said["below"].startswith("holds numbers, but also text such as '<0.5'; leave such cells empty")
    assert said["blank"].startswith("holds numbers, but also text such as ' '; leave")
    assert said["plain"] == "holds numbers as text, such as '2.5'; give it the kind number to have it as one"
    assert said["change"] == "holds numbers as text, such as '-35'; give it the kind number to have it as one"
    schema = make_experiment(yaml.safe_load(text.replace("plain, kind: category", "plain, kind: number"))).schema
    encoder = Encoder.fit(schema, pa.table(columns).to_batches())
    at = [column.feature for column in encoder.layout.numbers].index("plain")
    encoded = encoder.columns(pa.table(columns).to_batches()[0]).numbers[:, at].numpy()
    assert np.unique(encoded).size == 71, "70 numbers, and missing"


def test_text_that_may_be_thousands_is_not_told_to_be_a_number(tmp_path: Path) -> None:
    """As a number 1.234 would be one and a fifth."""
    rows = "\n".join(f"{40 + i % 60}.{100 + i % 900},50;{1 + i % 9}.{100 + i % 900};{i % 2}" for i in range(300))
    (tmp_path / "rows.csv").write_text(f"salary;visitors;click\n{rows}\n")
    said = told_of(draft(tmp_path / "rows.csv", ["click"]))
    assert list(said) == ["salary", "visitors"]
    assert said["visitors"] == (
        "holds text such as '1.100', which may be thousands; write plain numbers (1234.56) to have it as one"
    )


def test_whole_numbers_and_decimal_commas_with_a_few_texts_among_them_are_told(tmp_path: Path) -> None:
    """Incomes with n/a, ages up to 90+, results below 5; neither codes, nor lists, nor ids with a word."""
    n, odd = 2000, [i % 11 == 0 for i in range(2000)]
    columns = {
        "income": ["n/a" if at else f"{1000 + 7 * i}" for i, at in enumerate(odd)],
        "age": ["90+" if at else f"{18 + i % 72}" for i, at in enumerate(odd)],
        "crp": ["< 5" if at else f"{i % 300}" for i, at in enumerate(odd)],
        "comma": ["<0,5" if at else f"{i % 70},{i % 10}" for i, at in enumerate(odd)],
        "money": ["." if at else f"${i % 700}" for i, at in enumerate(odd)],
        "sheet": ["#DIV/0!" if at else f"{i % 700}" for i, at in enumerate(odd)],
        "zip": ["unknown" if at else f"{10000 + i % 300}" for i, at in enumerate(odd)],
        "padded": ["none" if at else f"{i % 300:03d}" for i, at in enumerate(odd)],
        "icd": ["V27" if at else f"{i % 300}" for i, at in enumerate(odd)],
        "listed": ["1,2,3" if at else f"{i % 70},{i % 10}" for i, at in enumerate(odd)],
        "grade": ["none" if at else f"{i % 9}" for i, at in enumerate(odd)],
        "bare": [f"{i % 300}" for i in range(n)],
        "click": [i % 2 for i in range(n)],
    }
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    text = draft(path, ["click"])
    said = told_of(text)
    assert list(said) == ["income", "age", "crp", "comma", "money", "sheet"]
    for name, odd_one in (("income", "n/a"), ("age", "90+"), ("crp", "< 5"), ("comma", "<0,5"), ("sheet", "#DIV/0!")):
        assert said[name].startswith(f"holds numbers, but also text such as '{odd_one}'; leave such cells empty")
    emptied = pa.table(columns | {"income": [None if at else 1000 + 7 * i for i, at in enumerate(odd)]})
    pq.write_table(emptied, path)
    assert "{name: income, kind: number}" in draft(path, ["click"]), "the advice works"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([f"{i % 70}.5%" for i in range(2000)], "holds text such as '0.5%'; write plain numbers"),
        ([f"{i % 70},5" for i in range(2000)], "holds text such as '0,5'; write plain numbers"),
        (["n/a" if i % 9 == 0 else f"{i % 70}.5" for i in range(2000)], "also text such as 'n/a'; leave such cells"),
        (["lost" if i % 9 == 0 else f"{i % 700}" for i in range(2000)], "also text such as 'lost'; leave such cells"),
        ([f"{i % 70}.5" for i in range(2000)], "numbers as text, such as '0.5'; store them as numbers"),
        (["a", "b", "c", "1"] * 500, ""),
        (["1", "2", "3", "no answer"] * 500, ""),
        (["0", "1", "0", "n/a"] * 500, "holds 0, 1 and text such as 'n/a'; leave such cells empty to have it binary"),
        (["0", "1", "0", "A2"] * 500, ""),
    ],
    ids=["percent", "comma", "stray", "stray_whole", "text", "classes", "grades", "stray_truth", "code"],
)
def test_labels_that_are_numbers_to_people_are_told(tmp_path: Path, values: list[str], told: str) -> None:
    """They are drafted as classes, hundreds of them."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": np.arange(2000) % 13, "amount": values}), path)
    header = draft(path, ["amount"]).partition("\nschema:\n")[0]
    assert ("#   amount: " in header) == bool(told)
    assert told in header


def test_many_whole_numbers_that_are_classes_are_told(tmp_path: Path) -> None:
    """Test scores and counts look like codes."""
    draw = np.random.default_rng(0)
    scores = 320 + 9 * draw.binomial(36, 0.5, size=2000)
    columns = {"x": np.arange(2000) % 13, "maths": scores, "stars": draw.integers(1, 6, 2000)}
    columns |= {"grade": [f"{one}" for one in scores], "tested": pa.array(scores.tolist()).dictionary_encode()}
    path = tmp_path / "rows.feather"
    write_feather(pa.table(columns), path)
    text = draft(path, ["maths", "stars", "tested"])
    assert text.count("kind: multiclass") == 3
    many = len(set(scores.tolist()))
    assert f"#   maths: holds {many} whole numbers, a class each, whose order is not learnt; set kind: reg" in text
    assert "#   stars:" not in text
    assert "#   tested:" not in text, "declared as categories"
    for kind in ("regression", "multiclass"):
        assert "#   maths:" not in draft(path, [Task("maths", kind=kind)]), "the advice works"
    assert "whole numbers" not in draft(path, ["grade"])


@pytest.mark.parametrize("other", [-1, 9, 99, 1500, 2])
def test_a_label_of_0_1_and_a_number_that_is_no_class_is_told(tmp_path: Path, other: int) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": np.arange(2000) % 13, "bought": [0, 1, 1, other] * 500}), path)
    head = draft(path, ["bought"]).partition("\nschema:\n")[0]
    assert (f"#   bought: holds 0, 1 and {other}; leave such cells empty to have it binary" in head) == (other != 2)
    assert "bought" not in draft(path, [Task("bought", kind="multiclass")]).partition("\nschema:\n")[0]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["yes", "no", "NA"], ["holds 'NA', which is a class; leave such cells empty to have it binary"]),
        (["True", "False", "-"], ["holds '-', which is a class; leave such cells empty to have it binary"]),
        (
            ["red", "blue", "green", " "],
            ["holds ' ', which is a class; leave such cells empty where the label is unknown"],
        ),
        (["1", "2", "3", "unknown"], ["holds 'unknown', which is a class; leave such cells empty where the label is"]),
        (["Yes", "yes", "No"], ["holds 'Yes' and 'yes', a class each; write them alike"]),
        (["no", "no ", "yes", "?"], ["holds 'no' and 'no ', a class each", "holds '?', which is a class"]),
        (["low", "mid", "high", "not low"], []),
    ],
)
def test_labels_with_classes_that_are_none_are_told(tmp_path: Path, values: list[str], told: list[str]) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": np.arange(2400) % 13, "bought": values * (2400 // len(values))}), path)
    head = draft(path, ["bought"]).partition("\nschema:\n")[0]
    assert head.count("#   bought: ") == len(told)
    assert all(f"#   bought: {one}" in head for one in told)
    assert "bought" not in draft(path, [Task("bought", kind="multiclass")]).partition("\nschema:\n")[0]


@pytest.mark.parametrize("repeated", [30, 31])
def test_classes_that_mostly_have_a_single_row_are_told(tmp_path: Path, repeated: int) -> None:
    """As names and free text have, from which nothing can be learnt."""
    names = [f"name {i}" for i in range(30)] + [f"repeated {i}" for i in range(repeated)] * 9
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": np.arange(len(names)) % 13, "owner": names}), path)
    head = draft(path, ["owner"]).partition("\nschema:\n")[0]
    assert "#   owner:" not in head
    pq.write_table(pa.table({"x": np.arange(len(names) + 2) % 13, "owner": [*names, "a", "b"]}), path)
    head = draft(path, ["owner"]).partition("\nschema:\n")[0]
    told = f"#   owner: 32 of its {32 + repeated} classes have a single row, from which nothing is learnt; group them,"
    assert told in head
    assert "#   owner:" not in draft(path, [Task("owner", kind="multiclass")]).partition("\nschema:\n")[0]


def test_labels_of_too_many_classes_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": np.arange(3000) % 13, "amount": [f"{i}.5 EUR" for i in range(3000)]}), path)
    with pytest.raises(DataError, match="too many classes; group them, or write plain numbers for a regression"):
        draft(path, ["amount"])


def test_days_and_lists_written_for_people_are_told(tmp_path: Path) -> None:
    day = [dt.date(2024, 1, 1) + dt.timedelta(days=i % 200) for i in range(2000)]
    columns = {
        "us": [f"{one:%m/%d/%Y}" for one in day],
        "german": [f"{one:%d.%m.%Y %H:%M}" for one in day],
        "short": [f"{one.month}/{one.day}/{one:%y}" for one in day],
        "year_first": [f"{one:%Y/%m/%d}" for one in day],
        "listed": [str(["red", "it's"][: i % 3]) for i in range(2000)],
        "printed": [str(np.array([i % 7, i % 5 + 0.25])) for i in range(2000)],
        "iso": [str(one) for one in day],
        "version": [f"1.{i % 30}.{i % 7}" for i in range(2000)],
        "bracket": [f"[{10 * (i % 5)}-{10 * (i % 5) + 9}]" for i in range(2000)],
        "range": [f"[{i % 5}, {i % 5 + 1})" for i in range(2000)],
        "mixed": [f"{one:%m/%d/%Y}" if at else "soon" for at, one in enumerate(day)],
        "unknown": [f"{one:%d.%m.%Y}" if at % 9 else "n/a" for at, one in enumerate(day)],
        "month": [f"{one:%d-%b-%Y}" for one in day],
        "spoken": [f"{one:%B %d, %Y}" for one in day],
        "half_day": [f"{one} 0{at % 9 + 1}:30 PM" for at, one in enumerate(day)],
        "zone": [f"{one} 10:00:00 UTC" for one in day],
        "holes": [str(one) if at % 9 else "-" for at, one in enumerate(day)],
        "lost": [str(one) if at % 9 else "lost" for at, one in enumerate(day)],
        "march": [("Mar 3", "May 10", "10 May")[i % 3] for i in range(2000)],
        "click": [i % 2 for i in range(2000)],
    }
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    text = draft(path, ["click"])
    assert set(told_of(text)) == {
        "us", "german", "short", "year_first", "listed", "printed",
        "unknown", "month", "spoken", "half_day", "zone", "holes",
    }  # fmt: skip
    assert "holds times, but also text such as '-'; leave such cells empty" in told_of(text)["holes"]
    assert "such as '01/01/2024'; write it as ISO 8601 (2024-05-31) to have it as a time" in told_of(text)["us"]
    assert "- {name: iso, kind: time" in text


def test_the_header_tells_leaks_and_what_was_left_out(table: Path) -> None:
    text = draft(table, ["click", "grade"])
    header, _, body = text.partition("\nschema:\n")
    assert all(line.startswith("#") for line in header.splitlines() if line)
    assert "told_afterwards" in header
    assert "always" in header
    assert "row_id" in header
    experiment = make_experiment(yaml.safe_load("schema:\n" + body))
    assert {feature.name for feature in experiment.schema.features} == {"colour", "amount", "told_afterwards"}
    assert [(task.name, task.kind) for task in experiment.schema.tasks] == [
        ("click", "binary"),
        ("grade", "multiclass"),
    ]
    assert experiment.train == str(table)


def test_one_feature_a_line_so_that_one_can_be_struck_out(table: Path) -> None:
    assert "    - {name: colour, kind: category}\n" in draft(table, ["click"])


def test_settings_go_into_the_file(table: Path) -> None:
    experiment = make_experiment(
        yaml.safe_load(draft(table, ["click"], ["epochs=2", "sharing=omoe", "schema.group=colour"]))
    )
    assert experiment.epochs == 2
    assert experiment.sharing.to_dict()["structure"] == "omoe"
    assert experiment.schema.group == "colour"


def test_progress_is_told(table: Path) -> None:
    told: list[int] = []
    draft(table, ["click"], progress=lambda stage, done, total: told.append(done))
    assert told[-1] == 3000


def test_what_cannot_be_is_refused(table: Path) -> None:
    with pytest.raises(ExperimentError, match="tasks="):
        draft(table, [])
    with pytest.raises(DataError, match="always"):
        draft(table, ["always"])
    with pytest.raises(ExperimentError, match="epochs"):
        draft(table, ["click"], ["epoch=3"])


def test_types_may_be_set_one_by_one_or_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user.age,c,a\n" + "".join(f"{20 + i % 50},v{i % 5},{i % 2}\n" for i in range(300)))
    whole = yaml.safe_load(draft(path, ["a"]))["schema"]["types"]
    assert whole == {"user.age": "int64", "c": "string", "a": "int64"}
    for changes in (["schema.types.user.age=string"], ["schema.types={user.age: string}"]):
        schema = yaml.safe_load(draft(path, ["a"], changes))["schema"]
        assert schema["types"] == whole | {"user.age": "string"}  # the others stay frozen
        assert {one["name"]: one["kind"] for one in schema["features"]} == {"user.age": "category", "c": "category"}


@pytest.mark.parametrize("value", ["5", "null", "[a]", "{age: string}"])
def test_a_type_is_a_word(table: Path, value: str) -> None:
    with pytest.raises(ExperimentError, match=r"schema\.types\.amount: wanted the name of a type"):
        draft(table, ["click"], [f"schema.types.amount={value}"])
    with pytest.raises(ExperimentError, match=r"schema\.types: wanted types by the names of columns, found 5"):
        draft(table, ["click"], ["schema.types=5"])


def test_features_and_tasks_by_name_keep_what_is_said_of_them(table: Path) -> None:
    changes = ["schema.features={amount: number}", "schema.tasks={click: {weight: 3}, grade: {kind: multiclass}}"]
    experiment = make_experiment(yaml.safe_load(draft(table, ["click", "grade"], changes)))
    assert [(one.name, one.kind) for one in experiment.schema.features] == [("amount", "number")]
    assert [(one.name, one.kind, one.weight) for one in experiment.schema.tasks] == [
        ("click", "binary", 3.0),
        ("grade", "multiclass", 1.0),
    ]


def test_a_draft_says_beside_the_group_that_it_splits(tmp_path):
    rows = 3_000
    columns = {"user_id": [f"u{at % 500}" for at in range(rows)], "x": [at % 97 / 7 for at in range(rows)]}
    columns |= {"y": [at % 2 for at in range(rows)], "at": [f"2026-01-{at % 28 + 1:02d}" for at in range(rows)]}
    grouped, timed = tmp_path / "grouped.parquet", tmp_path / "timed.parquet"
    pq.write_table(pa.table({name: columns[name] for name in ("user_id", "x", "y")}), grouped)
    pq.write_table(pa.table(columns), timed)
    group = "  group: user_id"
    told = f"{group}  # each is in one part of the split alone; to predict for known ones, set split: {{by: fraction}}"
    assert told in draft(grouped, ["y"]).splitlines()
    assert group in draft(grouped, ["y"], ["split.by=fraction"]).splitlines()
    assert group in draft(timed, ["y"]).splitlines()
    assert yaml.safe_load(draft(grouped, ["y"]))["schema"]["group"] == "user_id"
