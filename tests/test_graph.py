"""Models as ONNX graphs: the same answers as torch for every structure and kind of column, on the same weights."""

import sys
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir
import onnxruntime
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from multigate.calibration import Calibration, Curve
from multigate.data.encoder import Encoder
from multigate.engine import Answers, Onnx, Torch, arrays, disagreement, made_up
from multigate.errors import BundleError
from multigate.first_layers import FirstLayers
from multigate.graph import bag_means, export_graph
from multigate.model import Model
from multigate.nn.embed import Embedding
from multigate.schema import Bag, Category, Number, Schema, Task
from multigate.sharing import CGC, MMoE, Shared, Sharing, Structure, structure_named
from multigate.sharing.structure import Level

HALF = ("tensor_factor", "cross_stitch", "adatt", "home", "snr", "aitm", "mmoe_top_k", "mmoe_dselect_k")
"""Structures whose operators are those of all; an export takes seconds."""
SCHEMA = Schema(
    features=[
        Number("plain", embedding="none"), Number("binned", bins=4), Number("piecewise", embedding="piecewise"),
        Number("waves", embedding="periodic"), Category("colour"), Category("wide", dim=3), Bag("bag"),
        Category("gated", use="gate"), Category("place", use="bias:click"),
    ],
    tasks=[
        Task("buy", given="click"), Task("click"), Task("grade", kind="multiclass"), Task("cost", kind="regression"),
    ],
)  # fmt: skip
ROWS = 40
TABLE = pa.table(
    {name: [float(i % 7) for i in range(ROWS)] for name in ("plain", "binned", "piecewise", "waves")}
    | {name: [str(i % 5) for i in range(ROWS)] for name in ("colour", "wide", "gated", "place")}
    | {"bag": [",".join(map(str, range(i % 4))) for i in range(ROWS)], "click": [i % 2 for i in range(ROWS)]}
    | {"buy": [int(i % 4 == 1) for i in range(ROWS)], "grade": [i % 3 for i in range(ROWS)]}
    | {"cost": [float(i) for i in range(ROWS)]}
)
PLAIN = Schema(features=[Number("plain", embedding="none"), Category("colour")], tasks=[Task("click"), Task("buy")])


def model_of(schema: Schema, structure: Structure, **more: object) -> tuple[Model, Encoder]:
    encoder = Encoder.fit(schema, TABLE.to_batches())
    parents = {"parents": schema.parents(), "order": schema.order()}
    return Model(encoder.layout, structure, **parents, **more).eval(), encoder


def exported(model: Model, encoder: Encoder, folder: Path) -> Onnx:
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    graph = export_graph(model, encoder.layout, made_up(encoder.layout, 16), folder / "model.safetensors")
    (folder / "model.onnx").write_bytes(graph)
    return Onnx(folder / "model.onnx")


def check_equal(found: Answers, expected: Answers) -> None:
    for one, other in zip((*found[:2], *found.gates), (*expected[:2], *expected.gates), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


class SideBySide(Structure):
    """Many structures at once, which share nothing: one graph is exported in the time of a few."""

    structure: Literal["side_by_side"] = "side_by_side"

    def build(self, d_in: int, tasks: tuple[str, ...]) -> Sharing:
        return Many(d_in, tasks)


class Many(nn.Module):
    wiring: tuple[Level, ...] = ()

    def __init__(self, d_in: int, tasks: tuple[str, ...]) -> None:
        super().__init__()
        narrow = [structure_named(name).with_(hidden=(8, 4)) for name in HALF]
        self.each = nn.ModuleList(one.build(d_in, tasks) for one in narrow)
        self.d_out = sum(one.d_out for one in self.each)

    def forward(self, x: Tensor) -> Shared:
        """What each structure makes of x stands among the gates too, so that each is compared by itself."""
        shared = [one(x) for one in self.each]
        together = torch.cat([one.z for one in shared], dim=-1)
        gates = [gate for one in shared for gate in one.gates]
        return Shared(together, (*(one.z for one in shared), *gates), x.new_zeros(()))


def test_structures_are_the_same_as_a_graph(tmp_path: Path) -> None:
    model, encoder = model_of(PLAIN, SideBySide())
    onnx = exported(model, encoder, tmp_path)
    for rows in (1, 3, 200):
        batch = arrays(made_up(encoder.layout, rows))
        expected, found = Torch(model)(batch), onnx(batch)
        for name, one, other in zip(HALF, expected.gates, found.gates, strict=False):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5, err_msg=name)
        check_equal(found, expected)
    assert np.abs(found.gates[0]).max() > 1e-3
    assert not made_of_weights_alone(tmp_path / "model.onnx")


def test_what_a_single_row_reads_is_made_once(tmp_path: Path) -> None:
    """Chains, gates that read columns of their own, bags, embeddings of two widths, of which one is not looked up."""
    model, encoder = model_of(SCHEMA, MMoE(experts=3, hidden=(16, 8)))
    save_file({name: one.contiguous() for name, one in model.state_dict().items()}, tmp_path / "model.safetensors")
    sample, weights = made_up(encoder.layout, 16), tmp_path / "model.safetensors"
    graph = export_graph(model, encoder.layout, sample, weights, mode=FirstLayers(model))
    (tmp_path / "row.onnx").write_bytes(graph)
    onnx = Onnx(tmp_path / "row.onnx")
    for rows in (1, 3, 200):
        batch = arrays(made_up(encoder.layout, rows))
        check_equal(onnx(batch), Torch(model)(batch))
    assert not made_of_weights_alone(tmp_path / "row.onnx")


