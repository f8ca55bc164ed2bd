"""What the paper printed: as read off its figures, and in agreement with itself."""

import json
from pathlib import Path

import numpy as np
import pytest

from multigate.paper.published import BIN, figure_2, figure_3, figure_4, figure_5, figure_6

NAMES = {"shared_bottom": "SharedBottom", "omoe": "OMoE", "mmoe": "MMoE"}
COSINES = (0.5, 0.9, 1.0)


def test_curves_and_histograms_are_those_read_off_the_figures(shared_data: Path) -> None:
    read = json.loads((shared_data / "paper" / "mmoe_figures.json").read_text())
    assert list(figure_2().cosines) == read["fig2"]["cos"]
    assert list(figure_2().mean) == read["fig2"]["label_corr_mean"]
    assert list(figure_2().low) == read["fig2"]["lo_2sd"]
    assert list(figure_2().high) == read["fig2"]["hi_2sd"]
    assert figure_6() == {name.lower(): values for name, values in read["fig6"].items()}
    for cosine in COSINES:
        assert figure_3(cosine) == [tuple(point) for point in read["fig3_shared_bottom16"][f"corr{cosine:g}"]]
        for name, printed in NAMES.items():
            assert figure_4(name, cosine) == [tuple(point) for point in read["fig4"][f"corr{cosine:g}"][printed]]
            counts = read["fig5_counts_of_200_bin_width_1_30"][f"{printed}/corr{cosine:g}"]
            assert figure_5(name, cosine) == counts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cosine", COSINES)
def test_figures_4_and_5_are_of_the_same_200_runs(name: str, cosine: float) -> None:
    counts = np.array(figure_5(name, cosine))
    assert counts.sum() == 200
    mean = (counts * BIN * (np.arange(len(counts)) + 0.5)).sum() / 200
    step, loss = figure_4(name, cosine)[-1]
    assert step == 9900
    assert mean == pytest.approx(loss, abs=0.003)


def test_gate_weights_sum_to_one() -> None:
    assert [sum(weights) for weights in figure_6().values()] == pytest.approx([1, 1], abs=1e-3)
