"""Gates: for every reader a distribution over sources, and the mixture it makes of them."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from multigate.nn.parallel import ParallelLinear

Mask = Sequence[Sequence[bool]]
"""(readers, sources): which source each reader may read."""
Experts = Sequence[Sequence[int]]
"""(readers, sources): which of all experts each source of each reader is."""


class Gated(NamedTuple):
    """What a gate returns: ``weights`` (B, readers, sources) and ``penalty``, a scalar that is added to the loss."""

    weights: Tensor
    penalty: Tensor


class Regulariser(nn.Module):
    """Penalties on gate weights and dropout of them, in training. (B, readers, sources) -> ``Gated``.

    The penalty is ``entropy`` times the mean entropy of the rows in nats, which above 0 sharpens gates and below 0
    evens them out, plus ``load`` times CV(Importance)^2, the importance of a source being the sum of its weights over
    all rows and readers (Shazeer et al. 2017, Eq. 6 and 7). Where a mask bars readers, importance is relative to what
    the source would have if every reader spread evenly over those it may read. Where readers have different sources at
    the same places, ``experts`` says which expert each is, and importance is the experts'.

    ``dropout`` then sets each source to zero with that probability and rescales the rest to sum to one (Zhao et al.
    2019, section 5.2.4, against gates that settle on one expert).
    """

    even: Tensor
    experts: Tensor | None

    def __init__(
        self,
        readers: int,
        sources: int,
        *,
        mask: Mask | None = None,
        experts: Experts | None = None,
        dropout: float = 0.0,
        entropy: float = 0.0,
        load: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.entropy = entropy
        self.load = load
        self.read = experts
        places = None if experts is None else torch.tensor(experts).flatten()
        self.register_buffer("experts", places, persistent=False)
        self.register_buffer("even", even_use(readers, sources, mask, experts=experts), persistent=False)

    def forward(self, weights: Tensor, selectors: Tensor | None = None) -> Gated:
        """``selectors``, distributions on the last axis, are what has entropy in place of the weights they make up."""
        penalty = self.even.new_zeros(())
        if self.training and self.entropy:
            penalty = penalty + self.entropy * mean_entropy(weights if selectors is None else selectors)
        if self.training and self.load:
            penalty = penalty + self.load * squared_variation(self.used(weights) / self.even)
        if self.training and self.dropout:
            weights = drop_sources(weights, self.dropout)
        return Gated(weights, penalty)

    def used(self, weights: Tensor) -> Tensor:
        """Sums of (B, readers, sources) over all rows and readers, one for each expert."""
        weights = at_least_float32(weights)
        if self.experts is None:
            return weights.sum((0, 1))
        return torch.zeros_like(self.even).index_add(0, self.experts, weights.sum(0).flatten())


class LinearGate(nn.Module):
    """What is made of a linear map's logits, and of nothing else: x (B, D) or (B, readers, D) -> ``of_logits``."""

    linear: ParallelLinear

    def forward(self, x: Tensor) -> Any:
        return self.of_logits(self.linear(x))

    def of_logits(self, logits: Tensor) -> Any:
        """What ``forward`` returns, from what the linear map made, (B, readers, sources)."""
        raise NotImplementedError

    def multiply_adds(self) -> int:
        """Multiply-adds of one row."""
        return self.linear.multiply_adds()


class Gate(LinearGate):
    """softmax(W_k x): a linear map without bias and a softmax, nothing else (Ma et al. 2018, Eq. 8).

    x (B, D), or (B, readers, D) -> weights (B, readers, sources); each row of the last axis sums to one, and a source
    that ``mask`` bars from a reader weighs 0. ``temperature`` divides the logits: above 1 evens the weights out, below
    1 sharpens them.
    """

    sparse: ClassVar[bool] = False
    """Whether sources may weigh exactly 0 that a reader could read."""
    allowed: Tensor | None

    def __init__(
        self,
        readers: int,
        sources: int,
        d_in: int,
        *,
        mask: Mask | None = None,
        temperature: float = 1.0,
        regulariser: Regulariser | None = None,
    ) -> None:
        super().__init__()
        self.linear = ParallelLinear(readers, d_in, sources, bias=False)
        barred = mask is not None and not all(all(row) for row in mask)
        self.register_buffer("allowed", torch.tensor(mask) if barred else None, persistent=False)
        self.temperature = temperature
        self.regulariser = regulariser or Regulariser(readers, sources, mask=mask)

    def of_logits(self, logits: Tensor) -> Gated:
        return self.regulariser(softmax(self._adjusted(logits)))

    def _adjusted(self, logits: Tensor) -> Tensor:  # -inf where a source is barred
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.allowed is not None:
            logits = logits.masked_fill(~self.allowed, -torch.inf)
        return logits

    def most_read(self) -> int:
        """The most sources that the readers of one row can read together."""
        return self.linear.weight.shape[1]


def softmax(logits: Tensor) -> Tensor:
    """Over the last axis of (B, readers, sources), wherever the batch lies."""
    if logits.stride(0) == 1:
        return torch.softmax(logits.permute(1, 2, 0), dim=1).permute(2, 0, 1)
    return torch.softmax(logits, dim=-1)


def even_use(readers: int, sources: int, mask: Mask | None, k: int = 1, *, experts: Experts | None = None) -> Tensor:
    """What each source, or expert, would have if every reader spread k (or as many as it may read) evenly."""
    # never computed on the meta device, where comparisons count costs: it would import the compiler, for seconds
    allowed = torch.tensor(mask or [[True] * sources] * readers, dtype=torch.float32, device="cpu")
    choices = allowed.sum(1, keepdim=True)
    spread = allowed * choices.clamp(max=k) / choices
    if experts is None:
        return spread.sum(0).to(torch.get_default_device())
    use = spread.new_zeros(1 + max(max(row) for row in experts))
    places = torch.tensor(experts, device="cpu").flatten()
    return use.index_add(0, places, spread.flatten()).to(torch.get_default_device())


def mean_entropy(weights: Tensor) -> Tensor:
    """Mean entropy in nats of distributions on the last axis; 0 of none at all."""
    weights = at_least_float32(weights)
    logs = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()  # finite, so that a weight of 0 has a gradient
    return -(weights * logs).sum() / max(1, weights.shape[:-1].numel())


def squared_variation(x: Tensor) -> Tensor:
    """CV(x)^2: the variance of x (n,) over the square of its mean; 0 where x is 0 throughout."""
    mean = x.mean()
    return (x - mean).square().mean() / mean.square().clamp_min(torch.finfo(x.dtype).tiny)


def at_least_float32(x: Tensor) -> Tensor:
    """x, but not in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def drop_sources(gate: Tensor, rate: float) -> Tensor:
    """Zero each weight with probability ``rate``, rescale each row to sum to one; a row that would lose all is kept."""
    kept = gate * (torch.rand_like(gate) >= rate)
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp_min(torch.finfo(gate.dtype).tiny), gate)


def beside(x: Tensor, context: Tensor | None) -> Tensor:
    """What gates read: x, (B, D) or (B, n, D), and beside it the columns (B, G) that only gates read, if any."""
    if context is None:
        return x
    if x.dim() == 3:
        context = context.unsqueeze(1).expand(-1, x.shape[1], -1)
    return torch.cat((x, context), dim=-1)
