"""The graph of a stack's step, without what is written out in it and nobody needs."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from multigate.nn.kernels import kernels_for

aten = torch.ops.aten
MANY = 1 << 18
"""Numbers of a product from which on not writing it saves more than asking how its factors lie costs (measured)."""


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
