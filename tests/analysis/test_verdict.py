"""The rule of verdicts, case by case, from gains and evidence made up."""

from itertools import combinations

import pytest

from multigate.analysis.relations import Advice, Estimate, Gain, Pair, Skill, estimate
from multigate.analysis.verdict import decide, group

UP, DOWN, NEITHER = (0.010, 0.011, 0.012), (-0.012, -0.010, -0.011), (0.010, -0.011, 0.002)
FURTHER, NOTHING = (0.020, 0.022, 0.021), (0.001, -0.001, 0.0005)
SAME, SOME, DIFFERENT = 0.9, 0.5, 0.1


def skill(task: str, learnt: bool = True) -> Skill:
    return Skill(task=task, metric="auc", value=0.8 if learnt else 0.501, chance=0.5, error=0.01, learnt=learnt)


def gains(**by_structure: tuple[tuple[float, ...], tuple[float, ...]]) -> list[Gain]:
    """Of tasks a and b, by seed, for each structure."""
    return [
        Gain(
            structure=structure,
            hard=structure == "shared_bottom",
            task=task,
            metric="auc",
            alone=0.8,
            alone_with="mmoe",
            by_seed=by_seed,
            gain=estimate(by_seed),
        )
        for structure, both in by_structure.items()
        for task, by_seed in zip("ab", both, strict=True)
    ]


def decided(measured: list[Gain], overlap: float | None = SAME, cosine: tuple[float, ...] = (0.1, 0.12, 0.11)):
    read = None if overlap is None else estimate([overlap] * 3)
    return decide([skill("a"), skill("b")], measured, read, estimate(cosine))


@pytest.mark.parametrize(
    ("by_structure", "advice", "structure"),
    [
        ({"shared_bottom": (UP, UP), "mmoe": (UP, UP)}, "share", "shared_bottom"),
        ({"shared_bottom": (UP, NEITHER), "mmoe": (NEITHER, NEITHER)}, "share", "shared_bottom"),
        ({"shared_bottom": (UP, NEITHER), "mmoe": (FURTHER, NEITHER)}, "share apart", "mmoe"),
        ({"shared_bottom": (UP, UP), "mmoe": (FURTHER, DOWN)}, "share", "shared_bottom"),
        ({"shared_bottom": (UP, UP), "mmoe": (FURTHER, NOTHING)}, "share", "shared_bottom"),
        ({"shared_bottom": (UP, DOWN), "mmoe": (UP, NEITHER)}, "share apart", "mmoe"),
        ({"shared_bottom": (NEITHER, NEITHER), "mmoe": (UP, NEITHER)}, "share apart", "mmoe"),
        ({"shared_bottom": (DOWN, DOWN), "mmoe": (DOWN, NEITHER)}, "train alone", None),
        ({"shared_bottom": (UP, DOWN), "mmoe": (UP, DOWN)}, "train alone", None),
        ({"mmoe": (UP, NEITHER), "ple": (FURTHER, NEITHER)}, "share apart", "ple"),
    ],
)
def test_clear_gains_decide_whatever_the_overlap(by_structure: dict, advice: str, structure: str | None) -> None:
    for overlap in (SAME, DIFFERENT, None):
        verdict = decided(gains(**by_structure), overlap)
        assert (verdict.advice, verdict.structure) == (advice, structure)


@pytest.mark.parametrize(
    ("by_structure", "overlap", "advice", "structure"),
    [
        ({"shared_bottom": (NEITHER, NEITHER), "mmoe": (NEITHER, NEITHER)}, SAME, "share", "shared_bottom"),
        ({"shared_bottom": (NEITHER, NEITHER), "mmoe": (NEITHER, NEITHER)}, SOME, "share", "shared_bottom"),
        ({"shared_bottom": (NEITHER, NEITHER), "mmoe": (NEITHER, NEITHER)}, DIFFERENT, "train alone", None),
        ({"shared_bottom": (NEITHER, NEITHER), "mmoe": (NEITHER, NEITHER)}, None, "train alone", None),
        ({"shared_bottom": (NEITHER, DOWN), "mmoe": (NEITHER, NEITHER)}, SAME, "share apart", "mmoe"),
        ({"shared_bottom": (NEITHER, DOWN), "mmoe": (NEITHER, NEITHER)}, DIFFERENT, "train alone", None),
        ({"shared_bottom": ((0.5,), (0.5,))}, SAME, "share", "shared_bottom"),
        ({"shared_bottom": ((0.5,), (0.5,))}, DIFFERENT, "train alone", None),
    ],
)
def test_without_a_clear_gain_the_overlap_tips(
    by_structure: dict, overlap: float, advice: str, structure: str | None
) -> None:
    verdict = decided(gains(**by_structure), overlap)
    assert (verdict.advice, verdict.structure) == (advice, structure)
    hurt = any(DOWN in both for both in by_structure.values())
    assert verdict.why.startswith("no clear gain over" if hurt else "no clear gain or loss over")
    assert ("b loses 0.0110" in verdict.why) == hurt


@pytest.mark.parametrize(
    ("overlap", "advice"), [(SAME, "share"), (SOME, "share apart"), (DIFFERENT, "train alone"), (None, "train alone")]
)
def test_without_gains_the_overlap_is_all_there_is(overlap: float | None, advice: str) -> None:
    verdict = decided([], overlap)
    assert verdict.advice == advice
    assert verdict.structure is None
    assert verdict.why.startswith("not measured; ")


