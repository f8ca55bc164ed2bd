"""Whether predicted probabilities are the rates observed."""

from collections.abc import Iterator
from math import isfinite

from multigate.analysis.reliability import Reliability, reliability
from multigate.data.prepared import Prepared
from multigate.formats import listed
from multigate.report.blocks import Block, Figure, Text
from multigate.report.charts import reliability_axes, reliability_chart
from multigate.report.trained import Trained
from multigate.training.train import PREPARED


def curves(one: Trained) -> Iterator[Block]:
    """A reliability diagram for every binary task and conditional."""
    subject = one.checked
    found = reliability(subject)
    if not found:
        binary = any(task.kind == "binary" for task in one.experiment.schema.tasks)
        yield Text(
            "No row has a known label of a binary task, so there is nothing to check probabilities by."
            if binary
            else "None of the tasks is binary, so there are no probabilities to check."
        )
        return
    edges = " On logarithmic axes, a triangle on the lower edge is a bin in which nothing was observed."
    logarithmic = any(reliability_axes(curve)[2] for curve in found)
    yield Figure(
        f"{subject.rows}, in bins of equally many by predicted probability. A dot is a bin, its line the 95 % interval "
        f"of the observed rate; on the dashed diagonal predictions are as frequent as they say."
        f"{edges if logarithmic else ''} ECE is the mean distance from the diagonal. {_told(found)}{_doubt(one)}",
        tuple(reliability_chart(curve) for curve in found),
    )


def _doubt(one: Trained) -> str:
    """Why the rows may not be those that predictions were corrected for."""
    if not one.checked.bundle.curves or one.from_table:
        return ""
    alone = one.parts == ("valid",)
    if alone and one.experiment.recalibrate != "none":
        return " Predictions were recalibrated on these very rows, so look at other rows (--table) before you trust it."
    sampled = any(task.negatives_kept < 1 for task in one.experiment.schema.tasks)
    if sampled and (alone or "test" not in Prepared(one.folder / PREPARED).manifest.get("tables", {})):
        return (
            " Predictions are corrected for sampled negatives, these rows are not: look at rows as they come (--table)."
        )
    return ""


def _told(found: tuple[Reliability, ...]) -> str:
    """Which targets are predicted too often or too rarely, and which never happen on these rows."""
    off = [
        f"{curve.target} is predicted {curve.calibration:.2f} times as often as it happens"
        for curve in found
        if isfinite(curve.calibration) and not 0.9 <= curve.calibration <= 1.1
    ]
    off += [f"{curve.target} never happens" for curve in found if not isfinite(curve.calibration)]
    return f"Here {listed(off)}." if off else "Here all are within 10 % of the observed rate overall."
