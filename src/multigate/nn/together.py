"""Experts and gates that read the same input: one matmul for all of them, or for the gates, where that can be."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from multigate.nn.dispatch import mix_experts
from multigate.nn.eager import eager, pays, watched
from multigate.nn.gate import Gated, LinearGate, beside
from multigate.nn.mixture import mix
from multigate.nn.parallel import ParallelLinear, ParallelMLP, parallel_linear


def together(
    experts: ParallelMLP, gates: Sequence[nn.Module], x: Tensor, context: Tensor | None = None
) -> tuple[Tensor, list[Any]]:
    """experts(x) and gate(x) of each gate, x (B, D) or (B, n, D); gates read ``context`` (B, G) besides, if any."""
    plain = [gate for gate in gates if _is_plain(gate)]
    if context is None and len(plain) == len(gates):
        found = experts.with_products(x, [gate.linear.weight for gate in plain])
        if found is not None:
            made, products = found
            return made, [_of_product(gate, product) for gate, product in zip(plain, products, strict=True)]
    return experts(x), gated(gates, beside(x, context))


def gated(gates: Sequence[nn.Module], x: Tensor) -> list[Any]:
    """gate(x) of each gate, x (B, D), or (B, readers, D) of gates with as many readers."""
    plain = [gate for gate in gates if _is_plain(gate)]
    if not (1 < len(gates) == len(plain) and eager(x) and (gates[0].training or pays(x))):
        return [gate(x) for gate in gates]
    weights: list[Tensor] = [gate.linear.weight for gate in plain]  # (readers, sources, D)
    if x.dim() == 2:
        flat = [weight.flatten(0, 1) for weight in weights]
        products = torch.split(torch.mm(torch.cat(flat), x.t()), [len(weight) for weight in flat])
        return [_of_product(gate, product) for gate, product in zip(plain, products, strict=True)]
    made = parallel_linear(x, torch.cat(weights, dim=1), None)  # (B, readers, all sources)
    logits = torch.split(made, [weight.shape[1] for weight in weights], -1)
    return [gate.of_logits(own) for gate, own in zip(plain, logits, strict=True)]


def _of_product(gate: LinearGate, product: Tensor) -> Any:
    """What a gate makes of its weight @ x^T, (readers * sources, B)."""
    readers, sources, _ = gate.linear.weight.shape
    return gate.of_logits(product.view(readers, sources, -1).permute(2, 0, 1))


def mixture(experts: ParallelMLP, gate: nn.Module, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Gated]:
    """What the gate makes of x, and the mixtures of experts of x that it weighs, (B, readers, H)."""
    if gate.sparse:
        gated: Gated = gate(beside(x, context))
        return mix_experts(gated.weights, experts, x, sparse=True), gated
    made, (gated,) = together(experts, [gate], x, context)
    return mix(gated.weights, made), gated


def _is_plain(gate: nn.Module) -> TypeGuard[LinearGate]:
    """Whether a gate is a linear map and what is made of its logits, and nobody hooks into either or replaces one."""
    plain = isinstance(gate, LinearGate) and type(gate).forward is LinearGate.forward
    return plain and type(gate.linear) is ParallelLinear and not watched(gate, gate.linear)
