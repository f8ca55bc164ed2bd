"""From logits to what people read, by name: the one place where probabilities are made."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from multigate.data.encoder import Encoder
from multigate.engine import Answers, Floats
from multigate.schema import Schema

Predictions = dict[str, NDArray[Any]]


def name_outputs(schema: Schema, encoder: Encoder, answers: Answers) -> Predictions:
    """Chances, values and classes of rows, of tasks in their order.

    Without torch, whose threads a process that was forked waits for in vain.
    """
    named: Predictions = {}
    chances = sigmoid(answers.logits)
    given = chances if answers.conditionals is answers.logits else sigmoid(answers.conditionals)
    start = 0
    for t, (task, column) in enumerate(zip(schema.tasks, encoder.layout.tasks, strict=True)):
        end = start + column.outputs
        if task.kind == "binary":
            named[task.name] = chances[:, start]
            if task.given is not None:
                named[f"{task.name}|{task.given}"] = given[:, start]
        elif task.kind == "regression":
            named[task.name] = encoder.decode(t, answers.logits[:, start])
        else:
            classes = encoder.classes(t)
            logits = answers.logits[:, start:end]
            named[task.name] = np.asarray(classes, dtype=object)[logits.argmax(1)]
            probabilities = softmax(logits)
            named |= {f"{task.name}={name}": probabilities[:, i] for i, name in enumerate(classes)}
        start = end
    return named


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + e^-logit), taken in float64, where it neither overflows nor loses the tail."""
    from scipy.special import expit

    return expit(logits.astype(np.float64)).astype(np.float32)


def softmax(logits: Floats) -> Floats:
    """e^logit over their sum, by row; (R, classes) of at least one class."""
    with np.errstate(invalid="ignore", over="ignore"):  # infinite logits have no probabilities, as in torch
        powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
