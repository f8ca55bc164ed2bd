"""Compiled code against sums written out and torch's operators, and what happens where it cannot be had."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from multigate.batch import IdColumn, Layout, NumberColumn, TaskColumn
from multigate.model import Model
from multigate.nn import kernels as module
from multigate.nn.agreement import agrees
from multigate.nn.compiled import ARGUMENTS, TERMS, Kernels, Moments
from multigate.nn.kernels import OFF, Built, built, kernels
from multigate.nn.layout import lies_last
from multigate.nn.mixture import Mixture, mix
from multigate.objective import Objective
from multigate.sharing import MMoE

COMPILER = shutil.which("g++") or shutil.which("clang++")
NEAR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 127),
    (2, 8, 64, 1024),
    (3, 2, 4, 129),
    (1, 1, 3, 2500),
    (5, 9, 2, 1100),
    (2, 3, 5, 0),
]
"""(readers, sources, units, rows), around and beyond the rows that are taken at a time."""


@pytest.fixture(scope="module")
def found() -> Kernels:
    one = kernels()
    assert (one is not None) == (COMPILER is not None), built().told
    if one is None:
        pytest.skip("no C++ compiler here")
    return one


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("shape", SHAPES)
def test_mixtures_are_sums_over_sources(
    found: Kernels, threads: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    t, e, h, b = shape
    weights, sources, pull = torch.randn(t, e, b), torch.randn(e, h, b).to(dtype), torch.randn(t, h, b).to(dtype)
    exact, x, dz = weights.double(), sources.double(), pull.double()
    # as products and sums: torch's threads meet a few times, not for every row
    wanted = (exact.unsqueeze(2) * x).sum(1)
    of_sources, of_weights = (exact.unsqueeze(2) * dz.unsqueeze(1)).sum(0), (dz.unsqueeze(1) * x).sum(2)
    made, (got_weights, got_sources) = found.mix(weights, sources), found.unmix(weights, sources, pull)
    assert made.dtype == got_sources.dtype == dtype
    assert got_weights.dtype == torch.float32
    for one, other, near in (
        (made, wanted, NEAR[dtype]),
        (got_sources, of_sources, NEAR[dtype]),
        (got_weights, of_weights, 1e-5),
    ):
        torch.testing.assert_close(one.double(), other, atol=10 * near, rtol=near)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("many", [0, 1, 17, 100_003])
def test_relu_and_its_mask_are_bit_equal_to_torchs(found: Kernels, threads: int, dtype: torch.dtype, many: int) -> None:
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), -float("nan"), 1e-40, -1e-40])
    x = torch.cat((torch.randn(many), special)).to(dtype)
    pull = torch.randn(len(x)).to(dtype)
    activated = found.relu_(x.clone())
    assert torch.equal(activated.nan_to_num(7), torch.relu(x).nan_to_num(7))
    masked = torch.ops.aten.threshold_backward(pull, activated, 0)
    assert torch.equal(found.mask_(pull.clone(), activated), masked)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2048), (5, 2049), (2, 3, 700), (2, 0)])
def test_relu_of_a_sum_is_bit_equal_to_torchs(
    found: Kernels, threads: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x, bias = torch.randn(shape).to(dtype), torch.randn(shape[:-1]).to(dtype)
    x.flatten()[:1], bias.flatten()[-1:] = torch.nan, torch.inf
    expected = torch.relu(x + bias.unsqueeze(-1))
    assert torch.equal(found.relu_of_sum_(x, bias).nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize(
    ("read", "rank", "width", "rows"),
    [([0], 1, 1, 1), ([0, 0, 0], 8, 5, 128), ([2, 0, 2, 1, 0], 11, 7, 300), ([1, 1], 3, 4, 2049), ([0, 1], 8, 3, 0)],
)
def test_feature_gates_and_their_gradients(
    found: Kernels, threads: int, read: list[int], rank: int, width: int, rows: int, dtype: torch.dtype
) -> None:
    """2 x sigmoid(up down x), differentiated by autograd, in float64; a unit that nobody reads has no gradient."""
    n, places = len(read), torch.tensor(read)
    x, pull = torch.randn(max(read) + 2, width, rows).to(dtype), torch.randn(n, width, rows).to(dtype)
    down, up = torch.randn(n, rank, width), torch.randn(n, width, rank)
    leaves = [one.double().requires_grad_() for one in (x, down, up)]
    features = leaves[0][places]
    expected = 2 * features * torch.sigmoid(leaves[2] @ (leaves[1] @ features))
    wanted = torch.autograd.grad(expected, leaves, pull.double())
    made, low = found.gate_features(x, places, down, up)
    grown = found.ungate_features(x, places, down, up, low, pull)
    assert made.dtype == grown[0].dtype == dtype
    assert grown[1].dtype == grown[2].dtype == torch.float32
    nears = (NEAR[dtype], NEAR[dtype], 1e-5, 1e-5)
    for one, other, near in zip((made, *grown), (expected.detach(), *wanted), nears, strict=True):
        size = float(other.abs().amax()) if other.numel() else 1.0
        torch.testing.assert_close(one.double(), other, atol=near * max(size, 1), rtol=near)


def test_what_feature_gates_keep_may_be_brought_back_to_any_address(found: Kernels) -> None:
    """Hooks may keep what autograd saves in a file: read as vectors at such an address it would end the process."""
    x, down, up, places = torch.randn(1, 4, 200), torch.randn(2, 11, 4), torch.randn(2, 4, 11), torch.tensor([0, 0])
    made, low = found.gate_features(x, places, down, up)
    moved = torch.empty(low.numel() + 1)[1:].view(low.shape).copy_(low)
    for one, other in zip(
        found.ungate_features(x, places, down, up, moved, made),
        found.ungate_features(x, places, down, up, low, made),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", NEAR)
def test_feature_gates_of_any_logit(found: Kernels, dtype: torch.dtype) -> None:
    """Of those whose e^x float32 can hold and of others, and of what is no number."""
    logits = torch.cat((torch.linspace(-120, 120, 4_801), torch.tensor([1e30, -1e30, torch.inf, torch.nan])))
    n = len(logits)  # readers of one feature
    x, read, down = torch.ones(1, 1, 1, dtype=dtype), torch.zeros(n, dtype=torch.int64), torch.ones(n, 1, 1)
    made = found.gate_features(x, read, down, logits.view(n, 1, 1))[0].flatten()
    expected = 2 * torch.sigmoid(logits.double())
    near = NEAR[dtype] if dtype == torch.bfloat16 else 5e-7
    torch.testing.assert_close(made.double(), expected, atol=1e-37, rtol=near, equal_nan=True)


@pytest.mark.parametrize(
    ("one", "other", "dims"),
    [
        ((7, 2, 8, 1, 37), (7, 1, 8, 5, 37), (0, 1, 2, 3, -2)),
        ((3, 100), (3, 100), (0,)),
        ((3, 0), (3, 0), (0,)),
        ((0, 3, 16), (1, 3, 16), (0, 1)),
        ((4, 1, 65), (1, 9, 65), (0, 1)),
    ],
)
def test_sums_of_products(
    found: Kernels, threads: int, one: tuple[int, ...], other: tuple[int, ...], dims: tuple[int, ...]
) -> None:
    left, right = torch.randn(one), torch.randn(other)
    apart = torch.randn(*other[:-1], 2, other[-1])[..., 1, :]  # whose rows lie apart
    for dim in dims:
        for x in (right, apart):
            made = found.sum_of_product(left, x, dim)
            assert made is not None
            wanted = (left.double() * x.double()).sum(dim)
            torch.testing.assert_close(made.double(), wanted, atol=1e-5, rtol=1e-5)


def test_sums_that_are_left_to_torch(found: Kernels) -> None:
    x, six, many = torch.randn(3, 4, 5), torch.randn(1, 1, 1, 1, 2, 3), torch.randn(TERMS + 1, 3)
    assert found.sum_of_product(x, x, 1) is not None
    assert found.sum_of_product(x, x, 2) is None, "the last axis"
    assert found.sum_of_product(x, x[..., :1], 1) is None, "one number for all of the last axis"
    assert found.sum_of_product(x.mT, x.mT, 1) is None, "another lies last"
    assert found.sum_of_product(x, x.double(), 1) is None
    assert found.sum_of_product(x.bfloat16(), x.bfloat16(), 1) is None
    assert found.sum_of_product(six, six, 1) is None
    assert found.sum_of_product(many, many, 0) is None


@pytest.mark.parametrize("dim", [1, 3, 8, 16])
@pytest.mark.parametrize("rows", [0, 1, 700])
def test_rows_are_looked_up_and_their_gradients_added_up(found: Kernels, threads: int, dim: int, rows: int) -> None:
    table, sizes = torch.randn(20, dim), [5, 9, 6]
    starts, owners = torch.tensor([0, 5, 14, 0]), torch.tensor([0, 1, 2, 0])  # the last column reads the first's table
    ids = torch.stack([torch.randint(0, n, (rows,), dtype=torch.int32) for n in (*sizes, 5)], dim=1).contiguous()
    places = ids.long() + starts
    assert torch.equal(found.look_up(table, ids, starts), table[places])
    pull = torch.randn(rows, 4 * dim + 3)[:, 3:].view(rows, 4, dim)  # as a part of something wider
    sums = torch.zeros(20, dim, dtype=torch.float64).index_add_(0, places.flatten(), pull.double().flatten(0, 1))
    torch.testing.assert_close(found.add_up(pull, ids, starts, owners, 20).double(), sums, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dim", [1, 3, 8, 16])
@pytest.mark.parametrize("many", [0, 1, 700])
def test_adam_of_some_rows_is_torchs_of_those_alone(found: Kernels, threads: int, dim: int, many: int) -> None:
    table, rows = torch.randn(1_000, dim), torch.randperm(1_000)[:many].sort().values
    moments = Moments(torch.zeros_like(table), torch.zeros_like(table), torch.zeros(1_000), (0.8, 0.99), 1e-7)
    own, before = table[rows].double().requires_grad_(), table.clone()
    adam = torch.optim.AdamW([own], lr=0.02, betas=(0.8, 0.99), eps=1e-7, weight_decay=0.5)
    for _ in range(5):
        gradient = torch.randn(many, dim)
        own.grad = gradient.double()
        adam.step()
        found.lazy_adam_(table, moments, rows, gradient, 0.02, 1 - 0.02 * 0.5)
    torch.testing.assert_close(table[rows].double(), own.detach(), atol=1e-6, rtol=1e-5)
    others = torch.ones(1_000, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(table[others], before[others])
    assert torch.equal(moments.steps, 5.0 * ~others)
    assert not moments.first[others].any()
    assert not moments.second[others].any()


@pytest.mark.parametrize("lost", [-1, 4, 2**31 - 1])
def test_ids_without_a_row_are_told_as_by_torch(found: Kernels, lost: int) -> None:
    ids = torch.tensor([[0], [lost]], dtype=torch.int32)
    with pytest.raises(IndexError, match="1 ids are out of range of the 4 rows"):
        found.look_up(torch.randn(4, 2), ids, torch.tensor([0]))


@pytest.mark.parametrize("way", ["compiled", "sums", "by rows"])
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("lies", ["by rows", "batch last"])
def test_the_mixture_and_its_gradients_are_those_of_matmuls(
    found: Kernels, monkeypatch: pytest.MonkeyPatch, way: str, dtype: torch.dtype, lies: str
) -> None:
    if way != "compiled":
        monkeypatch.setattr("multigate.nn.mixture.kernels_for", lambda x: None)
        monkeypatch.setattr("multigate.nn.mixture.FEW", 6 if way == "sums" else 5)
    gate, pull = torch.softmax(torch.randn(50, 2, 3), -1), torch.randn(50, 2, 5).to(dtype)
    if lies == "batch last":
        gate, pull = (one.permute(1, 2, 0).contiguous().permute(2, 0, 1) for one in (gate, pull))
    sources = torch.randn(3, 5, 50).permute(2, 0, 1).to(dtype)
    leaves = [gate.requires_grad_(), sources.requires_grad_()]
    made = mix(*leaves)
    assert type(made.grad_fn).__name__ == Mixture.__name__ + "Backward"
    assert lies_last(made)
    expected = torch.bmm(gate.double(), sources.double())
    torch.testing.assert_close(made.double(), expected, atol=5 * NEAR[dtype], rtol=NEAR[dtype])
    wanted = torch.autograd.grad(expected, leaves, pull.double())
    for one, leaf, other in zip(torch.autograd.grad(made, leaves, pull), leaves, wanted, strict=True):
        assert one.dtype == leaf.dtype
        torch.testing.assert_close(one, other, atol=5 * NEAR[dtype], rtol=NEAR[dtype], check_dtype=False)
        assert lies_last(one)


PLANTED = {
    "another sum": ("held[lane] += wide(w", "held[lane] -= wide(w"),
    "a row too few": ("i < many; ++i) narrow(sum[i], made[i])", "i + 1 < many; ++i) narrow(sum[i], made[i])"),
    "a later reader's pull alone": ("FIRST ? w[i] * pull", "true ? w[i] * pull"),
    "another reader's gradient": ("sum, dw + reader * next + at, many", "sum, dw + at, many"),
    "the next tile's sources": ("x + (source * h + unit) * b + first;", "x + (source * h + unit) * b;"),
    "sixteen rows from the tile's start": ("sum_of_products<16>(w + lane", "sum_of_products<16>(w"),
    "another row of the product": ("b + i * bi + j * bj + k * bk", "b + i * bi + j * bj + k * bj"),
    "a sum in another's place": ("((i * nj + j) * nk + k)", "((i * nk + k) * nj + j)"),
    "half of wide rows": ("dim == 16 ? look_up<16>", "dim == 16 ? look_up<8>"),
    "half of wide gradients": ("dim == 16 ? add_up<16>", "dim == 16 ? add_up<8>"),
    "another row": ("std::copy_n(table + place * dim", "std::copy_n(table + (place ^ 1) * dim"),
    "gradients not added": ("sum[i] += pull[i]", "sum[i] = pull[i]"),
    "negatives kept": ("word[i] &= above(word[i])", "word[i] &= Word(-1)"),
    "no mask": ("word[i] &= above(of[i])", "word[i] |= of[i] & 0"),
    "a pair's other value left out": ("+ held[of.other[s]]", "+ 0 * held[of.other[s]]"),
    "a pair's other value not learnt": ("held[of.other[s]] += sum[s]", "held[of.other[s]] += 0 * sum[s]"),
    "pairs by one value alone": ("found = seen[ones_at[i] * many_others + others_at[i]]", "found = seen[ones_at[i]]"),
    "the most frequent value not learnt": ("[grouped.frequent[t]] = rest", "[grouped.frequent[t]] = 0 * rest"),
    "a value's rows but for the last": ("for (; i < end; ++i) sum[0]", "for (; i + 1 < end; ++i) sum[0]"),
    "all units active": ("unit + i < active ?", "true ?"),
    "the last columns in place of all": ("from ? held[v] : Vector{}", "Vector{}"),
    "the first rows over and over": ("dz[(unit + i) * b + start + j]", "dz[(unit + i) * b + j]"),
    "weights that do not decay": ("kept * w[d]", "w[d]"),
    "another gradient's square": ("by_two * pull[d] * pull[d]", "by_two * pull[d]"),
    "steps that are not counted": ("steps[rows[i]] += 1.0f", "steps[rows[i]] + 1.0f"),
    "another row moved": ("weight + rows[i] * dim", "weight + i * dim"),
    "dense columns of the first row": ("alive.x.data() + row * alive_k", "alive.x.data()"),
    "dense columns not learnt": ("columns[d]]] = by[d][i]", "columns[d]]] = 0 * by[d][i]"),
    "dense columns of zeros left as they were": ("dense.columns[d]] = 0.0f", "dense.columns[d]]"),
    "a bias not learnt": ("dbias[unit + i] = whole[i]", "dbias[unit + i] = 0 * whole[i]"),
    "what was there left in": ("(dense.k < 0 ? wide(out[j]) : 0.0f)", "wide(out[j])"),
    "a gate of half its terms": ("for (; t + 8 <= terms; t += 8)", "for (; t + 8 <= terms; t += 16)"),
    "another reader's features": ("of.read[reader] != unit", "0 != unit"),
    "another tile of features": ("take(x + (unit * d + f) * b + first", "take(x + (unit * d + f) * b"),
    "gates by a power too low": ("(Words)shifted + 127u", "(Words)shifted + 126u"),
    "gates that are not halves of two": ("(one[i] + one[i]) / gate[i]", "one[i] / gate[i]"),
    "gates not learnt through": (
        "of_low.data(), &of_read[d * VECTORS], of.r",
        "of_low.data(), &of_read[d * VECTORS], 0",
    ),
    "gates' weights not learnt": ("ddown[w] += of_down[w]", "ddown[w] += 0 * of_down[w]"),
    "gates learnt of half the lanes": ("    one += other;\n", ""),
    "gates learnt from another tile": ("(tile * n + reader)", "(0 * n + reader)"),
    "gates' second weights not learnt": ("dup[w] += of_down[weights + w]", "dup[w] += of_down[w]"),
    "the same number again": ("uint64_t(i + 1) *", "uint64_t(1) *"),
    "all elements kept": ("of.bytes[at + i] < of.level ? kept : 0.0f", "of.bytes[at + i] < of.level ? kept : kept"),
    "kept ones not raised": ("kept = 256.0f / float(of.level)", "kept = 1.0f"),
    "the mean left in": (
        "x[i] = (x[i] - span.mean[i]) * span.by[i] * scale + shift",
        "x[i] = x[i] * span.by[i] * scale + shift",
    ),
    "a spread not divided by": ("bys[i] = 1.0f / std::sqrt(", "bys[i] = 1.0f / ("),
    "no shift": ("shift = of.norm == NONE ? 0.0f : of.shift[unit]", "shift = 0.0f"),
    "moments of a tile too few": ("r < row + rows; r += TILE", "r + TILE < row + rows; r += TILE"),
    "moments that nothing is learnt through": ("next[i] - whole[i] - normal * along[i]", "next[i]"),
    "scales not learnt": ("of_scale[unit] += by_scale", "of_scale[unit] += all"),
    "shifts learnt of one share": (
        "dshift[unit] += total<LANES>",
        "dshift[unit] += 0.0f * total<LANES>",
    ),
    "a gate's slope without its own": ("gate * (1.0f + u * (1.0f - gate))", "gate"),
    "a tail of the other side": ("chosen((Words)(u < 0.0f), tail, 1.0f - tail)", "1.0f - tail"),
    "half of a tanh": ("1.0f - 2.0f / (1.0f + exponential(2.0f * above))", "1.0f - 2.0f / (1.0f + exponential(above))"),
    "a slope of what is not activated": ("{value, 1.0f - value * value}", "{value, Vector{} + 1.0f}"),
    "what is off grows": ("chosen(off, Vector{}, Vector{} + 1.0f)", "Vector{} + 1.0f"),
    "one value of all": ("dtable + of.row[v] * dim", "dtable + of.row[0] * dim"),
}


QUICKLY = ["-O0" if flag == "-O3" else flag for flag in module.FLAGS]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each file is compiled to, by its name."""
    folder = tmp_path_factory.mktemp("sound")
    made = {path.name: folder / f"{path.stem}.o" for path in module.SOURCES.glob("*.cpp")}
    for name, path in made.items():
        subprocess.run([str(COMPILER), *QUICKLY, "-c", str(module.SOURCES / name), "-o", str(path)], check=True)
    return made


