"""Gradients of a stack, traced once a shape of batch has come often: their graph, without what nobody needs in it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from multigate.nn.kernels import kernels_for

aten = torch.ops.aten
TRACE_AFTER = 100
"""Steps of one shape of batch after which they are traced: that takes .1 to .5 s and saves 1 to 4 ms a step."""
MANY = 1 << 18
"""Numbers of a product from which on not writing it saves more than asking how its factors lie costs (measured)."""


Losses = tuple[Tensor, list[Tensor | None]]
"""Losses (R, T), and the gradients of the weights."""


class Tracings:
    """Those of one function, from weights (R, ...), buffers and a batch to losses and gradients: one for each shape of
    batch that comes so often that tracing pays."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        """How many batches of each shape came."""
        self.graphs: dict[str, GraphModule] = {}

    def call(
        self,
        function: Callable[..., Losses],
        weights: Sequence[Tensor],
        buffers: Mapping[str, Tensor],
        batch: tuple[Any, ...],
    ) -> Losses:
        """``function(weights, buffers, batch)``. The function is the same for all calls, and not kept."""
        leaves = [(tuple(leaf.shape), leaf.stride(), leaf.dtype) for leaf in tree_leaves(batch)]
        shapes = str((len(weights[0]), *leaves))
        self.seen[shapes] = self.seen.get(shapes, 0) + 1
        if self.seen[shapes] < TRACE_AFTER:
            return function(weights, buffers, batch)
        if shapes not in self.graphs:
            self.graphs[shapes] = _traced(function, weights, buffers, batch)
        found: Losses = self.graphs[shapes](weights, buffers, batch)
        return found


def _traced(
    function: Callable[..., Losses], weights: Sequence[Tensor], buffers: Mapping[str, Tensor], batch: tuple[Any, ...]
) -> GraphModule:
    leaves = [weight.detach().requires_grad_() for weight in weights]
    copies = {name: buffer.clone() for name, buffer in buffers.items()}  # tracing runs what it traces
    shapes_alone = FakeTensorMode(allow_fallback_kernels=True)  # else torch makes one for each operation
    devices = [leaves[0].device] if leaves[0].is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices), tracing(TracingContext(shapes_alone)):
        traced = make_fx(partial(function))(leaves, copies, batch)
    return lean(traced)


def lean(traced: GraphModule) -> GraphModule:
    """The same graph, in place, with gradients as they come and products that are only summed never written out."""
    found = [_as_it_came(traced, node) or _summed_at_once(traced, node) for node in _sums(traced)]
    if any(found):
        for view in traced.graph.find_nodes(op="call_function", target=aten.view.default):
            view.target = aten.reshape.default  # what they view may lie otherwise now
        traced.graph.eliminate_dead_code()
        traced.recompile()
    return traced


def _sums(traced: GraphModule) -> list[Any]:
    """Sums over one axis."""
    nodes: list[Any] = traced.graph.find_nodes(op="call_function", target=aten.sum.dim_IntList)
    return [node for node in nodes if len(node.args[1]) == 1]


def _as_it_came(traced: GraphModule, total: Any) -> bool:
    """Where copies of one tensor were made and a single one was read, torch lays its gradient among zeros for the
    others and adds them all up, which is a quarter of the step of a stack of shared bottoms."""
    placed, dims = total.args[:2]
    if placed.target is not aten.select_backward.default or dims != [placed.args[2]] or total.args[2:] != (True,):
        return False
    with traced.graph.inserting_before(total):
        _put(traced, total, traced.graph.call_function(aten.unsqueeze.default, (placed.args[0], dims[0])))
    return True


def _summed_at_once(traced: GraphModule, total: Any) -> bool:
    """Mixtures and their gradients are such sums, of R times readers times sources times units times rows."""
    product, (dim,) = total.args[:2]
    if (
        total.kwargs
        or product.target is not aten.mul.Tensor
        or len(product.users) > 1
        or not all(isinstance(one, Node) for one in product.args)
        or product.meta["val"].numel() < MANY
    ):
        return False
    with traced.graph.inserting_before(total):
        made = traced.graph.call_function(sum_of_product, (*product.args, dim, total.args[2:] == (True,)))
    _put(traced, total, made)
    return True


def _put(traced: GraphModule, old: Any, new: Node) -> None:
    old.replace_all_uses_with(new)
    traced.graph.erase_node(old)


def sum_of_product(one: Tensor, other: Tensor, dim: int, keepdim: bool) -> Tensor:
    """(one * other).sum(dim, keepdim), by compiled code where that can be."""
    found = kernels_for(one)
    made = None if found is None else found.sum_of_product(one, other, dim)
    if made is None:
        return (one * other).sum(dim, keepdim=keepdim)
    return made.unsqueeze(dim) if keepdim else made
