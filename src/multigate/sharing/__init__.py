"""Ways to share: each structure says who may read whom, and how a reading is weighted."""

from multigate.sharing.mmoe import MMoE, OMoE
from multigate.sharing.shared_bottom import SharedBottom
from multigate.sharing.single_task import SingleTask
from multigate.sharing.structure import Level, Shared, Sharing, Structure

STRUCTURES: dict[str, type[Structure]] = {
    "single_task": SingleTask,
    "shared_bottom": SharedBottom,
    "omoe": OMoE,
    "mmoe": MMoE,
}

__all__ = ["STRUCTURES", "Level", "MMoE", "OMoE", "Shared", "SharedBottom", "Sharing", "SingleTask", "Structure"]
