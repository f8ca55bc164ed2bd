"""A model small enough to know everything about."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multigate.analysis.subject import Subject
from multigate.assembly import build_model
from multigate.bundle import Bundle
from multigate.data.encoder import Encoder
from multigate.experiment import Experiment
from multigate.model import Tower
from multigate.nn.embed import Embed, Embedding
from multigate.schema import Schema
from multigate.sharing import SharedBottom

SHIFT = 9.0
"""Keeps the one hidden layer, relu(x + SHIFT), where it is linear."""

Linear = Callable[..., Subject]


@pytest.fixture
def linear() -> Linear:
    """(schema of plain numbers, table, heads, rows a batch) -> a subject whose tower outputs are heads @ numbers.

    ``heads`` has a row of weights per output of each task; x is the encoded numbers, and then zeros where some are
    missing in the table.
    """

    def make(schema: Schema, table: Mapping[str, Any], heads: Mapping[str, Any], rows: int = 1000) -> Subject:
        records = pa.table(dict(table)).combine_chunks()
        encoder = Encoder.fit(schema, records.to_batches())
        width = Embed(encoder.layout, Embedding()).d_out
        experiment = Experiment(
            schema=schema, train="rows.parquet", sharing=SharedBottom(hidden=(width,)), tower=Tower(hidden=())
        )
        model = build_model(experiment, encoder)
        weights = np.concatenate([np.atleast_2d(heads[task]) for task in schema.task_names])  # (O, N)
        with torch.no_grad():
            layer = model.sharing.bottom.layers[0]
            layer.weight.copy_(torch.eye(layer.weight.shape[1]))
            layer.bias.fill_(SHIFT)
            zeros = np.zeros((len(weights), width - weights.shape[1]))
            model.heads.weight.copy_(torch.from_numpy(np.concatenate([weights, zeros], axis=1)))
            model.heads.bias.copy_(torch.from_numpy(-SHIFT * weights.sum(axis=1)))
        batches = tuple(encoder.columns(record) for record in records.to_batches(max_chunksize=rows))
        return Subject("a model", Bundle(experiment, encoder, model), batches, f"{records.num_rows:,} rows")

    return make
