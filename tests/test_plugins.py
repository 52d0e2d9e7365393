# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Ops that plugins define: read, refused with a sentence, and computed as numpy computes them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

import npukit
from npukit import plugins
from npukit.errors import GraphError, LoweringError, ModelError, NpukitError, UsageError

EXAMPLE = Path(__file__).parents[1] / "examples" / "custom_op"
HEAD = "from npukit.plugins import CustomOp\n"
TWICE = HEAD + 'BODY = \'<domain: "t", opset_import: ["": 18]> Twice (x) => (y) { y = Add (x, x) }\'\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    plugins._table.cache_clear()
    yield tmp_path
    os.environ.pop(plugins.VARIABLE, None)


def plugin(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def twice_model(inner: str = "t.Twice (x)", dims: str = "2, 3") -> Path:
    text = f'<ir_version: 9, opset_import: ["": 18, "t": 1]> g (float[{dims}] x) => (float[{dims}] y) {{ y = {inner} }}'
    onnx.save(onnx.parser.parse_model(text), "m.onnx")
    return Path("m.onnx")


def convert(**options: object) -> npukit.verbs.convert.ConvertResult:  # type: ignore[name-defined]
    return npukit.convert("m.onnx", output="m.dlc", random=1, in_process=True, **options)


def acme() -> tuple[np.ndarray, np.ndarray]:
    """Input of acme.onnx and its output by numpy, from the formulas of both ops."""
    weight = np.random.default_rng(0).normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32).astype(np.float64)
    image = np.random.default_rng(1).normal(size=(1, 3, 16, 16))
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    wide = np.einsum("nchwij,ocij->nohw", windows, weight)
    active = wide + np.sin(0.5 * wide) ** 2 / 0.5
    return image.astype(np.float32), active / np.sqrt((active**2).sum(1, keepdims=True))


@pytest.mark.native
def test_the_example_computes_what_numpy_does_in_workers_too() -> None:
    shutil.copytree(EXAMPLE, ".", dirs_exist_ok=True)
    subprocess.run([sys.executable, "make_model.py"], check=True)
    plugins.use("acme_ops.py")
    result = npukit.convert("acme.onnx", random=1)
    assert result.exit_code == 0
    assert result.converted.ops["L2Norm"] == 1
    assert result.converted.stamp.options["plugins"] == ["acme_ops.py"]
    image, expected = acme()
    for path in ("acme.onnx", "acme.dlc"):
        with npukit.Session(path) as session:
            np.testing.assert_allclose(session.run({"image": image})["features"], expected, atol=1e-6)


@pytest.mark.native
def test_a_form_that_a_plugin_refuses_falls_back_to_the_body() -> None:
    refusing = TWICE + (
        "from npukit.lowering.registry import Unsupported\n"
        "def lower(e, node):\n    raise Unsupported('not today')\n"
        "OPS = [CustomOp('t', 'Twice', body=BODY, lower=lower)]\n"
    )
    plugins.use(plugin("refusing.py", refusing))
    twice_model()
    assert convert().converted.ops == {"ElementWiseAdd": 1}


@pytest.mark.native
def test_an_op_of_an_op_package_is_written_as_it_is_and_simulated_by_its_body() -> None:
    body = '<domain: "t", opset_import: ["": 18]> Leak <slope: float = 0.5> (x) => (y)'
    body += " { s = Constant <value_float: float = @slope> () m = Mul (x, s) y = Max (x, m) }"
    plugins.use(plugin("pack.py", HEAD + f"OPS = [CustomOp('t', 'Leak', body='''{body}''', package='acme.ops')]\n"))
    twice_model("t.Leak <slope = 0.25> (x)")
    result = convert()
    assert result.exit_code == 0
    assert any("no backend has validated it" in note for note in result.converted.notes)
    from npukit.artifacts import dlc

    graph = next(iter(dlc.read(Path("m.dlc"))[0].graphs.values()))
    (op,) = graph.ops
    assert (op.package, op.type, float(op.params["slope"].value)) == ("acme.ops", "Leak", 0.25)
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    with npukit.Session("m.dlc", backend="ort") as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], np.where(x > 0, x, x / 4), rtol=1e-6)
    with pytest.raises(NpukitError, match="Leak"), npukit.Session("m.dlc", backend="qnn-cpu") as session:
        session.run({"x": x})


