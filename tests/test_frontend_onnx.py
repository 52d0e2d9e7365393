# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The ONNX front end: reading, faults, static shapes, cutting, folding, memory."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from npukit.errors import ModelError
from npukit.frontends.onnx import PIPELINE, LoadOptions, load, origin_of
from npukit.frontends.onnx.rewrite import NEWEST
from tests.frontend_tools import assert_same, ops, parse

W = np.arange(12, dtype=np.float32).reshape(4, 3) - 5


def mlp() -> onnx.ModelProto:
    return parse("g (float[B,4] x) => (float[B,3] y) { h = MatMul(x, w) y = Relu(h) }", constants={"w": W})


def faults(call: object, *args: object) -> str:
    with pytest.raises(ModelError) as caught:
        call(*args)  # type: ignore[operator]
    assert caught.value.exit_code == 2
    return str(caught.value)


# --- reading ---


def test_load_reads_a_file_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(mlp().SerializeToString())
    result = load(path, LoadOptions(batch=2))
    assert ops(result) == ["MatMul", "Relu"]
    assert result.source_path == path
    assert result.opset == NEWEST
    assert len(result.source_sha256) == 64


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "{}")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"PK\x03\x04rest", "not a sound zip archive"),
        (zipped("model.json"), "this is a zip archive"),
        (b"<!DOCTYPE html>", "web page"),
        (b'{"a": 1}', "JSON"),
        (b"\x00\x00\x00\x00TFL3", "TensorFlow Lite"),
        (b"\xff\xff\xff\xff", "not a whole ONNX model"),
        (b"\x08\x07", "no graph"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert message in faults(load, path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "no such file" in faults(load, tmp_path / "no.onnx")
    assert "folder" in faults(load, tmp_path)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    data = parse("g (float[2] x) => (float[2] y) { y = Add(x, w) }", constants={"w": np.ones(2, np.float32)})
    raw = data.SerializeToString()
    path = tmp_path / "m.onnx"
    for size in range(1, len(raw), 3):
        path.write_bytes(raw[:size])
        with pytest.raises(ModelError):
            load(path)


def big_model(folder: Path, *, external: bool, count: int = 4, side: int = 64) -> Path:
    rng = np.random.default_rng(0)
    nodes, tensors, value = [], [], "x"
    for i in range(count):
        tensors.append(numpy_helper.from_array(rng.standard_normal((side, side)).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"y{i}"]))
        value = f"y{i}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1, side])],
        [helper.make_tensor_value_info(value, 1, [1, side])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "big.onnx"
    onnx.save(model, path, save_as_external_data=external, location="big.data", size_threshold=0)
    return path


@pytest.mark.parametrize("external", [True, False])
def test_weights_are_views_of_the_file(tmp_path: Path, external: bool) -> None:
    path = big_model(tmp_path, external=external)
    model = load(path).model
    for name, tensor in ((t.name, numpy_helper.to_array(t)) for t in onnx.load(path).graph.initializer):
        array = model.graph.initializers[name].const_value.numpy()
        np.testing.assert_array_equal(array, tensor)
        assert not array.flags.owndata
        assert not array.flags.writeable


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def sparse_model(folder: Path, *, external: bool, side: int, count: int) -> Path:
    """A model of `count` weights whose bytes are holes of a sparse file: only reading them would cost anything."""
    path = folder / "sparse.onnx"
    model = onnx.load(big_model(folder, external=False, count=count, side=8))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = side
    del model.graph.initializer[:]
    size = side * side * 4
    headers = []
    for i in range(count):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[side, side])
        if external:
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "sparse.data"), ("offset", str(i * size)), ("length", str(size))):
                tensor.external_data.add(key=key, value=value)
            model.graph.initializer.append(tensor)
        else:
            header = tensor.SerializeToString() + varint(9 << 3 | 2) + varint(size)
            headers.append(varint(5 << 3 | 2) + varint(len(header) + size) + header)
    if external:
        path.write_bytes(model.SerializeToString())
        with open(folder / "sparse.data", "wb") as file:
            file.truncate(size * count)
        return path
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    with open(path, "wb") as file:
        file.write(model.SerializeToString())
        file.write(varint(7 << 3 | 2) + varint(len(graph) + sum(len(h) + size for h in headers)) + graph)
        for header in headers:
            file.write(header)
            file.seek(size, os.SEEK_CUR)
        file.truncate()
    return path


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("count", [5, 40])
def test_weights_cost_no_memory(tmp_path: Path, external: bool, count: int) -> None:
    """320 MB and 2.7 GB (beyond protobuf's limit), embedded and external."""
    path = sparse_model(tmp_path, external=external, side=4096, count=count)
    load(path)
    tracemalloc.start()
    model = load(path).model
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(v.const_value.nbytes for v in model.graph.initializers.values()) == count << 26
    assert peak < 4e6


