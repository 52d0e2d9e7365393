# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Lite files against what TensorFlow Lite's interpreter computed from them (tests/data/tflite/make.py)."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npukit
from npukit.errors import MissingDependency, ModelError, NpukitError, UsageError
from npukit.frontends.onnx import LoadOptions
from npukit.frontends.tflite import flatfile, load

pytest.importorskip("tflite")
from tools.tflite_coverage import stored_cases as cases  # noqa: E402

DATA = Path(__file__).parent / "data" / "tflite"


def lowered(content: bytes, path: str = "raise", options: LoadOptions | None = None) -> Any:
    from conformance import execute
    from npukit.lowering import LowerOptions, lower
    from npukit.targets import target

    chip = target({"cpu": "qnn-cpu", "raise": "qnn-cpu", "htp": "sm8650"}[path])
    validators = {} if path == "raise" else {chip.name: execute._backend(path).validate}
    return lower(load(content, options).model, (chip,), LowerOptions(), validators)


def compute(result: Any, feeds: dict[str, Any], path: str) -> dict[str, Any]:
    from conformance import execute

    names = [tensor.held.source for tensor in result.graph.outputs]
    if not names:
        return dict(result.folded)
    with execute._executor(path, result.graph) as run:
        return {**result.folded, **dict(zip(names, run(feeds), strict=True))}


FAMILIES = ("spatial", "unary", "binary", "moves", "reduce")
FLOAT = [(family, case) for family in FAMILIES for case in cases(f"ops_{family}") if case != "fake_quant"]
PATHS = [pytest.param("raise"), pytest.param("cpu", marks=pytest.mark.native)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("family", "case"), FLOAT)
def test_float_operators(family: str, case: str, path: str):
    row = cases(f"ops_{family}")[case]
    found = compute(lowered(row["model"], path), row["in"], path)
    assert found.keys() == row["out"].keys()
    for name, want in row["out"].items():
        got = found[name]
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        scale = float(np.abs(want.astype(np.float64)).max(initial=1e-6))
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-5, atol=1e-5 * scale)


def one_step(found: dict[str, Any], row: dict[str, Any], steps: float = 1) -> None:
    assert found.keys() == row["out"].keys()
    for name, want in row["out"].items():
        assert (found[name].dtype, found[name].shape) == (want.dtype, want.shape)
        assert np.abs(found[name].astype(np.float64) - want).max() <= steps


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", cases("ops_int8"))
def test_integer_operators_are_within_one_step(case: str, path: str):
    row = cases("ops_int8")[case]
    one_step(compute(lowered(row["model"], path), row["in"], path), row)


def test_fake_quant_is_within_one_step():
    row = cases("ops_reduce")["fake_quant"]
    one_step(compute(lowered(row["model"]), row["in"], "raise"), row, 3 / 255 * 1.001)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["float32", "float16", "dynamic", "dense_float16"])
def test_float_networks(kind: str, path: str):
    row = cases("network")[kind]
    found = compute(lowered(row["model"], path), row["in"], path)
    for name, want in row["out"].items():
        np.testing.assert_allclose(found[name], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["int8", "uint8_io", "int8_float_io"])
def test_integer_networks(kind: str, path: str):
    row = cases("network")[kind]
    found = compute(lowered(row["model"], path), row["in"], path)
    steps = {"map": 2, "scores": 1}  # each of eight operators may round the other way
    for name, want in row["out"].items():
        step = 1.0 if want.dtype != np.float32 else {"map": 0.0249, "scores": 1 / 256}[name]
        assert found[name].dtype == want.dtype
        assert np.abs(found[name].astype(np.float64) - want).max() <= steps[name] * step * 1.001


def test_sixteen_bits_simulated():
    row = cases("network")["int16"]
    one_step(compute(lowered(row["model"]), row["in"], "raise"), row, 2)