LEAK = (
    HEAD
    + """
from npukit.qnn.graph import DType, Param
BODY = '''
<domain: "t", opset_import: ["": 12]>
Leak <slope: float = 0.5> (x) => (y)
{
    s = Constant <value_float: float = @slope> ()
    m = Mul (x, s)
    a = Unsqueeze <axes = [0]> (x)
    b = Unsqueeze <axes = [0]> (m)
    p = Concat <axis = 0> (a, b)
    y = ReduceMax <axes = [0], keepdims = 0> (p)
}
'''
def lower(e, node):
    slope = Param(DType.FLOAT_32, node.attributes.get_float("slope", 0.5))
    e.emit_foreign("acme.ops", "FastLeak", [e.get(node.inputs[0])], [e.output(node.outputs[0])], {"slope": slope})
def up(e):
    return e.call("LeakyRelu", e.real(), alpha=e.scalar("slope"))
"""
)


def leak(x: np.ndarray, slope: float = 0.25) -> np.ndarray:
    return np.where(x > 0, x, slope * x)


@pytest.mark.native
@pytest.mark.parametrize(
    "op",
    [
        "CustomOp('t', 'Leak', body=BODY, package='acme.ops')",  # the body in an opset that ONNX Runtime refuses here
        "CustomOp('t', 'Leak', body=BODY, lower=lower, raises={'acme.ops::FastLeak': up})",
    ],
)
def test_an_op_of_a_package_is_raised_by_its_body_or_by_a_function(op: str) -> None:
    plugins.use(plugin("leak.py", LEAK + f"OPS = [{op}]\n"))
    twice_model("t.Leak <slope = 0.25> (x)")
    assert convert().exit_code == 0
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    with npukit.Session("m.dlc", backend="ort") as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], leak(x), rtol=1e-6)
    assert npukit.verify("m.dlc", against="m.onnx", backend="ort", random=1, in_process=True).passed
    assert npukit.export("m.dlc", output="raised.onnx", in_process=True).kept == {}
    assert {node.domain for node in onnx.load("raised.onnx").graph.node} == {""}
    result = npukit.quantize(
        "m.onnx", calibration=[x], output="q.dlc", target="sm8650", in_process=True, float_io=True, activations=16
    )
    assert result.exit_code == 0
    os.environ.pop(plugins.VARIABLE)
    with pytest.raises(UsageError, match=r"name a plugin \(--plugin\) that raises ops of acme\.ops"):
        npukit.Session("m.dlc", backend="ort")


def test_an_encoded_op_of_a_package_computes_on_real_values() -> None:
    import onnxruntime

    from npukit.qnn.graph import DType, Encoding, Graph, Op, Param, Tensor, TensorKind
    from npukit.raising import raise_graph

    def coded(name: str, kind: TensorKind, scale: float, offset: int) -> Tensor:
        return Tensor(name, DType.UFIXED_POINT_8, (2, 3), kind, Encoding.per_tensor(scale, offset))

    x, y = coded("x", TensorKind.APP_WRITE, 0.5, -3), coded("y", TensorKind.APP_READ, 0.25, -2)
    op = Op("leak", "Leak", [x], [y], {"slope": Param(DType.FLOAT_32, 0.25)}, "acme.ops")
    plugins.use(plugin("leak.py", LEAK + "OPS = [CustomOp('t', 'Leak', body=BODY, package='acme.ops')]\n"))
    model = raise_graph(Graph("g", [x], [y], [op]))
    codes = np.array([[0, 1, 2], [3, 4, 9]], np.uint8)
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString())
    real = leak((codes.astype(np.float64) - 3) * 0.5)
    np.testing.assert_array_equal(session.run(None, {"x": codes})[0], np.rint(real / 0.25) + 2)


def signal(wave: np.ndarray) -> np.ndarray:
    """The output of signal.onnx by numpy; the envelope in closed form: the largest of all earlier values, decayed."""
    filters = np.random.default_rng(0).normal(0, 0.3, (4, 2, 5)).astype(np.float32).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(wave, ((0, 0), (0, 0), (2, 2))), 5, 2)
    loud = np.abs(np.einsum("nctk,ock->not", windows, filters))
    age = np.arange(64)[:, None] - np.arange(64)[None, :]
    decayed = np.where(age >= 0, loud[:, :, None, :] * 0.9 ** np.maximum(age, 0), 0)
    return np.sqrt(decayed.max(axis=-1))


