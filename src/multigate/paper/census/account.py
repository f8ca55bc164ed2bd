"""What the census study found, beside Tables 1 and 2 of the paper."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

from multigate.analysis.intervals import Summary, paired_difference, summary
from multigate.analysis.search import Trial, best
from multigate.formats import bracketed
from multigate.paper.account import Account, Claim, claims
from multigate.paper.census.methods import BOOSTING, METHODS, SINGLE, Training
from multigate.paper.census.rows import AUXILIARY
from multigate.paper.census.training import SHIFTED
from multigate.paper.published import Cell, table_1, table_2
from multigate.report.blocks import Block, Figure, Table, Text

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
TABLES = {"income": (1, table_1), "college": (2, table_2)}
CORRELATIONS = {"income": 0.1768, "college": 0.2373}
"""|r| of the two labels over 10,000 rows drawn at random, as the paper has it."""
DRAWN = 10_000
FACTORISED, FAR = "tensor_factor", 0.1
NONE = "n/a"


class Found(NamedTuple):
    """Everything the study has: label correlations by main task; trials and runs by training; runs by mistake."""

    correlations: Mapping[str, float]
    trainings: Sequence[Training]
    trials: Mapping[str, Sequence[Trial]]
    runs: Runs
    traps: Runs


def tell(found: Found) -> list[Account]:
    """The chapters."""
    return [
        _protocol(found),
        _tuning(found),
        *(_group(found, main) for main in found.correlations),
        *([_traps(found)] if any(found.traps.values()) else []),
    ]


def _protocol(found: Found) -> Account:
    rows = []
    for main, here in found.correlations.items():
        paper, noise = CORRELATIONS[main], 2 * (1 - here**2) / math.sqrt(DRAWN)
        holds = "within" if abs(abs(here) - paper) <= noise else "outside"
        rows.append(Claim(f"|r| of {main} and {AUXILIARY}", f"{paper:.4f}", f"{abs(here):.4f} ± {noise:.4f}", holds))
    return Account(
        "protocol",
        "Protocol",
        (
            Text(
                "Neither education nor marital status is ever a feature, nor is the instance weight. Training is on "
                "the training file; the test file is cut in two at random: values and weights are chosen on one half, "
                "the other is scored once by each final run. Correlations are over all rows; ± is two standard "
                "deviations of 10,000 rows drawn at random, from which the paper's are."
            ),
            claims("Labels", rows),
        ),
    )


def _tuning(found: Found) -> Account:
    rows = []
    for training in found.trainings:
        trials = found.trials[training.name]
        one = best(list(trials))
        stopped = sum(trial.stopped for trial in trials)
        point = ", ".join(f"{name} {_short(value)}" for name, value in one.point.items())
        rows.append(
            (training.tasks[0], _title(training.method), point, str(len(trials)), str(stopped), f"{one.value:.4f}")
        )
    said = (
        "A Gaussian process proposes each trial; those below the median of the trials before them are stopped early. "
        "The value is the validation AUC of the first task. Every method has the same number of trials."
    )
    head = ("tuned for", "method", "chosen", "trials", "stopped", "validation AUC")
    return Account(
        "tuning", "Tuning", (Text(said), Table("Chosen values", head, tuple(rows), 3)), partial(_progress, found)
    )


def _group(found: Found, main: str) -> Account:
    number, published = TABLES[main]
    paper = published()
    told: list[Block] = [
        Text(
            "Best is the run with the best main task on the validation rows (the paper chose it on the test rows). "
            "Means are over all runs, with the interval of the mean at 95 %. Differences are of runs with one seed."
        )
    ]
    for task in (main, AUXILIARY):
        head = ("method", "paper, best", "best", "paper, mean", "mean", "sd of a run", "MMoE less it")
        rows = [_cells(found, main, task, method, paper) for method in _methods(found, main)]
        told.append(Table(f"AUC of {task}", head, tuple(rows)))
    told.append(claims("What the paper's table says", list(_claims(found, main, paper))))
    return Account(
        f"table-{number}", f"Table {number}: {main} and {AUXILIARY}", tuple(told), partial(_dots, found, main, paper)
    )


def _cells(found: Found, main: str, task: str, method: str, paper: Mapping[str, Mapping[str, Cell]]) -> tuple[str, ...]:
    cell = paper[method][task] if method in paper else None
    values = _values(found, main, task, method)
    one = summary(values)
    return (
        _title(method),
        NONE if cell is None else f"{cell.best:.4f}",
        f"{_of_best(found, main, task, method):.4f}",
        NONE if cell is None else f"{cell.mean:.4f}",
        bracketed(one.mean, one.low, one.high),
        f"{one.sd:.4f}",
        _signed(_less(found, main, task, method)) if method != "mmoe" else "",
    )


def _claims(found: Found, main: str, paper: Mapping[str, Mapping[str, Cell]]) -> Iterator[Claim]:
    methods = _methods(found, main)
    if "mmoe" not in methods:
        return
    for method in (one for one in methods if one in paper and one != "mmoe"):
        difference = paper["mmoe"][main].mean - paper[method][main].mean
        here = _less(found, main, main, method)
        yield Claim(
            f"{main}: mean of MMoE less {_title(method)}",
            f"{difference:+.4f}",
            _signed(here),
            _verdict(difference, here),
        )
    if SINGLE in methods:
        difference = paper["mmoe"][AUXILIARY].mean - paper[SINGLE][AUXILIARY].mean
        here = _less(found, main, AUXILIARY, SINGLE)
        claim = f"{AUXILIARY}: mean of MMoE less Single-Task"
        yield Claim(claim, f"{difference:+.4f}", _signed(here), _verdict(difference, here))
    if FACTORISED in methods:
        difference = paper["mmoe"][main].mean - paper[FACTORISED][main].mean
        here = _less(found, main, main, FACTORISED)
        claim = f"{main}: Tensor-Factorization fails, by {FAR:g} and more"
        yield Claim(claim, f"{difference:+.4f}", _signed(here), _fails(here))


def _fails(here: Summary) -> str:
    """Whether a method is behind by as much as the paper's table has it; open where our interval has both."""
    if here.low > FAR:
        return "yes"
    return "no" if here.high < FAR else "open"


