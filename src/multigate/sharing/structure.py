"""What every sharing structure is: frozen options that build a module x (B, D) -> one representation per task."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple, Protocol, Self

from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from multigate.nn.activation import Activation
from multigate.nn.gate import Experts, Gate, Mask, Regulariser
from multigate.nn.parallel import ParallelMLP
from multigate.nn.sparse_gate import DSelectKGate, NoisyTopKGate, TopKGate
from multigate.options import Options

Widths = tuple[Annotated[int, Field(ge=1)], ...]
"""Of the layers of a network."""


class Shared(NamedTuple):
    """What a structure returns.

    ``z`` (B, T, H); ``gates``, one (B, readers, sources) per level of ``wiring``, none at all where every reading
    weighs 1; scalar ``penalty``, what the structure adds to the loss: zero, and not computed, in evaluation.
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
    """The module a structure builds; also a ``torch.nn.Module``.

    A module of ``GatedStructure`` also takes ``context`` (B, G), the columns that only gates read. A module that
    defines ``output_penalty(probabilities (B, T), binary (T,) bool) -> scalar`` has it added to the loss.
    """

    @property
    def d_out(self) -> int: ...
    @property
    def wiring(self) -> tuple[Level, ...]: ...
    def __call__(self, x: Tensor) -> Shared: ...
    def multiply_adds(self) -> int: ...


class Structure(Options):
    """Options of a structure. A subclass adds ``structure: Literal["its_name"]`` and its own knobs.

    Where a structure cannot hold what the contract tests ask of all, it says so here.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    stochastic: ClassVar[bool] = False
    """Draws random numbers in training beyond dropout."""
    conditional: ClassVar[bool] = False
    """In evaluation a row may need only part of the network; ``multiply_adds`` is the most that one can need."""

    hidden: Widths = Field(default=(128, 64), min_length=1)
    """Widths of the layers of an expert (or bottom)."""
    activation: Activation = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """After each layer of an expert."""
    normalisation: Literal["none", "layer"] = "none"

    @property
    def name(self) -> str:
        """Its tag, as experiments spell it."""
        return str(self.to_dict()["structure"])

    @abstractmethod
    def build(self, d_in: int, tasks: tuple[str, ...]) -> Sharing:
        """The module for inputs of width ``d_in`` and these tasks, freshly initialised."""

    def for_tasks(self, tasks: tuple[str, ...]) -> Self:
        """The same where only these are trained: without what its options say of other tasks."""
        return self

    def inputs(self, tasks: int) -> int | None:
        """With ``tables: own``, the inputs n of x (B, n, D) for so many tasks: one a task, in their order, and perhaps
        one for what they share after them. None where all tasks must read one input."""
        return None

    def check(self, tasks: tuple[str, ...]) -> None:
        """Raise ``ExperimentError`` where these options do not fit these tasks, before anything is made of them."""

    def widened(self, factor: float) -> Self:
        """The same structure with every hidden width multiplied; used to give all structures one budget."""
        return self.with_(hidden=tuple(max(1, round(width * factor)) for width in self.hidden))

    def parallel_mlp(self, n: int, d_in: int, hidden: tuple[int, ...] | None = None) -> ParallelMLP:
        """n experts of these options, with all layers or, where ``hidden`` says so, those of one level."""
        return ParallelMLP(
            n,
            d_in,
            self.hidden if hidden is None else hidden,
            activation=self.activation,
            dropout=self.dropout,
            normalisation=self.normalisation,
        )


Gating = Literal["softmax", "top_k", "noisy_top_k", "dselect_k", "dselect_k_static"]
NOISY_LOAD = 0.01
"""Load penalty of noisy gates that are not told any, as in the code of Shazeer et al. (2017)."""


class GatedStructure(Structure):
    """Options of a structure whose tasks weigh what they read by gates."""

    gating: Gating = "softmax"
    """How logits become weights: all sources (softmax), or few of them while the others weigh exactly 0."""
    k: int = Field(default=2, ge=1)
    """Sources that a gate reads at most, where gating is sparse."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the gates: above 1 evens their weights out, below 1 sharpens them. dselect_k's is the width of its step."""
    gate_dropout: float = Field(default=0.0, ge=0, lt=1)
    entropy_penalty: float = 0.0
    """Weight in the loss of the mean entropy of gates: above 0 sharpens them, below 0 evens them out."""
    load_penalty: float | None = Field(default=None, ge=0)
    """Weight in the loss of how unevenly sources are used over all rows and readers; null is 0.01 with noisy_top_k, 0
    with others."""

    @model_validator(mode="after")
    def _a_choice_to_learn(self) -> Self:
        if self.k == 1 and self.gating in ("top_k", "noisy_top_k"):
            raise ValueError(
                f"k=1 with gating={self.gating}: the one source always weighs 1, so that the gate learns nothing from "
                "the tasks; set k to 2 or more, or gating to 'dselect_k'"
            )
        return self

    def idle(self) -> Mapping[str, str]:
        every = "gates read all sources; set gating to 'top_k' or another sparse one"
        return {"k": every} if self.gating == "softmax" else {}

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.gating == "noisy_top_k"

    @abstractmethod
    def build(self, d_in: int, tasks: tuple[str, ...], d_context: int = 0) -> Sharing:
        """As for any structure; ``d_context`` columns are read by gates alone, given as ``context`` (B, d_context)."""

    def gate(
        self, readers: int, sources: int, d_in: int, mask: Mask | None = None, experts: Experts | None = None
    ) -> Gate | TopKGate | NoisyTopKGate | DSelectKGate:
        """A gate of these options: what x (B, d_in) or (B, readers, d_in) makes each reader read of each source.

        ``experts`` says which expert each source of each reader is, where not all readers have the same.
        """
        noisy = NOISY_LOAD if self.gating == "noisy_top_k" else 0.0
        load = noisy if self.load_penalty is None else self.load_penalty
        regulariser = Regulariser(
            readers,
            sources,
            mask=mask,
            experts=experts,
            dropout=self.gate_dropout,
            entropy=self.entropy_penalty,
            load=load,
        )
        if self.gating == "softmax" or sources == 1:
            return Gate(readers, sources, d_in, mask=mask, temperature=self.temperature, regulariser=regulariser)
        shape = (readers, sources, d_in, self.k)
        if self.gating in ("top_k", "noisy_top_k"):
            kind = TopKGate if self.gating == "top_k" else NoisyTopKGate
            return kind(*shape, mask=mask, temperature=self.temperature, regulariser=regulariser)
        static = self.gating == "dselect_k_static"
        return DSelectKGate(*shape, static=static, mask=mask, temperature=self.temperature, regulariser=regulariser)


def experts_named(n: int) -> tuple[str, ...]:
    """Names of n experts, for pictures and reports."""
    return tuple(f"expert {i}" for i in range(n))


def all_read_all(readers: tuple[str, ...], sources: tuple[str, ...]) -> tuple[tuple[bool, ...], ...]:
    """The mask of a level where nothing is barred."""
    return tuple(tuple(True for _ in sources) for _ in readers)