@pytest.mark.native
def test_an_op_that_python_computes_is_converted_run_verified_quantized_and_exported() -> None:
    shutil.copytree(EXAMPLE, ".", dirs_exist_ok=True)
    subprocess.run([sys.executable, "make_model.py"], check=True)
    plugins.use("package_ops.py")
    assert npukit.convert("signal.onnx", random=1).exit_code == 0
    waves = np.random.default_rng(1).normal(size=(8, 1, 2, 64)).astype(np.float32)
    for path, backend in (("signal.onnx", "ort"), ("signal.dlc", "ort")):
        with npukit.Session(path, backend=backend) as session:
            np.testing.assert_allclose(session.run({"wave": waves[0]})["level"], signal(waves[0]), atol=1e-5)
    with pytest.raises(NpukitError, match="--backend ort computes its ops as a plugin says"):
        npukit.Session("signal.dlc", backend="qnn-cpu", in_process=True)
    assert npukit.verify("signal.dlc", against="signal.onnx", backend="ort", random=1).passed
    for source in ("signal.onnx", "signal.dlc"):
        result = npukit.quantize(source, calibration=list(waves), output="q.dlc", target="sm8650", in_process=True)
        assert result.exit_code == 0
        assert result.verification is not None
        assert result.verification.outputs[0].metrics.sqnr_db > 40
        assert result.quantized.precisions == {"8 bits": 7, "float": 1}
    assert npukit.export("signal.dlc", output="raised.onnx", in_process=True).kept == {"com.acme::Envelope": 1}
    raised = onnx.load("raised.onnx")
    assert [(n.domain, n.op_type) for n in raised.graph.node if n.domain] == [("com.acme", "Envelope")]
    with npukit.Session("raised.onnx") as session:
        np.testing.assert_allclose(session.run({"wave": waves[0]})["level"], signal(waves[0]), atol=1e-5)


MIXED = (
    HEAD
    + """
import numpy as np
def like(node):
    x = node.inputs[0]
    return [(x.dtype.numpy().name, x.shape.numpy())] * len(node.outputs)
def sort(x, reverse=0):
    y = np.sort(x, axis=-1)
    return y[..., ::-1] if reverse else y
def both(x, shift=None, names=(), mode=''):
    assert (list(names), mode) == (['a', 'b'], 'fast')
    return np.float64(x) + (0 if shift is None else shift), -x
OPS = [CustomOp('t', 'Sort', infer=like, compute=sort, package='p'),
       CustomOp('t', 'Both', infer=like, compute=both, package='p')]
"""
)