def broken_external(tmp_path: Path, **entries: str) -> str:
    path = big_model(tmp_path, external=True)
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[1]
    kept = {e.key: e.value for e in tensor.external_data}
    del tensor.external_data[:]
    for key, value in {**kept, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return faults(load, path)


def test_external_data_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret").write_bytes(bytes(64 * 64 * 4))
    inner = tmp_path / "inner"
    for location in ("../secret", str(tmp_path / "secret"), "a/../../secret", "C:\\secret", "\\secret"):
        assert "outside the model's folder" in broken_external(inner, location=location, offset="0")
    os.symlink(tmp_path / "secret", inner / "link")
    assert "link out of the model's folder" in broken_external(inner, location="link", offset="0")
    assert "missing" in broken_external(inner, location="gone.data")


def test_external_data_is_bounded(tmp_path: Path) -> None:
    assert "lies outside the 65536 bytes" in broken_external(tmp_path, offset="65536")
    assert "lies outside" in broken_external(tmp_path, offset="-4")
    assert "needs 16384" in broken_external(tmp_path, length="4")
    assert "not numbers" in broken_external(tmp_path, offset="x")


def test_models_in_memory_are_left_alone() -> None:
    proto = mlp()
    before = proto.SerializeToString(deterministic=True)
    load(proto, LoadOptions(batch=2))
    assert proto.SerializeToString(deterministic=True) == before
    model = ir.from_proto(parse("g (float[2] x) => (float[2] y) { a = Identity(x) y = Relu(a) }"))
    text = ir.to_proto(model).SerializeToString(deterministic=True)
    assert ops(load(model)) == ["Relu"]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == text


def test_initializers_among_the_inputs_are_constants() -> None:
    model = parse("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }", constants={"w": np.ones(2, "f4")})
    result = load(model)
    assert [v.name for v in result.model.graph.inputs] == ["x"]
    assert list(result.model.graph.initializers) == ["w"]


# --- faults of the model ---


def test_all_faults_are_listed_at_once() -> None:
    model = parse("g (float[2] x) => (float[2] y) { a = Relu(x) y = Add(a, a) }")
    model.graph.node[0].op_type = "Rellu"
    model.graph.node[1].input[1] = "b"
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [3], [1, 2, 3]))
    model.graph.initializer[0].dims[0] = 4
    text = faults(load, model)
    assert "no op 'Rellu'" in text
    assert "did you mean 'Relu'?" in text
    assert "reads 'b', which nothing makes" in text
    assert "holds 3 elements in float_data where its shape [4] needs 4" in text


def test_cycles_are_shown() -> None:
    model = parse("g (float[2] x) => (float[2] y) { a = Add(x, c) b = Relu(a) c = Neg(b) y = Relu(c) }")
    assert "wait for one another" in faults(load, model)


def test_unsorted_nodes_are_sorted() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Relu(a) a = Neg(x) }")
    assert ops(load(model)) == ["Neg", "Relu"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99), "unknown dtype 99"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 7), "must have one type"),
        (lambda m: m.graph.node[1].attribute.add(name="alpha", type=1, f=1.0), "no attribute 'alpha'"),
        (lambda m: m.graph.node[0].input.pop(), "takes 2 to 2"),
        (lambda m: m.graph.node[0].output.__setitem__(0, "x"), "exists already"),
        (lambda m: m.graph.output.add(name="zz"), "output 'zz' is made by no node"),
        (lambda m: setattr(m.opset_import[0], "version", 999), "opset 999"),
        (lambda m: m.opset_import.pop(), "no opset_import"),
        (lambda m: m.graph.initializer.add(name="w", data_type=1), "appears twice"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), "negative dimension"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, 1 << 60), "larger than any memory"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 77), "unknown dtype 77"),
        (lambda m: setattr(m.graph.initializer[0], "raw_data", b"abc"), "holds 3 bytes"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(slice(None), [3, 4]), "Incompatible dimensions"),
    ],
)
def test_broken_models(change: object, message: str) -> None:
    model = parse("g (float[2,4] x) => (float[2,3] y) { h = MatMul(x, w) y = Relu(h) }", constants={"w": W})
    change(model)  # type: ignore[operator]
    assert message in faults(load, model)


