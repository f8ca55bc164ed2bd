"""An inspection: why a model predicts as it does, from its gates, its units, and rows."""

from collections.abc import Sequence
from os import PathLike

import numpy as np
import torch
from numpy.typing import NDArray

from multigate.analysis.audience import Served, served_values
from multigate.analysis.findings import ENOUGH, Finding, find, too_few
from multigate.analysis.gates import LevelGates, level_gates
from multigate.analysis.importance import Importance, permutation_importance
from multigate.analysis.subject import Subject, find_subject
from multigate.analysis.units import Units, watching
from multigate.bundle import Bundle
from multigate.data.rows import join, to_device
from multigate.errors import DataError
from multigate.formats import listed
from multigate.nn.defaults import defaults
from multigate.options import Options
from multigate.progress import Progress

__all__ = ["Finding", "Importance", "Inspection", "LevelGates", "Served", "Units", "inspect_model"]

NAMED = 6
"""Features that a sentence names at most."""


class Inspection(Options):
    """All that an inspection found; ``to_dict(full=True)`` makes JSON of it."""

    model: str
    structure: str
    rows: str
    """Which rows were looked at, for people."""
    levels: tuple[LevelGates, ...]
    """One per level of the wiring."""
    units: tuple[Units, ...]
    served: tuple[Served, ...]
    importance: tuple[Importance, ...]
    """By target, then by falling loss."""
    unshuffled: tuple[str, ...] = ()
    """Features of a wide table that were not shuffled: to first order predictions move least with them."""
    unscored: tuple[str, ...] = ()
    """Tasks whose main metric these rows do not define: no feature has an importance for them."""
    findings: tuple[Finding, ...]

    @property
    def unknown(self) -> str:
        """To which tasks features are worth nobody knows what, in a sentence; empty where all were scored."""
        if not self.unscored:
            return ""
        return f"These rows cannot score {listed(self.unscored)}: what features are worth there is not known"

    @property
    def untried(self) -> str:
        """Which features were not shuffled, and why, in a sentence; empty where all were."""
        if not self.unshuffled:
            return ""
        left, shuffled = len(self.unshuffled), len({one.feature for one in self.importance})
        named = ", ".join(self.unshuffled[:NAMED]) + (f" and {left - NAMED:,} more" if left > NAMED else "")
        return (
            f"Of {left + shuffled:,} features the {shuffled:,} that move predictions most, by gradients, were "
            f"shuffled; the other {left:,} were not: {named}"
        )


@defaults(torch.device("cpu"))
def inspect_model(
    subject: Subject | Bundle | str | PathLike[str],
    *,
    repeats: int = 3,
    importance: bool = True,
    progress: Progress | None = None,
) -> Inspection:
    """What the gates, the experts' units and the features of a model do on the rows of a subject; of a run, bundle or
    comparison on those that ``find_subject`` finds.

    ``repeats`` shuffles of each feature for its importance. Raises ``DataError`` where there are no rows.
    """
    subject = subject if isinstance(subject, Subject) else find_subject(subject)
    if not subject.count:
        raise DataError(f"{subject.rows} holds no rows to inspect {subject.name} with; name a table that has some")
    bundle = subject.bundle
    gates, units = _look(subject, progress)
    wiring = bundle.model.sharing.wiring
    # structures that only weigh by 1 have levels but no gates
    either: Sequence[NDArray[np.float32] | None] = gates or [None] * len(wiring)
    levels = [level_gates(level, gate) for level, gate in zip(wiring, either, strict=True)]
    rows = join(subject.batches)
    served = served_values(bundle.encoder, rows, levels, gates) if gates else ()
    losses = permutation_importance(bundle, rows, repeats=repeats, progress=progress) if importance else ()
    shuffled = {one.feature for one in losses}
    read = (feature.name for feature in bundle.encoder.schema.features if feature.biased is None)
    unshuffled = tuple(name for name in read if name not in shuffled) if shuffled else ()
    targets = {one.target for one in losses}
    unscored = tuple(name for name in bundle.schema.task_names if name not in targets) if importance else ()
    return Inspection(
        model=subject.name,
        structure=bundle.experiment.sharing.name,
        rows=subject.rows,
        levels=tuple(levels),
        units=units,
        served=served,
        importance=losses,
        unshuffled=unshuffled,
        unscored=unscored,
        findings=find(bundle.experiment, levels, units, losses) if rows.rows >= ENOUGH else (too_few(rows.rows),),
    )


def _look(subject: Subject, progress: Progress | None) -> tuple[Sequence[NDArray[np.float32]], tuple[Units, ...]]:
    """Gates (R, readers, sources) of every level on all rows, and the units that never stirred."""
    model = subject.bundle.model.eval()
    device = next(model.parameters()).device
    parts: list[list[NDArray[np.float32]]] = []
    done = 0
    with torch.inference_mode(), watching(model.sharing) as watch:  # type: ignore[arg-type]
        for batch in subject.batches:
            at = to_device(batch, device)
            outputs = model(at.numbers, at.categories, at.bags)
            parts.append([gate.float().cpu().numpy() for gate in outputs.gates])
            done += batch.rows
            if progress is not None:
                progress("gates", done, subject.count)
    return [np.concatenate(of_level) for of_level in zip(*parts, strict=True)], watch.units()
