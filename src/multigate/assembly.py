"""The model of an experiment, put together for rows that an encoder reads."""

from collections import Counter
from collections.abc import Sequence

import torch

from multigate.data.encoder import Encoder
from multigate.errors import ExperimentError, nearest
from multigate.experiment import Experiment
from multigate.model import Model
from multigate.schema import Schema


def build_model(experiment: Experiment, encoder: Encoder, tasks: Sequence[int] | None = None) -> Model:
    """The experiment's model, freshly initialised from torch's global generator, for all tasks or some."""
    layout = encoder.layout
    schema, structure = experiment.schema, experiment.sharing
    check_names(schema, encoder)
    if tasks is not None:
        structure = structure.for_tasks(tuple(schema.tasks[i].name for i in tasks))
        schema = schema.only([schema.tasks[i].name for i in tasks])
        layout = layout.with_(tasks=tuple(layout.tasks[i] for i in tasks))
    model = Model(
        layout,
        structure,
        embedding=experiment.embedding,
        tower=experiment.tower,
        parents=schema.parents(),
        order=schema.order(),
        risks=schema.risks(),
    )
    return model.float()  # whatever torch's default is: rows are float32


def outline(experiment: Experiment, encoder: Encoder, tasks: Sequence[int] | None = None) -> Model:
    """The same without memory for weights; with it where a structure of one's own looks at values as it is built."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build_model(experiment, encoder, tasks)
        except RuntimeError:
            with torch.device("cpu"):
                return build_model(experiment, encoder, tasks)


def check_names(schema: Schema, encoder: Encoder) -> None:
    """Raise ``ExperimentError`` where predictions would have the name of a key or of one another, or an output is made
    of a class that there is not."""
    classes = [f"{task.name}={one}" for t, task in enumerate(schema.tasks) for one in encoder.classes(t)]
    names = [*schema.keys, *schema.task_names, *(output.name for output in schema.outputs)]
    names += [f"{task.name}|{task.given}" for task in schema.tasks if task.kind == "binary" and task.given is not None]
    names += classes
    for name, times in Counter(names).items():
        if times > 1:
            raise ExperimentError(f"two columns of the predictions would be named {name!r}; give a task another name")
    for output in schema.outputs:
        for name in output.compiled().names:
            if name not in (*names, *schema.raw_numbers()):
                told = nearest(name, classes)
                raise ExperimentError(f"output {output.name!r}: {name!r} is no class of the training rows; {told}")
