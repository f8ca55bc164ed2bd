"""Synthetic tasks (Ma et al. 2018, sections 3 and 5): what relatedness does to sharing. Figures 2 to 5."""

from collections.abc import Iterable

import numpy as np
from pydantic import Field

from multigate.datasets.synthetic import Synthetic, label_correlation
from multigate.options import Options
from multigate.paper.account import Account, Claim, claims
from multigate.paper.draws import Draws
from multigate.paper.ledger import Row
from multigate.paper.published import figure_2
from multigate.paper.study import Site, Study
from multigate.report.blocks import Text


class SyntheticStudy(Options):
    """Settings of the study; what the paper does not say is a choice of ours."""

    runs: int = Field(default=200, ge=2)
    """Of each structure and cosine, as in the paper; each has data and weights of its own."""
    data: Synthetic = Synthetic()
    """The generator (``correlations`` and ``seed`` are set by the study)."""
    trials: int = Field(default=100, ge=2)
    """Of Figure 2, as in the paper, each of ``points`` rows."""
    points: int = Field(default=10_000, ge=10)


def run(settings: SyntheticStudy, site: Site) -> list[Account]:
    """Run the parts that are not there yet, and tell what was found."""
    part = "figure2"
    if not site.ledger.has(part):
        site.ledger.keep(part, _trials(settings, site))
    return [_figure_2(settings, site.ledger.rows(part))]


def _trials(settings: SyntheticStudy, site: Site) -> list[Row]:
    """The correlation of two labels over fresh rows, for each cosine of Figure 2 and each trial."""
    rows: list[Row] = []
    cosines = figure_2().cosines
    for at, cosine in enumerate(cosines):
        data = settings.data.with_(correlations=(cosine,))
        for seed in range(settings.trials):
            y = Draws(data, [seed]).held_out(settings.points).y[0].numpy()
            rows.append({"cosine": cosine, "seed": seed, "label_correlation": float(np.corrcoef(y.T)[0, 1])})
            site.report("figure 2 (trials)", at * settings.trials + seed + 1, len(cosines) * settings.trials)
    return rows


def _figure_2(settings: SyntheticStudy, rows: Iterable[Row]) -> Account:
    paper, found = figure_2(), []
    for cosine, mean, low, high in zip(*paper, strict=True):
        own = np.array([row["label_correlation"] for row in rows if row["cosine"] == cosine])
        verdict = "within" if low <= own.mean() <= high else "outside"
        exact = label_correlation(settings.data, cosine)
        here = f"{own.mean():.4f} ± {2 * own.std(ddof=1):.4f} (closed form {exact:.4f})"
        found.append(Claim(f"cosine {cosine:g}", f"{mean:.4f} [{low:.4f}, {high:.4f}]", here, verdict))
    return Account(
        "figure-2",
        "Figure 2: correlation of labels against the cosine of weights",
        (Text("Mean of the trials and two standard deviations."), claims("Label correlation", found)),
        lambda: iter(()),
    )


STUDY = Study("Synthetic tasks: what relatedness does to sharing", SyntheticStudy, {"runs": 20, "points": 10_000}, run)
