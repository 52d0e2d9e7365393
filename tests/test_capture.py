# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""npukit.qnn.api.capture and dlc: graphs through libQnnIr into a DLC and back, and out of a model library."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from ctypes import byref, c_void_p, pointer
from pathlib import Path

import numpy as np
import pytest

import npukit
from npukit.errors import ArtifactError, GraphError, NativeError
from npukit.qnn.api import capture, marshal
from npukit.qnn.api import declarations as c
from npukit.qnn.api.backend import Backend
from npukit.qnn.api.dlc import write_dlc
from npukit.qnn.graph import DType, Encoding, Graph, Model, Op, Param, Tensor, TensorKind
from tests.sample_graphs import F32, READ, STATIC, WRITE, assert_same, cnn, indices, quantized

# --- the recording table, without a native library ---


class Table:
    """The recorder's callbacks, called through their addresses as C code would."""

    def __init__(self) -> None:
        self.values: dict[int, np.ndarray] = {}
        self.recorder = capture._Recorder(lambda name, address, size: self.values[address], c.CORE_SLOT_COUNTS[36])

    def function(self, name: str) -> ctypes._CFuncPtr:
        return c.PROTOTYPES[name](self.recorder.addresses[c.CORE_SLOTS.index(name)])

    def graph(self, name: bytes = b"g") -> c_void_p:
        handle = c_void_p()
        assert self.function("graphCreate")(None, name, None, byref(handle)) == 0
        return handle

    def tensor(self, graph: c_void_p, tensor: Tensor) -> tuple[int, c.Tensor]:
        keep: list[object] = []
        raw = marshal.tensor_to_c(tensor, keep)
        if tensor.data is not None:
            self.values[raw.data] = tensor.data.reshape(-1).view(np.uint8)
        code = self.function("tensorCreateGraphTensor")(graph, byref(raw))
        raw.keep = keep
        return code, raw


def scalar(name: str, shape: tuple[int, ...] = (2,), kind: TensorKind = TensorKind.NATIVE) -> Tensor:
    return Tensor(name, F32, shape, kind)


def test_a_recorded_graph() -> None:
    table = Table()
    graph = table.graph()
    (_, x), (_, y) = table.tensor(graph, scalar("x", kind=WRITE)), table.tensor(graph, scalar("y", kind=READ))
    assert x.id
    assert y.id not in (0, x.id)
    op = Op("o", "Relu", [scalar("x")], [scalar("y")], {"flag": Param(DType.BOOL_8, True)})
    keep: list[object] = []
    config = marshal.op_to_c(op, (c.Tensor * 1)(x), (c.Tensor * 1)(y), marshal.params_to_c(op, keep), keep)
    assert table.function("backendValidateOpConfig")(None, config) == 0
    assert table.function("graphAddNode")(graph, config) == 0
    recorded = table.recorder.model({"g": (["x"], ["y"])}).graphs["g"]
    assert [t.name for t in (*recorded.inputs, *recorded.outputs)] == ["x", "y"]
    assert recorded.ops[0].inputs == recorded.inputs
    assert recorded.ops[0].params["flag"].value is True


def test_the_first_exception_is_kept_and_raised_as_an_artifact_error() -> None:
    table = Table()
    graph = table.graph()
    assert table.tensor(graph, scalar("x"))[0] == 0
    assert table.tensor(graph, scalar("x"))[0] != 0
    assert table.tensor(graph, scalar("fine"))[0] != 0
    with pytest.raises(ArtifactError, match="m.dlc, x: two tensors have this name"):
        table.recorder.check("m.dlc")


def test_ctrl_c_in_a_callback_is_not_swallowed() -> None:
    def interrupt(name: str, address: int, size: int) -> np.ndarray:
        raise KeyboardInterrupt

    table = Table()
    table.recorder._data = interrupt
    tensor = scalar("w", kind=STATIC)
    tensor.data = np.ones(2, np.float32)
    table.tensor(table.graph(), tensor)
    with pytest.raises(KeyboardInterrupt):
        table.recorder.check("m.dlc")


