"""Levels: modules of structures that read one another's output; the layers each gets, and the experts of its units."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from multigate.sharing.structure import Shared


def dealt(hidden: tuple[int, ...], levels: int) -> tuple[tuple[int, ...], ...]:
    """The layers of so many levels in order, as evenly as can be, the first ones longer.

    Raises ``ValueError`` where there are fewer layers than levels.
    """
    if levels > len(hidden):
        raise ValueError(
            f"{levels} levels want at least as many widths in 'hidden', found {len(hidden)}: {hidden}; add some"
        )
    each, more = divmod(len(hidden), levels)
    ends = [each * (level + 1) + min(level + 1, more) for level in range(levels)]
    return tuple(hidden[start:end] for start, end in zip((0, *ends), ends, strict=False))


def experts_of(units: Sequence[str], m: int) -> tuple[str, ...]:
    """Names of the m experts of each unit."""
    return tuple(f"expert {i} of {unit}" for unit in units for i in range(m))


def shared_experts(n: int) -> tuple[str, ...]:
    """Names of n experts that units share."""
    return tuple(f"shared expert {i}" for i in range(n))


def own_only(of: Sequence[int], n: int, m: int) -> tuple[tuple[bool, ...], ...]:
    """The mask of readers that read, of n units with m experts each, those of one unit only."""
    return tuple(tuple(unit == one for unit in range(n) for _ in range(m)) for one in of)


def experts_read(of: Iterable[Sequence[int]], n: int, m: int, shared: int) -> tuple[tuple[int, ...], ...]:
    """Of readers that read the m experts of some units each, of n, and the shared ones: their places among all."""
    common = range(n * m, n * m + shared)
    return tuple((*(unit * m + i for unit in units for i in range(m)), *common) for units in of)


def through(levels: Iterable[nn.Module], x: Tensor, context: Tensor | None) -> Shared:
    """One level after the other; each returns what its units read as a ``Shared`` of one gate."""
    gates: tuple[Tensor, ...] = ()
    penalty = x.new_zeros(())
    for level in levels:
        x, more, added = level(x, context)
        gates, penalty = (*gates, *more), penalty + added
    return Shared(x, gates, penalty)
