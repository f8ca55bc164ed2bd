"""What a compiled library computes against what torch does: a compiler may be wrong, and so may a file."""

import math
from itertools import product

import torch
from torch import Tensor

from multigate.nn.compiled import ACTIVATED, KINDS, Columns, Dense, Kernels, Moments, Normalised


def agrees(found: Kernels) -> bool:
    """Whether they compute what torch does, on a few numbers."""
    random = torch.Generator().manual_seed(0)
    starts, owners = torch.tensor([0, 4, 0]), torch.tensor([0, 1, 0])
    ids = torch.randint(0, 4, (7, 3), generator=random, dtype=torch.int32)
    places = (ids + starts).long()
    pairs: list[tuple[Tensor, Tensor, float]] = []
    for dim in (5, 8, 16):  # any, and those that have code of their own
        table = torch.randn((9, dim), generator=random)
        rows = found.look_up(table, ids, starts)
        sums = torch.zeros(9, dim).index_add_(0, places.flatten(), rows.flatten(0, 1))
        pairs += [(rows, table[places], 0.0), (found.add_up(rows, ids, starts, owners, 9), sums, 1e-5)]
    pairs += [*_pairs_looked_up(found, random), *_pairs_of_adam(found, random), *_pairs_gated(found, random)]
    pairs += _pairs_activated(found, random)
    # the first three of SplitMix64 from 1234567, as published
    words = torch.tensor([6457827717110365317, 3203168211198807973, -8629252141511181193])
    if not torch.equal(found.scatter(torch.tensor([1234567]), 3), words):
        return False
    # a tile, and in the next one 64, 16 and single rows at a time
    weights, pull, sources = (
        torch.randn(shape, generator=random) for shape in ((2, 3, 1109), (2, 5, 1109), (3, 5, 1109))
    )
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        x, dz = sources.to(dtype), pull.to(dtype)
        of_weights, of_sources = found.unmix(weights, x, dz)
        active = torch.relu(x)
        pairs += [
            (found.mix(weights, x), (weights.unsqueeze(2) * x.float()).sum(1), near),
            (of_weights, (dz.float().unsqueeze(1) * x.float()).sum(2), near),
            (of_sources, (weights.unsqueeze(2) * dz.float().unsqueeze(1)).sum(0), near),
            (found.relu_(x.clone()), active, 0.0),
            (found.mask_(x.clone(), active), active, 0.0),
            (found.relu_of_sum_(x.clone(), x[..., 0].contiguous()), torch.relu(x + x[..., :1]), 0.0),
        ]
    one, other = weights.unsqueeze(2), torch.stack((sources, sources.flip(0))).unsqueeze(1)
    made = found.sum_of_product(one, other, 2)
    if made is None:
        return False
    pairs.append((made, (one * other).sum(2), 1e-5))
    return all(torch.allclose(one.float(), other.float(), atol=near, rtol=near) for one, other, near in pairs)


def _pairs_of_adam(found: Kernels, random: torch.Generator) -> list[tuple[Tensor, Tensor, float]]:
    """A table of which rows were moved and its moments, and the same by torch in float64."""
    table, first, second = (torch.randn((9, 5), generator=random) for _ in range(3))
    moments = Moments(first, second.square(), torch.arange(9.0) ** 2, (0.9, 0.999), 1e-8)
    rows, gradient = torch.tensor([1, 2, 8]), torch.randn((3, 5), generator=random)
    w, m, v, steps = (x[rows].double() for x in (table, *moments[:3]))
    m, v, steps = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient.square(), steps + 1
    of_first, of_second = (1 - beta ** steps.unsqueeze(1) for beta in moments.betas)
    moved = 0.5 * w - 0.01 * m / of_first / ((v / of_second).sqrt() + 1e-8)
    made = (table, *moments[:3])
    wanted = [x.double().index_copy(0, rows, new) for x, new in zip(made, (moved, m, v, steps), strict=True)]
    found.lazy_adam_(table, moments, rows, gradient, 0.01, 0.5)
    return [(one, other, 1e-5) for one, other in zip(made, wanted, strict=True)]


def _pairs_gated(found: Kernels, random: torch.Generator) -> list[tuple[Tensor, Tensor, float]]:
    """Feature gates of readers of two units, of more terms than are taken at a time, and their gradients."""
    read, b = torch.tensor([1, 0, 1]), 133  # more than a tile of rows
    x, pull, down, up = (torch.randn(shape, generator=random) for shape in ((2, 6, b), (3, 6, b), (3, 9, 6), (3, 6, 9)))
    pairs = []
    for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 4e-2)):
        given, back = x.to(dtype), pull.to(dtype)
        features, dz = given.float()[read], back.float()
        low = torch.bmm(down, features)
        gate = torch.sigmoid(torch.bmm(up, low))
        of_logit = 2 * dz * features * gate * (1 - gate)
        of_low = torch.bmm(up.mT, of_logit)
        made, lowered = found.gate_features(given, read, down, up)
        of_x, of_down, of_up = found.ungate_features(given, read, down, up, lowered, back)
        of_features = 2 * dz * gate + torch.bmm(down.mT, of_low)
        pairs += [
            (made, 2 * features * gate, near),
            (of_x, torch.zeros_like(x).index_add_(0, read, of_features), near),
            (of_down, torch.bmm(of_low, features.mT), 1e-3),
            (of_up, torch.bmm(of_logit, low.mT), 1e-3),
        ]
    return pairs


