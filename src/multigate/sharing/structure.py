"""What every sharing structure is: frozen options that build a module x (B, D) -> one representation per task."""

from abc import abstractmethod
from typing import Literal, NamedTuple, Protocol, Self

from pydantic import Field
from torch import Tensor

from multigate.nn.parallel import Activation, ParallelMLP
from multigate.options import Options


class Shared(NamedTuple):
    """What a structure returns.

    ``z`` (B, T, H); ``gates``, one (B, readers, sources) per level of ``wiring``, none at all where every reading
    weighs 1; scalar ``penalty``, what the structure adds to the loss.
    """

    z: Tensor
    gates: tuple[Tensor, ...]
    penalty: Tensor


class Level(NamedTuple):
    """Who may read whom at one level, and whether a reading is a distribution (its rows sum to one)."""

    readers: tuple[str, ...]
    sources: tuple[str, ...]
    mask: tuple[tuple[bool, ...], ...]
    distribution: bool = True


class Sharing(Protocol):
    """The module a structure builds; also a ``torch.nn.Module``."""

    @property
    def d_out(self) -> int: ...
    @property
    def wiring(self) -> tuple[Level, ...]: ...
    def __call__(self, x: Tensor) -> Shared: ...
    def multiply_adds(self) -> int: ...


class Structure(Options):
    """Options of a structure. A subclass adds ``structure: Literal["its_name"]`` and its own knobs."""

    hidden: tuple[int, ...] = Field(default=(128, 64), min_length=1)
    """Widths of the layers of an expert (or bottom)."""
    activation: Activation = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """After each layer of an expert."""
    normalisation: Literal["none", "layer"] = "none"

    @abstractmethod
    def build(self, d_in: int, tasks: tuple[str, ...]) -> Sharing:
        """The module for inputs of width ``d_in`` and these tasks, freshly initialised."""

    def widened(self, factor: float) -> Self:
        """The same structure with every hidden width multiplied; used to give all structures one budget."""
        return self.with_(hidden=tuple(max(1, round(width * factor)) for width in self.hidden))

    def parallel_mlp(self, n: int, d_in: int) -> ParallelMLP:
        """n experts of these options."""
        return ParallelMLP(
            n,
            d_in,
            self.hidden,
            activation=self.activation,
            dropout=self.dropout,
            normalisation=self.normalisation,
        )


def experts_named(n: int) -> tuple[str, ...]:
    """Names of n experts, for pictures and reports."""
    return tuple(f"expert {i}" for i in range(n))


def all_read_all(readers: tuple[str, ...], sources: tuple[str, ...]) -> tuple[tuple[bool, ...], ...]:
    """The mask of a level where nothing is barred."""
    return tuple(tuple(True for _ in sources) for _ in readers)
