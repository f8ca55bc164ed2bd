"""Gate statistics against scipy, plain numpy and planted faults."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from multigate.analysis.gates import QUANTILES, dead_sources, is_sparse, level_gates, polarised_gates
from multigate.sharing import Level

TASKS, EXPERTS = ("click", "buy", "like"), ("a", "b", "c", "d")
ALL = ((True,) * 4,) * 3
LEVEL = Level(TASKS, EXPERTS, ALL)


def gate_of(logits, rows=500, noise=1.0):
    drawn = np.random.default_rng(0).normal(size=(rows, len(logits), len(logits[0]))) * noise
    return softmax(np.array(logits) + drawn, axis=-1).astype(np.float32)


@pytest.fixture
def gate():
    return gate_of([[0, 1, 2, 0], [3, 0, 0, 0], [0, 0, 0, 0]])


def test_means_spreads_and_quantiles(gate):
    found = level_gates(LEVEL, gate)
    for i in range(3):
        for j in range(4):
            weights = gate[:, i, j].astype(np.float64)
            assert found.mean[i][j] == pytest.approx(weights.mean())
            assert found.sd[i][j] == pytest.approx(weights.std(), rel=1e-5)
            assert found.quantiles[i][j] == pytest.approx([np.quantile(weights, q) for q in QUANTILES], rel=1e-5)
    assert (found.readers, found.sources, found.mask, found.learned) == (TASKS, EXPERTS, ALL, True)


def test_entropy_is_scipys_over_its_largest(gate):
    found = level_gates(LEVEL, gate)
    means = gate.mean(axis=0, dtype=np.float64)
    assert found.entropy == pytest.approx(entropy(means, axis=1) / np.log(4), rel=1e-5)
    assert found.row_entropy == pytest.approx(entropy(gate, axis=-1).mean(axis=0) / np.log(4), rel=1e-5)


def test_divergence_is_the_square_of_scipys_distance_in_bits(gate):
    found = level_gates(LEVEL, gate)
    means = gate.mean(axis=0, dtype=np.float64)
    for i in range(3):
        for j in range(3):
            assert found.divergence[i][j] == pytest.approx(jensenshannon(means[i], means[j], 2) ** 2, abs=1e-6)
            rows = np.mean([jensenshannon(row[i], row[j], 2) ** 2 for row in gate.astype(np.float64)])
            assert found.row_divergence[i][j] == pytest.approx(rows, abs=1e-6)


def test_gates_that_differ_by_row_only_agree_on_average():
    rows = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], dtype=np.float32)
    found = level_gates(Level(("a", "b"), ("x", "y"), ((True, True),) * 2), rows)
    assert found.divergence[0][1] == pytest.approx(0)
    assert found.row_divergence[0][1] == pytest.approx(1)
    assert found.entropy == pytest.approx((1, 1))
    assert found.row_entropy == pytest.approx((0, 0))


def test_a_source_read_by_none_is_dead_and_one_read_by_some_is_not():
    found = level_gates(LEVEL, gate_of([[0, -12, 0, -12], [0, -12, 0, 0], [0, -12, 0, 0]]))
    assert dead_sources(found) == (1,)
    nearly = level_gates(LEVEL, gate_of([[0, -4.5, 0, 0]] * 3, noise=0.1))  # .4 %, where a uniform share is 25 %
    assert dead_sources(nearly) == ()
    assert dead_sources(nearly, 0.1) == (1,)


def test_a_barred_source_is_not_dead():
    mask = ((True, True, False, False), (False, True, True, False))
    weights = np.array([[[0.5, 0.5, 0, 0], [0, 1, 0, 0]]] * 4, dtype=np.float32)
    found = level_gates(Level(("a", "b"), EXPERTS, mask), weights)
    assert dead_sources(found) == (2,), "the third may be read and is not, the fourth may not"
    assert found.entropy == pytest.approx((1, 0)), "over the sources a reader may read"


def test_polarised_is_a_choice_that_settled():
    settled = level_gates(LEVEL, gate_of([[0, 9, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]], noise=0.1))
    assert polarised_gates(settled) == ((0, 1),)
    one_expert = level_gates(Level(TASKS, ("only",), ((True,),) * 3), np.ones((5, 3, 1), dtype=np.float32))
    assert polarised_gates(one_expert) == ()
    assert one_expert.entropy == (0, 0, 0)


def test_what_sparse_gates_select():
    weights = np.array([[[1, 0, 0], [0.5, 0.5, 0]], [[0, 1, 0], [0, 0.2, 0.8]]], dtype=np.float32)
    level = Level(("a", "b"), ("x", "y", "z"), ((True, True, False), (True, True, True)))
    found = level_gates(level, weights)
    assert found.selected == ((0.5, 0.5, 0), (0.5, 1, 0.5))
    assert found.needed == 2, "x and y in the first row, y and z in the second"
    assert is_sparse(found)


def test_softmax_gates_and_masks_are_not_sparse(gate):
    found = level_gates(LEVEL, gate)
    assert (found.selected, found.needed, is_sparse(found)) == (((1,) * 4,) * 3, 4, False)
    own = level_gates(Level(("a", "b"), ("x", "y"), ((True, False), (False, True))), np.eye(2, dtype=np.float32)[None])
    assert (own.selected, own.needed, is_sparse(own)) == (((1, 0), (0, 1)), 2, False)


def test_without_gates_the_mask_is_what_is_read():
    own = ((True, False), (False, True))
    found = level_gates(Level(("a", "b"), ("x", "y"), own), None)
    assert found.mean == ((1, 0), (0, 1))
    assert found.sd == ((0, 0), (0, 0))
    assert found.divergence[0][1] == pytest.approx(1)
    assert (found.learned, dead_sources(found), polarised_gates(found)) == (False, (), ())


def test_gates_that_are_no_distribution_have_no_entropy():
    weights = np.random.default_rng(0).normal(size=(50, 3, 4)).astype(np.float32)
    weights[..., 2] = 0
    found = level_gates(LEVEL._replace(distribution=False), weights)
    assert (found.entropy, found.row_entropy, found.divergence, found.row_divergence) == ((), (), (), ())
    assert dead_sources(found) == (2,)
    assert polarised_gates(found) == ()
