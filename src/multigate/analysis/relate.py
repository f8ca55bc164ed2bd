"""Which tasks belong together: evidence on every pair of tasks, measured gains, and what to do about it."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from multigate.analysis.pairs import Row, Trainings
from multigate.analysis.relatedness import Floats, label_correlations
from multigate.analysis.relations import Estimate, Gain, Lookahead, Pair, Relations, Skill, estimate
from multigate.analysis.verdict import decide, group
from multigate.bundle import ROWS
from multigate.data.prepared import Prepared
from multigate.errors import ExperimentError, RunError, nearest
from multigate.experiment import Experiment, as_experiment
from multigate.folders import TRAININGS, at_home, folder_named
from multigate.metrics import HIGHER_IS_BETTER
from multigate.nn.defaults import defaults
from multigate.options import explain
from multigate.run import claimed
from multigate.sharing import STRUCTURES, VARIANTS, Structure, known_as, listed, structure_named
from multigate.training.interrupts import interruptible
from multigate.training.loop import choose_device
from multigate.training.progress import Reporter
from multigate.training.same_rows import prepare_same
from multigate.training.train import open_sources
from multigate.writing import write_text

RELATIONS = "relations.json"
LABELLED = 500_000
"""Training rows, about, at most, that labels are correlated on."""
CLEAR = 3.0
"""Standard errors above chance from which on a task has learnt something."""
HARD = ("shared_bottom", "omoe")
"""Structures in which all tasks read the same representation."""
CHANCE = {"auc": 0.5, "r2": 0.0}
"""What main metrics are where nothing is known."""


def relate(
    experiment: Experiment,
    out: str | Path,
    *,
    structures: str | Structure | Sequence[str | Structure] = ("shared_bottom", "mmoe"),
    side_by_side: str | Structure = "single_task",
    pairs: Sequence[tuple[str, str]] | None = None,
    seeds: int = 3,
    train: bool = True,
    device: str = "auto",
    tables: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Relations:
    """Tell of every pair of tasks whether to share, to share apart or to train alone, on validation rows.

    With seeds 0 .. seeds - 1: a training of all tasks together, watched; one of networks side by side on the same x;
    and, unless ``train`` is false, with each of the structures a model of each task alone and of each pair (of
    ``pairs`` only, if given). All have the budget of the experiment's own model. A gain is over the best of a task's
    own models, whatever the structure: a structure that is better without a partner is no reason for one. A task that
    no validation row has a label of gets no model of its own, as nothing tells which of its weights are best. Test rows
    are neither trained on nor looked at. Called again with the same folder it goes on where it stopped;
    ``relations.json`` there holds what is returned.

    Raises ``ExperimentError`` for an experiment of one task, or names that there are not.
    """
    experiment, chosen = as_experiment(experiment), choose_device(device)
    gates = [feature.name for feature in experiment.schema.features if feature.use == "gate"]
    if gates and side_by_side == "single_task":  # no choice of structures would help
        raise ExperimentError(
            "relate trains networks side by side, which have no gates to read feature "
            f"{gates[0]!r}, whose use is 'gate'; leave 'use' out"
        )
    tried = _structures(listed(structures), experiment)
    if train and not tried:
        raise ExperimentError("relating wants one structure at least; name some, such as shared_bottom and mmoe")
    (beside,) = _structures([side_by_side], experiment).values()
    names = experiment.schema.task_names
    if isinstance(seeds, bool) or not isinstance(seeds, Integral) or seeds < 1:
        raise ExperimentError(f"seeds={seeds!r}: relating wants one at least, a whole number, and more for intervals")
    if len(names) < 2:
        raise ExperimentError(f"there is one task only, {names[0]!r}; relating wants two at least")
    if experiment.warm_start is not None:
        raise ExperimentError("models that are compared are trained from the start; leave warm_start out")
    places = _places(pairs, names)
    trained = places if train else []
    single = sorted({place for pair in trained for place in pair})
    folder = folder_named(out)
    sources = open_sources(experiment, tables)
    with (
        defaults(chosen),  # for what is looked at between trainings
        interruptible(lambda: "the same command goes on from here"),
        claimed(folder, experiment, resume=True, progress=TRAININGS),
        Reporter(quiet=quiet, detail=False) as report,
    ):
        fresh = not (folder / TRAININGS).is_dir()
        prepared = prepare_same(experiment, sources, folder, report, fresh=fresh)
        labelled = [prepared.valid.labelled(place) for place in range(len(names))]
        trained = [pair for pair in trained if any(labelled[place] for place in pair)]
        single = [place for place in single if labelled[place]]
        total = seeds * (2 + (len(single) + len(trained)) * len(tried))
        trainings = Trainings(experiment, prepared, folder / TRAININGS, chosen, report, total)
        found = Found(trainings)
        for seed in range(seeds):
            found.together.append(trainings.together(seed))
            found.side_by_side.append(trainings.side_by_side(beside, seed))
            for place, (name, structure) in product(single, tried.items()):
                row = trainings.alone(name, structure, place, seed)
                found.alone.setdefault(place, {}).setdefault(name, []).append(row)
            for pair, (name, structure) in product(trained, tried.items()):
                row = trainings.pair(name, structure, pair, seed)
                found.pairs.setdefault(pair, {}).setdefault(name, []).append(row)
        relations = _relations(found, prepared, list(tried) if trained else [])
        write_text(folder / RELATIONS, json.dumps(relations.to_dict(full=True), indent=1, ensure_ascii=False))
    return relations


def open_relations(path: str | Path) -> Relations:
    """What ``relate`` found, from its folder. Raises ``RunError`` where there is none."""
    file = at_home(path) / RELATIONS
    try:
        return Relations.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunError(f"there is no {RELATIONS} in {path}; name the --out folder of multigate relate") from None
    except (OSError, ValueError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else error
        raise RunError(f"{file} is damaged ({reason}); the same multigate relate writes it anew") from None


def read_pairs(text: str) -> list[tuple[str, str]]:
    """Pairs of task names from "a+b,c+d". Raises ``ExperimentError`` where it is anything else."""
    found = []
    for part in text.split(","):
        one, plus, other = (word.strip() for word in part.partition("+"))
        if not (one and plus and other):
            raise ExperimentError(f"pairs are two tasks each, joined by a plus sign; found {part!r}, write a+b,c+d")
        found.append((one, other))
    return found


class Found:
    """Results of trainings, one from each seed: by task place, and by pair of places and structure."""

    def __init__(self, trainings: Trainings) -> None:
        self.names, self.metric = trainings.names, trainings.metric
        self.together: list[Row] = []
        self.side_by_side: list[Row] = []
        self.alone: dict[int, dict[str, list[Row]]] = {}
        self.pairs: dict[tuple[int, int], dict[str, list[Row]]] = {}

    def skill(self, place: int) -> Skill:
        """The best of what a model of its own, networks side by side, and one model of all know of a task."""
        name, metric = self.names[place], self.metric(place).rpartition("/")[2]
        chance = CHANCE[metric]
        best = Skill(task=name, metric=metric, value=None, chance=chance, error=None, learnt=False)
        most = -float("inf")
        for rows in (*self.alone.get(place, {}).values(), self.side_by_side, self.together):
            value, error = (estimate([row["skills"][name][at] for row in rows]) for at in (0, 1))
            best = best.with_(unscored=rows[0].get("unscored", {}).get(name, ""))  # the rows are those of all
            if value is not None and error is None and best.error is None:  # so few rows that nothing is clear
                best = best.with_(value=value.mean if best.value is None else max(best.value, value.mean))
            if value is not None and error is not None:
                above = (value.mean - chance) / max(error.mean, 1e-12)
                if above > most:
                    most = above
                    best = best.with_(value=value.mean, error=error.mean, learnt=above > CLEAR)
        return best

    def own(self, place: int) -> tuple[str, list[float | None]]:
        """Structure and metric by seed of the best models that a task has of its own."""
        metric = self.metric(place)
        by_structure = {name: [row["metrics"][metric] for row in rows] for name, rows in self.alone[place].items()}
        sign = 1 if HIGHER_IS_BETTER[metric.rpartition("/")[2]] else -1

        def mean(name: str) -> float:
            found = estimate(by_structure[name])
            return -float("inf") if found is None else sign * found.mean

        best = max(by_structure, key=mean)
        return best, by_structure[best]

    def gains(self, pair: tuple[int, int]) -> tuple[Gain, ...]:
        """Of both tasks with every structure the pair was trained with."""
        return tuple(
            gain
            for structure, rows in self.pairs.get(pair, {}).items()
            for place in pair
            if (gain := self._gain(structure, rows, place)) is not None
        )

    def _gain(self, structure: str, rows: Sequence[Row], place: int) -> Gain | None:
        if place not in self.alone:  # no validation row has a label of it
            return None
        metric = self.metric(place)
        name = metric.rpartition("/")[2]
        sign = 1 if HIGHER_IS_BETTER[name] else -1
        alone_with, alone = self.own(place)
        both = [row["metrics"][metric] for row in rows]
        known = [(a, b) for a, b in zip(both, alone, strict=True) if a is not None and b is not None]
        by_seed = tuple(sign * (a - b) for a, b in known)
        gain = estimate(by_seed)
        if gain is None:
            return None
        return Gain(
            structure=structure,
            hard=rows[0]["structure"]["structure"] in HARD,
            task=self.names[place],
            metric=name,
            alone=sum(b for _, b in known) / len(known),
            alone_with=alone_with,
            by_seed=by_seed,
            gain=gain,
        )

    def pair(self, i: int, j: int, skills: Sequence[Skill], labels: Floats) -> Pair:
        """All that is known of two tasks."""

        def over_seeds(rows: Sequence[Row], matrix: str, one: int, other: int) -> Estimate | None:
            return estimate([row[matrix][one][other] for row in rows if row[matrix] is not None])

        overlap = over_seeds(self.side_by_side, "overlap", i, j)
        gradients = over_seeds(self.together, "gradients", i, j)
        own, gains = (skills[i], skills[j]), self.gains((i, j))
        verdict = decide(own, gains, overlap, gradients)
        return Pair(
            tasks=(self.names[i], self.names[j]),
            score=overlap.mean if overlap is not None and all(skill.learnt for skill in own) else None,
            overlap=overlap,
            labels=float(labels[i, j]) if labels[i, j] == labels[i, j] else None,
            gradients=gradients,
            lookahead=(
                _lookahead(self.together, i, j),
                _lookahead(self.together, j, i),
            ),
            gates=over_seeds(self.together, "gates", i, j),
            gains=gains,
            advice=verdict.advice,
            structure=verdict.structure,
            why=verdict.why,
        )


def _lookahead(rows: Sequence[Row], i: int, j: int) -> Lookahead | None:
    """What a step for i does to j, over all looks of all seeds; without an error where a seed has a single look."""
    found = estimate([row["lookahead"][i][j] for row in rows])
    if found is None:
        return None
    known = [row for row in rows if row["lookahead"][i][j] is not None]
    errors = [row["lookahead_error"][i][j] if "lookahead_error" in row else None for row in known]
    squares = [error**2 for error in errors if error is not None]
    error = math.sqrt(sum(squares)) / len(squares) if len(squares) == len(known) else None
    return Lookahead(mean=found.mean, low=found.low, high=found.high, seeds=found.seeds, error=error)


def _relations(found: Found, prepared: Prepared, structures: Sequence[str]) -> Relations:
    rows = list(prepared.train.sample(ROWS, LABELLED))
    labels, known = (np.concatenate(one) for one in zip(*((row.labels, row.known) for row in rows), strict=True))
    correlations = label_correlations(prepared.layout.tasks, labels, known)
    places = range(len(found.names))
    skills = [found.skill(place) for place in places]
    pairs = [found.pair(i, j, skills, correlations) for i, j in combinations(places, 2)]
    pairs.sort(key=lambda pair: -1.0 if pair.score is None else pair.score, reverse=True)
    return Relations(
        tasks=found.names,
        seeds=len(found.together),
        rows=f"{prepared.valid.rows:,} validation rows",
        structures=tuple(structures),
        skills=tuple(skills),
        pairs=tuple(pairs),
        groups=group(found.names, pairs),
    )


def _structures(chosen: Sequence[str | Structure], experiment: Experiment) -> dict[str, Structure]:
    """By name: the experiment's own where it goes by that, others at their own settings; refused if not trainable."""
    found: dict[str, Structure] = {}
    for one in chosen:
        name = one if isinstance(one, str) else one.name
        structure = one if isinstance(one, Structure) else structure_named(name)
        if isinstance(one, str) and known_as(experiment.sharing) == name:
            structure = experiment.sharing
        if structure is None:
            known = {*STRUCTURES, *VARIANTS, known_as(experiment.sharing)}
            raise ExperimentError(f"there is no structure {name!r}; {nearest(name, known)}")
        if name in found:
            raise ExperimentError(f"structure {name!r} is named twice; name each once")
        experiment.with_(sharing=structure, embedding=experiment.embedding.with_(tables="shared"))
        names = experiment.schema.task_names
        for some in (*((one,) for one in names), *combinations(names, 2)):
            structure.for_tasks(some).check(some)
        found[name] = structure
    return found


def _places(pairs: Sequence[tuple[str, str]] | None, names: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of places among the tasks, in order, each once."""
    if pairs is None:
        return list(combinations(range(len(names)), 2))
    found = set()
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2:
            raise ExperimentError(f"pairs are two tasks each, such as [('click', 'buy')]; found {pair!r}")
        for name in pair:
            if name not in names:
                raise ExperimentError(f"there is no task {name!r}; {nearest(name, names)}")
        one, other = sorted(names.index(name) for name in pair)
        if one == other:
            raise ExperimentError(f"task {pair[0]!r} makes no pair with itself; name two")
        found.add((one, other))
    return sorted(found)