def test_functions_in_a_circle_and_explosions() -> None:
    def nested(calls: list[tuple[str, str, int]]) -> onnx.ModelProto:
        model = parse("g (float[2] x) => (float[2] y) { y = f.f0(x) }", f=1)
        for name, target, times in calls:
            domain = "" if target == "Neg" else "f"
            nodes = [
                helper.make_node(target, ["a" if i == 0 else f"b{i}"], [f"b{i + 1}"], domain=domain)
                for i in range(times)
            ]
            imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
            model.functions.append(helper.make_function("f", name, ["a"], [f"b{times}"], nodes, imports))
        return model

    assert "circle" in faults(load, nested([("f0", "f1", 1), ("f1", "f0", 1)]))
    bomb = [(f"f{i}", f"f{i + 1}", 10) for i in range(9)] + [("f9", "Neg", 10)]
    assert "more than 1000000 nodes" in faults(load, nested(bomb))
    assert ops(load(nested([("f0", "f1", 2), ("f1", "Neg", 3)]))) == ["Neg"] * 6


# --- shapes ---


def test_dynamic_dimensions_are_listed_with_their_options() -> None:
    model = parse(
        "g (float[batch,seq,4] x, float[batch,4] z) => (float[batch,seq,4] y, float[batch,4] r) "
        "{ y = Relu(x) r = Relu(z) }"
    )
    text = faults(load, model)
    assert "input 'x': dynamic shape [batch, seq, 4]" in text
    assert "--symbol batch=N --symbol seq=N or --input-shape x=N,N,4" in text
    assert "input 'z': dynamic shape [batch, 4]" in text
    assert "--batch N" in text
    result = load(model, LoadOptions(symbols={"seq": 5}, batch=2))
    assert result.model.graph.outputs[0].shape == [2, 5, 4]
    result = load(model, LoadOptions(input_shapes={"x": (3, 2, 4), "z": (3, 4)}))
    assert result.model.graph.outputs[0].shape == [3, 2, 4]


def test_wrong_names_get_the_nearest() -> None:
    model = parse("g (float[batch,4] image) => (float[batch,4] y) { y = Relu(image) }")
    assert "did you mean 'image'?" in faults(load, model, LoadOptions(input_shapes={"imgae": (1, 4)}))
    assert "did you mean 'batch'?" in faults(load, model, LoadOptions(symbols={"bacth": 1}))
    assert "has 3 dimensions" in faults(load, model, LoadOptions(input_shapes={"image": (1, 4, 4)}))


def test_sizes_that_depend_on_data_are_listed() -> None:
    model = parse("g (float[4] x) => (int64[1,N] y) { y = NonZero(x) }")
    text = faults(load, model)
    assert "NonZero" in text
    assert "only known when it runs" in text


def test_everything_is_static_and_named() -> None:
    model = parse(
        "g (float[N,8] x) => (float[M,4] y) { s = Shape(x) z = Reshape(x, k) y = Relu(z) }",
        constants={"k": np.array([-1, 4], np.int64)},
    )
    result = load(model, LoadOptions(batch=3))
    for node in result.model.graph:
        assert node.name
        for value in node.outputs:
            assert value.shape is not None
            assert all(isinstance(d, int) for d in value.shape.dims)
            assert value.dtype is not None
    assert result.model.graph.outputs[0].shape == [6, 4]


# --- cutting ---

CHAIN = "g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) c = Exp(b) y = Abs(c) }"


def test_cut_at_any_tensor() -> None:
    result = load(parse(CHAIN), LoadOptions(inputs=("a",), outputs=("c",)))
    assert ops(result) == ["Neg", "Exp"]
    assert [v.name for v in result.model.graph.inputs] == ["a"]
    assert [v.name for v in result.model.graph.outputs] == ["c"]
    assert result.cut[0] == "input x"
    assert len(result.cut) == 3


def test_cut_with_a_shape_for_the_new_input() -> None:
    model = parse("g (float[N] x) => (float[N] y) { a = Relu(x) y = Neg(a) }")
    result = load(model, LoadOptions(inputs=("a",), input_shapes={"a": (7,)}))
    assert result.model.graph.outputs[0].shape == [7]