def _verdict(paper: float, here: Summary) -> str:
    """Whether the sign is the paper's, where it has one in four digits; open where our interval has both."""
    if not round(paper, 4):
        return "the paper has a tie"
    if not here.clear:
        return "open"
    return "same sign" if paper * here.mean > 0 else "no"


def _traps(found: Found) -> Account:
    main = "income"
    base = [row[f"{main}/auc"] for row in found.runs[f"{main}-mmoe"]]
    means = {
        "education": "education kept as a feature",
        "weight": "instance weight as a feature, standardised",
        "raw_weight": "instance weight as a feature, as it is in the file",
    }
    rows = []
    for name, words in means.items():
        own = [row[f"{main}/auc"] for row in found.traps[name]]
        many = min(len(own), len(base))
        rows.append(_trap(words, own[:many], base[:many]))
    shifted = [row[f"{SHIFTED}{main}/auc"] for row in found.traps["one_hot"]]
    rows.append(
        _trap(
            "one-hot columns shifted by one when scored",
            shifted,
            [row[f"{main}/auc"] for row in found.traps["one_hot"]],
        )
    )
    said = (
        "What well-known mistakes do to the income AUC of MMoE, with the values chosen for it. The first three are "
        "trained anew with a feature that should not be there. For the last, networks that read one-hot columns are "
        "scored twice with the same weights: with columns in place, and as a public demo has them, whose test table "
        "lacks one column and gets it appended at the end."
    )
    head = ("mistake", "without it", "with it", "difference")
    return Account("traps", "Well-known mistakes", (Text(said), Table("Income AUC", head, tuple(rows))))


def _trap(words: str, own: Sequence[float], base: Sequence[float]) -> tuple[str, ...]:
    return words, f"{summary(base).mean:.4f}", f"{summary(own).mean:.4f}", _signed(paired_difference(own, base))


def _methods(found: Found, main: str) -> list[str]:
    return [training.method for training in found.trainings if training.tasks[0] == main]


def _rows(found: Found, main: str, task: str, method: str) -> Sequence[Mapping[str, Any]]:
    """Runs that a cell is about: a method with a model a task has runs of its own for each."""
    return found.runs[f"{task if method in (SINGLE, BOOSTING) else main}-{method}"]


def _values(found: Found, main: str, task: str, method: str) -> list[float]:
    return [row[f"{task}/auc"] for row in _rows(found, main, task, method)]


def _of_best(found: Found, main: str, task: str, method: str) -> float:
    return float(max(_rows(found, main, task, method), key=lambda row: row["valid"])[f"{task}/auc"])


def _less(found: Found, main: str, task: str, method: str) -> Summary:
    """MMoE less a method, seed by seed."""
    if "mmoe" not in _methods(found, main):
        return summary([])
    return paired_difference(_values(found, main, task, "mmoe"), _values(found, main, task, method))


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else "gradient boosting"


def _signed(one: Summary) -> str:
    return bracketed(one.mean, one.low, one.high, sign=True)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _dots(found: Found, main: str, paper: Mapping[str, Mapping[str, Cell]]) -> Iterable[tuple[str, Figure]]:
    from multigate.report.charts import dot_chart

    for task, name in ((main, main), (AUXILIARY, f"{main}-{AUXILIARY}")):
        here = [(_title(one), summary(_values(found, main, task, one))) for one in _methods(found, main)]
        rows = [
            {"name": method, "series": "here", "value": one.mean, "low": one.low, "high": one.high}
            for method, one in here
        ]
        printed = [
            {"name": _title(one), "series": "paper", "value": cells[task].mean, "low": None, "high": None}
            for one, cells in paper.items()
            if one != FACTORISED
        ]
        charts = (
            dot_chart(f"{task}, here", f"Mean AUC of {task} by method, with intervals", rows, "AUC"),
            dot_chart(f"{task}, paper", f"Mean AUC of {task} by method in the paper", printed, "AUC"),
        )
        far = paper[FACTORISED][task].mean
        says = (
            f"AUC of {task}: means of the runs with their intervals at 95 %, and the paper's means. Its "
            f"Tensor-Factorization ({far:.4f}) is left out. Axes differ."
        )
        yield f"{name}-methods", Figure(says, charts)


def _progress(found: Found) -> Iterable[tuple[str, Figure]]:
    from multigate.report.charts import line_chart

    for main in dict.fromkeys(training.tasks[0] for training in found.trainings):
        charts = []
        for training in found.trainings:
            if training.tasks[0] != main:
                continue
            trials, title = list(found.trials[training.name]), _title(training.method)
            chosen = trials.index(best(trials))
            so_far = accumulate((-math.inf if one.stopped else one.value for one in trials), max)
            rows = [
                {"epoch": at + 1, "value": value, "series": "best so far", "best": at == chosen}
                for at, value in enumerate(so_far)
            ]
            charts.append(line_chart(title, f"Best validation AUC so far by trial: {title}", rows, "AUC", x="trial"))
        yield f"{main}-tuning", Figure(f"The best validation AUC of {main} so far, by trial.", tuple(charts))
