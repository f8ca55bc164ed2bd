"""Endless data: the paper's law row by row, its moments, and rows that do not depend on other runs."""

import numpy as np
import pytest
import torch

from multigate.datasets.synthetic import Synthetic, label_correlation, label_moments, task_weights
from multigate.paper.synthetic.draws import Draws

SMALL = Synthetic(size=7, correlations=(0.6,), frequencies=(1.0, 3.0), phases=(0.4, 2.0), scale=0.8)


def by_loops(options: Synthetic, x: np.ndarray) -> np.ndarray:
    """Eq. 3 and 4 without noise, one row and task at a time."""
    labels = np.zeros((len(x), 2))
    for row, values in enumerate(x):
        for task, w in enumerate(task_weights(options)):
            inner = float(w @ values)
            labels[row, task] = inner + sum(
                np.sin(alpha * inner + beta) for alpha, beta in zip(options.frequencies, options.phases, strict=True)
            )
    return labels


def test_labels_are_equations_3_and_4_with_noise() -> None:
    x, y = Draws(SMALL, [4, 9], standardise=False).held_out(500)
    noise = np.stack(
        [y[at].numpy() - by_loops(SMALL.with_(seed=seed), x[at].numpy()) for at, seed in enumerate((4, 9))]
    )
    assert noise.std() == pytest.approx(0.1, rel=0.05)
    assert abs(noise.mean()) < 0.01
    assert abs(np.corrcoef(noise[0].T)[0, 1]) < 0.15, "each label has noise of its own"


@pytest.mark.parametrize("cosine", [-0.7, 0.5, 0.95])
def test_standardised_labels_have_no_mean_unit_variance_and_the_correlation_in_closed_form(cosine: float) -> None:
    options = Synthetic(size=5, correlations=(cosine,))
    y = Draws(options, [0]).held_out(200_000).y[0].double()
    assert y.mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.01)
    assert y.var(0).tolist() == pytest.approx([1.0, 1.0], rel=0.01)
    assert np.corrcoef(y.numpy().T)[0, 1] == pytest.approx(label_correlation(options, cosine), abs=0.01)


def test_moments_in_closed_form_are_those_of_many_rows() -> None:
    y = Draws(SMALL, [1], standardise=False).held_out(400_000).y.double()
    mean, sd = label_moments(SMALL)
    assert y.mean().item() == pytest.approx(mean, abs=0.01)
    assert y.std().item() == pytest.approx(sd, rel=0.01)


def test_what_a_run_draws_does_not_depend_on_other_runs() -> None:
    alone = Draws(SMALL, [5]).train(3, 4, 6)
    among = Draws(SMALL, [2, 5, 8]).train(3, 4, 6)
    assert torch.equal(alone.x[0], among.x[1])
    assert torch.equal(alone.y[0], among.y[1])
    assert among.x.shape == (3, 4, 6, 7)
    assert among.y.shape == (3, 4, 6, 2)


def test_no_row_comes_twice() -> None:
    draws = Draws(SMALL, [2, 5])
    several = [draws.train(block, 3, 10).x.reshape(-1, 7) for block in range(3)]
    rows = torch.cat([*several, draws.held_out(50).x.reshape(-1, 7)])
    assert len(torch.unique(rows, dim=0)) == len(rows) == 3 * 60 + 100