def test_what_is_built_without_optimising_is_taken(found: Kernels, sound: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "right.so"
    subprocess.run([str(COMPILER), *QUICKLY, *map(str, sound.values()), "-o", str(path)], check=True)
    assert agrees(Kernels(path))


@pytest.mark.parametrize("fault", PLANTED)
def test_a_library_that_computes_something_else_is_not_taken(
    found: Kernels, sound: dict[str, Path], tmp_path: Path, fault: str
) -> None:
    before, after = PLANTED[fault]
    texts = {path.name: path.read_text(encoding="utf-8") for path in module.SOURCES.glob("*.[ch]*")}
    (name,) = (name for name, text in texts.items() if before in text)
    texts[name] = texts[name].replace(before, after).replace("Word(-1)", "decltype(word[i] & word[i])(-1)")
    changed = [one for one in sound if one == name or f'#include "{name}"' in texts[one]]
    for one in {name, *changed}:
        (tmp_path / one).write_text(texts[one], encoding="utf-8")
    path, others = tmp_path / "wrong.so", [str(made) for other, made in sound.items() if other not in changed]
    parts = [*(str(tmp_path / one) for one in changed), *others]
    subprocess.run([str(COMPILER), *QUICKLY, "-I", str(module.SOURCES), *parts, "-o", str(path)], check=True)
    assert not agrees(Kernels(path))


@pytest.fixture
def anew(found: Kernels) -> Iterator[Callable[[], Built]]:
    """Looks for the kernels as a process does that has not yet; afterwards they are looked for again."""

    def look() -> Built:
        built.cache_clear()
        return built()

    yield look
    built.cache_clear()


def test_it_is_built_once_and_then_found(
    anew: Callable[[], Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = anew()
    (library,) = (tmp_path / "multigate" / "kernels").iterdir()
    assert first.kernels is not None
    assert first.told == str(library)
    code = "from multigate.nn.kernels import built; print(built().kernels is not None, built().told)"
    written = library.stat().st_mtime_ns
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert second.stdout == f"True {library}\n"
    assert library.stat().st_mtime_ns == written, "found, not built again"
    library.unlink()  # which this process has loaded
    library.write_bytes(b"not a library")
    again = anew()
    assert again.kernels is not None
    assert Path(again.told).read_bytes() != b"not a library", "what is broken is built anew"


@pytest.mark.parametrize("damage", ["cut off", "a bit", "another's"])
def test_a_library_that_is_not_what_was_built_is_never_loaded(
    found: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Loaded or called it would end the process: by SIGBUS where it was cut off, by SIGSEGV where its code changed."""
    good = Path(built().told).read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_run", lambda *command: _as_if_built(command, good))
    path = Path(module._built("g++").told)
    assert path.read_bytes() == good
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    path.unlink()  # which this process has loaded
    path.write_bytes({"cut off": good[:16384], "a bit": bytes(flipped), "another's": good + b"0"}[damage])
    again = Path(module._built("g++").told)
    assert again.read_bytes() == good
    assert list(again.parent.iterdir()) == [again]


def test_threads_that_ask_at_once_build_it_once(
    anew: Callable[[], Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, builds = Path(built().told).read_bytes(), []

    def slowly(*command: str) -> str:
        builds.extend(["-o"] * ("-o" in command and "-c" not in command))
        time.sleep(0.1)
        return _as_if_built(command, good)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_run", slowly)
    built.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: built(), range(4)))
    assert all(one.kernels is not None for one in got), got
    assert builds == ["-o"]


def _as_if_built(command: tuple[str, ...], library: bytes) -> str:
    if "-o" in command:
        Path(command[-1]).write_bytes(library)
    return "a compiler"


def test_who_asks_first_may_compute_in_bfloat16(anew: Callable[[], Built]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert anew().kernels is not None


def test_who_asks_first_may_have_float64_for_new_tensors(anew: Callable[[], Built]) -> None:
    try:
        torch.set_default_dtype(torch.float64)
        assert anew().kernels is not None
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_without_a_compiler_it_says_what_to_install(
    anew: Callable[[], Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert anew() == (None, "no C++ compiler found; install g++")


def test_a_compiler_that_hangs_is_given_up_with_all_that_it_has_started(
    anew: Callable[[], Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the time for one file, whatever their number; nothing of it goes on."""
    left = tmp_path / "left"
    compiler = tmp_path / "g++"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\nsleep 60 &\necho $! >> {left}\nwait\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(module, "SECONDS", 2)
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    assert anew() == (None, f"{compiler} was not done after 2 s")
    started = left.read_text(encoding="utf-8").split()
    assert 1 <= len(started) <= 2, "the files that wait have no time of their own"
    for _ in range(300):
        if any(map(is_at_work, started)):
            time.sleep(0.01)
    assert not any(map(is_at_work, started))


def test_what_a_compiler_prints_need_not_be_utf_8(
    anew: Callable[[], Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nprintf 'caf\\351 closed' >&2\n[ \"$1\" = --version ]\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler))
    found = anew()
    assert found.kernels is None
    assert found.told.startswith("caf"), "its own words"
    assert found.told.endswith("closed")


def is_at_work(process: str) -> bool:
    """Whether there is such a process, and it has not ended with nobody to wait for it."""
    try:
        return Path("/proc", process, "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_where_it_cannot_be_kept_it_is_built_once_and_used(
    anew: Callable[[], Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, builds = Path(built().told).read_bytes(), []
    with_it = loss_of_a_training()

    def counted(*command: str) -> str:
        builds.extend(["-o"] * ("-o" in command and "-c" not in command))
        return _as_if_built(command, good)

    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "_run", counted)
    found, told = anew()
    assert found is not None
    assert "built by every process anew, for it cannot be kept (cannot write /dev/null/" in told
    assert loss_of_a_training() == with_it
    assert builds == ["-o"]
    assert not any(tmp_path.iterdir())


def test_a_compiler_that_fails_is_asked_once(
    anew: Callable[[], Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def failing(*command: str) -> str:
        if "-c" in command:
            asked.append(command[command.index("-c") + 1])
            raise subprocess.CalledProcessError(1, command, stderr="no omp.h")
        return "a compiler"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_run", failing)
    assert anew() == (None, "no omp.h")
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({OFF: "off"}, f"{OFF} is off"),
        ({"CXX": "false"}, "returned non-zero exit status 1"),
    ],
)
def test_without_it_training_goes_on_and_it_is_told_why(
    anew: Callable[[], Built], monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], reason: str
) -> None:
    with_it = loss_of_a_training()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found, told = anew()
    assert found is None
    assert reason in told
    assert loss_of_a_training() == pytest.approx(with_it, rel=1e-5)


def loss_of_a_training() -> float:
    """After a few steps of a model that uses every kernel."""
    tasks = (TaskColumn(name="a", kind="binary"), TaskColumn(name="b", kind="binary"))
    columns = (IdColumn(feature="c", table="c"), IdColumn(feature="d", table="d"))
    numbers = (NumberColumn(feature="n"),)
    layout = Layout(numbers=numbers, categories=columns, bags=(), tables={"c": 9, "d": 4}, tasks=tasks)
    torch.manual_seed(0)
    model, objective = Model(layout, MMoE(experts=3, hidden=(16, 8))), Objective(tasks)
    model.embed.dropout = model.embed.unseen = 0
    x, ids = torch.randn(300, 1), torch.randint(0, 4, (300, 2), dtype=torch.int32)
    labels = torch.cat([x > 0, ids[:, :1] > 1], dim=1).float()
    known, weights = torch.ones_like(labels, dtype=torch.bool), torch.ones_like(labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        loss = objective(model(x, ids).logits, labels, known, weights).sum()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_every_function_is_in_the_library(found: Kernels) -> None:
    assert {name for name, _ in found.functions} == set(ARGUMENTS)
