"""Ways to share: each structure says who may read whom, and how a reading is weighted."""

from collections.abc import Sequence
from typing import Any

from multigate.sharing.adatt import AdaTT
from multigate.sharing.aitm import AITM
from multigate.sharing.cross_stitch import CrossStitch
from multigate.sharing.home import HoME
from multigate.sharing.mmoe import MMoE, OMoE
from multigate.sharing.ple import CGC, PLE
from multigate.sharing.shared_bottom import SharedBottom
from multigate.sharing.single_task import SingleTask
from multigate.sharing.snr import SNR
from multigate.sharing.soft import Soft
from multigate.sharing.stacked_mmoe import StackedMMoE
from multigate.sharing.structure import GatedStructure, Level, Shared, Sharing, Structure
from multigate.sharing.tensor_factor import TensorFactor

STRUCTURES: dict[str, type[Structure]] = {
    "single_task": SingleTask,
    "soft": Soft,
    "tensor_factor": TensorFactor,
    "cross_stitch": CrossStitch,
    "shared_bottom": SharedBottom,
    "omoe": OMoE,
    "mmoe": MMoE,
    "stacked_mmoe": StackedMMoE,
    "cgc": CGC,
    "ple": PLE,
    "adatt": AdaTT,
    "home": HoME,
    "snr": SNR,
    "aitm": AITM,
}

VARIANTS: dict[str, Structure] = {
    "trace_norm": Soft(penalty="trace", strength=3e-4),
    "tensor_train": TensorFactor(form="tt"),
    "tensor_laf": TensorFactor(form="laf"),
    "omoe_top_k": OMoE(gating="top_k"),
    "mmoe_top_k": MMoE(gating="top_k"),
    "mmoe_noisy_top_k": MMoE(gating="noisy_top_k"),
    "mmoe_dselect_k": MMoE(gating="dselect_k"),
    "mmoeex": MMoE(exclusive=0.5),
    "ml_mmoe": StackedMMoE(gates_read="input"),
    "stem": CGC(reads_others="detached"),
    "snr_aver": SNR(routing="aver"),
}
"""Settings of structures that have a name of their own, which experiments and comparisons take like a structure's."""


def structure_named(name: str) -> Structure | None:
    """The structure or variant of that name at its own settings; None where there is none."""
    return STRUCTURES[name]() if name in STRUCTURES else VARIANTS.get(name)


Structures = type[Structure] | Sequence[type[Structure]]
"""Classes of structures of one's own, as they are named to what reads their options; one may stand by itself."""


def listed(names: Any) -> tuple[Any, ...]:
    """``"mmoe, ple"`` as the names in it; a structure, or the class of its options, by itself; a sequence as it is."""
    if isinstance(names, str):
        return tuple(name.strip() for name in names.split(",") if name.strip())
    return (names,) if isinstance(names, Structure | type) else tuple(names)


def known_as(structure: Structure) -> str:
    """The name of a structure, or of the variant whose settings it has."""
    for name, variant in VARIANTS.items():
        wanted = variant.to_dict()
        if all(getattr(structure, option, None) == value for option, value in wanted.items()):
            return name
    return structure.name


__all__ = [
    "STRUCTURES",
    "VARIANTS",
    "AITM",
    "AdaTT",
    "CGC",
    "CrossStitch",
    "GatedStructure",
    "HoME",
    "Level",
    "MMoE",
    "OMoE",
    "PLE",
    "SNR",
    "Shared",
    "SharedBottom",
    "Sharing",
    "SingleTask",
    "Soft",
    "StackedMMoE",
    "Structure",
    "Structures",
    "TensorFactor",
    "known_as",
    "structure_named",
]