def made_of_weights_alone(written: Path) -> list[str]:
    """Operators that are left of a loaded graph although nothing of a row goes into them: each row would wait."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(written.with_name("loaded.onnx"))
    onnxruntime.InferenceSession(written, options)
    graph = onnx_ir.load(written.with_name("loaded.onnx")).graph
    of_rows = {value.name for value in graph.inputs}
    alone = []
    for node in graph:
        if of_rows.isdisjoint(value.name for value in node.inputs if value is not None):
            alone.append(node.op_type)
        else:
            of_rows.update(value.name for value in node.outputs)
    return alone


def own_tables() -> tuple[Model, Encoder]:
    return model_of(SCHEMA, CGC(hidden=(8,), experts=1, shared=1), embedding=Embedding(dim=4, tables="own"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Encoder, Onnx, Path]:
    """Tables of the tasks' own, columns for gates and a bias, chains, all kinds of tasks, calibrated."""
    torch.manual_seed(0)
    model, encoder = own_tables()
    curves = {
        "click": Curve(at=(-0.1, 0.0, 0.2), to=(-2.0, 0.5, 3.0), slope=1.5),
        "buy": Curve(to=(0.3,), slope=2.0),
    }
    model.calibration = Calibration(encoder.layout.tasks, curves)
    for bias in model.biases:
        nn.init.normal_(bias.out.weight)
    folder = tmp_path_factory.mktemp("graph")
    return model, encoder, exported(model, encoder, folder), folder


@pytest.mark.parametrize("rows", [0, 1, 2, 500])
def test_every_kind_of_column_and_task_is_the_same_as_a_graph(
    everything: tuple[Model, Encoder, Onnx, Path], rows: int
) -> None:
    model, encoder, onnx, _ = everything
    batch = arrays(made_up(encoder.layout, rows))
    expected, found = Torch(model)(batch), onnx(batch)
    assert found.logits.shape == (rows, 6)
    check_equal(found, expected)
    assert rows == 0 or not np.array_equal(expected.logits, expected.conditionals)


def test_raw_rows_are_the_same_as_a_graph(everything: tuple[Model, Encoder, Onnx, Path]) -> None:
    model, encoder, onnx, _ = everything
    batch = encoder.columns(TABLE.to_batches()[0], labels=False)
    with torch.no_grad():
        expected = model(batch.numbers, batch.categories, batch.bags)
    torch.testing.assert_close(torch.from_numpy(onnx(arrays(batch)).logits), expected.logits, rtol=1e-5, atol=1e-5)


def test_weights_are_read_from_their_file(everything: tuple[Model, Encoder, Onnx, Path], tmp_path: Path) -> None:
    """The graph itself is small, and with other weights beside it it is another model."""
    model, encoder, _, folder = everything
    graph = (folder / "model.onnx").read_bytes()
    assert model.embed.each[0].tables["4"].weight.detach().numpy().tobytes() not in graph
    other, _ = own_tables()
    save_file({name: one.contiguous() for name, one in other.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "model.onnx").write_bytes(graph)
    other.calibration = model.calibration
    assert disagreement(Torch(other), Onnx(tmp_path / "model.onnx"), encoder.layout) is None
    assert disagreement(Torch(model), Onnx(tmp_path / "model.onnx"), encoder.layout) is not None


def test_means_of_bags_are_those_of_torch() -> None:
    weight, ids = torch.randn(50, 3) * 100, torch.randint(0, 50, (4000,), dtype=torch.int32)
    offsets = torch.cat([torch.zeros(1), torch.randperm(3999)[:700].sort().values + 1, torch.tensor([4000])]).int()
    expected = nn.functional.embedding_bag(ids, weight, offsets, mode="mean", include_last_offset=True)
    torch.testing.assert_close(bag_means(ids, weight, offsets), expected, rtol=1e-6, atol=1e-5)


class Fickle(MMoE):
    structure: Literal["fickle"] = "fickle"  # type: ignore[assignment]

    def build(self, d_in: int, tasks: tuple[str, ...], d_context: int = 0) -> Sharing:
        return Looks(super().build(d_in, tasks))


class Looks(nn.Module):
    """Goes another way where a value is large, which a graph cannot."""

    def __init__(self, inner: Sharing) -> None:
        super().__init__()
        self.inner, self.d_out, self.wiring = inner, inner.d_out, inner.wiring

    def forward(self, x: Tensor) -> Shared:
        return self.inner(x * 2 if x.max().item() > 1 else x)


def test_a_model_that_is_no_graph_is_told_in_a_sentence_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, encoder = model_of(PLAIN, Fickle(experts=2, hidden=(4,)))
    with pytest.raises(BundleError, match=r"cannot be written as a graph \(.*\); predict with engine 'torch'"):
        exported(model, encoder, tmp_path)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["onnx_ir", "onnxscript"])
def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    model, encoder = model_of(PLAIN, MMoE(experts=2, hidden=(4,)))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BundleError, match=r"compiling needs the package onnx\w+; pip install 'multigate\[onnx\]'"):
        exported(model, encoder, tmp_path)
