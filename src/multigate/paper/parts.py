"""The parts of a study that are not done yet: trainings, side by side in processes, each kept as it ends."""

from collections.abc import Callable, Mapping

from multigate.analysis.workers import Job, Workers
from multigate.paper.ledger import Row
from multigate.paper.study import Site


def run_parts(
    site: Site, stage: str, parts: Mapping[str, Job], workers: Workers, kept: Callable[[str, Row], None]
) -> None:
    """Run the parts that the ledger does not have, and keep the row of each; ``kept`` is told its name and row."""
    due = [name for name in parts if not site.ledger.has(name)]
    over = len(parts) - len(due)
    site.report(stage, over, len(parts))
    for number, (place, row) in enumerate(workers.run([parts[name] for name in due]), over + 1):
        site.ledger.keep(due[place], [row])
        kept(due[place], row)
        site.report(stage, number, len(parts))
