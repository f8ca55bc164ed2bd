"""Ways to share: each structure says who may read whom, and how a reading is weighted."""

from multigate.sharing.mmoe import MMoE, OMoE
from multigate.sharing.shared_bottom import SharedBottom
from multigate.sharing.single_task import SingleTask
from multigate.sharing.structure import GatedStructure, Level, Shared, Sharing, Structure

STRUCTURES: dict[str, type[Structure]] = {
    "single_task": SingleTask,
    "shared_bottom": SharedBottom,
    "omoe": OMoE,
    "mmoe": MMoE,
}

VARIANTS: dict[str, Structure] = {}
"""Settings of structures that have a name of their own, which experiments and comparisons take like a structure's."""


def structure_named(name: str) -> Structure | None:
    """The structure or variant of that name at its own settings; None where there is none."""
    return STRUCTURES[name]() if name in STRUCTURES else VARIANTS.get(name)


__all__ = [
    "STRUCTURES",
    "VARIANTS",
    "GatedStructure",
    "Level",
    "MMoE",
    "OMoE",
    "Shared",
    "SharedBottom",
    "Sharing",
    "SingleTask",
    "Structure",
    "structure_named",
]
