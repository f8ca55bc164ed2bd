"""A model card says what scikit-learn finds in the predictions, and other parsers read it whatever names are in it."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from reading import BAD_TASK, QUOTES, Trainings
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, log_loss, r2_score, roc_auc_score

import multigate as mg
from multigate.data.prepared import Prepared
from multigate.data.rows import join
from multigate.errors import BundleError, RunError
from multigate.report.card import _Card, _page, _table
from processes import run

HUB = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")
"""How huggingface_hub finds the front matter."""
PARSER = MarkdownIt("commonmark").enable("table")


def tables(text: str) -> list[list[list[str]]]:
    """Rows of cells of each table, as a Markdown parser shows them; markup in a cell is an error."""
    found: list[list[list[str]]] = []
    tokens = PARSER.parse(text)
    for at, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            children = tokens[at + 1].children or []
            assert {child.type for child in children} <= {"text", "text_special"}
            found[-1][-1].append("".join(child.content for child in children))
    return found


class Card:
    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        front = HUB.search(text)
        assert front
        self.front: dict[str, Any] = yaml.safe_load(front[2])
        self.body = text[front.end() :]
        self.tables = tables(self.body)

    def rows(self, *head: str) -> list[list[list[str]]]:
        """Of each table with such a head, what is under it."""
        return [table[1:] for table in self.tables if table[0][: len(head)] == list(head)]


@pytest.fixture(scope="module")
def card(trainings: Trainings, tmp_path_factory: pytest.TempPathFactory) -> Card:
    return Card(mg.write_card(trainings.run, tmp_path_factory.mktemp("card") / "README.md"))


@pytest.fixture(scope="module")
def truth(trainings: Trainings) -> tuple[np.ndarray, np.ndarray]:
    """Outputs (R, O) and labels (R, T) of the validation rows."""
    prepared = Prepared(trainings.run.folder / "prepared")
    assert prepared.valid is not None
    rows = join(list(prepared.valid.batches(8192)))
    outputs = trainings.run.bundle().model(rows.numbers, rows.categories, rows.bags).logits.detach().numpy()
    return outputs.astype(np.float64), rows.labels.numpy()


def test_metrics_are_those_of_the_validation_rows(card: Card, truth: tuple[np.ndarray, np.ndarray]) -> None:
    outputs, labels = truth
    chances = 1 / (1 + np.exp(-outputs[:, 2]))
    expected = {
        (BAD_TASK, "auc"): ("roc_auc", roc_auc_score(labels[:, 0], outputs[:, 0])),
        ("rare", "auc"): ("roc_auc", roc_auc_score(labels[:, 2], outputs[:, 2])),
        ("rare", "pr_auc"): ("average_precision", average_precision_score(labels[:, 2], outputs[:, 2])),
        ("rare", "log_loss"): ("log_loss", log_loss(labels[:, 2], chances)),
        ("value", "r2"): ("r_squared", r2_score(labels[:, 3], outputs[:, 3])),
    }
    shown = {(task, metric.split()[0]): cells for task, metric, *cells in card.rows("task", "metric")[0]}
    stored = {
        (one["task"]["name"], figure["name"]): (figure["type"], figure["value"])
        for one in card.front["model-index"][0]["results"]
        for figure in one["metrics"]
    }
    for name, (hub, value) in expected.items():
        assert float(shown[name][0]) == pytest.approx(value, abs=6e-5)
        low, high = map(float, shown[name][1].split(" to "))
        assert low < value < high
        assert stored[name] == (hub, pytest.approx(value, rel=1e-4))
    assert stored.keys() == shown.keys(), "every metric of every task and conditional, in both"


def test_calibration_is_observed(card: Card, truth: tuple[np.ndarray, np.ndarray]) -> None:
    outputs, labels = truth
    chances = 1 / (1 + np.exp(-outputs[:, 0]))
    observed, predicted = calibration_curve(labels[:, 0], chances, n_bins=10, strategy="quantile")
    rows = card.rows("rows", "predicted", "observed")[0]
    assert sum(int(row[0]) for row in rows) == len(labels)
    assert [float(row[1]) for row in rows] == pytest.approx(list(predicted), abs=0.02)
    assert [float(row[2]) for row in rows] == pytest.approx(list(observed), abs=0.06), "edges differ by a row"


def test_gates_are_the_mean_of_those_predicted(trainings: Trainings, card: Card) -> None:
    prepared = Prepared(trainings.run.folder / "prepared")
    assert prepared.valid is not None
    rows = join(list(prepared.valid.batches(8192)))
    gate = trainings.run.bundle().model(rows.numbers, rows.categories, rows.bags).gates[0].detach().numpy()
    shown = np.array([[float(cell) for cell in row[1:]] for row in card.rows("expert")[0]])
    assert shown == pytest.approx(gate.mean(axis=0).T, abs=6e-4)


def test_tasks_and_limits_are_those_of_the_rows(
    trainings: Trainings, card: Card, truth: tuple[np.ndarray, np.ndarray]
) -> None:
    tasks = {row[0]: row for row in card.rows("task", "kind", "label")[0]}
    train = trainings.run.summary["rows"]["train"]
    assert all(row[4] == f"{train:,} (100 %)" for row in tasks.values())
    assert tasks["buy"][3] == f"all, as buy|{BAD_TASK} times {BAD_TASK}; buy|{BAD_TASK} where {BAD_TASK} is 1"
    assert QUOTES in tasks["size"][2]
    outputs, labels = truth
    assert f"rare is 1 in {int(labels[:, 2].sum())} of {len(labels)} validation rows" in card.body
    ratio = (1 / (1 + np.exp(-outputs[:, 2]))).sum() / labels[:, 2].sum()
    assert (f"rare is predicted {ratio:.2f} times" in card.body) == (not 0.9 <= ratio <= 1.1)


def test_what_only_biases_a_task_is_not_among_what_predictions_read(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    table = {"x": draws.normal(size=60), "place": draws.integers(0, 3, 60), "click": draws.integers(0, 2, 60)}
    features = (mg.Number("x"), mg.Category("place", use="bias:click"))
    schema = mg.Schema(features=features, tasks=(mg.Task("click"),))
    experiment = mg.Experiment(schema=schema, sharing=mg.SharedBottom(hidden=(4,)), epochs=1)
    run = mg.train(experiment, tmp_path / "run", tables={"train": table}, quiet=True)
    card = Card(mg.write_card(run, tmp_path / "card.md"))
    assert "predicts click from 1 feature of" in card.body
    assert card.rows("kind", "features", "names") == [[["number", "1", "x"]]]
    assert "Read in training alone, to explain a task's bias away: place (click)." in card.body


def test_the_front_matter_is_what_the_hub_takes(card: Card) -> None:
    """The fields that huggingface_hub's ``model_index_to_eval_results`` reads are there, each of its type."""
    assert card.front["library_name"] == "multigate"
    assert card.front["pipeline_tag"] in ("tabular-classification", "tabular-regression")
    assert all(isinstance(tag, str) for tag in card.front["tags"] + card.front["metrics"])
    (model,) = card.front["model-index"]
    assert model["name"] == "mmoe"
    for result in model["results"]:
        assert {type(result["task"][key]) for key in ("type", "name")} == {str}
        assert {type(result["dataset"][key]) for key in ("type", "name", "split")} == {str}
        assert result["dataset"]["split"] == "validation"
        for figure in result["metrics"]:
            assert figure["type"] in card.front["metrics"]
            assert isinstance(figure["value"], float)
            assert np.isfinite(figure["value"])


