"""Permutation importance: what predictions lose when a feature tells them nothing."""

import numpy as np
import torch
from torch import Tensor

from multigate.analysis.effects import most_moving, shuffle_effects
from multigate.batch import Batch
from multigate.bundle import Bundle
from multigate.data.names import FeatureColumns, feature_columns
from multigate.data.rows import cut, pick
from multigate.errors import ExperimentError
from multigate.evaluate import Scored, forward, spaces
from multigate.metrics import HIGHER_IS_BETTER, PRIMARY, score_task
from multigate.options import Options
from multigate.progress import Progress

MOST, LEAST, RUN = 20_000, 1_000, 6_000_000
"""Rows that are shuffled: the most, the least, and as many as go through the model for all features and shuffles."""
ROWS = 1024
"""Rows that go through the model together; more do not fit into the cache."""
FEATURES = 200
"""Features that are shuffled at most."""


class Importance(Options):
    """What the main metric of a target loses when one feature is shuffled; positive where the feature helps."""

    feature: str
    target: str
    """A task, or a task given its parent: "click" or "buy|click"."""
    metric: str
    loss: float
    """Mean over the shuffles ..."""
    sd: float
    """... and their standard deviation, 0 of a single one."""


def permutation_importance(
    bundle: Bundle, batch: Batch, *, repeats: int = 3, seed: int = 0, progress: Progress | None = None
) -> tuple[Importance, ...]:
    """Loss of each target's main metric when a feature is shuffled over rows (Breiman 2001, section 10).

    All columns of a feature move together; the model is not trained anew. At most ``MOST`` rows, evenly spread, and
    fewer of more than 100 features. Of more than ``FEATURES`` those are shuffled that move predictions most to first
    order (``shuffle_effects``), and the others are left out. For each target the features by falling loss; a target
    whose metric is undefined on these rows is left out, and so are features that only bias a task: predictions do not
    read them. Raises ``ExperimentError`` for ``repeats`` below 1.
    """
    if repeats < 1:
        raise ExperimentError(f"repeats={repeats}: importance wants one shuffle of each feature at least")
    features = [columns for columns in feature_columns(bundle.encoder) if columns.feature.biased is None]
    most = min(MOST, max(LEAST, RUN // max(1, repeats * len(features))))
    if batch.rows > most:
        batch = pick(batch, torch.linspace(0, batch.rows - 1, most, device=batch.numbers.device).long())
    random = np.random.default_rng(seed)
    shuffles = [pick(batch, torch.from_numpy(random.permutation(batch.rows))) for _ in range(repeats)]
    if len(features) > FEATURES:
        effects = shuffle_effects(bundle, batch, shuffles, features, seed=seed)
        features = [features[at] for at in most_moving(effects, FEATURES)]
    whole = _forward(bundle, batch)
    base = _main_scores(bundle, whole)
    found: dict[str, list[Importance]] = {name: [] for name, value in base.items() if np.isfinite(value)}
    for done, columns in enumerate(features):
        if progress is not None:
            progress("importance (features)", done, len(features))
        left = [_main_scores(bundle, _rescored(bundle, whole, batch, other, columns)) for other in shuffles]
        for name, of_target in found.items():
            target, _, metric = name.rpartition("/")
            lost = [base[name] - one[name] if HIGHER_IS_BETTER[metric] else one[name] - base[name] for one in left]
            sd = float(np.std(lost, ddof=1)) if repeats > 1 else 0.0
            of_target.append(
                Importance(feature=columns.feature.name, target=target, metric=metric, loss=float(np.mean(lost)), sd=sd)
            )
    return tuple(one for of_target in found.values() for one in sorted(of_target, key=lambda one: -one.loss))


def _rescored(bundle: Bundle, whole: Scored, batch: Batch, other: Batch, columns: FeatureColumns) -> Scored:
    """Outputs with one feature as it is in ``other``; only rows in which it differs are run again."""
    rows = _differ(batch, other, columns).nonzero().flatten()
    if not len(rows):
        return whole
    found = _forward(bundle, _replaced(pick(batch, rows), pick(other, rows), columns))
    logits, conditionals = whole.logits.copy(), whole.conditionals.copy()
    logits[rows], conditionals[rows] = found.logits, found.conditionals
    return whole._replace(logits=logits, conditionals=conditionals)


def _differ(batch: Batch, other: Batch, columns: FeatureColumns) -> Tensor:
    """Rows (R,) whose feature is not the same in both; those of bags all count as different."""
    here, there = batch.numbers[:, columns.numbers], other.numbers[:, columns.numbers]
    numbers = (here != there) & ~(here.isnan() & there.isnan())
    categories = batch.categories[:, columns.categories] != other.categories[:, columns.categories]
    differ: Tensor = numbers.any(dim=1) | categories.any(dim=1) | bool(columns.bags)
    return differ


def _replaced(batch: Batch, other: Batch, columns: FeatureColumns) -> Batch:
    """The batch with one feature of the other."""
    numbers, categories, bags = batch.numbers.clone(), batch.categories.clone(), list(batch.bags)
    numbers[:, columns.numbers] = other.numbers[:, columns.numbers]
    categories[:, columns.categories] = other.categories[:, columns.categories]
    for at in columns.bags:
        bags[at] = other.bags[at]
    return batch._replace(numbers=numbers, categories=categories, bags=tuple(bags))


def _forward(bundle: Bundle, batch: Batch) -> Scored:
    cuts = (cut(batch, start, start + ROWS) for start in range(0, batch.rows, ROWS))
    return forward(bundle.model, cuts, next(bundle.model.parameters()).device)


def _main_scores(bundle: Bundle, scored: Scored) -> dict[str, float]:
    """The main metric of each target, by ``<target>/<metric>``."""
    found = {}
    for space in spaces(bundle.schema, bundle.encoder, scored):
        main = PRIMARY[space.kind]
        found[f"{space.name}/{main}"] = score_task(space.kind, space.outputs, space.labels, space.weights)[main]
    return found