@pytest.mark.native
def test_sixteen_bits_on_the_emulator():
    """Each of eight operators may round the other way; a mean of 16 and a product of 8 terms amplify that."""
    row = cases("network")["int16"]
    one_step(compute(lowered(row["model"], "htp"), row["in"], "htp"), row, 32)


@pytest.mark.native
@pytest.mark.parametrize("code", ["CONV_2D", "DEPTHWISE_CONV_2D"])
def test_a_clamp_behind_a_convolution_of_sixteen_bits(code: str):
    """HTP fuses the two wrongly: off by half the range, where either alone is right."""
    pytest.importorskip("ai_edge_litert")
    from tools.tflite_coverage import interpret
    from tools.tflite_writer import Model

    rng, deep = np.random.default_rng(3), code == "DEPTHWISE_CONV_2D"
    graph = (model := Model()).subgraph()
    scale, weights = 2 / 32767, np.full(8, 0.004, np.float32)
    shape = (1, 3, 3, 8) if deep else (8, 3, 3, 8)
    graph.table.inputs = [graph.tensor("x", (1, 8, 8, 8), "int16", scale=scale)]
    w = rng.integers(-127, 128, shape).astype(np.int8)
    inputs = [0, graph.tensor("w", shape, "int8", w, scale=weights, axis=3 if deep else 0)]
    inputs.append(graph.tensor("b", (8,), "int64", np.zeros(8, np.int64), scale=scale * weights))
    graph.table.outputs = [graph.tensor("y", (1, 8, 8, 8), "int16", scale=6 / 32767)]
    fields = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1, "fusedActivationFunction": 2}
    options = "DepthwiseConv2DOptions" if deep else "Conv2DOptions"
    graph.operator(code, inputs, graph.table.outputs, options, **fields, **({"depthMultiplier": 1} if deep else {}))
    feeds = {"x": rng.integers(-32767, 32768, (1, 8, 8, 8)).astype(np.int16)}
    want = interpret(model.content(), feeds)["y"]
    found = compute(lowered(model.content(), "htp"), feeds, "htp")["y"]
    # the clamp runs in float16: 11 bits of 1 / (6 / 32767) = 5461 steps
    assert np.abs(found.astype(int) - want).max() <= 4
    assert np.ptp(want) > 10_000


@pytest.mark.parametrize("code", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
def test_the_raised_graph_rounds_as_the_default_kernels(code: str):
    """Of 24,576 codes at most 2 differ; of LiteRT's reference kernels' convolutions dozens do."""
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    from tools.tflite_writer import Model

    rng = np.random.default_rng(11)
    dense, deep = code == "FULLY_CONNECTED", code == "DEPTHWISE_CONV_2D"
    x_shape, y_shape = ((1024, 72), (1024, 24)) if dense else ((1, 32, 32, 24 if deep else 8), (1, 32, 32, 24))
    w_shape = (24, 72) if dense else (1, 3, 3, 24) if deep else (24, 3, 3, 8)
    graph = (model := Model()).subgraph()
    scales = rng.uniform(0.002, 0.004, 24).astype(np.float32)
    graph.table.inputs = [graph.tensor("x", x_shape, "int8", scale=0.0231, point=-7)]
    w, bias = rng.integers(-127, 128, w_shape).astype(np.int8), rng.integers(-9000, 9000, 24).astype(np.int32)
    inputs = [0, graph.tensor("w", w_shape, "int8", w, scale=scales, axis=3 if deep else 0)]
    inputs.append(graph.tensor("b", (24,), "int32", bias, scale=scales * np.float32(0.0231)))
    graph.table.outputs = [graph.tensor("y", y_shape, "int8", scale=0.0117 if deep else 0.0377, point=5)]
    fields = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
    options = {"CONV_2D": "Conv2DOptions", "FULLY_CONNECTED": "FullyConnectedOptions"}.get(
        code, "DepthwiseConv2DOptions"
    )
    graph.operator(
        code,
        inputs,
        graph.table.outputs,
        options,
        **({} if dense else fields),
        **({"depthMultiplier": 1} if deep else {}),
    )
    feeds = {"x": rng.integers(-128, 128, x_shape).astype(np.int8)}
    interpreter = litert.Interpreter(model_content=model.content())
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], feeds["x"])
    interpreter.invoke()
    want = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).astype(int)
    found = compute(lowered(model.content()), feeds, "raise")["y"].astype(int)
    assert len(np.unique(want)) == 256
    assert np.abs(found - want).max() <= 1
    assert (found != want).sum() <= 2