def test_gradients_that_clearly_conflict_speak_against_sharing() -> None:
    conflict, unclear, slight = (-0.2, -0.21, -0.19), (-0.2, 0.21, -0.19), (-0.007, -0.007, -0.0071)
    assert decided([], SAME, conflict).advice == "train alone"
    assert "conflict (cosine -0.200)" in decided([], SAME, conflict).why
    assert decided([], SAME, unclear).advice == "share"
    assert decided([], SAME, slight).advice == "share", "clear, but next to nothing"
    tied = gains(shared_bottom=(NEITHER, NEITHER))
    assert decided(tied, SAME, conflict).advice == "train alone"
    assert decided(gains(shared_bottom=(UP, NEITHER)), SAME, conflict).advice == "share", "what is measured counts more"


@pytest.mark.parametrize("measured", [[], gains(shared_bottom=(UP, UP), mmoe=(UP, UP))], ids=["guessed", "measured"])
def test_a_task_with_nothing_to_learn_is_trained_alone(measured: list[Gain]) -> None:
    for skills in ([skill("a", False), skill("b")], [skill("a"), skill("b", False)]):
        verdict = decide(skills, measured, estimate([SAME] * 3), None)
        idle = next(one.task for one in skills if not one.learnt)
        assert (verdict.advice, verdict.structure) == ("train alone", None)
        assert verdict.why.startswith(f"{idle} (auc 0.501) cannot be told from chance")


def test_the_reason_holds_the_figures() -> None:
    verdict = decided(gains(shared_bottom=(UP, DOWN), mmoe=(UP, NEITHER)))
    low, high = estimate(UP).low, estimate(UP).high
    assert f"a gains 0.0110 auc with mmoe ({low:+.4f} to {high:+.4f})" in verdict.why
    assert "; but b loses 0.0110 auc with shared_bottom" in verdict.why
    for overlap, advice in ((SAME, "share apart"), (DIFFERENT, "train alone")):
        mixed = decided(gains(shared_bottom=(UP, DOWN), mmoe=(NEITHER, NEITHER)), overlap)
        assert mixed.advice == advice
        assert mixed.why.startswith("no structure helps one without hurting the other")
        assert "b loses 0.0110" in mixed.why
        assert "; but a gains 0.0110" in mixed.why
    both = decided(gains(shared_bottom=(UP, DOWN))).why
    assert both.startswith("b loses 0.0110")
    assert "; but a gains 0.0110" in both


def related(scores: dict[str, float | None], advice: dict[str, Advice]) -> list[Pair]:
    """Pairs by two letters."""
    return [
        Pair(
            tasks=(two[0], two[1]),
            score=scores.get(two),
            overlap=None,
            labels=None,
            gradients=None,
            lookahead=(None, None),
            gates=None,
            gains=(),
            advice=advice.get(two, "train alone"),
            structure=None,
            why="",
        )
        for two in map("".join, combinations("abcd", 2))
    ]


def test_groups_hold_no_two_tasks_that_are_to_be_trained_alone() -> None:
    scores = {"ab": 0.5, "bc": 0.9, "ac": 0.4, "cd": 0.8, "ad": 0.2, "bd": 0.7}
    found = group("abcd", related(scores, {"ab": "share", "bc": "share", "cd": "share"}))
    # b and c first; then neither d (not with b) nor a (not with c) may join
    assert [one.tasks for one in found] == [("a",), ("b", "c"), ("d",)]
    assert [one.advice for one in found] == ["train alone", "share", "train alone"]
    found = group("abcd", related(scores, {"ab": "share", "bc": "share", "ac": "share apart", "cd": "share"}))
    assert [(one.tasks, one.advice) for one in found] == [(("a", "b", "c"), "share apart"), (("d",), "train alone")]
    found = group("abcd", related({"ab": 0.2, "cd": 0.9, "bc": 0.5}, {"ab": "share", "cd": "share", "bc": "share"}))
    assert [one.tasks for one in found] == [("a", "b"), ("c", "d")]
    assert [one.tasks for one in group("abcd", related({}, {}))] == [("a",), ("b",), ("c",), ("d",)]


def test_estimates_have_intervals_of_two_seeds_on() -> None:
    assert estimate([]) is None
    assert estimate([None, float("nan")]) is None
    one = estimate([0.5, None])
    assert one == Estimate(mean=0.5, seeds=1)
    assert one.side == 0
    two = estimate([1.0, 2.0])
    # t of one degree of freedom at 97.5 % is 12.706, the deviation of the mean half of the difference
    assert (two.low, two.high) == pytest.approx((1.5 - 12.706 * 0.5, 1.5 + 12.706 * 0.5), abs=1e-3)
    assert two.side == 0
    assert estimate([1.0, 1.01]).side == 1
    assert estimate([-1.0, -1.01]).side == -1


def test_a_tie_says_what_it_does_not_rule_out() -> None:
    tied = gains(shared_bottom=((0.010, -0.011, 0.002), (0.03, -0.05, 0.01)))
    low = estimate((0.03, -0.05, 0.01)).low
    assert f"but b may lose up to {-low:.4f} auc" in decided(tied).why
    assert "may lose" not in decided(gains(shared_bottom=((0.5,), (0.5,)))).why, "one seed has no interval"
    equal = gains(shared_bottom=((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
    assert "may lose" not in decided(equal).why, "there is nothing to lose"
