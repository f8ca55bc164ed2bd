"""Paired differences: is one model better than another on the same rows?"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multigate.analysis.subject import Subject
from multigate.data.missingness import weights_of
from multigate.errors import DataError
from multigate.evaluate import Array, Scored, spaces
from multigate.metrics import paired_bootstrap, score_task
from multigate.options import Options


class Difference(Options):
    """One metric of one target for model a and model b on the same rows; NaN where undefined."""

    target: str
    """"click", or "buy|click"."""
    metric: str
    a: float
    b: float
    difference: float
    """b minus a."""
    low: float
    """Bootstrap interval of the difference at 95 %."""
    high: float
    clear: bool
    """Whether the interval lies on one side of 0."""


def paired_differences(a: Subject, b: Subject, *, replicates: int = 200, seed: int = 0) -> tuple[Difference, ...]:
    """Every metric of every target that both models have, b minus a, with a paired bootstrap interval.

    Both models are scored on the same drawn rows (whole groups where there are groups), so that what makes rows hard
    for either cancels. The interval tells how the difference depends on the rows, not on the seeds of the trainings.

    Raises ``DataError`` where the models share no task, or the subjects differ in rows, labels, weights or groups, or
    in what known labels count for unknown ones.
    """
    if not a.count or a.count != b.count:
        raise _unpaired(a, b, f"they have {a.count:,} and {b.count:,} rows")
    scored_a, scored_b = a.scored(), b.scored()
    _check_same_rows(a, b, scored_a, scored_b)
    found_b = {space.name: space for space in spaces(b.bundle.schema, b.bundle.encoder, scored_b)}
    differences = []
    for one in spaces(a.bundle.schema, a.bundle.encoder, scored_a):
        if one.name not in found_b:
            continue
        other = found_b[one.name]
        rows = (one.labels, one.weights, one.groups)
        metrics_a, metrics_b = score_task(one.kind, one.outputs, *rows), score_task(one.kind, other.outputs, *rows)
        intervals = paired_bootstrap(one.kind, one.outputs, other.outputs, *rows, replicates=replicates, seed=seed)
        for metric, (low, high) in intervals.items():
            before, after = metrics_a[metric], metrics_b[metric]
            differences.append(
                Difference(
                    target=one.name,
                    metric=metric,
                    a=before,
                    b=after,
                    difference=after - before,
                    low=low,
                    high=high,
                    clear=low > 0 or high < 0,
                )
            )
    return tuple(differences)


def _check_same_rows(a: Subject, b: Subject, scored_a: Scored, scored_b: Scored) -> None:
    shared = [name for name in a.bundle.schema.task_names if name in b.bundle.schema.task_names]
    if not shared:
        raise _unpaired(a, b, "they have no task in common")
    for name in shared:
        one, other = _labels(a, scored_a, name), _labels(b, scored_b, name)
        if one.meaning != other.meaning:
            raise _unpaired(a, b, f"task {name!r} has another kind or other classes")
        # two encoders decode the same regression label to the same value but for rounding
        rounding = 1e-6 * np.abs(one.values).max()
        same = np.isclose(one.values, other.values, rtol=1e-4, atol=rounding) & (one.weights == other.weights)
        _check_each_row(a, b, (one.known == other.known) & (same | ~one.known), f"label or weight of task {name!r}")
        if not np.allclose(one.counts[one.known], other.counts[one.known]):
            raise DataError(
                f"{a.name} and {b.name} cannot be paired: labels of task {name!r} that are known make up for unknown "
                "ones in another way, as its chain of 'given' is another; compare models with the same chain"
            )
    _check_each_row(a, b, scored_a.groups == scored_b.groups, "group")


def _check_each_row(a: Subject, b: Subject, same: NDArray[np.bool_], what: str) -> None:
    if not same.all():
        raise _unpaired(a, b, f"row {int(np.argmin(same)) + 1:,} has another {what}")


class _Labels(NamedTuple):
    """Labels of one task in its own unit: kind and classes; values, weights, what they count in metrics, known (R,)."""

    meaning: tuple[str, ...]
    values: Array
    weights: Array
    counts: Array
    known: NDArray[np.bool_]


def _labels(subject: Subject, scored: Scored, name: str) -> _Labels:
    at = subject.bundle.schema.task_names.index(name)
    encoder = subject.bundle.encoder
    values = encoder.decode(at, scored.labels[:, at])
    meaning = (encoder.layout.tasks[at].kind, *encoder.classes(at))
    counts = weights_of(subject.bundle.schema, scored.labels, scored.known, scored.weights)
    return _Labels(meaning, values, scored.weights[:, at], counts[:, at], scored.known[:, at])


def _unpaired(a: Subject, b: Subject, why: str) -> DataError:
    return DataError(f"{a.name} and {b.name} cannot be paired: {why}; look at both with the same table")
