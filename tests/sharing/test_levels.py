"""Layers dealt out to levels, and what levels leave behind."""

import pytest
import torch

from multigate.nn.gate import Gate, Gated
from multigate.sharing import CGC, PLE, AdaTT, GatedStructure, HoME, Structure
from multigate.sharing.levels import dealt


@pytest.mark.parametrize(
    ("hidden", "levels", "expected"),
    [
        ((128, 64), 2, ((128,), (64,))),
        ((256, 128, 64), 2, ((256, 128), (64,))),
        ((5, 4, 3, 2), 2, ((5, 4), (3, 2))),
        ((5, 4, 3, 2, 1), 3, ((5, 4), (3, 2), (1,))),
        ((7,), 1, ((7,),)),
    ],
)
def test_layers_are_dealt_out_in_order(hidden: tuple[int, ...], levels: int, expected: object) -> None:
    assert dealt(hidden, levels) == expected


@pytest.mark.parametrize(
    ("options", "gates"),
    [(PLE(hidden=(8, 6, 4), levels=3), 5), (AdaTT(), 2), (HoME(), 3)],
    ids=["ple", "adatt", "home"],
)
def test_what_every_gate_adds_to_the_loss_arrives(options: Structure, gates: int) -> None:
    module = options.build(5, ("a", "b", "c"))
    found = [one for one in module.modules() if isinstance(one, Gate)]
    assert len(found) == gates
    for power, gate in enumerate(found):
        gate.register_forward_hook(lambda _gate, _inputs, out, add=2.0**power: Gated(out.weights, out.penalty + add))
    assert module(torch.randn(4, 5)).penalty == 2**gates - 1


@pytest.mark.parametrize("kind", [CGC, PLE, AdaTT, HoME])
@pytest.mark.parametrize("gating", ["top_k", "noisy_top_k", "dselect_k", "dselect_k_static"])
def test_gates_may_be_sparse(kind: type[GatedStructure], gating: str) -> None:
    """Every level reads what its mask allows, and with top-k two of them beside what is read in any case."""
    module = kind(gating=gating, hidden=(8, 4)).build(5, ("a", "b", "c"))
    for training in (True, False):
        shared = module.train(training)(torch.randn(6, 5))
        assert shared.z.isfinite().all()
        assert (shared.penalty != 0) == (training and gating == "noisy_top_k")
        for level, gate in zip(module.wiring, shared.gates, strict=True):
            allowed = torch.tensor(level.mask)
            assert not (gate * ~allowed).any()
            in_any_case = 0 if level.distribution else 2
            if "top_k" in gating:
                assert ((gate != 0).sum(-1) <= 2 + in_any_case).all()