def test_cut_errors() -> None:
    assert "did you mean" in faults(load, parse(CHAIN), LoadOptions(outputs=("cc",)))
    two = parse("g (float[2] x, float[2] z) => (float[2] y) { a = Relu(x) y = Add(a, z) }")
    assert "add --input z" in faults(load, two, LoadOptions(inputs=("a",)))


# --- folding and simplification ---


def test_shape_arithmetic_disappears() -> None:
    model = parse(
        "g (float[2,3,4] x) => (float[2,12] y) { s = Shape(x) b = Gather(s, zero) u = Unsqueeze(b, ax) "
        "m = Constant<value_ints=[-1]>() t = Concat<axis=0>(u, m) y = Reshape(x, t) }",
        constants={"zero": np.array(0, np.int64), "ax": np.array([0], np.int64)},
    )
    result = assert_same(model)
    assert ops(result) == ["Reshape"]
    (name,) = result.folded
    assert len(result.folded[name]) >= 4  # Shape, Gather, Unsqueeze, Constant and Concat are remembered


def test_large_results_of_small_constants_stay_nodes() -> None:
    model = parse(
        "g (float[1] x) => (float[4096,4096] y) { a = Expand(one, shape) b = Exp(a) y = Add(b, x) }",
        constants={"one": np.ones((), np.float32), "shape": np.array([4096, 4096], np.int64)},
    )
    assert ops(load(model)) == ["Expand", "Exp", "Add"]
    model = parse(
        "g (float[1] x) => (float[4096,4096] y) { a = ConstantOfShape(shape) y = Add(a, x) }",
        constants={"shape": np.array([4096, 4096], np.int64)},
    )
    assert ops(load(model)) == ["Expand", "Add"]


def test_quantized_weights_and_random_ops_are_not_folded() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y, float[2] r) { w = DequantizeLinear(q, s) y = Add(x, w) "
        "n = RandomNormal<shape=[2]>() r = Add(n, x) }",
        constants={"q": np.array([1, 2], np.int8), "s": np.array(0.5, np.float32)},
    )
    assert ops(load(model)) == ["DequantizeLinear", "Add", "RandomNormal", "Add"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Identity(x) y = Relu(a)",
        "a = Dropout(x) y = Relu(a)",
        "a = Cast<to=1>(x) y = Relu(a)",
        "a = Transpose<perm=[0,1]>(x) y = Relu(a)",
        "s = Constant<value_ints=[2,3]>() a = Reshape(x, s) y = Relu(a)",
        "s = Constant<value_ints=[1,3]>() a = Expand(x, s) y = Relu(a)",
        "p = Constant<value_ints=[0,0,0,0]>() a = Pad(x, p) y = Relu(a)",
        "z = Constant<value_ints=[0]>() e = Constant<value_ints=[9223372036854775807]>() a = Slice(x, z, e) "
        "y = Relu(a)",
        "a = Concat<axis=0>(x) y = Relu(a)",
        "r = Relu(x) y = Identity(r)",
        "b = Constant<value_ints=[1]>() c = Cast<to=9>(b) d = Squeeze(c) "
        "y = If (d) <then_branch = t () => (t0) { t0 = Relu(x) }, else_branch = f () => (f0) { f0 = Neg(x) }>",
    ],
)
def test_nodes_without_effect_go(body: str) -> None:
    result = assert_same(parse(f"g (float[2,3] x) => (float[2,3] y) {{ {body} }}"))
    assert ops(result) == ["Relu"]


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [3], [0], None),
        ([-3], [-1], [1], None),
        ([0, -100], [2**63 - 1, 100], [1, 0], None),
        ([-1], [-(2**63)], [1], [-1]),
        ([3, 4], [0, -6], None, [-2, -1]),
        ([1], [2**31 - 1], [-1], [3]),
    ],
)
def test_slices_of_constants_and_of_inputs(starts: list[int], ends: list[int], axes: object, steps: object) -> None:
    names = {"s": starts, "e": ends, "a": axes, "p": steps}
    constants = {k: np.array(v, np.int64) for k, v in names.items() if v is not None}
    constants["w"] = np.arange(24, dtype=np.float32).reshape(4, 6)
    args = ", ".join(k if k in constants else "" for k in "seap").rstrip(", ")
    model = parse(
        f"g (float[4,6] x) => (float[N,M] y, float[P,Q] z) {{ y = Slice(x, {args}) c = Slice(w, {args}) z = Neg(c) }}",
        constants=constants,
    )
    result = assert_same(model)
    assert "Slice" in ops(result) or ops(result)[0] == "Identity"


