"""Sparse gates: for every reader a distribution over few of its sources; the others weigh exactly 0."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from multigate.nn.gate import Gate, Gated, Mask, Regulariser, at_least_float32, even_use, squared_variation
from multigate.nn.parallel import ParallelLinear

NOISE_FLOOR = 1e-2
"""Least standard deviation of a noisy gate's noise, which P(x, i) is divided by; as in the authors' code."""


class TopKGate(Gate):
    """softmax(KeepTopK(W_k x, k)): a softmax over the k largest logits (Shazeer et al. 2017, Eq. 3 and 5, no noise).

    The others weigh exactly 0 and get no gradient. Of equal logits the first wins; a reader that may read fewer than k
    sources reads them all. With k = 1 the weight is 1 whatever the logits are, and the gate learns nothing.
    """

    sparse: ClassVar[bool] = True

    def __init__(
        self,
        readers: int,
        sources: int,
        d_in: int,
        k: int,
        *,
        mask: Mask | None = None,
        temperature: float = 1.0,
        regulariser: Regulariser | None = None,
    ) -> None:
        super().__init__(readers, sources, d_in, mask=mask, temperature=temperature, regulariser=regulariser)
        self.k = min(k, sources)
        choices = [sources] * readers if mask is None else [sum(row) for row in mask]
        self.most = min(sources, sum(min(k, choice) for choice in choices))

    def forward(self, x: Tensor) -> Gated:
        logits = self.logits(x)
        return self.regulariser(kept(logits, largest(logits, self.k)))

    def logits(self, x: Tensor) -> Tensor:
        """(B, readers, sources) in float32, whatever other matmuls are computed in: that one logit is larger than
        another is not for rounding to decide."""
        return self._adjusted(unrounded(self.linear, x))

    def most_read(self) -> int:
        return self.most


class NoisyTopKGate(TopKGate):
    """softmax(KeepTopK(H(x), k)), H(x) = W_k x + N(0, 1) softplus(W_noise x) in training (Shazeer et al. 2017, Eq. 3
    to 5), and no noise in evaluation.

    The regulariser's ``load`` also weighs CV(Load)^2, the load of a source being the sum over rows and readers of
    P(x, i), the chance that it is among the k with its own noise drawn anew (Eq. 8 to 11). W_noise starts at zero, as
    in the paper; W_k does not, so that gates read x from the first step on, with noise of .7 that outweighs it.
    """

    even_load: Tensor

    def __init__(
        self,
        readers: int,
        sources: int,
        d_in: int,
        k: int,
        *,
        mask: Mask | None = None,
        temperature: float = 1.0,
        regulariser: Regulariser | None = None,
    ) -> None:
        super().__init__(readers, sources, d_in, k, mask=mask, temperature=temperature, regulariser=regulariser)
        self.noise = ParallelLinear(readers, d_in, sources, bias=False)
        nn.init.zeros_(self.noise.weight)
        even = even_use(readers, sources, mask, k, experts=self.regulariser.read)
        self.register_buffer("even_load", even, persistent=False)

    def forward(self, x: Tensor) -> Gated:
        if not self.training:
            return super().forward(x)
        clean, deviation = self.logits(x), functional.softplus(unrounded(self.noise, x)) + NOISE_FLOOR
        noisy = clean + torch.randn_like(clean) * deviation
        chosen = largest(noisy, self.k)
        weights, penalty = self.regulariser(kept(noisy, chosen))
        if self.regulariser.load:
            load = self.regulariser.used(chance_of_choice(clean, noisy, deviation, chosen, self.k))
            penalty = penalty + self.regulariser.load * squared_variation(load / self.even_load)
        return Gated(weights, penalty)


class DSelectKGate(nn.Module):
    """q = sum_l softmax(alpha)_l r(z_l): k selectors of one source each, z = W x + b and alpha = A x + c, or ``static``
    ones that are learnt for each reader and read nothing (Hazimeh et al. 2021).

    r(z)_i is the product of S(z_j) over the bits j that are set in i, and of 1 - S(z_j) over the others. S is the
    smooth step; its width, the paper's gamma, is ``temperature``. All is differentiable. Once the z have left that
    width, at most k sources weigh more than 0; at first all do. The regulariser's ``entropy`` is that of selectors.

    Codes beyond the sources, or of barred ones, go round the allowed sources once more, so that rows always sum to one.
    The paper keeps selectors off them by a penalty.
    """

    sparse: ClassVar[bool] = True
    codes: Tensor | None

    def __init__(
        self,
        readers: int,
        sources: int,
        d_in: int,
        k: int,
        *,
        static: bool = False,
        mask: Mask | None = None,
        temperature: float = 1.0,
        regulariser: Regulariser | None = None,
    ) -> None:
        super().__init__()
        bits, codes = binary_codes(readers, sources, mask)
        self.register_buffer("codes", codes, persistent=False)
        self.sources = sources
        self.temperature = temperature
        self.regulariser = regulariser or Regulariser(readers, sources, mask=mask)
        self.shape = (k, bits)
        self.static = static
        if static:
            self.z, self.alpha = nn.Parameter(torch.empty(readers, k, bits)), nn.Parameter(torch.empty(readers, k))
        else:
            self.to_z, self.to_alpha = ParallelLinear(readers, d_in, k * bits), ParallelLinear(readers, d_in, k)
        for name, parameter in self.named_parameters():
            bound = 0.05 if "alpha" in name else temperature / 100  # as in the authors' code
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Gated:
        if self.static:
            z, alpha = self.z.unsqueeze(0), self.alpha.unsqueeze(0)
        else:
            z = at_least_float32(self.to_z(x)).unflatten(-1, self.shape)  # type: ignore[no-untyped-call]
            alpha = at_least_float32(self.to_alpha(x))
        # z (B, readers, k, bits), selectors (B, readers, k, 2^bits)
        selectors = choices_of(smooth_step(z, self.temperature))
        weights = (torch.softmax(alpha, dim=-1).unsqueeze(-1) * selectors).sum(-2)
        if self.codes is not None:  # a source has the sum of its codes, and as often as need be a 0 put behind them
            each = functional.pad(weights, (0, 1)).gather(-1, self.codes.expand(weights.shape[0], -1, -1))
            weights = each.view(*weights.shape[:-1], self.sources, each.shape[-1] // self.sources).sum(-1)
        return self.regulariser(weights.expand(x.shape[0], -1, -1), selectors)

    def multiply_adds(self) -> int:
        """Multiply-adds of one row."""
        return 0 if self.static else self.to_z.multiply_adds() + self.to_alpha.multiply_adds()

    def most_read(self) -> int:
        """All sources: whether selectors have settled is not known beforehand."""
        return self.sources


def unrounded(linear: ParallelLinear, x: Tensor) -> Tensor:
    """What a linear map makes of x in float32, under autocast too."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return at_least_float32(linear(x))
    with torch.autocast(kind, enabled=False):
        return at_least_float32(linear(x.to(linear.weight.dtype)))