def _pairs_activated(found: Kernels, random: torch.Generator) -> list[tuple[Tensor, Tensor, float]]:
    """Layers of two copies, normalised or not, activated and dropped out or not, and their gradients."""
    n, h, b, level = 2, 3, 133, 200  # more than a tile of rows
    layers, pulls = 3 * torch.randn((2, n, h, b), generator=random)
    scale, shift = torch.rand((2, n, h), generator=random)
    byte = torch.randint(0, 256, (n, h, b), generator=random, dtype=torch.uint8)
    pairs = []
    for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        x, pull = layers.to(dtype).double(), pulls.to(dtype).double()
        for kind, (name, bytes_) in product(KINDS, zip(ACTIVATED, (None, byte, byte, None), strict=True)):
            over, by = KINDS.index(kind), torch.ones(())  # units of a copy, rows of a unit, or nothing
            normal, factor = x, 1.0 if bytes_ is None else (byte < level) * (256 / level)
            if over:
                by = 1 / (x.var(over, correction=0, keepdim=True) + 1e-5).sqrt()
                normal = (x - x.mean(over, keepdim=True)) * by
            u = normal * scale.unsqueeze(2) + shift.unsqueeze(2) if over else x
            value, slope = _activated(name, u)
            of_u = pull * factor * slope
            of_x = of_u * scale.unsqueeze(2) if over else of_u
            if over:
                along = (of_x * normal).mean(over, keepdim=True)
                of_x = by * (of_x - of_x.mean(over, keepdim=True) - normal * along)
            moments = torch.empty((2, n, {"none": 0, "layer": b, "batch": h}[kind]))
            of = Normalised(kind, scale, shift, moments[0], moments[1], bytes_, level)
            pairs.append((found.activate(layers.to(dtype), of, name), (value * factor).float(), near))
            made = found.of_activated(layers.to(dtype), of, name, pulls.to(dtype))
            pairs.append((made[0], of_x.float(), near))
            if over:
                pairs += [(made[1], (of_u * normal).sum(2).float(), 1e-3), (made[2], of_u.sum(2).float(), 1e-3)]
    return pairs


def _activated(name: str, u: Tensor) -> tuple[Tensor, Tensor]:
    """What u is activated to, and how that grows with it."""
    gate, below = torch.sigmoid(u), torch.special.ndtr(u)
    return {
        "relu": (u.relu(), (u > 0).double()),
        "silu": (u * gate, gate * (1 + u * (1 - gate))),
        "gelu": (u * below, below + u * torch.exp(-u * u / 2) / math.sqrt(2 * math.pi)),
        "tanh": (u.tanh(), 1 - u.tanh().square()),
    }[name]


def _pairs_looked_up(found: Kernels, random: torch.Generator) -> list[tuple[Tensor, Tensor, float]]:
    """What is computed of columns that are looked up, and by torch, with how near they must come."""
    m, b, d = 19, 133, 80  # more than one tile of units and of rows, and a last one that is not full
    sizes, starts, places = (4, 3, 5), torch.tensor([5, 0, 4]), torch.tensor([1, 26, 52])
    ids = torch.stack([torch.randint(0, size, (b,), generator=random) for size in sizes], 1).int()
    of = found.number_terms(ids, Columns(torch.arange(3), starts, torch.tensor(sizes), places), sum(sizes))
    weight, held, pulls = (torch.randn(shape, generator=random) for shape in ((m, d), (m, b), (m, b)))
    dense = Dense(torch.randn((b, 3), generator=random), torch.tensor([0, 51, 79]))
    dense.x[:, 1] = 0  # a column that is left out
    of_units = weight[:, 0].contiguous()
    pairs = []
    for dim in (16, 24, 12, 6):  # what is computed sixteen, eight, four and two columns at a time
        table = torch.randn((9, dim), generator=random)
        rows = ids.long() + starts
        columns = (places.unsqueeze(1) + torch.arange(dim)).flatten()
        x, part = table[rows].flatten(1), weight[:, columns]
        sums = part @ x.t()
        whole = sums + weight[:, dense.places] @ dense.x.t() + of_units.unsqueeze(1)
        for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
            made, given = held.to(dtype), pulls.to(dtype)
            grown, of_bias, pull = torch.full_like(weight, torch.nan), weight.new_empty(m), given.float()
            of_table = found.of_looked_up_(given, weight, table, of, grown, dense, of_bias)
            of_x = (pull.t() @ part).view(-1, dim)
            pairs += [
                (found.add_looked_up_(made.clone(), weight, table, of), made.float() + sums, near),
                (
                    found.add_looked_up_(made.clone(), weight, table, of, dense, 7, of_units),
                    torch.cat((whole[:7].relu(), whole[7:])),
                    near,
                ),
                (grown[:, columns], pull @ x, 1e-3),
                (grown[:, dense.places], pull @ dense.x, 1e-3),
                (of_bias, pull.sum(1), 1e-3),
                (of_table, torch.zeros(9, dim).index_add_(0, rows.flatten(), of_x), 1e-3),
            ]
    return pairs
