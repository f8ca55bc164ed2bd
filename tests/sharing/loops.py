"""Pieces of the papers as plain loops, for the tests of single structures."""

import math

from multigate.nn.parallel import ParallelMLP


def loop_mlp(mlp: ParallelMLP, copy: int, x: list[float]) -> list[float]:
    """Copy ``copy`` of a stack of MLPs: ReLU(W x + b), one unit at a time."""
    for layer in mlp.layers:
        weight, bias = layer.weight[copy].tolist(), layer.bias[copy].tolist()
        x = [max(0.0, b + sum(w * v for w, v in zip(row, x, strict=True))) for row, b in zip(weight, bias, strict=True)]
    return x


def loop_softmax(weight: list[list[float]], x: list[float]) -> list[float]:
    exps = [math.exp(sum(w * v for w, v in zip(row, x, strict=True))) for row in weight]
    return [value / sum(exps) for value in exps]
