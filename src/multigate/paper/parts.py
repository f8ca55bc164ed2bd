"""The parts of a study that are not done yet: trainings, side by side in processes, each kept as it ends."""

from collections.abc import Callable, Mapping
from functools import partial

from multigate.analysis.workers import Job, Workers
from multigate.paper.ledger import Row
from multigate.paper.study import Site


def run_parts(
    site: Site, stage: str, parts: Mapping[str, Job], workers: Workers, kept: Callable[[str, Row], None]
) -> None:
    """Run the parts that the ledger does not have, and keep the row of each; ``kept`` is told its name and row."""
    due: dict[tuple[str, ...], Job] = {
        (name,): partial(_alone, job) for name, job in parts.items() if not site.ledger.has(name)
    }
    run_together(site, stage, due, workers, kept, of=len(parts))


def run_together(
    site: Site,
    stage: str,
    due: Mapping[tuple[str, ...], Job],
    workers: Workers,
    kept: Callable[[str, Row], None],
    *,
    of: int,
) -> None:
    """Run what is due, jobs that give the rows of several parts each, ``of`` so many parts in all."""
    over = of - sum(len(names) for names in due)
    site.report(stage, over, of)
    each = list(due)
    for place, rows in workers.run(list(due.values())):
        for name, row in zip(each[place], rows, strict=True):
            site.ledger.keep(name, [row])
            kept(name, row)
        over += len(rows)
        site.report(stage, over, of)


def _alone(job: Job) -> list[Row]:
    return [job()]
