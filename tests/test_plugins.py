# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Ops that plugins define: read, refused with a sentence, and computed as numpy computes them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import npukit
from npukit import plugins
from npukit.errors import LoweringError, ModelError, NpukitError, UsageError

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
    with pytest.raises(ModelError, match=r"the plugin bodiless\.py gives no body for t::Twice"):
        convert()
