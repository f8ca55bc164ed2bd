"""The page about relations, read back: every figure of the relations is on it, and charts are valid."""

import io
from pathlib import Path

import altair as alt
import pytest
from reading import Html, values
from rich.console import Console

from multigate.analysis.relations import Estimate, Gain, Group, Lookahead, Pair, Relations, Skill
from multigate.report.related import write_relations
from multigate.tables import relation_tables

BAD = "<script>alert(1)</script>"


def estimate(mean: float) -> Estimate:
    return Estimate(mean=mean, low=mean - 0.01, high=mean + 0.01, seeds=3)


def way(mean: float, error: float) -> Lookahead:
    return Lookahead(mean=mean, low=mean - 1e-6, high=mean + 1e-6, seeds=3, error=error)


def pair(one: str, other: str, score: float, gains: tuple[Gain, ...] = ()) -> Pair:
    return Pair(
        tasks=(one, other),
        score=score,
        overlap=estimate(score),
        labels=None if other == BAD else -0.3,
        gradients=estimate(0.05),
        lookahead=(way(2e-5, 1e-6), way(-1e-5, 6e-6 if other == BAD else 4e-6)),
        gates=estimate(0.25),
        gains=gains,
        advice="share" if score > 0.5 else "train alone",
        structure="shared_bottom" if gains else None,
        why=f"because of {score}",
    )


def gain(structure: str, task: str, metric: str, mean: float) -> Gain:
    by_seed = (mean - 0.01, mean, mean + 0.01)
    return Gain(
        structure=structure,
        hard=True,
        task=task,
        metric=metric,
        alone=0.7,
        alone_with="mmoe",
        by_seed=by_seed,
        gain=estimate(mean),
    )