def test_a_constant_output_stays_an_output() -> None:
    model = parse("g (float[2] x) => (float[2] y, float[2] k) { y = Relu(x) k = Constant<value_floats=[1.0,2.0]>() }")
    result = assert_same(model)
    assert ops(result) == ["Relu", "Identity"]


def test_inputs_as_outputs() -> None:
    assert_same(parse("g (float[2] x) => (float[2] y, float[2] z) { y = Identity(x) z = Identity(x) }"))


# --- control flow and sequences ---


def test_loops_are_unrolled() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y, float[3,2] all) { y, all = Loop <body = b (int64 i, bool c, float[2] v) => "
        "(bool co, float[2] vo, float[2] s) { f = Cast<to=1>(i) vo = Add(v, f) s = Mul(vo, f) co = Identity(c) }> "
        "(trips, go, x) }",
        constants={"trips": np.array(3, np.int64), "go": np.array(True)},
    )
    result = assert_same(model)
    assert "Loop" not in ops(result)


def test_a_loop_that_never_ends_is_an_error() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y) { y = Loop <body = b (int64 i, bool c, float[2] v) => (bool co, float[2] vo) "
        "{ vo = Neg(v) co = Identity(c) }> (, go, x) }",
        constants={"go": np.array(True)},
    )
    assert "too often to unroll" in faults(load, model)


def test_scans_are_unrolled() -> None:
    model = parse(
        "g (float[2] s, float[3,2] x) => (float[2] y, float[3,2] z) { y, z = Scan <num_scan_inputs=1, "
        "scan_input_directions=[1], scan_output_directions=[1], body = b (float[2] a, float[2] e) => "
        "(float[2] ao, float[2] eo) { ao = Add(a, e) eo = Mul(ao, e) }> (s, x) }"
    )
    assert "Scan" not in ops(assert_same(model))


def test_if_with_a_runtime_condition_runs_both() -> None:
    model = parse(
        "g (bool c, float[2] x) => (float[2] y) { y = If (c) <then_branch = t () => (float[2] t0) { t0 = Relu(x) }, "
        "else_branch = f () => (float[2] f0) { f0 = Neg(x) }> }"
    )
    result = assert_same(model)
    assert ops(result) == ["Relu", "Neg", "Where"]
    assert "both branches run" in result.notes[0]


def test_sequences_are_resolved() -> None:
    model = parse(
        "g (float[4,2] x) => (float[2,2] y, float[4,2] z, int64 n) { s = SplitToSequence<axis=0>(x, two) "
        "y = SequenceAt(s, last) t = SequenceErase(s, last) u = SequenceInsert(t, y) z = ConcatFromSequence<axis=0>(u) "
        "n = SequenceLength(u) }",
        constants={"two": np.array(2, np.int64), "last": np.array(-1, np.int64)},
    )
    assert set(ops(assert_same(model))) <= {"Split", "Concat", "Identity"}


# --- provenance and the pipeline itself ---


def test_nodes_know_their_source() -> None:
    model = parse("g (float[2,3] x) => (float[2,3] y) { y = Softmax<axis=0>(x) }", opset=11)
    model.graph.node[0].name = "soft"
    result = assert_same(model)
    assert ops(result) == ["Reshape", "Softmax", "Reshape"]
    assert {origin_of(node) for node in result.model.graph} == {("soft",)}


def test_the_pipeline_says_why() -> None:
    names = [name for name, _, _ in PIPELINE]
    first, last = ["prepare", "inline", "cut", "freeze", "specialize", "strip"], ["simplify", "recognize", "finish"]
    assert names == [*first, "customize", *last]
    assert all(reason for _, _, reason in PIPELINE)


def test_functions_of_another_opset_than_the_model() -> None:
    model = parse("g (float[2,3] x) => (float[2,1] y) { y = f.f0(x) }", f=1)
    nodes = [helper.make_node("ReduceSum", ["a"], ["b"], axes=[1])]
    model.functions.append(helper.make_function("f", "f0", ["a"], ["b"], nodes, [helper.make_opsetid("", 11)]))
    result = load(model)
    assert ops(result) == ["ReduceSum"]
    assert result.model.graph.outputs[0].shape == [2, 1]
