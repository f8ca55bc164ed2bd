"""The networks of section 6.4 (Ma et al. 2018): equally wide, one for all tasks or one for each."""

from collections.abc import Mapping

from multigate.errors import ExperimentError
from multigate.sharing import CrossStitch, MMoE, OMoE, SharedBottom, SingleTask, Soft, Structure

TITLES: Mapping[str, str] = {
    "single_task": "Single-Task",
    "shared_bottom": "Shared-Bottom",
    "soft": "L2-Constrained",
    "cross_stitch": "Cross-Stitch",
    "omoe": "OMoE",
    "mmoe": "MMoE",
    "large_bottom": "Shared-Bottom, large",
}
"""As the paper prints them; the last is ours, a Shared-Bottom of as many multiply-adds as Cross-Stitch."""
BOTTOM = (512, 256, 128)
"""Widths of a network: the paper has "several" layers and does not say how wide they are."""
EXPERTS = 4
"""As Figure 6 draws them."""


def structures_on(bottom: tuple[int, ...], experts: int, strength: float = 1e-4) -> dict[str, Structure]:
    """Structures by name, each network of the widths ``bottom``; ``strength`` is that of the L2 constraint.

    Of MMoE and OMoE the lower layers are shared and the top one is a mixture of so many experts, each as wide as the
    layer it replaces. Raises ``ExperimentError`` where there is no layer below the top one.
    """
    *below, top = bottom
    if not below:
        raise ExperimentError(
            f"a shared bottom whose top layer becomes a mixture wants two layers or more, not {bottom}"
        )
    mixture = {"experts": experts, "bottom": tuple(below), "hidden": (top,)}
    return {
        "single_task": SingleTask(hidden=bottom),
        "shared_bottom": SharedBottom(hidden=bottom),
        "soft": Soft(hidden=bottom, strength=strength),
        "cross_stitch": CrossStitch(hidden=bottom),
        "omoe": OMoE.model_validate(mixture),
        "mmoe": MMoE.model_validate(mixture),
    }
