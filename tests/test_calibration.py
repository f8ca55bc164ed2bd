"""Calibration curves: the fits against scikit-learn, the module against plain interpolation, the chain kept exact."""

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from multigate.batch import IdColumn, Layout, TaskColumn
from multigate.calibration import FITS, Calibration, Curve, isotonic, platt
from multigate.errors import SettingError
from multigate.metrics import auc, log_loss
from multigate.model import Model
from multigate.sharing import MMoE

TASKS = (
    TaskColumn(name="click", kind="binary"),
    TaskColumn(name="topic", kind="multiclass", outputs=3),
    TaskColumn(name="buy", kind="binary"),
    TaskColumn(name="watch", kind="regression"),
)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def drawn(rows: int, bend: float = 2.0, shift: float = -1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels whose true logit is bend times the logit plus shift."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=rows)
    return logits, (random.random(rows) < sigmoid(bend * logits + shift)).astype(np.float64)


def applied(curve: Curve, logits: np.ndarray) -> np.ndarray:
    module = Calibration(TASKS[:1], {"click": curve})
    return module(torch.tensor(logits, dtype=torch.float32)[:, None])[:, 0].double().numpy()


def test_a_curve_is_straight_between_knots_and_beyond_them() -> None:
    curve = Curve(at=(-2.0, 0.0, 1.0), to=(-5.0, -1.0, 4.0), slope=0.5)
    logits = np.linspace(-6, 6, 200)
    expected = np.interp(logits, curve.at, curve.to)
    expected += np.where(logits < -2, 0.5 * (logits + 2), 0) + np.where(logits > 1, 0.5 * (logits - 1), 0)
    np.testing.assert_allclose(applied(curve, logits), expected, atol=1e-5)
    np.testing.assert_allclose(applied(curve.shifted(3.0), logits), expected + 3, atol=1e-5)


def test_curves_of_different_lengths_stand_side_by_side_and_the_rest_is_left_alone() -> None:
    curves = {"click": Curve(at=(-1.0, 0.5, 2.0), to=(-3.0, 0.0, 1.0)), "buy": Curve(to=(1.5,), slope=2.0)}
    logits = torch.randn(50, 6) * 3
    found = Calibration(TASKS, curves)(logits)
    assert torch.equal(found[:, [1, 2, 3, 5]], logits[:, [1, 2, 3, 5]])
    for column, name in ((0, "click"), (4, "buy")):
        np.testing.assert_allclose(found[:, column], applied(curves[name], logits[:, column].numpy()), rtol=1e-5)


@pytest.mark.parametrize("logit", [-torch.inf, torch.inf])
def test_an_infinite_logit_stays_what_it_is(logit: float) -> None:
    """Also beyond a curve that is shorter than another's."""
    curves = {"click": Curve(at=(-1.0, 0.5, 2.0), to=(-3.0, 0.0, 1.0)), "buy": Curve(to=(1.5,), slope=2.0)}
    assert Calibration(TASKS, curves)(torch.full((1, 6), logit)).unique().tolist() == [logit]


@pytest.mark.parametrize(
    ("shift", "size"), [(-1.0, 1.0), (-9.0, 1.0), (-1.0, 1e-6), (-1.0, 500.0)], ids=["plain", "rare", "narrow", "wide"]
)
def test_platt_is_a_logistic_regression_on_drawn_in_labels(shift: float, size: float) -> None:
    """Also where one label in thousands is 1, and where logits hardly differ or are huge."""
    logits, labels = drawn(3_000 if shift > -9 else 100_000, shift=shift)
    weights = np.random.default_rng(1).uniform(0.2, 3, len(logits))
    curve = platt(logits * size, labels, weights)
    assert curve is not None
    # a target t is t of a 1 and 1 - t of a 0
    ones, zeros = ((weights * one).sum() / weights.mean() for one in (labels, 1 - labels))
    target = np.where(labels == 1, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    twice = LogisticRegression(C=np.inf, tol=1e-10).fit(
        np.tile(logits, 2)[:, None],
        np.repeat([1, 0], len(logits)),
        sample_weight=np.concatenate([weights * target, weights * (1 - target)]),
    )
    assert curve.slope * size == pytest.approx(twice.coef_[0, 0], rel=1e-3)
    assert curve.to[0] == pytest.approx(twice.intercept_[0], rel=1e-3)
    assert curve.slope * size == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("logit", [-1.3, 0.1, 0.3, 2.5])
def test_platt_of_one_logit_is_its_share_of_positives(logit: float) -> None:
    """A model that collapsed. What rounding makes of a deviation of 0 is no spread: slopes came out at 1e15."""
    labels = np.array([1.0] * 6 + [0.0] * 14)
    curve = platt(np.full(20, logit), labels)
    assert curve is not None
    rate = (6 * 7 / 8 + 14 * 1 / 16) / 20  # the labels drawn in
    np.testing.assert_allclose(sigmoid(applied(curve, np.full(3, logit))), rate, rtol=1e-4)
    assert 0 < curve.slope <= 1


def test_isotonic_pools_as_scikit_learn_does() -> None:
    """On 40 distinct logits every logit is a bin of its own, so that blocks are those of the plain regression."""
    random = np.random.default_rng(3)
    logits = random.choice(np.linspace(-2, 2, 40), 4_000)
    labels = (random.random(4_000) < sigmoid(logits)).astype(float)
    weights = random.uniform(0.5, 2, 4_000)
    plain = IsotonicRegression().fit(logits, labels, sample_weight=weights)
    curve = isotonic(logits, labels, weights)
    assert curve is not None
    values = plain.predict(np.unique(logits))
    assert 5 < len(np.unique(values)) < 40, "some are pooled, some not"
    np.testing.assert_allclose(sigmoid(np.array(curve.to)), np.unique(values.round(12)), rtol=1e-9)
    for at, value in zip(curve.at, curve.to, strict=True):  # a knot lies at the weighted centre of its block
        rows = np.isclose(plain.predict(logits), sigmoid(np.array(value)))
        assert at == pytest.approx(np.average(logits[rows], weights=weights[rows]))


@pytest.mark.parametrize("method", FITS)
def test_probabilities_become_true_to_size_on_other_rows_and_keep_their_order(method: str) -> None:
    logits, labels = drawn(20_000)
    curve = FITS[method](logits, labels)
    assert curve is not None
    fresh, answers = drawn(20_000, seed=7)
    found = applied(curve, fresh)
    true = 2 * fresh - 1
    assert np.abs(sigmoid(found) - sigmoid(true)).mean() < 0.015  # before: .16
    assert log_loss(found, answers) < log_loss(fresh, answers) - 0.05
    assert auc(found, answers) == pytest.approx(auc(fresh, answers), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_isotonic_probabilities_of_rare_labels_add_up_to_the_labels(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = 1.5 * random.standard_normal(20_000)
    labels = (random.random(20_000) < sigmoid(logits - 6.3)).astype(float)
    weights = random.uniform(0.5, 2, 20_000)
    curve = FITS["isotonic"](logits, labels, weights)
    assert curve is not None
    assert sum(labels) < 200
    assert weights @ sigmoid(applied(curve, logits)) == pytest.approx(weights @ labels, rel=1e-4)


@pytest.mark.parametrize("method", FITS)
@pytest.mark.parametrize("labels", [np.zeros(30), np.ones(30), np.zeros(0)], ids=["no ones", "no zeros", "no rows"])
def test_one_class_alone_gives_no_curve(method: str, labels: np.ndarray) -> None:
    logits, random = np.linspace(-1, 1, len(labels)), np.random.default_rng(0)
    assert FITS[method](logits, labels) is None
    for _ in range(20):  # sums of the same weights in another order differ by rounding
        assert FITS[method](logits, labels, random.random(len(labels))) is None


def test_hopeless_logits_are_left_as_they_are_or_flattened_but_never_turned_round() -> None:
    logits, labels = drawn(2_000, bend=-2.0)
    assert platt(logits, labels) is None
    curve = isotonic(logits, labels)
    assert curve is not None
    assert len(curve.at) <= 3
    assert sigmoid(applied(curve, logits)).mean() == pytest.approx(labels.mean(), abs=0.05)


def test_ends_without_a_positive_stay_finite() -> None:
    logits = np.arange(400.0)
    labels = ((logits > 150) & (logits % 3 == 0)).astype(float)
    labels[390:] = 1
    curve = isotonic(logits, labels)
    assert curve is not None
    assert np.isfinite(curve.to).all()
    assert list(curve.at) == sorted(set(curve.at))
    assert list(curve.to) == sorted(set(curve.to))


def test_rows_that_weigh_nothing_do_not_count() -> None:
    logits, labels = drawn(500)
    lying = np.concatenate([labels, 1 - labels])
    weights = np.concatenate([np.ones(500), np.zeros(500)])
    for fit in FITS.values():
        assert fit(np.tile(logits, 2), lying, weights) == fit(logits, labels)


@pytest.mark.parametrize("method", FITS)
@pytest.mark.parametrize("size", [1e-6, 1 / 5_000, 1e6])
def test_weights_are_relative(method: str, size: float) -> None:
    logits, labels = drawn(5_000)
    weights = np.random.default_rng(1).uniform(0.2, 3, len(logits))
    one, other = (FITS[method](logits, labels, scale * weights) for scale in (1.0, size))
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(applied(other, logits), applied(one, logits), atol=1e-4)
    rate = (weights * labels).sum() / weights.sum()
    assert np.average(sigmoid(applied(other, logits)), weights=weights) == pytest.approx(rate, abs=0.005)


def test_knots_that_do_not_rise_are_refused() -> None:
    with pytest.raises(SettingError, match="knots that increase"):
        Curve(at=(0.0, 0.0), to=(1.0, 2.0))


def test_in_a_chain_the_product_stays_exact() -> None:
    """p(buy) = p(buy | click) p(click) for calibrated probabilities too, so a child never passes its parent."""
    layout = Layout(
        numbers=(), categories=(IdColumn(feature="u", table="u"),), bags=(), tables={"u": 30}, tasks=TASKS[:3:2]
    )
    model = Model(layout, MMoE(experts=2, hidden=(8,)), parents=(None, 0), order=(0, 1)).eval()
    ids = torch.arange(30, dtype=torch.int32)[:, None]
    before = model(torch.empty(30, 0), ids)
    curves = {"click": Curve(to=(0.7,)), "buy": Curve(at=(-1.0, 1.0), to=(-3.0, 2.0))}
    model.calibration = Calibration(layout.tasks, curves)
    after = model(torch.empty(30, 0), ids)
    torch.testing.assert_close(after.logits[:, 0], before.logits[:, 0] + 0.7)
    product = torch.sigmoid(after.conditionals[:, 0]) * torch.sigmoid(after.conditionals[:, 1])
    torch.testing.assert_close(torch.sigmoid(after.logits[:, 1]), product)
    assert not torch.allclose(after.conditionals[:, 1], before.conditionals[:, 1])