def test_what_python_computes_lies_between_what_onnx_runtime_does() -> None:
    plugins.use(plugin("mixed.py", MIXED))
    text = """
    <ir_version: 9, opset_import: ["": 18, "t": 1]>
    g (float[2, 3] x, bool flag) => (float[2, 3] y, float[2, 3] direct, float[3] shift, float[2, 3] sum)
    <float[3] shift = {1, 2, 3}>
    {
        a = Neg (x)
        direct = t.Sort <reverse = 1> (x)
        p, q = t.Both <names = ["a", "b"], mode = "fast"> (a, shift)
        b = If (flag) <
            then_branch = yes () => (float[2, 3] u) { u = Add (direct, a) },
            else_branch = no () => (float[2, 3] v) { v = Sub (q, a) }
        >
        c = t.Both <names = ["a", "b"], mode = "fast"> (b)
        y = Mul (c, p)
        sum = Add (p, p)
    }
    """
    model = onnx.parser.parse_model(text)
    onnx.save(model, "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    ordered, moved = np.sort(x)[:, ::-1], -x + np.array([1, 2, 3], np.float32)
    with npukit.Session("m.onnx", in_process=True) as session:
        assert [info.name for info in session.inputs] == ["x", "flag"]
        for flag, inner in ((True, ordered - x), (False, x + x)):
            found = session.run({"x": x, "flag": np.array(flag)})
            np.testing.assert_allclose(found["y"], inner * moved, rtol=1e-6)
            np.testing.assert_array_equal(found["direct"], ordered)
            np.testing.assert_array_equal(found["shift"], [1, 2, 3])
            np.testing.assert_allclose(found["sum"], 2 * moved, rtol=1e-6)
        with pytest.raises(UsageError, match="cannot be profiled"):
            session.profile({"x": x, "flag": np.array(True)})


@pytest.mark.parametrize(
    ("compute", "sentence"),
    [
        ("lambda x: x", r"fails to compute it for t::Twice: TypeError.*the plugin has compute\(x\)"),
        ("lambda x, by: x[:1]", r"computes float32 \[1, 3\] where float32 \[2, 3\] is due for t::Twice"),
        ("lambda x, by: ()", "computes 0 outputs where 1 are due for t::Twice"),
        ("lambda x, by: x * 1j", r"computes complex64 \[2, 3\] where float32 \[2, 3\] is due for t::Twice"),
    ],
)
def test_what_python_computes_wrongly_names_plugin_and_op(compute: str, sentence: str) -> None:
    infer = "def infer(node):\n    return [('float32', node.inputs[0].shape.numpy())]\n"
    op = f"CustomOp('t', 'Twice', package='p', infer=infer, compute={compute})"
    plugins.use(plugin("bad.py", HEAD + infer + f"OPS = [{op}]\n"))
    path = twice_model("t.Twice <by = 2> (x)")
    with npukit.Session(path, in_process=True) as session, pytest.raises(UsageError) as caught:
        session.run({"x": np.zeros((2, 3), np.float32)})
    assert re.search(f"the plugin bad.py {sentence}", " ".join(str(caught.value).split()))
    text = '<ir_version: 9, opset_import: ["": 18, "t": 1]> g (float[n] x) => (float[n] y)'
    onnx.save(onnx.parser.parse_model(text + " { z = t.Twice (x) y = Neg (z) }"), "dynamic.onnx")
    with pytest.raises(ModelError, match=r"the type of 'z' is not known.*\n.*input shapes"):
        npukit.Session("dynamic.onnx", in_process=True)


def test_two_plugins_that_raise_one_op_are_refused() -> None:
    plugins.use(plugin("one.py", LEAK + "OPS = [CustomOp('t', 'Leak', body=BODY, package='acme.ops')]\n"))
    other = LEAK + "OPS = [CustomOp('t', 'Other', package='p', infer=up, raises={'acme.ops::Leak': up})]\n"
    plugins.use(plugin("two.py", other))
    with pytest.raises(UsageError, match=r"the plugin two\.py raises acme\.ops::Leak, as one\.py does for t::Leak"):
        plugins.find_raising("acme.ops", "Leak")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def up(e):\n    return 1 / 0\n", "fails to raise it for t::Leak: ZeroDivisionError"),
        ("BODY = BODY.replace('axes = [0], keep', 'axes = [7], keep')\nup = None\n", "gives a body that does not fit"),
    ],
)
def test_a_raise_that_fails_names_plugin_and_op(text: str, sentence: str) -> None:
    from npukit.qnn.graph import DType, Graph, Op, Tensor, TensorKind
    from npukit.raising import raise_graph

    raises = "raises={} if up is None else {'acme.ops::Leak': up}"
    plugins.use(
        plugin("bad.py", LEAK + text + f"OPS = [CustomOp('t', 'Leak', body=BODY, package='acme.ops', {raises})]\n")
    )
    x, y = (Tensor(n, DType.FLOAT_32, (2, 3), k) for n, k in (("x", TensorKind.APP_WRITE), ("y", TensorKind.APP_READ)))
    with pytest.raises(GraphError) as caught:
        raise_graph(Graph("g", [x], [y], [Op("leak", "Leak", [x], [y], package="acme.ops")]))
    assert f"the plugin bad.py {sentence}" in str(caught.value)
    assert "acme.ops::Leak" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("def f(:", "cannot be imported: SyntaxError"),
        ("exit(0)", "cannot be imported: SystemExit"),
        ("OPS = []", "no list OPS"),
        ("OPS = ['Twice']", "no list OPS"),
        (HEAD + "OPS = [CustomOp('t', 'A')]", "t::A: it needs a body"),
        (HEAD + "OPS = [CustomOp('', 'A', body='x')]", "a domain of its own"),
        (HEAD + "OPS = [CustomOp('t', 'A', body='nonsense')]", "t::A: the body is not an ONNX function"),
        (TWICE + "OPS = [CustomOp('t', 'Once', body=BODY)]", "t::Once: the body defines t::Twice"),
        (HEAD + "OPS = [CustomOp('ai.onnx.ml', 'Scaler', body='x')]", "ONNX itself defines this op"),
        (TWICE + "OPS = [CustomOp('t', 'Twice', body=BODY, compute=print)]", "body and compute exclude one another"),
        (
            TWICE + "OPS = [CustomOp('t', 'Twice', body=BODY, raises={'Twice': print})]",
            "raises names 'Twice', which is",
        ),
        (
            TWICE + "OPS = [CustomOp('t', 'Twice', body=BODY, raises={'qti.aisw::Relu': print})]",
            "is no op of an op pack",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_by_name(text: str, sentence: str) -> None:
    plugin("bad.py", text)
    with pytest.raises(UsageError) as caught:
        plugins.use("bad.py")
    assert sentence in str(caught.value)
    assert "bad.py" in str(caught.value)
    assert plugins.ops() == []


def test_unknown_names_and_two_owners_of_one_op() -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        plugins.use("gone.py")
    with pytest.raises(UsageError, match="no entry point of the group npukit.ops and no module"):
        plugins.use("gone")
    plugins.use(plugin("one.py", TWICE + "OPS = [CustomOp('t', 'Twice', body=BODY)]"))
    plugin("two.py", TWICE + "OPS = [CustomOp('t', 'Twice', body=BODY)]")
    with pytest.raises(UsageError, match=r"plugins one\.py and two\.py both define t::Twice"):
        plugins.use("two.py")
    assert [op.plugin for op in plugins.ops()] == ["one.py"]


def test_an_entry_point_names_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin("shop.py", TWICE + "OPS = [CustomOp('t', 'Twice', body=BODY)]")
    info = Path("shop-1.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[npukit.ops]\nmy-ops = shop:OPS\n")
    monkeypatch.syspath_prepend(Path.cwd())
    assert [op.title for op in plugins.use("my-ops")] == ["t::Twice"]


def test_ops_that_nobody_defines_are_all_listed() -> None:
    text = '<ir_version: 9, opset_import: ["": 18, "t": 1]> g (float[2] x) => (float[2] y) { z = t.A (x) y = t.B (z) }'
    onnx.save(onnx.parser.parse_model(text), "m.onnx")
    with pytest.raises(ModelError, match="--plugin") as caught:
        convert()
    assert [fault.what.split()[0] for fault in caught.value.faults] == ["t::A", "t::B"]


LOWER = "def lower(e, node):\n    e.bind(node.outputs[0], e.add(e.get(node.inputs[0]), e.get(node.inputs[0])))\n"


@pytest.mark.native
@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        (
            "def infer(node):\n    return [('float32', (9,))]\n",
            "infers a wrong type for t::Twice: output 0 is float32 [9]",
        ),
        ("def infer(node):\n    return 7\n", "infers no types for t::Twice: 7"),
        ("def infer(node):\n    return []\n", "infers a wrong type for t::Twice: [] for 1 outputs"),
        ("def infer(node):\n    return [('flat', (2, 3))]\n", "infers no types for t::Twice"),
        ("def infer(node):\n    raise KeyError('k')\n", "fails to infer shapes for t::Twice: KeyError: 'k'"),
    ],
)
def test_wrong_inference_names_plugin_and_op(rest: str, sentence: str) -> None:
    rest += LOWER + "OPS = [CustomOp('t', 'Twice', body=BODY, infer=infer, lower=lower)]\n"
    plugins.use(plugin("bad.py", TWICE + rest))
    twice_model()
    with pytest.raises(ModelError) as caught:
        convert()
    assert f"the plugin bad.py {sentence}" in str(caught.value)