GAINS = (
    gain("shared_bottom", "click", "auc", 0.02),
    gain("shared_bottom", "watch", "r2", -0.005),
    gain("mmoe", "click", "auc", 0.003),
    gain("mmoe", "watch", "r2", -0.03),
)
RELATIONS = Relations(
    tasks=("click", "watch", BAD),
    seeds=3,
    rows="500 validation rows",
    structures=("shared_bottom", "mmoe"),
    skills=(
        Skill(task="click", metric="auc", value=0.71, chance=0.5, error=0.02, learnt=True),
        Skill(task="watch", metric="r2", value=0.2, chance=0.0, error=0.01, learnt=True),
        Skill(task=BAD, metric="auc", value=None, chance=0.5, error=None, learnt=False),
    ),
    pairs=(pair("click", "watch", 0.9, GAINS), pair("click", BAD, 0.3), pair("watch", BAD, 0.1)),
    groups=(Group(tasks=("click", "watch"), advice="share"), Group(tasks=(BAD,), advice="train alone")),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Html:
    path = write_relations(RELATIONS, tmp_path_factory.mktemp("page") / "relations.html")
    return Html(path.read_text(encoding="utf-8"))


def test_every_pair_and_group_is_told(page: Html) -> None:
    assert page.rows("click + watch") == [["click + watch", "share", "shared_bottom", "because of 0.9"]]
    assert [row[:2] for row in page.rows(f"click + {BAD}")] == [[f"click + {BAD}", "train alone"]]
    told = " ".join(page.texts["li"]) + " ".join(page.texts["strong"])
    assert "click and watch:" in told
    assert page.rows("watch", "click", "shared_bottom") == [
        ["watch", "click", "shared_bottom", "r2", "mmoe", "0.7000", "-0.0050", "-0.0150 to 0.0050"]
    ]
    assert page.rows("watch", "click", "mmoe")[0][-1] == "-0.0400 to -0.0200 *"
    assert page.rows(BAD, "auc") == [[BAD, "auc", "n/a", "0.5000", "n/a", "nothing learnt"]]
    assert any("2 of 4 intervals leave out 0" in text for text in page.texts["p"])


def test_every_task_of_a_large_group_is_named(tmp_path: Path) -> None:
    names = tuple(f"task_{at}" for at in range(20))
    relations = RELATIONS.with_(groups=(Group(tasks=names, advice="share apart"),))
    path = write_relations(relations, tmp_path / "relations.html")
    assert f"{', '.join(names[:-1])} and {names[-1]}:" in Html(path.read_text(encoding="utf-8")).texts["strong"]


def test_names_are_text(page: Html) -> None:
    assert len(page.scripts) == 2, "the charts' data and the page's own script"


def test_charts_hold_the_matrices(page: Html) -> None:
    for spec in page.specs:
        alt.LayerChart.from_dict(spec, validate=True)
    auc, r2, overlap, labels, _, lookahead, gates = page.specs
    assert {row["name"] for row in values(auc) if "name" in row} == {"click, with watch"}
    clear = {row["series"]: row["clear"] for row in values(r2) if "series" in row}
    assert clear == {"shared_bottom": False, "mmoe": True}

    def cells(spec: dict) -> dict[tuple[str, str], float | None]:
        return {(row["down"], row["across"]): row["value"] for row in values(spec)}

    assert cells(overlap)["click", "watch"] == cells(overlap)["watch", "click"] == 0.9
    assert cells(overlap)[BAD, BAD] == 1
    assert cells(labels)["watch", BAD] is None
    assert (cells(lookahead)["click", "watch"], cells(lookahead)["watch", "click"]) == (1, -0.5)
    assert cells(lookahead)["click", "click"] is None
    assert (cells(lookahead)["click", BAD], cells(lookahead)[BAD, "click"]) == (1, None), "within two errors of 0"
    assert cells(gates)["click", "watch"] == 0.25


def test_noise_is_neither_drawn_nor_printed_as_a_result(tmp_path: Path) -> None:
    noise = [one.with_(lookahead=(way(1e-9, 1e-9), way(-3e-9, 2e-9))) for one in RELATIONS.pairs]
    relations = RELATIONS.with_(pairs=noise)
    page = Html(write_relations(relations, tmp_path / "relations.html").read_text(encoding="utf-8"))
    assert len(page.specs) == 6, "all but the lookahead"
    assert any("cannot be told from 0 for any pair" in text for text in page.texts["p"])
    console = Console(file=io.StringIO(), width=200)
    console.print(relation_tables(relations.with_(pairs=(*noise[:1], *RELATIONS.pairs[1:]))))
    shown = console.file.getvalue()
    assert "(+1.0e-09)" in shown
    assert "(-3.0e-09)" in shown
    assert "+2.0e-05 " in shown
    assert "(+2.0e-05)" not in shown


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    bare = [one.with_(gains=(), structure=None, gates=None) for one in RELATIONS.pairs]
    path = write_relations(RELATIONS.with_(pairs=bare, structures=()), tmp_path / "relations.html")
    page = Html(path.read_text(encoding="utf-8"))
    assert len(page.specs) == 4
    assert any("not trained" in text for text in page.texts["p"])


def test_one_seed_has_no_intervals_to_speak_of(tmp_path: Path) -> None:
    single = Estimate(mean=0.02, seeds=1)
    pairs = [one.with_(gains=[it.with_(gain=single, by_seed=(0.02,)) for it in one.gains]) for one in RELATIONS.pairs]
    one = RELATIONS.with_(pairs=pairs, seeds=1)
    shown = io.StringIO()
    Console(width=200, file=shown).print(relation_tables(one))
    text = write_relations(one, tmp_path / "relations.html").read_text(encoding="utf-8").partition("<script")[0]
    for told in (shown.getvalue(), text):
        assert "leaves out 0" not in told
        assert "by chance alone" not in told


def test_of_many_pairs_those_to_share_and_those_trained_are_printed_first() -> None:
    trained = (gain("mmoe", "click", "auc", -0.02),)
    pairs = [pair(f"a{at}", f"b{at}", at / 1_000) for at in range(60)]
    pairs[3] = pair("a3", "b3", 0.9)
    pairs[5] = pair("a5", "b5", 0.0, trained)
    pairs[7] = pairs[7].with_(score=None, overlap=None)
    shown = io.StringIO()
    Console(width=200, file=shown).print(relation_tables(RELATIONS.with_(pairs=pairs)))
    text = shown.getvalue()
    printed = [at for at in range(60) if f"• a{at} + b{at}: " in text]
    assert printed == [3, 5, *range(12, 60)]
    assert "50 of 60 pairs" in text
    assert len(text.splitlines()) < 300
    few = io.StringIO()
    Console(width=200, file=few).print(relation_tables(RELATIONS.with_(pairs=pairs[:50])))
    assert few.getvalue().count("because of") == 50
    assert "of 50 pairs" not in few.getvalue()


@pytest.mark.parametrize("many", [2, 3, 9])
def test_a_gain_stands_whole_in_the_line_of_its_task(many: int) -> None:
    names = [f"structure_{at}" for at in range(many)]
    tasks = ("a task with quite a long name", "watch")
    places = [(task, name) for task in tasks for name in names]
    own = tuple(gain(name, task, "auc", (1 + at) / 100) for at, (task, name) in enumerate(places))
    shown = io.StringIO()
    relations = RELATIONS.with_(pairs=(pair(*tasks, 0.9, own),), structures=tuple(names))
    Console(width=120, file=shown).print(relation_tables(relations))
    lines = shown.getvalue().splitlines()
    for at, (task, _) in enumerate(places):
        (line,) = [line for line in lines if f"{(1 + at) / 100:+.4f} ±0.0100" in line]
        assert line.startswith(task[:12])
