"""How tasks relate: in their labels, and in what they ask of the representation they share."""

from collections.abc import Iterator

from multigate.analysis.relatedness import Matrix, relatedness
from multigate.formats import signed
from multigate.report.blocks import Block, Figure, Text
from multigate.report.charts import heat_chart
from multigate.report.trained import Trained


def matrices(one: Trained) -> Iterator[Block]:
    """Label correlations and gradient cosines, where there are tasks to relate."""
    if len(one.experiment.schema.tasks) == 1:
        yield Text("There is one task only, so there is nothing to relate.")
        return
    found = relatedness(one.looked_at)
    yield _figure(
        f"Correlation of labels on {found.rows}, where both are known. Blue: they go together; orange: one is high "
        "where the other is low.",
        "Correlation of each pair of labels",
        found.tasks,
        found.labels,
    )
    yield _figure(
        "Cosine between the gradients of two tasks' losses at the representation they share, at the weights that were "
        "kept. Above 0 (blue) a step for one task helps the other; below 0 (orange) they pull in opposite directions, "
        "which separate experts can resolve.",
        "Cosine of the gradients of each pair of tasks",
        found.tasks,
        found.gradients,
    )


def _figure(says: str, description: str, tasks: tuple[str, ...], matrix: Matrix) -> Figure:
    chart = heat_chart("", description, tasks, tasks, matrix, signed=True)
    return Figure(f"{says} {_extremes(tasks, matrix)}", (chart,), wide=True)


def _extremes(tasks: tuple[str, ...], matrix: Matrix) -> str:
    """The most alike and the most opposed pair."""
    pairs = [
        (value, f"{one} and {other} ({signed(value, 2)})")
        for i, one in enumerate(tasks)
        for j, other in enumerate(tasks[:i])
        if (value := matrix[i][j]) is not None
    ]
    if not pairs:
        return "It is undefined here."
    (_, low), (_, high) = min(pairs), max(pairs)
    return f"Here: {low}." if len(pairs) == 1 else f"Highest: {high}; lowest: {low}."