def integer_lstm(*, steps: int, coupled: bool = False, projected: bool = False) -> bytes:
    """An LSTM of int8 codes and a state of int16: x [2, steps, 8] -> y [2, steps, 16]."""
    from tools.tflite_writer import Model

    rng = np.random.default_rng(5)
    graph = (model := Model()).subgraph()
    graph.table.inputs = [graph.tensor("x", (2, steps, 8), "int8", scale=0.0235, point=4)]
    inputs, scales = [0], []
    for name, width in (("w", 8), ("r", 16)):
        for gate in range(4):
            codes = rng.integers(-127, 128, (16, width)).astype(np.int8)
            scales.append(rng.uniform(0.9, 1.3) / 127)
            constant = graph.tensor(f"{name}{gate}", codes.shape, "int8", codes, scale=scales[-1])
            inputs.append(-1 if coupled and gate == 0 else constant)
    inputs += [-1, -1, -1]
    for gate in range(4):
        codes = np.rint(rng.normal(0, 0.3, 16) / (0.0235 * scales[gate])).astype(np.int32)
        constant = graph.tensor(f"b{gate}", (16,), "int32", codes, scale=0.0235 * scales[gate])
        inputs.append(-1 if coupled and gate == 0 else constant)
    code = {"scale": 2 / 255, "point": -1}
    square = rng.integers(-127, 128, (16, 16)).astype(np.int8)
    inputs += [graph.tensor("p", (16, 16), "int8", square, scale=0.01) if projected else -1, -1]
    inputs.append(graph.tensor("hidden", (2, 16), "int8", variable=True, **code))
    inputs.append(graph.tensor("cell", (2, 16), "int16", scale=2**-11, variable=True))
    between = [graph.tensor(f"i{k}", (0,), "int16", scale=2**-12) for k in range(4)]
    graph.table.outputs = [graph.tensor("y", (2, steps, 16), "int8", **code)]
    options = {"fusedActivationFunction": 4, "cellClip": 0.0, "projClip": 0.0, "timeMajor": False}
    graph.operator("UNIDIRECTIONAL_SEQUENCE_LSTM", [*inputs, *[-1] * 4], graph.table.outputs,
                   "UnidirectionalSequenceLSTMOptions", **options)  # fmt: skip
    graph.table.operators[0].intermediates = [*between, graph.tensor("i4", (0,), "int8", **code)]
    return model.content()


@pytest.mark.parametrize("path", [*PATHS, pytest.param("htp", marks=pytest.mark.native)])
@pytest.mark.parametrize("coupled", [False, True])
def test_an_integer_lstm_is_within_one_step(coupled: bool, path: str):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    content = integer_lstm(steps=12, coupled=coupled)
    x = np.random.default_rng(2).integers(-128, 128, (2, 12, 8)).astype(np.int8)
    interpreter = litert.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    want = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    found = compute(lowered(content, path), {"x": x}, path)["y"]
    assert found.dtype == np.int8
    assert np.ptp(want.astype(int)) > 150
    assert np.abs(found.astype(int) - want).max() <= 1
    assert (found != want).mean() <= 0.2


def test_an_integer_lstm_with_a_projection_is_refused():
    with pytest.raises(ModelError, match="an integer LSTM with peepholes, a projection or layer normalization"):
        load(integer_lstm(steps=2, projected=True))