def test_a_tensor_that_no_memory_holds_is_refused() -> None:
    raw = marshal.tensor_to_c(Tensor("t", DType.FLOAT_32, (1 << 31, 1 << 31), TensorKind.APP_READ), KEEP)
    with pytest.raises(ArtifactError, match="t: a tensor of shape .*, larger than any memory"):
        capture.read_tensor(raw)


def raw_tensor(**changes: int) -> c.Tensor:
    raw = marshal.tensor_to_c(scalar("t"), KEEP)
    for name, value in changes.items():
        setattr(raw, name, value)
    return raw


KEEP: list[object] = []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "version 3"),
        ({"rank": 1000}, "rank 1000"),
        ({"dataType": 0x0999}, "0x0999"),
        ({"dataType": 0x7FFFFFFF}, "not defined"),
        ({"type": 77}, "type 77"),
        ({"type": 4, "dataSize": 7}, "7 bytes, FLOAT_32"),
        ({"type": 4, "dataSize": 8}, "no values"),
    ],
)
def test_tensors_that_make_no_sense(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        capture.read_tensor(raw_tensor(**changes), lambda name, address, size: np.empty(size, np.uint8))


@pytest.mark.parametrize(("axis", "count"), [(4, 2), (-3, 2), (0, 0), (0, 1 << 31)])
def test_encodings_that_make_no_sense(axis: int, count: int) -> None:
    params = c.QuantizeParams(definition=c.DEFINITION_DEFINED, encoding=c.ENCODING_AXIS)
    params.value.axis.axis, params.value.axis.num = axis, count
    params.value.axis.scaleOffset = pointer(c.ScaleOffset(1.0, 0))
    with pytest.raises(ArtifactError, match="does not fit"):
        capture.read_encoding(params, (2, 2))
    params.encoding = c.ENCODING_BLOCKWISE_EXPANSION
    params.value.blockwise = None
    with pytest.raises(ArtifactError, match="does not fit"):
        capture.read_encoding(params, (2, 2))
    params.encoding = 12
    with pytest.raises(GraphError, match="MICROSCALING"):
        capture.read_encoding(params, (2, 2))


def test_addresses_outside_memory_are_not_followed(tmp_path: Path) -> None:
    mapping = capture._Mapping(tmp_path / "x", None, copy=False)
    array = np.arange(4, dtype=np.uint8)
    np.testing.assert_array_equal(mapping("ok", array.ctypes.data, 4), array)
    if mapping._ranges is not None:
        with pytest.raises(ArtifactError, match="outside the file"):
            mapping("w", 64, 4096)


# --- DLCs ---


@pytest.mark.native
@pytest.mark.parametrize("graph", [cnn(), quantized()], ids=["float", "quantized"])
def test_a_graph_survives_the_dlc(tmp_path: Path, graph: Graph) -> None:
    path = tmp_path / "m.dlc"
    write_dlc(Model({graph.name: graph}), path)
    assert_same(capture.capture_dlc(path).graphs[graph.name], graph)


@pytest.mark.native
def test_every_kind_of_value_survives_the_dlc(tmp_path: Path) -> None:
    def weights(name: str, dtype: DType, encoding: Encoding | None = None) -> Tensor:
        data = np.arange(6).reshape(2, 3).astype(dtype.numpy)
        return Tensor(name, dtype, (2, 3), STATIC, encoding, data)

    kinds = [
        weights("f16", DType.FLOAT_16),
        weights("i32", DType.INT_32),
        weights("bool", DType.BOOL_8),
        weights("u16", DType.UFIXED_POINT_16, Encoding.per_tensor(0.5, -7)),
        weights("bw", DType.SFIXED_POINT_8, Encoding.per_tensor(0.5, 0, bitwidth=4)),
        weights("axis", DType.SFIXED_POINT_8, Encoding((1.0, 2.0, 4.0), (0, -1, 2), axis=1)),
    ]
    strided = Tensor("strided", F32, (2, 3), STATIC, data=np.arange(6, dtype=np.float32).reshape(3, 2).T)
    outputs, ops = [], []
    for tensor in (*kinds, strided):
        out = Tensor(f"{tensor.name}_out", tensor.dtype, (2, 1), READ, tensor.encoding and Encoding.per_tensor(1.0))
        x = Tensor(f"{tensor.name}_in", DType.UINT_32, (1,), WRITE)
        outputs.append(out)
        ops.append(Op(f"gather_{tensor.name}", "Gather", [tensor, x], [out], {"axis": Param(DType.INT_32, 1)}))
    graph = Graph("kinds", [op.inputs[1] for op in ops if op.inputs[1]], outputs, ops)
    path = tmp_path / "m.dlc"
    write_dlc(Model({"kinds": graph}), path)
    assert_same(capture.capture_dlc(path).graphs["kinds"], graph)


@pytest.mark.native
def test_constants_are_views_of_the_file_that_outlive_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.dlc"
    graph = cnn(64)
    write_dlc(Model({graph.name: graph}), path)
    expected = next(t.data for t in graph.tensors() if t.name == "w2")
    model = capture.capture_dlc(path)
    weight = next(t.data for t in model.graphs["cnn"].tensors() if t.name == "w2")
    assert weight is not None
    assert not weight.flags.owndata
    assert not weight.flags.writeable
    base = weight
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert base.base is not None, "nothing keeps the mapping alive"
    assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
    del model, base
    np.testing.assert_array_equal(weight, expected)
    del weight
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    copied = capture.capture_dlc(path, copy=True)
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert_same(copied.graphs["cnn"], graph)


@pytest.mark.native
def test_a_captured_graph_computes_the_same(tmp_path: Path) -> None:
    graph = cnn()
    path = tmp_path / "m.dlc"
    write_dlc(Model({graph.name: graph}), path)
    captured = capture.capture_dlc(path).graphs["cnn"]
    rng = np.random.default_rng(3)
    values = {"x": rng.normal(size=(1, 8, 8, 3)).astype(np.float32), "z": np.ones((1, 5), np.float32)}
    results = []
    with Backend("cpu") as backend:
        for each in (graph, captured):
            with backend.context() as context:
                handle = context.add_graph(each)
                handle.finalize()
                out = np.empty((1, 5), np.float32)
                handle.execute([values[t.name] for t in each.inputs], [out])
                results.append(out)
    np.testing.assert_array_equal(*results)
    constants = {t.name: t.data for t in graph.tensors() if t.data is not None}
    windows = np.lib.stride_tricks.sliding_window_view(values["x"][0], (3, 3), (0, 1))
    hidden = np.einsum("abchw,hwco->abo", windows, constants["w"]) + constants["b"]
    expected = np.maximum(hidden, 0).reshape(1, -1) @ constants["w2"].T + constants["b2"] + 1
    np.testing.assert_allclose(results[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.native
def test_inputs_that_no_op_reads_are_left_out(tmp_path: Path) -> None:
    graph = cnn()
    graph.inputs.append(Tensor("unused", F32, (4,), WRITE))
    write_dlc(Model({"cnn": graph}), tmp_path / "m.dlc")
    assert {t.name for t in capture.capture_dlc(tmp_path / "m.dlc").graphs["cnn"].inputs} == {"x", "z"}


@pytest.mark.native
def test_an_absent_input_keeps_its_place(tmp_path: Path) -> None:
    x, y = scalar("x", (1, 4), WRITE), scalar("y", (1, 4), READ)
    beta = Tensor("beta", F32, (4,), STATIC, data=np.ones(4, np.float32))
    params = {"axes": indices(1), "epsilon": Param(F32, 1e-5)}
    graph = Graph("g", [x], [y], [Op("norm", "LayerNorm", [x, None, beta], [y], params)])
    write_dlc(Model({"g": graph}), tmp_path / "m.dlc")
    found = capture.capture_dlc(tmp_path / "m.dlc").graphs["g"].ops[0].inputs
    assert [t and t.name for t in found] == ["x", None, "beta"]


@pytest.mark.native
def test_what_cannot_be_written_is_named_at_once(tmp_path: Path) -> None:
    loose = Graph("g", [], [scalar("y", kind=READ)], [Op("o", "Relu", [scalar("x")], [scalar("z")])])
    with pytest.raises(GraphError) as caught:
        write_dlc(Model({"g": loose}), tmp_path / "m.dlc")
    assert [fault.where for fault in caught.value.faults] == ["op o", "y"]
    spelled = Graph("g.h", [scalar("a b", kind=WRITE)], [scalar("y", kind=READ)])
    spelled.ops = [Op("o", "Relu", [*spelled.inputs], spelled.outputs)]
    with pytest.raises(GraphError) as caught:
        write_dlc(Model({"g": spelled}), tmp_path / "m.dlc")
    assert [fault.where for fault in caught.value.faults] == ["the graph", "tensor a b"]
    with pytest.raises(ArtifactError, match=r"holds one graph, this model has 2 \(a, b\)"):
        write_dlc(Model({"a": loose, "b": loose}), tmp_path / "m.dlc")
    unknown = cnn()
    unknown.ops[1].type = unknown.ops[4].type = "NoSuchOp"
    with pytest.raises(GraphError) as caught:
        write_dlc(Model({"cnn": unknown}), tmp_path / "m.dlc")
    assert [fault.where for fault in caught.value.faults] == ["op relu (NoSuchOp)", "op add (NoSuchOp)"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.native
def test_encodings_that_this_writer_breaks_are_refused(tmp_path: Path) -> None:
    from npukit.qnn.api.libraries import find

    graph = quantized(axis_bitwidth=4)
    if find("ir").sdk >= (2, 51):
        write_dlc(Model({"q": graph}), tmp_path / "m.dlc")
        assert_same(capture.capture_dlc(tmp_path / "m.dlc").graphs["q"], graph)
        return
    with pytest.raises(GraphError, match=r"tensor w\).*npukit libs add 2\.7\.0"):
        write_dlc(Model({"q": graph}), tmp_path / "m.dlc")


@pytest.mark.native
def test_files_that_are_no_dlc(tmp_path: Path) -> None:
    path = tmp_path / "m.dlc"
    path.write_bytes(b"nonsense" * 100)
    with pytest.raises(ArtifactError, match="libQnnSystem cannot open"):
        capture.capture_dlc(path)


# --- model libraries ---

MODEL_C = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef struct { uint32_t version, pad, id, pad2; const char* name; uint32_t type, format, dtype, pad3;
  uint32_t definition, encoding; float scale; int32_t offset; char rest[24]; uint32_t rank, pad4;
  uint32_t* dims; uint32_t mem, pad5; void* data; uint32_t size, pad6; char v2[24]; } T;
typedef struct { uint32_t kind, pad; const char* name; char value[144]; } P;
typedef struct { uint32_t version, pad; const char *name, *package, *type; uint32_t np, p0; P* p;
  uint32_t ni, p1; T* in; uint32_t no, p2; T* out; } Op;
typedef struct { void* slot[SLOTS]; } Table;
typedef struct { void* graph; char* name; T* in; uint32_t nin; T* out; uint32_t nout; } Info;
typedef uint64_t (*Create)(void*, const char*, void*, void**);
typedef uint64_t (*MakeTensor)(void*, T*);
typedef uint64_t (*AddNode)(void*, Op);
static uint32_t dims[] = {1, 4};
static float weights[] = {1, 2, 3, 4};
static T make(const char* name, uint32_t type) {
  T t; memset(&t, 0, sizeof t);
  t.version = 1; t.name = name; t.type = type; t.dtype = 0x0232; t.definition = t.encoding = 0x7fffffff;
  t.rank = 2; t.dims = dims;
  return t;
}
static Info info; static Info* infos[] = {&info}; static T in, out;
int QnnModel_composeGraphs(void* backend, Table table, void* context, void* configs, uint32_t n, Info*** graphs,
                           uint32_t* count, _Bool debug, void (*logger)(int), int level) {
  void* g = 0;
  if (debug || logger || level) return 9;
  if (((Create)table.slot[15])(context, "lib", 0, &g)) return 1;
  in = make("x", 0); out = make("y", 1);
  T w = make("w", 4); float local[4]; memcpy(local, weights, sizeof local);
  w.data = local; w.size = sizeof local;
  MakeTensor tensor = (MakeTensor)table.slot[24];
  if (tensor(g, &in) || tensor(g, &w) || tensor(g, &out)) return 2;
  memset(local, 0, sizeof local);
  T inputs[] = {in, w};
  Op op = {1, 0, "mul", "qti.aisw", "ElementWiseMultiply", 0, 0, 0, 2, 0, inputs, 1, 0, &out};
  if (((AddNode)table.slot[18])(g, op)) return 3;
  info.graph = g; info.name = "lib"; info.in = &in; info.nin = 1; info.out = &out; info.nout = 1;
  *graphs = infos; *count = 1;
  return 0;
}
"""


@pytest.mark.double
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("slots", [62, 71, 75])
def test_a_model_library_of_any_table_size(tmp_path: Path, slots: int) -> None:
    source, path = tmp_path / "model.c", tmp_path / f"libmodel{slots}.so"
    source.write_text(MODEL_C)
    subprocess.run(["cc", "-shared", "-fPIC", f"-DSLOTS={slots}", "-o", path, source], check=True)
    graph = capture.capture_library(path).graphs["lib"]
    assert [t.name for t in (*graph.inputs, *graph.outputs)] == ["x", "y"]
    (op,) = graph.ops
    assert (op.type, op.package) == ("ElementWiseMultiply", "qti.aisw")
    weight = op.inputs[1]
    assert weight is not None
    np.testing.assert_array_equal(weight.data, np.array([[1, 2, 3, 4]], np.float32))
    result = npukit.export(path, tmp_path / "lib.onnx")
    assert (result.graph, result.kept) == ("lib", {})
    with npukit.Session(result.path) as session:
        assert session.run({"x": np.full((1, 4), 2, np.float32)})["y"].tolist() == [[2, 4, 6, 8]]


def test_libraries_that_are_no_model(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(NativeError, match="cannot be loaded"):
        capture.capture_library(path)
    libc = next((p for p in (Path("/lib/x86_64-linux-gnu/libm.so.6"), Path("/lib64/libm.so.6")) if p.exists()), None)
    if libc is not None:
        with pytest.raises(ArtifactError, match="no QnnModel_composeGraphs"):
            capture.capture_library(libc)


COLLECTING = """
import gc, sys
from pathlib import Path
from npukit.qnn.api import capture
from npukit.qnn.api.dlc import write_dlc
from npukit.qnn.api.libraries import find
from npukit.qnn.graph import Model
from tests.sample_graphs import cnn

write_dlc(Model({"cnn": cnn()}), sys.argv[1])
read_tensor = capture.read_tensor

def collecting(*arguments):
    gc.collect()  # in a callback of composeGraphs, which holds a lock that systemDlcFree wants
    return read_tensor(*arguments)

capture.read_tensor = collecting
for _ in range(3):
    cycle = [capture._Dlc(Path(sys.argv[1]), find("system").load().functions)]
    cycle.append(cycle)  # only the collector frees it, as what an exception's traceback holds
    del cycle
    capture.capture_dlc(sys.argv[1])
"""


@pytest.mark.native
def test_collecting_garbage_while_a_dlc_is_read_is_no_deadlock(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", COLLECTING, str(tmp_path / "m.dlc")]
    subprocess.run(argv, cwd=Path(__file__).parents[1], check=True, timeout=60, stdout=subprocess.DEVNULL)
