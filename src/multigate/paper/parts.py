"""The parts of a study that are not done yet: trainings, side by side in processes, each kept as it ends."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from multigate.analysis.workers import Job, Workers
from multigate.paper.ledger import Row
from multigate.paper.study import Site


def run_parts(
    site: Site, stage: str, parts: Mapping[str, Job], workers: Workers, kept: Callable[[str, Row], None]
) -> None:
    """Run the parts that the ledger does not have, and keep the row of each; ``kept`` is told its name and row."""
    due = [name for name in parts if not site.ledger.has(name)]
    for place, row in told(site, stage, len(parts), [parts[name] for name in due], workers):
        site.ledger.keep(due[place], [row])
        kept(due[place], row)


def told(site: Site, stage: str, total: int, jobs: Sequence[Job], workers: Workers) -> Iterator[tuple[int, Any]]:
    """The place and the result of each job. The bar says how many of ``total`` are done, of which jobs are the last."""
    over = total - len(jobs)
    site.report(stage, over, total)
    for number, result in enumerate(workers.run(jobs), over + 1):
        yield result
        site.report(stage, number, total)