@pytest.mark.parametrize("kind", ["float32", "float16", "dynamic", "int8", "int16"])
def test_channels_last_stays_without_a_transpose(kind: str):
    graph = lowered(cases("network")[kind]["model"]).graph
    assert "Transpose" not in {op.type for op in graph.ops}
    assert [(t.name, t.shape, t.held.perm) for t in graph.inputs] == [("x", (1, 16, 16, 3), None)]
    assert [(t.name, t.shape) for t in graph.outputs] == [("map", (1, 4, 4, 16)), ("scores", (1, 5))]


def test_encodings_are_those_of_the_file():
    from npukit.frontends.tflite.flatfile import read_content

    content = cases("network")["int8"]["model"]
    (source,) = read_content(content).subgraphs
    graph = lowered(content).graph
    conv = next(op for op in graph.ops if op.type == "Conv2d")
    x, weight, bias = (source.tensors[i].quantization for i in source.ops[0].inputs)
    y = source.tensors[source.ops[0].outputs[0]].quantization
    assert x is not None and weight is not None and bias is not None and y is not None  # noqa: PT018
    held = [tensor.encoding for tensor in (*conv.inputs, *conv.outputs)]
    assert held[0].scales == (float(x.scales[0]),)
    assert held[0].offsets == (-int(x.zero_points[0]) - 128,)  # int8 codes are held as uint8
    assert (held[1].scales, held[1].axis) == (tuple(map(float, weight.scales)), 3)
    assert held[2].scales == tuple(map(float, bias.scales))
    assert held[3].scales == (float(y.scales[0]),)
    np.testing.assert_array_equal(
        conv.inputs[1].data, source.tensors[source.ops[0].inputs[1]].data.transpose(1, 2, 3, 0)
    )


def test_names_are_the_signature_s_and_one_is_chosen():
    content = (DATA / "two_signatures.tflite").read_bytes()
    ends = {
        key: ([v.name for v in model.graph.inputs], [v.name for v in model.graph.outputs])
        for key in ("", "double", "half")
        for model in [load(content, LoadOptions(signature=key)).model]
    }
    assert ends == {"": (["x"], ["twice"]), "double": (["x"], ["twice"]), "half": (["v"], ["part"])}
    assert "double, half" in load(content).notes[0]
    with pytest.raises(UsageError, match="hal") as caught:
        load(content, LoadOptions(signature="hal"))
    assert "half" in caught.value.hint


def test_open_dimensions_have_the_file_s_size_unless_another_is_asked_for():
    content = (DATA / "two_signatures.tflite").read_bytes()
    for options, shape in (({}, (1, 3)), ({"batch": 4}, (4, 3)), ({"input_shapes": {"v": (5, 3)}}, (5, 3))):
        model = load(content, LoadOptions(signature="half", **options)).model
        assert tuple(model.graph.outputs[0].shape) == shape


def test_all_that_cannot_be_read_is_listed_at_once():
    with pytest.raises(ModelError) as caught:
        load((DATA / "refused.tflite").read_bytes())
    assert [fault.where.split("(")[1][:-1] for fault in caught.value.faults] == ["WHERE", "Betainc"]
    assert ["custom" in fault.what for fault in caught.value.faults] == [False, True]
    assert all("--output '" in fault.hint for fault in caught.value.faults)


NETWORK = DATA / "network_int8.tflite"


def test_damaged_files_are_refused():
    content = NETWORK.read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(150):
        damaged = bytearray(content)
        for at in rng.integers(8, len(content), rng.integers(1, 40)):
            damaged[at] = rng.integers(256)
        cut = bytes(damaged[: rng.integers(9, len(content))] if rng.random() < 0.3 else damaged)
        with contextlib.suppress(NpukitError):  # or it is still a model
            load(cut)


