"""Experts and gates that read the same input: one matmul for all of them, where that can be."""

from collections.abc import Sequence
from typing import TypeGuard

from torch import Tensor, nn

from multigate.nn.dispatch import mix_experts
from multigate.nn.eager import watched
from multigate.nn.gate import Gate, Gated, beside
from multigate.nn.mixture import mix
from multigate.nn.parallel import ParallelMLP


def together(
    experts: ParallelMLP, gates: Sequence[nn.Module], x: Tensor, context: Tensor | None = None
) -> tuple[Tensor, list[Gated]]:
    """experts(x) and gate(x) of each gate, x (B, D) or (B, n, D); gates read ``context`` (B, G) besides, if any."""
    plain = [gate for gate in gates if _is_plain(gate)]
    if context is None and len(plain) == len(gates):
        found = experts.with_products(x, [gate.linear.weight for gate in plain])
        if found is not None:
            made, products = found
            return made, [gate.of_product(product) for gate, product in zip(plain, products, strict=True)]
    read = beside(x, context)
    return experts(x), [gate(read) for gate in gates]


def mixture(experts: ParallelMLP, gate: nn.Module, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Gated]:
    """What the gate makes of x, and the mixtures of experts of x that it weighs, (B, readers, H)."""
    if gate.sparse:
        gated: Gated = gate(beside(x, context))
        return mix_experts(gated.weights, experts, x, sparse=True), gated
    made, (gated,) = together(experts, [gate], x, context)
    return mix(gated.weights, made), gated


def _is_plain(gate: nn.Module) -> TypeGuard[Gate]:
    """Whether a gate is a linear map and a softmax, and nobody hooks into either."""
    return type(gate) is Gate and not watched(gate, gate.linear)