def test_its_code_runs_from_its_folder(
    trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a run's `copy`"
    shutil.copytree(trainings.run.folder, folder)
    for place in (folder / "README.md", folder / "bundle" / "README.md", tmp_path / "cards" / "card.md"):
        text = mg.write_card(folder, place).read_text(encoding="utf-8")
        (code,) = [token.content for token in PARSER.parse(text) if token.info == "python"]
        monkeypatch.chdir(place.parent)
        exec(code, {})
        columns = trainings.run.bundle().schema.columns(labels=False, carried=False)
        assert capsys.readouterr().out.strip() == str(mg.load(folder).predict(dict.fromkeys(columns)))


def test_without_its_rows_it_says_what_the_training_kept(trainings: Trainings, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trainings.run.folder, folder, ignore=shutil.ignore_patterns("prepared"))
    card = Card(mg.write_card(folder, tmp_path / "card.md"))
    shown = {f"{task}/{metric.split()[0]}": cells for task, metric, *cells in card.rows("task", "metric")[0]}
    for name, value in trainings.run.best.items():
        assert shown[name][1] == "", "an interval"
        assert float(shown[name][0]) == pytest.approx(value, abs=6e-5)
    assert not card.rows("rows", "predicted")
    assert not card.rows("expert")


def test_windows_and_gaps_are_those_of_the_table(tmp_path: Path) -> None:
    """Split by time, a label unknown in places, one learnt on a part of the rows, users who come late."""
    random = np.random.default_rng(0)
    rows, first = 800, 600
    click = (random.random(rows) < 0.5).astype(int)
    buy = click * (np.arange(rows) % 2)
    user = [f"u{number}" for number in random.integers(0, 20, rows)]
    late = [at for at in range(first, rows) if at % 4 == 0]
    for at in late:
        user[at] = "new"
    like = [None if at % 5 == 0 else int(at % 3 == 0) for at in range(rows)]
    table = {"day": list(range(rows)), "user": user, "click": click.tolist(), "like": like, "buy": buy.tolist()}
    experiment = mg.Experiment(
        schema=mg.Schema(
            features=[mg.Category("user")],
            tasks=[mg.Task("click"), mg.Task("like", positive=1), mg.Task("buy", where="click")],
            outputs=[mg.Output("worth", expression="click * like")],
            time="day",
        ),
        sharing=mg.SharedBottom(hidden=(4,)),
        split={"by": "time", "valid_from": str(first)},
        recalibrate="platt",
        epochs=1,
        seed=7,
    )
    trained = mg.train(experiment, tmp_path / "run", tables={"train": table}, quiet=True)
    card = Card(mg.write_card(trained, tmp_path / "card.md"))
    facts = dict(row for table in card.rows("", "") for row in table)
    assert facts["training window"] == "day before 600"
    assert facts["validation window"] == "day from 600"
    assert facts["seed"] == "7"
    tasks = {row[0]: row for row in card.rows("task", "kind", "label")[0]}
    assert tasks["buy"][3] == "where click is 1"
    assert tasks["buy"][4].startswith(f"{click[:first].sum()} (")
    assert tasks["like"][2] == "column like is 1"
    assert tasks["like"][4:] == ["480 (80 %)", f"{100 * sum(one or 0 for one in like[:first]) / 480:.0f} %"]
    limits = card.body.partition("## Limitations")[2]
    assert "like is unknown in 20 % of the training rows" in limits
    assert "buy was learnt only where click is 1" in limits
    assert f"{100 * len(late) / (rows - first):.0f} % of validation rows have a user that no training row has" in limits
    assert "recalibrated on the validation rows" in limits
    bought, clicked = buy[first:].sum(), click[first:].sum()
    value, fewer = min((1, bought), (0, clicked - bought), key=lambda pair: pair[1])
    assert f"buy is {value} in {fewer} of {clicked} validation rows" in limits
    assert "it computes worth = click \\* like" in card.body
    assert not card.rows("expert"), "a shared bottom has no gates"


def test_rows_that_weigh_nothing_do_not_make_metrics_less_rough(tmp_path: Path) -> None:
    """1,000 validation rows, of which 50 count: 20 clicks, and 50 amounts."""
    at = np.arange(1000)
    counts = (at % 20 == 0).astype(float)
    tasks = [mg.Task("click", sample_weight="w"), mg.Task("amount", kind="regression", sample_weight="w")]
    table = {"x": at % 7, "click": at % 100 < 40, "amount": at % 13, "w": counts}
    experiment = mg.Experiment(schema=mg.Schema(features=[mg.Number("x")], tasks=tasks), epochs=1)
    run = mg.train(experiment, tmp_path / "run", tables={"train": table, "valid": table}, quiet=True)
    text = mg.write_card(run, tmp_path / "card.md").read_text(encoding="utf-8")
    assert "click is 1 in 20 of 50 validation rows that weigh anything: its metrics are rough." in text
    assert "amount is known in 50 validation rows that weigh anything: its metrics are rough." in text


def test_amounts_that_are_three_times_as_large_on_validation_rows_are_among_the_limits(tmp_path: Path) -> None:
    """Both labels change between the tables, amounts threefold and clicks from one in five to two."""
    at = np.arange(600)
    tasks = [mg.Task("click"), mg.Task("amount", kind="regression")]
    experiment = mg.Experiment(schema=mg.Schema(features=[mg.Number("x")], tasks=tasks), epochs=2)
    train = {"x": at % 7, "click": at % 5 < 1, "amount": 10.0 + at % 3}
    valid = train | {"click": at % 5 < 2, "amount": 3 * train["amount"]}
    run = mg.train(experiment, tmp_path / "run", tables={"train": train, "valid": valid}, quiet=True)
    limits = mg.write_card(run, tmp_path / "card.md").read_text(encoding="utf-8").partition("## Limitations")[2]
    for name, told in (("click", "often as it happens"), ("amount", "large as it is, in total,")):
        times = run.summary["best"][f"{name}/calibration"]
        assert times < 0.9
        assert f"{name} is predicted {times:.2f} times as {told} on validation rows." in limits


def test_a_task_that_nothing_was_learnt_for_is_among_the_limits(tmp_path: Path) -> None:
    at = np.arange(200)
    tasks = [mg.Task("click"), mg.Task("buy", weight=0)]
    table = {"x": at % 7, "click": at % 5 < 1, "buy": at % 3 < 1}
    experiment = mg.Experiment(schema=mg.Schema(features=[mg.Number("x")], tasks=tasks), epochs=1)
    run = mg.train(experiment, tmp_path / "run", tables={"train": table}, quiet=True)
    limits = mg.write_card(run, tmp_path / "card.md").read_text(encoding="utf-8").partition("## Limitations")[2]
    assert re.findall(r"(\w+) had weight 0: no loss of it was learnt from", limits) == ["buy"]


def test_what_chose_the_weights_is_what_the_rows_could_tell(tmp_path: Path) -> None:
    """No validation row is a click, which leaves their loss."""
    at = np.arange(400)
    rows = {"x": at % 7, "click": at % 5 < 2}
    experiment = mg.Experiment(schema=mg.Schema(features=[mg.Number("x")], tasks=[mg.Task("click")]), epochs=1)
    tables = {"train": rows, "valid": rows | {"click": at < 0}}
    run = mg.train(experiment, tmp_path / "run", tables=tables, quiet=True)
    card = Card(mg.write_card(run, tmp_path / "card.md"))
    assert ["chosen by", "click/log_loss"] in [row for table in card.tables for row in table]
    assert "Its weights were chosen by click/log_loss on validation rows" in card.body


def test_base_rates_are_those_that_labels_have_in_training(tmp_path: Path) -> None:
    """Weights count, and clicked rows whose purchase is unknown: half of them are, so that the known count twice."""
    at = np.arange(400)
    table = {
        "x": at % 7,
        "weight": np.where(at % 4 == 0, 3, 1),
        "rare": at % 4 == 0,
        "kind": np.where(at % 4 == 0, "a", "b"),
        "click": at % 2 == 0,
        "buy": [None if one % 4 == 2 else float(one % 8 == 0) for one in at],
    }
    weighed = {"sample_weight": "weight"}
    tasks = [
        {"name": "click"},
        {"name": "buy", "given": "click"},
        {"name": "rare"} | weighed,
        {"name": "kind", "kind": "multiclass"} | weighed,
    ]
    experiment = mg.Experiment(schema={"features": [{"name": "x", "kind": "number"}], "tasks": tasks}, epochs=1)
    made = mg.train(experiment, tmp_path / "run", tables={"train": table, "valid": table}, quiet=True)
    card = Card(mg.write_card(made, tmp_path / "card.md"))
    assert {row[0]: row[-1] for row in card.rows("task", "kind", "label")[0]} == {
        "click": "50 %",
        "buy": "25 %",
        "rare": "50 %",
        "kind": "a 50 % and b 50 %",
    }


def test_the_command_wants_no_extra(trainings: Trainings, tmp_path: Path, card: Card) -> None:
    words = ("report", trainings.run.folder, "--out", "card.md")
    ended = run(words, tmp_path, without=("altair", "jinja2", "vl_convert", "sklearn"))
    assert ended.code == 0, ended.told
    assert ended.said == "model card: card.md\n"
    assert Card(tmp_path / "card.md").front == card.front


@pytest.mark.parametrize(("out", "words"), [("", "is a folder"), ("card.html", "card.md"), ("file/card.md", "file")])
def test_where_no_card_can_be(trainings: Trainings, tmp_path: Path, out: str, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=words):
        mg.write_card(trainings.run, tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_comparison_has_no_card(trainings: Trainings, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="comparison"):
        mg.write_card(trainings.comparison.folder, tmp_path / "card.md")


NAMES = st.text(st.sampled_from("a|\\`*_~[](){}<>#:$&!@-+=.\"'%\n\r\t\u2028 é😀") | st.characters(codec="utf-8"))


@settings(deadline=None)
@given(st.lists(st.lists(NAMES, min_size=3, max_size=3), min_size=2, max_size=4))
def test_a_table_shows_its_cells_whatever_is_in_them(rows: Sequence[Sequence[str]]) -> None:
    (shown,) = tables(_table(rows[0], rows[1:]))
    assert [[_plain(cell) for cell in row] for row in shown] == [[_plain(cell) for cell in row] for row in rows]


@settings(max_examples=15, deadline=None)
@given(name=NAMES)
def test_a_card_stays_whole_whatever_its_run_is_called(trainings: Trainings, card: Card, name: str) -> None:
    text = _page(_Card(trainings.run, name), Path("card.md"))
    front = HUB.search(text)
    assert front
    assert yaml.safe_load(front[2])["model-index"][0]["name"] == name
    body = text[front.end() :]
    tokens = PARSER.parse(body)
    titles = [tokens[at + 1] for at, token in enumerate(tokens) if token.tag == "h1" and token.nesting == 1]
    assert [_plain("".join(child.content for child in title.children or [])) for title in titles] == [_plain(name)]
    assert all(len({len(row) for row in table}) == 1 for table in tables(body))
    assert len(tables(body)) == len(card.tables)


def test_a_bundle_is_not_replaced_under_its_card(trainings: Trainings, tmp_path: Path) -> None:
    bundle = trainings.run.bundle()
    bundle.save(tmp_path / "bundle")
    (tmp_path / "bundle" / "README.md").touch()
    with pytest.raises(BundleError, match=r"README\.md"):
        bundle.save(tmp_path / "bundle")


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
