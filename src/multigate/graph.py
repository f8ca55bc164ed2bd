"""A trained model as an ONNX graph, whose weights stay in the file of weights beside it."""

import io
import json
import logging
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from multigate.batch import BagIds, Batch, Layout
from multigate.errors import BundleError
from multigate.model import Model

MOST_ROWS = 1 << 24


class Flat(nn.Module):
    """A model that answers with a plain tuple: logits, conditionals where they are others, the gates of each level."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, numbers: Tensor, categories: Tensor, bags: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        outputs = self.model(numbers, categories, [BagIds(values, offsets) for values, offsets in bags])
        others = () if outputs.conditionals is outputs.logits else (outputs.conditionals,)
        return (outputs.logits, *others, *outputs.gates)


def input_names(layout: Layout) -> list[str]:
    """Of the graph's inputs: numbers (B, N), categories (B, C), and values and offsets of each bag, as in ``Batch``."""
    bags = [f"bag/{bag.feature}/{part}" for bag in layout.bags for part in BagIds._fields]
    return ["numbers", "categories", *bags]


def output_names(conditionals: bool, gates: int) -> list[str]:
    """Of the graph's outputs, as in ``Outputs``: logits, conditionals where they are others, and gates by level."""
    return ["logits", *(["conditionals"] if conditionals else []), *(f"gates/{level}" for level in range(gates))]


def export_graph(
    model: Model, layout: Layout, sample: Batch, weights: Path, *, mode: AbstractContextManager[Any] | None = None
) -> bytes:
    """The model as ONNX for any number of rows, traced on ``sample``; its weights stay in the safetensors ``weights``.

    It is traced within ``mode``, if given (``FirstLayers``). Raises ``BundleError`` where a package is missing or the
    model does something that ONNX does not know.
    """
    try:
        import onnx_ir
        import onnxruntime  # noqa: F401 (what folds constants, and what the graph is checked by)
        import onnxscript  # noqa: F401 (torch's exporter imports it)
    except ImportError as error:
        raise BundleError(f"compiling needs the package {error.name}; pip install 'multigate[onnx]'") from None
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    bags = [({0: torch.export.Dim(f"values{at}", min=1)}, {0: rows + 1}) for at in range(len(sample.bags))]
    shapes = {"numbers": {0: rows}, "categories": {0: rows}, "bags": bags}
    arguments = (sample.numbers, sample.categories, [tuple(bag) for bag in sample.bags])
    with torch.no_grad():
        outputs = model(sample.numbers, sample.categories, sample.bags)
    names = output_names(outputs.conditionals is not outputs.logits, len(outputs.gates))
    try:
        with _quietly():
            with BagMeans(), mode or nullcontext():
                program = torch.export.export(Flat(model).eval(), arguments, dynamic_shapes=shapes)
            # constants are folded where the graph is loaded, so that here every weight keeps its name
            graph = torch.onnx.export(program, (), dynamo=True, optimize=False, verbose=False)
    except Exception as error:  # of the many ways a graph can fail, none is told by a type of its own
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BundleError(f"the model cannot be written as a graph ({why}); predict with engine 'torch'") from error
    return _serialised(onnx_ir, graph.model, input_names(layout), names, weights)  # type: ignore[union-attr]


class BagMeans(TorchFunctionMode):
    """Within it ``embedding_bag`` is ``bag_means``: ONNX has no such operator, and a loop over rows is slow."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is functional.embedding_bag:
            ids, weight = args
            return bag_means(ids, weight, kwargs["offsets"])
        return func(*args, **(kwargs or {}))


def bag_means(ids: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """``embedding_bag`` with mode "mean" by running sums.

    ids (V,), weight (rows, dim), offsets (B + 1,) -> (B, dim). Summed in float64, so that the difference of two sums
    is as exact as the sum of a bag.
    """
    sums = functional.pad(functional.embedding(ids, weight).double().cumsum(0), (0, 0, 1, 0))  # (V + 1, dim)
    many = offsets.diff().unsqueeze(1)
    return (sums.index_select(0, offsets).diff(dim=0) / many).to(weight.dtype)


def _serialised(ir: Any, model: Any, inputs: Sequence[str], outputs: Sequence[str], weights: Path) -> bytes:
    """The graph with inputs and outputs named, without what only its maker needs, its weights left where they are."""
    for value, name in [*zip(model.graph.inputs, inputs, strict=True), *zip(model.graph.outputs, outputs, strict=True)]:
        value.name = name
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    places = _places(weights)
    for name, value in list(model.graph.initializers.items()):
        start, length = places.get(name.removeprefix("model."), (0, 0))
        if length:
            value.const_value = ir.ExternalTensor(
                weights.name, start, length, value.dtype, shape=value.shape, name=name, base_dir=weights.parent
            )
    written = ir.to_proto(model)
    types = {value.name: value.dtype for node in model.graph for value in node.inputs if value is not None}
    for node in written.graph.node:
        if node.op_type == "CastLike" and types[node.input[1]] is not None:
            # ONNX Runtime folds no constants through this one, and what follows would be made again for every row
            to = node.attribute.add()
            node.op_type, to.name, to.type, to.i = "Cast", "to", to.INT, types[node.input.pop()]
    content: bytes = written.SerializeToString()
    return content


def _places(weights: Path) -> dict[str, tuple[int, int]]:
    """First byte and number of bytes of each tensor in a safetensors file."""
    with weights.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: (8 + size + start, end - start) for name, one in header.items() for start, end in [one["data_offsets"]]
    }


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what an exporter says of packages that are not there and of its own future, and without what it had
    traced of a model that is no graph, which it prints."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