def largest(scores: Tensor, k: int) -> Tensor:
    """Which k of the last axis are largest, as bools; of equal ones the first."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    for _ in range(k):
        chosen = chosen.scatter(-1, scores.masked_fill(chosen, -torch.inf).argmax(-1, keepdim=True), True)
    return chosen


def kept(logits: Tensor, chosen: Tensor) -> Tensor:
    """softmax(KeepTopK(logits)): of the chosen ones alone."""
    return torch.softmax(logits.masked_fill(~chosen, -torch.inf), dim=-1)


def chance_of_choice(clean: Tensor, noisy: Tensor, deviation: Tensor, chosen: Tensor, k: int) -> Tensor:
    """P(x, i) = Phi((clean_i - kth_excluding(noisy, k, i)) / deviation_i): the chance of source i to be among the k
    with its own noise drawn anew and that of the others as it is (Shazeer et al. 2017, Eq. 8 and 9)."""
    top = functional.pad(noisy.topk(min(k + 1, noisy.shape[-1]), dim=-1).values, (0, 1), value=-torch.inf)
    threshold = torch.where(chosen, top[..., k : k + 1], top[..., k - 1 : k])
    sure, barred = threshold == -torch.inf, clean == -torch.inf
    margin = (clean - threshold).masked_fill(sure | barred, 0)
    return torch.special.ndtr(margin / deviation).masked_fill(sure, 1).masked_fill(barred, 0)


def smooth_step(t: Tensor, width: float) -> Tensor:
    """-2 (t/width)^3 + 3/2 t/width + 1/2 within width/2 of 0, 0 below and 1 above (Hazimeh et al. 2021)."""
    t = (t / width).clamp(-0.5, 0.5)
    return -2 * t**3 + 1.5 * t + 0.5


def choices_of(steps: Tensor) -> Tensor:
    """r(z)_i from S(z) (..., bits), the first bit the highest -> (..., 2^bits)."""
    found = torch.ones_like(steps[..., :1])
    for step in steps.unbind(-1):
        either = torch.stack((1 - step, step), dim=-1)  # (..., 2)
        found = (found.unsqueeze(-1) * either.unsqueeze(-2)).flatten(-2)
    return found


def binary_codes(readers: int, sources: int, mask: Mask | None) -> tuple[int, Tensor | None]:
    """Bits of a code, and of each reader the codes of each source, (readers, sources * most), filled up with 2^bits.

    None where code i is source i for all readers.
    """
    allowed = [[i for i in range(sources) if mask is None or mask[reader][i]] for reader in range(readers)]
    bits = max(1, *((len(choices) - 1).bit_length() for choices in allowed))
    of: list[list[list[int]]] = [[[] for _ in range(sources)] for _ in range(readers)]
    for reader, choices in enumerate(allowed):
        for code in range(2**bits):
            of[reader][choices[code % len(choices)]].append(code)
    most = max(len(codes) for row in of for codes in row)
    if most == 1 and sources == 2**bits:
        return bits, None
    filled = [[code for codes in row for code in (*codes, *[2**bits] * (most - len(codes)))] for row in of]
    return bits, torch.tensor(filled)