@pytest.mark.native
@pytest.mark.parametrize(
    ("lower", "sentence"),
    [
        ("def lower(e, node):\n    return node.missing\n", "fails for t::Twice: AttributeError"),
        ("def lower(e, node):\n    pass\n", "makes no output 'y' for t::Twice"),
    ],
)
def test_a_failing_lowering_names_plugin_and_op(lower: str, sentence: str) -> None:
    rest = "def infer(node):\n    return [('float32', (2, 3))]\n" + lower
    plugins.use(plugin("bad.py", HEAD + rest + "OPS = [CustomOp('t', 'Twice', infer=infer, lower=lower)]\n"))
    twice_model()
    with pytest.raises(LoweringError) as caught:
        convert(verify=False)
    assert f"the plugin bad.py {sentence}" in str(caught.value)


@pytest.mark.native
def test_a_wrong_lowering_does_not_pass_the_verification_and_a_missing_body_says_so() -> None:
    wrong = LOWER.replace("e.get(node.inputs[0]), e.get", "1.0, e.get")
    plugins.use(plugin("wrong.py", TWICE + wrong + "OPS = [CustomOp('t', 'Twice', body=BODY, lower=lower)]\n"))
    twice_model()
    assert convert().exit_code == 1
    os.environ.pop(plugins.VARIABLE)
    rest = "def infer(node):\n    return [('float32', (2, 3))]\n" + LOWER
    plugins.use(plugin("bodiless.py", HEAD + rest + "OPS = [CustomOp('t', 'Twice', infer=infer, lower=lower)]\n"))
    assert convert(verify=False).exit_code == 0
    with pytest.raises(ModelError, match=r"the plugin bodiless\.py gives neither body nor compute for t::Twice"):
        convert()
