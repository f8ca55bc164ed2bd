"""The synthetic tasks of the MMoE paper against the paper: vectors, laws, moments, and Figure 2."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multigate.data.encoder import Encoder
from multigate.datasets.synthetic import (
    BLOCK,
    Synthetic,
    label_correlation,
    signal,
    synthetic_schema,
    synthetic_table,
    task_weights,
    write_synthetic,
)
from multigate.errors import SettingError

ROWS = 40_000
COSINES = (-1.0, -0.5, 0.0, 0.4, 0.8, 0.95, 1.0)
LARGE = Synthetic(rows=ROWS, size=20, correlations=COSINES, noise_tasks=2, seed=3)
TRIPLE = ((1.0, 0.6, -0.2), (0.6, 1.0, 0.3), (-0.2, 0.3, 1.0))
NOT_TRIPLE = ((1.0, 0.9, -0.9), (0.9, 1.0, 0.9), (-0.9, 0.9, 1.0))


@pytest.fixture(scope="module")
def large() -> pa.Table:
    return synthetic_table(LARGE)


def inputs(table: pa.Table) -> np.ndarray:
    return np.stack(table["x"].to_numpy())


def labels(table: pa.Table, options: Synthetic) -> np.ndarray:
    """(T, R)"""
    return np.stack([table[name].to_numpy() for name in options.task_names])


@pytest.mark.parametrize("p", [*COSINES, 0.123])
@pytest.mark.parametrize("size", [2, 100])
def test_two_tasks_are_equation_2(p: float, size: int) -> None:
    options = Synthetic(size=size, correlations=(p,), scale=0.3)
    first, second = task_weights(options)
    assert np.linalg.norm(first) == pytest.approx(0.3)
    assert np.linalg.norm(second) == pytest.approx(0.3)
    assert first @ second / 0.09 == pytest.approx(p, abs=1e-12)
    rest = second - p * first
    assert np.linalg.norm(rest) == pytest.approx(0.3 * math.sqrt(1 - p**2), abs=1e-12), "c stands before u2 too"


def test_many_tasks_have_the_cosines_asked_for() -> None:
    options = Synthetic(cosines=TRIPLE, size=5)
    w = task_weights(options) / options.scale
    np.testing.assert_allclose(w @ w.T, TRIPLE, atol=1e-12)
    w = task_weights(LARGE) / LARGE.scale
    to_first = np.array((1.0, *COSINES))
    expected = np.outer(to_first, to_first)
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(w @ w.T, expected, atol=1e-12)
    np.testing.assert_array_equal(LARGE.gram(), expected)
    flat = Synthetic(cosines=((1, 0.5, 0.5), (0.5, 1, -0.5), (0.5, -0.5, 1)), size=3)  # three in one plane
    np.testing.assert_allclose(task_weights(flat) @ task_weights(flat).T / flat.scale**2, flat.gram(), atol=1e-7)


def test_labels_are_equations_3_and_4(large: pa.Table) -> None:
    w, x = task_weights(LARGE), inputs(large)
    clean = signal(LARGE, x)
    for row in range(20):
        for task in range(len(w)):
            s = sum(w[task, k] * float(x[row, k]) for k in range(20))
            expected = s + sum(math.sin(2 * i * s + math.pi * i / 2) for i in range(1, 7))
            assert clean[row, task] == pytest.approx(expected, abs=1e-9)
    noise = labels(large, LARGE)[:-2].T - clean
    assert noise.mean(axis=0) == pytest.approx(0, abs=4 * 0.1 / ROWS**0.5)
    assert noise.var(axis=0) == pytest.approx(0.01, abs=4 * 0.01 * (2 / ROWS) ** 0.5)
    between = np.corrcoef(noise.T)[~np.eye(len(w), dtype=bool)]
    assert abs(between).max() < 4.5 / ROWS**0.5, "every label has a noise of its own"


def test_inputs_are_standard_normal_and_independent(large: pa.Table) -> None:
    x = inputs(large).astype(np.float64)
    assert x.mean(axis=0) == pytest.approx(0, abs=4.5 / ROWS**0.5)
    np.testing.assert_allclose(np.cov(x.T), np.eye(20), atol=5 * (2 / ROWS) ** 0.5)
    assert (x**4).mean() == pytest.approx(3, abs=0.06)


def test_label_correlations_are_those_of_the_closed_form(large: pa.Table) -> None:
    found = np.corrcoef(labels(large, LARGE))[0]
    for task, p in enumerate(COSINES, 1):
        expected = label_correlation(LARGE, p)
        assert found[task] == pytest.approx(expected, abs=4 * (1 - expected**2) / ROWS**0.5), p


@pytest.mark.parametrize("shape", [{}, {"frequencies": (1.0, 2.5), "phases": (0.3, 2.0), "scale": 1.1, "noise": 0.4}])
@pytest.mark.parametrize("p", [-0.7, 0.0, 0.4, 0.9, 1.0])
def test_the_closed_form_equals_an_integral_over_the_plane(shape: dict, p: float) -> None:
    options = Synthetic(**shape)
    z = np.linspace(-8, 8, 1_601)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    one, other = np.meshgrid(z, z, indexing="ij")
    weight = np.outer(density, density)

    def label(s: np.ndarray) -> np.ndarray:
        return s + sum(np.sin(a * s + b) for a, b in zip(options.frequencies, options.phases, strict=True))

    first = label(options.scale * one)
    second = label(options.scale * (p * one + math.sqrt(1 - p**2) * other))
    mean = (weight * first).sum()
    covariance, variance = (weight * first * second).sum() - mean**2, (weight * first**2).sum() - mean**2
    assert label_correlation(options, p) == pytest.approx(covariance / (variance + options.noise), abs=1e-6)


def test_linear_tasks_correlate_by_their_cosine_but_for_noise() -> None:
    options = Synthetic(frequencies=(), phases=(), scale=0.5, noise=0.05)
    assert label_correlation(options, 0.7) == pytest.approx(0.7 * 0.25 / 0.30)


def test_the_defaults_fit_figure_2(shared_data: Path) -> None:
    figure = json.loads((shared_data / "paper" / "mmoe_figures.json").read_text())["fig2"]
    found = np.array([label_correlation(Synthetic(), p) for p in figure["cos"]])
    wrong = found - figure["label_corr_mean"]
    assert abs(wrong).max() < 0.01
    assert (wrong**2).mean() ** 0.5 < 0.004
    inside = (found > figure["lo_2sd"]) & (found < figure["hi_2sd"])
    assert inside.mean() > 0.75


def test_noise_tasks_have_nothing_to_do_with_anything(large: pa.Table) -> None:
    y, x = labels(large, LARGE), inputs(large)
    assert LARGE.task_names[-2:] == ("noise0", "noise1")
    for task in (-1, -2):
        others = np.concatenate([np.delete(y, task, axis=0), x.T, np.square(x.T)])
        assert max(abs(np.corrcoef(y[task], other)[0, 1]) for other in others) < 4.5 / ROWS**0.5
        assert y[task].std() == pytest.approx(y[0].std(), rel=0.03)


def test_labels_are_unknown_as_often_as_asked() -> None:
    table = synthetic_table(Synthetic(rows=20_000, size=3, known=(0.1, 1.0), noise_tasks=1))
    assert 1 - table["y0"].null_count / 20_000 == pytest.approx(0.1, abs=0.01)
    assert table["y1"].null_count == table["noise0"].null_count == 0


def test_rows_are_drawn_in_blocks() -> None:
    longer, shorter = (synthetic_table(Synthetic(rows=rows, size=3, seed=1)) for rows in (BLOCK + 50, BLOCK + 10))
    assert longer.slice(0, BLOCK + 10).combine_chunks() == shorter.combine_chunks()
    assert synthetic_table(Synthetic(rows=10, size=3, seed=2)) != shorter.slice(0, 10)
    whole = inputs(longer)
    assert not np.array_equal(whole[:50], whole[BLOCK:]), "blocks differ"


def test_written_tables_are_those_of_the_schema(tmp_path: Path) -> None:
    options = Synthetic(rows=500, size=4, noise_tasks=1)
    write_synthetic(options, tmp_path)
    tables = [pq.read_table(tmp_path / f"{name}.parquet") for name in ("train", "valid", "test")]
    assert [table.num_rows for table in tables] == [400, 50, 50]
    assert pa.concat_tables(tables).to_pydict() == synthetic_table(options).to_pydict()
    schema = synthetic_schema(options)
    assert schema.task_names == ("y0", "y1", "noise0")
    encoded = Encoder.fit(schema, tables[0].to_batches()).columns(tables[0].combine_chunks().to_batches()[0])
    assert encoded.numbers.shape == (400, 4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"correlations": (1.2,)}, "between -1 and 1"),
        ({"cosines": NOT_TRIPLE}, "positive semi-definite"),
        ({"cosines": ((1.0, 0.5), (0.4, 1.0))}, "symmetric"),
        ({"cosines": ((1.0, 0.5), (0.5,))}, "symmetric"),
        ({"cosines": ((2.0, 0.5), (0.5, 2.0))}, "ones"),
        ({"size": 1}, "2 tasks want as many inputs"),
        ({"frequencies": (1.0,)}, "1 and 6"),
        ({"known": (0.5, 0.5, 0.5)}, "known"),
        ({"known": (0.0,)}, "known"),
        ({"noise": -1.0}, "noise"),
    ],
)
def test_impossible_tasks_are_refused(options: dict, told: str) -> None:
    with pytest.raises(SettingError, match=told):
        Synthetic(**options)
