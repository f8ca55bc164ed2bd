"""Experts matched between runs: planted orders come back; on noise it is said how little there is."""

from itertools import permutations

import numpy as np
import pytest

from multigate.paper.gates.matching import agreement, best_order, estranged, in_order, match_runs

N, R, T, E = 6, 300, 3, 4


def softmax(x: np.ndarray) -> np.ndarray:
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def planted(random: np.random.Generator, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Gates of runs that are one pattern, disturbed, with experts in an order of their own, and these orders."""
    pattern = 2 * random.normal(size=(1, T, E)) + random.normal(size=(R, T, E))
    orders = np.stack([random.permutation(E) for _ in range(N)])
    runs = [softmax(pattern + noise * random.normal(size=pattern.shape))[..., order] for order in orders]
    return np.stack(runs), orders


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("seed", range(5))
def test_planted_orders_are_found(noise: float, seed: int) -> None:
    gates, planted_orders = planted(np.random.default_rng(seed), noise)
    found = match_runs(gates)
    same = np.take_along_axis(planted_orders, found.orders, axis=1)  # what each place was before it was shuffled
    assert (same == same[0]).all()
    assert (found.gates == in_order(gates, found.orders)).all()
    for run in range(N):
        assert sorted(found.orders[run]) == list(range(E))
    reads = found.gates[:, :, 0].mean((0, 1))
    assert (np.diff(reads) <= 1e-12).all(), "places fall by what the first task reads"
    if noise == 0:
        assert agreement(found.gates) == pytest.approx(1)
        assert agreement(gates) < 0.7


def test_the_best_order_is_the_best_of_all() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        one, reference = softmax(random.normal(size=(2, 7, T, E)))
        left = {order: np.square(one[..., list(order)] - reference).sum() for order in permutations(range(E))}
        assert tuple(best_order(one, reference)) == min(left, key=left.__getitem__)


@pytest.mark.parametrize("seed", range(8))
def test_no_other_order_of_a_run_is_closer_to_the_mean(seed: int) -> None:
    gates = softmax(2 * np.random.default_rng(seed).normal(size=(12, 2, 2, E)))
    found = match_runs(gates).gates
    mean = found.mean(0)
    for run in found:
        for order in permutations(range(E)):
            assert np.square(run - mean).sum() <= np.square(run[..., list(order)] - mean).sum() + 1e-9


def test_the_order_of_runs_and_the_first_numbers_do_not_matter() -> None:
    random = np.random.default_rng(3)
    gates, _ = planted(random, noise=1.0)
    found = match_runs(gates).gates
    again = match_runs(np.stack([run[..., random.permutation(E)] for run in gates]))
    np.testing.assert_allclose(again.gates, found)
    np.testing.assert_allclose(match_runs(gates[::-1]).gates, found[::-1])


def test_runs_with_nothing_in_common_agree_no_more_than_estranged_ones() -> None:
    """Matching makes even noise agree a little; what it does to noise is the measure."""
    random = np.random.default_rng(4)
    tilt = 1.5 * random.normal(size=(N, 1, T, E))  # each run has favourites of its own
    noise = softmax(tilt + random.normal(size=(N, R, T, E)))
    assert agreement(noise) == pytest.approx(1 / N, abs=0.1)
    by_chance = agreement(match_runs(noise).gates)
    assert by_chance > agreement(noise) + 0.05, "matched noise looks like agreement"
    renumbered = [agreement(match_runs(estranged(noise, seed)).gates) for seed in range(10)]
    assert min(renumbered) - 0.1 < by_chance < max(renumbered) + 0.1
    gates, _ = planted(random, noise=0.5)
    alike = agreement(match_runs(gates).gates)
    assert alike > max(agreement(match_runs(estranged(gates, seed)).gates) for seed in range(10)) + 0.1


def test_estranged_gates_keep_what_each_task_reads() -> None:
    gates, _ = planted(np.random.default_rng(5), noise=0.5)
    found = estranged(gates, 1)
    np.testing.assert_array_equal(np.sort(found, -1), np.sort(gates, -1))
    assert not (found == gates).all()
    joint = np.einsum("nrte,nrue->ntu", gates, gates), np.einsum("nrte,nrue->ntu", found, found)
    assert not np.allclose(*joint)
    np.testing.assert_allclose(*(np.diagonal(one, axis1=1, axis2=2) for one in joint))


def test_even_gates_have_nothing_to_disagree_on() -> None:
    assert agreement(match_runs(np.full((3, 5, 2, E), 1 / E)).gates) == 1
