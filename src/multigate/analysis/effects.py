"""Effects to first order: how far a shuffle of each feature moves each prediction, from a few gradients."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multigate.batch import Batch, output_columns
from multigate.bundle import Bundle
from multigate.data.names import FeatureColumns
from multigate.data.rows import cut, to_device
from multigate.model import Outputs, Represented

ROWS = 256
"""Rows whose gradients are taken together."""

Floats = NDArray[np.float64]


def shuffle_effects(
    bundle: Bundle, batch: Batch, shuffles: Sequence[Batch], features: Sequence[FeatureColumns], *, seed: int = 0
) -> Floats:
    """Sum over rows and shuffles of the squared first-order effect of each feature on each target, (targets, F).

    The effect on a row is dy/dx_j . (x'_j - x_j), x_j being the columns of x that feature j owns, x' the row that the
    shuffle puts in its place, and y the logit (of a class: the log odds of the one predicted). The gradient is taken
    at the row itself in half of the cases and else at a random point on the way to x' (Erion et al. 2021, expected
    gradients): at the rows alone, functions that have saturated look flat. Squares keep what matters in few rows,
    and what moves predictions to either side. Targets are the tasks, and those with a parent once more given it.
    """
    model = bundle.model.eval()
    device = next(model.parameters()).device
    owner = _owners(bundle, features)
    owners = [
        torch.tensor([owner[origin] for origin in part.origins], dtype=torch.int64, device=device)
        for part in (model.embed, model.context)
        if part is not None
    ]
    random = torch.Generator().manual_seed(seed)
    effects: Tensor | float = 0.0
    for start in range(0, batch.rows, ROWS):
        seen = _represented(bundle, batch, start, device)
        for shuffle in shuffles:
            other = _represented(bundle, shuffle, start, device)
            way = (2 * torch.rand(len(seen.x), generator=random) - 1).clamp(min=0).to(device)
            moves = [there - here for here, there in zip(_inputs(seen), _inputs(other), strict=True)]
            points = [_on_the_way(here, move, way) for here, move in zip(_inputs(seen), moves, strict=True)]
            at = seen._replace(x=points[0], context=points[1] if len(points) > 1 else None)
            targets = _targets(bundle, model.decide(at, calibrated=False))
            effects = effects + torch.stack([_squares(y, points, moves, owners, len(features)) for y in targets])
    return np.asarray(effects.cpu(), dtype=np.float64) if isinstance(effects, Tensor) else np.zeros((0, len(features)))


def most_moving(effects: Floats, most: int) -> list[int]:
    """Of effects (targets, F) the places of ``most`` features, rising: each target in turn names its next largest."""
    ranks = np.argsort(np.argsort(-effects, axis=1, kind="stable"), axis=1)
    ranks = np.where(effects > 0, ranks, effects.shape[1])
    shares = effects / np.maximum(effects.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    order = np.lexsort((-shares.max(axis=0), ranks.min(axis=0)))
    return sorted(order[:most].tolist())


def _owners(bundle: Bundle, features: Sequence[FeatureColumns]) -> dict[int, int]:
    """By the place of a column among the layout's, that of its feature among these."""
    layout = bundle.encoder.layout
    first_bag = len(layout.numbers) + len(layout.categories)
    return {
        first + at: place
        for place, one in enumerate(features)
        for first, span in ((0, one.numbers), (len(layout.numbers), one.categories), (first_bag, one.bags))
        for at in span
    }


def _represented(bundle: Bundle, batch: Batch, start: int, device: torch.device) -> Represented:
    rows = to_device(cut(batch, start, min(start + ROWS, batch.rows)), device)
    with torch.no_grad():
        return bundle.model.represent(rows.numbers, rows.categories, rows.bags)


def _inputs(seen: Represented) -> tuple[Tensor, ...]:
    return (seen.x,) if seen.context is None else (seen.x, seen.context)


def _on_the_way(here: Tensor, move: Tensor, way: Tensor) -> Tensor:
    return (here + way.view(-1, *[1] * (here.dim() - 1)) * move).requires_grad_()


def _targets(bundle: Bundle, outputs: Outputs) -> list[Tensor]:
    """What is said of each target, (B,) each."""
    found = []
    for task, (start, end) in zip(bundle.schema.tasks, output_columns(bundle.encoder.layout.tasks), strict=True):
        sources = (outputs.logits,) if task.given is None else (outputs.logits, outputs.conditionals)
        found += [_said(source[:, start:end]) for source in sources]
    return found


def _said(logits: Tensor) -> Tensor:
    """(B, 1) as it is, and of (B, K) the log odds of the class with the largest."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    largest = logits.argmax(dim=1, keepdim=True)
    others = logits.scatter(1, largest, -torch.inf)
    return logits.gather(1, largest)[:, 0] - others.logsumexp(dim=1)


def _squares(
    y: Tensor, points: Sequence[Tensor], moves: Sequence[Tensor], owners: Sequence[Tensor], features: int
) -> Tensor:
    """(F,), the sum over rows of the squared effects on y (B,)."""
    gradients = torch.autograd.grad(y.sum(), points, retain_graph=True, allow_unused=True, materialize_grads=True)
    effects = y.new_zeros(len(y), features)
    for gradient, move, owner in zip(gradients, moves, owners, strict=True):
        effect = gradient * move
        effects.index_add_(1, owner, effect if effect.dim() == 2 else effect.sum(1))
    return effects.square().sum(0)