def hostile() -> dict[str, bytes]:
    """Files that claim what they do not hold."""
    import struct

    content = NETWORK.read_bytes()
    root = struct.unpack_from("<I", content, 0)[0]
    vtable = root - struct.unpack_from("<i", content, root)[0]
    fields = {  # byte offsets of the root's vectors: version, operator codes, subgraphs, description, buffers
        i: root + slot
        for i in range((struct.unpack_from("<H", content, vtable)[0] - 4) // 2)
        if (slot := struct.unpack_from("<H", content, vtable + 4 + 2 * i)[0])
    }

    def changed(at: int, value: int, form: str = "<I") -> bytes:
        copy = bytearray(content)
        struct.pack_into(form, copy, at, value)
        return bytes(copy)

    def vector(i: int) -> int:
        return fields[i] + struct.unpack_from("<I", content, fields[i])[0]

    subgraph = vector(2) + 4
    return {
        "identifier": content[:4] + b"TFL9" + content[8:],
        "root_outside": changed(0, 2**31 - 1),
        "root_on_itself": changed(0, 0),
        "vtable_outside": changed(root, -(2**31), "<i"),
        "vtable_is_the_table": changed(root, 0, "<i"),
        "codes_outside": changed(fields[1], 2**32 - 1),
        "endless_codes": changed(vector(1), 2**32 - 1),
        "many_subgraphs": changed(vector(2), 2**30),
        "no_subgraph": changed(vector(2), 0),
        "subgraph_outside": changed(subgraph, 2**31),
        "subgraph_is_the_vector": changed(subgraph, 0),
        "endless_buffers": changed(vector(4), 2**31),
        "no_buffers": changed(vector(4), 0),
        **{f"cut_{size}": content[:size] for size in (8, 12, 64, len(content) // 2, len(content) - 1)},
    }


def test_a_mirror_padding_reaches_no_farther_than_the_axis():
    content = cases("ops_int8")["mirror"]["model"]
    paddings = flatfile.read_content(content).subgraphs[0].tensors[1].data
    assert paddings is not None
    other = paddings.copy()
    other[0, 0] = 1 << 18
    assert content.count(paddings.tobytes()) == 1
    with pytest.raises(ModelError) as caught:
        load(content.replace(paddings.tobytes(), other.tobytes()))
    assert "262144 and" in str(caught.value)


@pytest.mark.parametrize("name", hostile())
def test_hostile_files_are_refused_with_a_sentence(name: str):
    with pytest.raises(ModelError) as caught:
        load(hostile()[name])
    assert 10 < len(caught.value.what) < 300


def test_the_missing_schema_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tflite", None)
    flatfile.schema.cache_clear()
    try:
        with pytest.raises(MissingDependency) as caught:
            load((DATA / "network_float32.tflite").read_bytes())
    finally:
        flatfile.schema.cache_clear()
    assert "npukit[tflite]" in caught.value.hint


@pytest.mark.native
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_convert_verifies_against_the_interpreter(kind: str, tmp_path: Path):
    pytest.importorskip("ai_edge_litert")
    model = DATA / f"network_{kind}.tflite"
    result = npukit.convert(model, output=tmp_path / "m.dlc", target="qnn-cpu", random=1)
    assert result.verification is not None
    assert result.verification.passed
    assert "litert" in result.to_text()
    # the codes of an integer network are judged as the real numbers that they stand for
    figures = [output.metrics for output in result.verification.outputs]
    assert all(figure is not None and figure.kind == "float" for figure in figures)
    with npukit.Session(tmp_path / "m.dlc") as session, npukit.Session(model) as interpreter:
        row = cases("network")[kind]
        found, wanted = session.run(row["in"]), interpreter.run(row["in"])
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype == row["out"][name].dtype
        assert np.abs(found[name].astype(float) - value).max() <= (2 if kind == "int8" else 1e-5)


@pytest.mark.native
def test_without_the_interpreter_the_reference_is_npukit_s_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from npukit.runtime import litert

    monkeypatch.setattr(litert, "installed", lambda: False)
    result = npukit.convert(
        DATA / "network_float32.tflite", output=tmp_path / "m.dlc", target="qnn-cpu", random=1, in_process=True
    )
    assert result.exit_code == 0
    assert "npukit's own reading" in result.to_text()
