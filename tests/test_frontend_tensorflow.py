# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The TensorFlow front end: what files are, what is refused without TensorFlow, the other process, and real models.

The graphs of the first half are written here by hand, field by field, as TensorFlow's .proto files number them.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npukit
from npukit.cli.main import main
from npukit.errors import MissingDependency, ModelError, NpukitError, WorkerDied
from npukit.frontends import tensorflow
from npukit.frontends.tensorflow import TensorFlowOptions, as_onnx, convert, graph, kind_of
from tests.tensorflow_env import PYTHON, needs_tensorflow


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def part(number: int, payload: bytes | str) -> bytes:
    data = payload.encode() if isinstance(payload, str) else payload
    return varint(number << 3 | 2) + varint(len(data)) + data


def node(name: str, op: str, *inputs: str, attr: bytes = b"") -> bytes:
    """NodeDef: name 1, op 2, input 3, attr 5 (a map: key 1, value 2)."""
    parts = part(1, name) + part(2, op) + b"".join(part(3, i) for i in inputs)
    return parts + (part(5, part(1, "f") + part(2, attr)) if attr else b"")


def calls(function: str, inner: bytes = b"") -> bytes:
    """AttrValue.func 10: NameAttrList with a name 1 and attributes 2."""
    return part(10, part(1, function) + (part(2, part(1, "f") + part(2, inner)) if inner else b""))


def graph_def(*nodes: bytes, functions: tuple[bytes, ...] = ()) -> bytes:
    library = part(2, b"".join(part(1, one) for one in functions)) if functions else b""
    return b"".join(part(1, one) for one in nodes) + library


def function(name: str, *nodes: bytes) -> bytes:
    """FunctionDef: signature 1 with its name 1, node_def 3."""
    return part(1, part(1, name)) + b"".join(part(3, one) for one in nodes)


def meta_graph(graph: bytes, *, tags: tuple[str, ...] = ("serve",), output: str = "y:0", restore: str = "") -> bytes:
    """MetaGraphDef: info 1 (tags 4, version 5), graph 2, saver 3, signatures 5."""
    info = b"".join(part(4, tag) for tag in tags) + part(5, "2.21.0")
    saver = part(3, part(3, restore)) if restore else b""
    outputs = part(2, part(1, "result") + part(2, part(1, output)))
    signature = part(5, part(1, "serving_default") + part(2, outputs))
    return part(1, info) + part(2, graph) + saver + signature


def saved_model(folder: Path, *metas: bytes) -> Path:
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"\x08\x01" + b"".join(part(2, meta) for meta in metas))
    return folder


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


PLAIN = graph_def(node("x", "Placeholder"), node("y", "Relu", "x"))


# ---------------------------------------------------------------- what a file is


def test_kinds_are_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    assert kind_of(write(tmp_path / "a.onnx", PLAIN)) == "frozen graph"
    folder = saved_model(tmp_path / "b", meta_graph(PLAIN))
    assert kind_of(folder) == "SavedModel"
    assert kind_of(folder / "saved_model.pb") == "SavedModel"
    assert kind_of(write(tmp_path / "c.pb", meta_graph(PLAIN))) == "checkpoint"
    assert kind_of(write(tmp_path / "d.pb", b"\x89HDF\r\n\x1a\n")) == "Keras file"
    with zipfile.ZipFile(tmp_path / "e.pb", "w") as file:
        file.writestr("metadata.json", "{}")
        file.writestr("config.json", "{}")
    assert kind_of(tmp_path / "e.pb") == "Keras file"


def test_other_files_are_not_taken_for_tensorflow(tmp_path: Path) -> None:
    for path in sorted(Path("tests/hostile").glob("*/*.onnx"))[:40] + [Path("examples/digits/digits.onnx")]:
        assert kind_of(path) is None, path
    for number, data in enumerate(
        (b"", b"\x08", b"\x0a\x03abc", b"\x08\x01\x12\x02ab", b"\x0a\xff\xff\xff\xff\x0f", b"{}")
    ):
        assert kind_of(write(tmp_path / f"{number}.pb", data)) is None, data
    assert kind_of(tmp_path) is None
    assert kind_of(tmp_path / "missing") is None


def test_a_keras_file_gets_advice(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Keras") as caught:
        as_onnx(write(tmp_path / "m.h5", b"\x89HDF\r\n\x1a\n" + bytes(100)))
    assert "export" in caught.value.hint


def test_a_graph_that_is_not_frozen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not frozen.*'?w'?") as caught:
        as_onnx(write(tmp_path / "g.pb", graph_def(node("w", "VariableV2"), node("y", "Relu", "w"))))
    assert ".meta" in caught.value.hint


def test_without_tensorflow_a_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(convert.PYTHON, raising=False)
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    path = write(tmp_path / "g.pb", PLAIN)
    with pytest.raises(MissingDependency, match="not installed") as caught:
        as_onnx(path)
    assert caught.value.exit_code == 3
    assert "npukit[tensorflow]" in caught.value.hint
    with pytest.raises(MissingDependency, match="no such Python"):
        as_onnx(path, TensorFlowOptions(python=tmp_path / "nothing"))


def test_tags_and_signatures_are_checked_before_tensorflow_is_started(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "m", meta_graph(PLAIN, tags=("serve",)), meta_graph(PLAIN, tags=("serve", "tpu")))
    for options, text in (
        (TensorFlowOptions(), "2 graphs"),
        (TensorFlowOptions(tag="train"), "no graph with the tags"),
        (TensorFlowOptions(tag="tpu,serve", signature="nope"), "no signature 'nope'"),
    ):
        with pytest.raises(ModelError, match=text):
            as_onnx(folder, options)
    with pytest.raises(ModelError, match="no tags"):
        as_onnx(write(tmp_path / "g.pb", PLAIN), TensorFlowOptions(tag="serve"))


# ---------------------------------------------------------------- hostile files

DEEP = calls("f")
for _ in range(10_000):
    DEEP = calls("f", DEEP)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "deep": (graph_def(node("x", "Placeholder"), node("y", "PartitionedCall", attr=DEEP)), "nested deeper"),
    "writes": (graph_def(node("y", "WriteFile")), "WriteFile touches files"),
    "reads": (graph_def(node("y", "ReadFile")), "ReadFile touches files"),
    "python": (graph_def(node("y", "PyFunc"), node("z", "EagerPyFunc")), "EagerPyFunc touches files"),
    "in-a-function": (
        graph_def(node("y", "Relu"), functions=(function("g", node("p", "PrintV2")),)),
        "of function 'g'",
    ),
    "dataset": (graph_def(node("y", "TFRecordDataset")), "TFRecordDataset"),
    "saves": (graph_def(node("y", "SaveV2")), "SaveV2 writes files"),
    "debug": (graph_def(node("y", "DebugIdentityV2")), "DebugIdentityV2"),
    "cut-off": (graph_def(node("y", "Relu"))[:-3] + b"\x0a\x7f", "frozen graph"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_graph_that_does_more_than_compute_is_refused_quickly(tmp_path: Path, name: str) -> None:
    data, text = HOSTILE[name]
    path = write(tmp_path / "g.pb", data)
    start = time.monotonic()
    with pytest.raises(NpukitError) as caught:
        graph.read_graphs(path, "frozen graph")
    assert text in str(caught.value)
    assert time.monotonic() - start < 5


def test_a_function_that_saves_may_be_there_but_not_be_run(tmp_path: Path) -> None:
    saving = function("traced_save", node("s", "SaveV2"), node("m", "MergeV2Checkpoints"))
    main = graph_def(
        node("x", "Placeholder"),
        node("y", "Relu", "x"),
        node("save", "StatefulPartitionedCall", attr=calls("traced_save")),
        functions=(saving,),
    )
    assert graph.read_graphs(saved_model(tmp_path / "fine", meta_graph(main, restore="y")), "SavedModel")
    for number, meta in enumerate((meta_graph(main, output="save:0"), meta_graph(main, restore="save"))):
        with pytest.raises(ModelError, match="more than compute"):
            graph.read_graphs(saved_model(tmp_path / str(number), meta), "SavedModel")


def test_a_file_of_millions_of_fields_is_refused_in_time(tmp_path: Path) -> None:
    path = write(tmp_path / "g.pb", PLAIN + b"\x2a\x00" * 5_000_000)
    start = time.monotonic()
    with pytest.raises(ModelError, match="more than 1000000 fields"):
        graph.read_graphs(path, "frozen graph")
    assert time.monotonic() - start < 10


def test_mutated_graphs_are_read_or_refused_with_a_sentence(tmp_path: Path) -> None:
    saving = function("traced_save", node("s", "SaveV2"))
    main = graph_def(node("x", "Placeholder"), node("y", "PartitionedCall", "x", attr=calls("g")), functions=(saving,))
    seeds = {"frozen graph": main, "checkpoint": meta_graph(main, restore="y")}
    random = np.random.default_rng(0)
    read = 0
    for number in range(1000):
        kind = ("frozen graph", "checkpoint")[number % 2]
        data = bytearray(seeds[kind])
        for at in random.integers(0, len(data), 1 + number % 4):
            data[at] = int(random.integers(0, 256))
        path = write(tmp_path / "g.pb", bytes(data[: int(random.integers(1, len(data)))] if number % 5 == 0 else data))
        kind_of(path)
        with contextlib.suppress(NpukitError):
            graph.read_graphs(path, kind)
            read += 1
    assert 50 < read < 950


def test_a_link_out_of_a_saved_model_is_refused(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "m", meta_graph(PLAIN))
    (folder / "variables").mkdir()
    (folder / "variables" / "variables.index").symlink_to("/etc/hostname")
    with pytest.raises(ModelError, match="link out of its folder"):
        as_onnx(folder, TensorFlowOptions(python=Path(sys.executable)))


# ---------------------------------------------------------------- the other process, with a double for its script


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that stands in for read_with_tensorflow.py, to be filled by the test."""
    path = tmp_path / "script_double.py"
    monkeypatch.setattr(convert, "_SCRIPT", path)
    return path


def fill(double: Path, body: str) -> None:
    head = "import json, os, sys, time\nrequest = json.load(open(sys.argv[1]))\n"
    tail = "\nif reply is not None:\n    json.dump(reply, open(request['reply'], 'w'))\n"
    double.write_text(head + textwrap.dedent(body) + tail)


def ask(tmp_path: Path, timeout: float | None = None) -> dict[str, object]:
    folder = tmp_path / "work"
    folder.mkdir()
    return convert.ask(sys.executable, {"path": "m.pb", "tag": ""}, folder, 0, timeout)


def test_the_reply_of_the_other_process_comes_back(tmp_path: Path, double: Path) -> None:
    fill(double, "reply = {'seen': request['path'], 'home': os.environ.get('PYTHONPATH', '')}")
    assert ask(tmp_path) == {"seen": "m.pb", "home": ""}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("reply = None\nprint('the last word')", "status 0 and no answer.*the last word"),
        ("reply = None\nos.abort()", "ended with status"),
        ("reply = None\nopen(request['reply'], 'w').write('{broken')", "no answer"),
    ],
)
def test_a_process_that_dies_is_a_sentence(tmp_path: Path, double: Path, body: str, text: str) -> None:
    fill(double, body)
    with pytest.raises(WorkerDied, match=text):
        ask(tmp_path)


def test_a_process_that_takes_too_long_or_too_much_is_ended(
    tmp_path: Path, double: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(double, "reply = None\ntime.sleep(60)")
    start = time.monotonic()
    with pytest.raises(WorkerDied, match="within 1 s"):
        ask(tmp_path, 1.0)
    assert time.monotonic() - start < 10
    monkeypatch.setattr(convert, "memory_of", lambda pid: 7 << 30)
    (tmp_path / "work").rename(tmp_path / "before")
    with pytest.raises(WorkerDied, match="more than the 6144 MiB"):
        ask(tmp_path)


def test_what_the_other_process_refuses_is_listed(tmp_path: Path, double: Path) -> None:
    fill(
        double,
        "reply = {'error': 'it cannot', 'faults': [['no X', 'node a', 'cut'], ['no Y', 'node b', '']], 'hint': ''}",
    )
    path = write(tmp_path / "g.pb", PLAIN)
    with pytest.raises(ModelError, match="it cannot") as caught:
        as_onnx(path, TensorFlowOptions(python=Path(sys.executable)))
    assert [fault.what for fault in caught.value.faults] == ["no X", "no Y"]


def test_an_interpreter_without_tensorflow_is_named(tmp_path: Path, double: Path) -> None:
    fill(double, "reply = {'missing': 'No module named tf2onnx'}")
    with pytest.raises(MissingDependency, match="cannot import") as caught:
        as_onnx(write(tmp_path / "g.pb", PLAIN), TensorFlowOptions(python=Path(sys.executable)))
    assert sys.executable in str(caught.value)


def test_the_script_is_told_what_was_asked_for(tmp_path: Path, double: Path) -> None:
    fill(double, "json.dump(request, open(request['path'] + '.seen', 'w'))\nreply = {'error': 'stop', 'faults': []}")
    path = write(tmp_path / "g.pb", PLAIN)
    options = TensorFlowOptions(
        shapes={"x": (1, 4)}, batch=2, inputs=("x",), outputs=("y",), python=Path(sys.executable), compare=False
    )
    with pytest.raises(ModelError, match="stop"):
        as_onnx(path, options)
    import json

    seen = json.loads(Path(f"{path}.seen").read_text())
    assert seen["shapes"] == {"x": [1, 4]}
    assert (seen["batch"], seen["inputs"], seen["outputs"], seen["compare"]) == (2, ["x"], ["y"], False)
    assert seen["kind"] == "frozen graph"


# ---------------------------------------------------------------- with TensorFlow

MODELS = """
import os, sys
import tensorflow as tf
v1, folder = tf.compat.v1, sys.argv[1]
tf.keras.utils.set_random_seed(0)


class Net(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.random.normal([3, 3, 3, 4]))
        self.v = tf.Variable(tf.random.normal([4, 5]))

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], name="picture"), tf.TensorSpec([1], name="gain")])
    def forward(self, picture, gain):
        x = tf.nn.gelu(tf.nn.conv2d(picture, self.w, 1, "SAME"))
        return {"scores": tf.reduce_mean(x, [1, 2]) @ self.v * gain, "map": x}

    @tf.function(input_signature=[tf.TensorSpec([4], name="a")])
    def bad(self, a):
        return {"p": tf.math.betainc(a, a, a), "q": tf.math.igamma(a, a)}


class Compiled(tf.Module):  # as Keras 3 writes a convolution in groups
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.random.normal([3, 3, 1, 8]))

    @tf.function(jit_compile=True)
    def inner(self, x, w):
        return tf.nn.conv2d(x, w, 1, "SAME")

    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 4], name="x")])
    def forward(self, x):
        return {"y": tf.nn.relu(self.inner(x, self.w))}


compiled = Compiled()
tf.saved_model.save(compiled, folder + "/compiled", signatures=compiled.forward)
net = Net()
tf.saved_model.save(net, folder + "/net", signatures={"serving_default": net.forward, "bad": net.bad})
with tf.Graph().as_default() as g, v1.Session(graph=g) as session:
    x = v1.placeholder(tf.float32, [None, 8, 8, 3], name="image")
    w = v1.get_variable("w", [3, 3, 3, 4])
    low, high = tf.constant([-1.0, -0.9, -0.5, -1.0]), tf.constant([1.0, 0.9, 0.5, 1.0])
    q = tf.quantization.fake_quant_with_min_max_vars_per_channel(w, low, high, narrow_range=True)
    y = tf.nn.relu(tf.nn.conv2d(tf.quantization.fake_quant_with_min_max_args(x, -3, 3), q, 1, "SAME"), name="act")
    y = tf.quantization.fake_quant_with_min_max_vars(y, 0.0, 4.0, name="fake")
    session.run(v1.global_variables_initializer())
    frozen = v1.graph_util.convert_variables_to_constants(session, g.as_graph_def(), ["fake"])
    open(folder + "/quant.pb", "wb").write(frozen.SerializeToString())
    v1.train.Saver().save(session, folder + "/point.ckpt")


def graph(session, **results):  # signatures of two inputs and the one result that each is called after
    x, gain = v1.placeholder(tf.float32, [None, 4], name="x"), v1.placeholder(tf.float32, [1], name="xs")
    w = v1.get_variable("w", initializer=[1.0, 2.0, 3.0, 4.0])
    session.run(v1.global_variables_initializer())
    info = v1.saved_model.build_tensor_info
    make = v1.saved_model.signature_def_utils.build_signature_def
    return {
        key: make({"given": info(x), "by": info(gain)}, {key: info(result(x, w) * gain)}, "serve")
        for key, result in results.items()
    }


builder = v1.saved_model.Builder(folder + "/several")
with tf.Graph().as_default() as g, v1.Session(graph=g) as session:
    signatures = graph(session, serving_default=lambda x, w: x + w, product=lambda x, w: x * w)
    builder.add_meta_graph_and_variables(session, ["serve"], signatures)
with tf.Graph().as_default() as g, v1.Session(graph=g) as session:
    signatures = graph(session, serving_default=lambda x, w: x - w, quotient=lambda x, w: x / w)
    builder.add_meta_graph(["serve", "other"], signatures)
builder.save()
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorflow")
    script = folder / "make.py"
    script.write_text(MODELS)
    subprocess.run([str(PYTHON), str(script), str(folder)], check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(autouse=True)
def _python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "models" in request.fixturenames:
        monkeypatch.setenv(convert.PYTHON, str(PYTHON))


@needs_tensorflow
@pytest.mark.native
def test_a_saved_model_keeps_its_names_and_layout(models: Path, tmp_path: Path) -> None:
    assert tensorflow.kind_of(models / "net") == "SavedModel"
    result = npukit.convert(models / "net", output=tmp_path / "net.dlc", target="qnn-cpu", batch=2, random=1)
    assert result.converted.stamp.verified == "yes"
    # in the order of a signature, which is that of the names
    inputs = {io.name: io.shape for io in result.converted.stamp.inputs}
    assert inputs == {"gain": (1,), "picture": (2, 8, 8, 3)}
    assert {io.name: io.shape for io in result.converted.stamp.outputs} == {"map": (2, 8, 8, 4), "scores": (2, 5)}
    notes = " ".join(result.converted.notes)
    assert "TensorFlow" in notes
    assert "differ by at most" in notes
    assert "WARNING" not in notes
    assert "--saved-model-signature-key" in notes
    assert "Transpose" not in result.converted.ops


@needs_tensorflow
@pytest.mark.native
@pytest.mark.parametrize(
    ("tag", "key", "result"),
    [
        ("serve", "", lambda x, w: x + w),
        ("serve", "product", lambda x, w: x * w),
        ("other,serve", "", lambda x, w: x - w),
        ("serve,other", "quotient", lambda x, w: x / w),
    ],
)
def test_a_tag_chooses_among_graphs_and_a_key_among_signatures(
    models: Path, tmp_path: Path, tag: str, key: str, result: Any
) -> None:
    output = tmp_path / "m.dlc"
    words = ["--batch", "1", "--target", "qnn-cpu", "--saved-model-tag", tag]
    words += ["--saved-model-signature-key", key] if key else []
    assert main(["convert", str(models / "several"), "-o", str(output), *words]) == 0
    x = np.random.default_rng(0).standard_normal((1, 4)).astype(np.float32)
    with npukit.Session(output, backend="qnn-cpu") as session:
        assert session.stamp is not None
        assert session.stamp.verified == "yes"
        found = session.run({"given": x, "by": np.float32([3])})
    assert found.keys() == {key or "serving_default"}
    expected = 3 * result(x, np.float32([1, 2, 3, 4]))
    np.testing.assert_allclose(found[key or "serving_default"], expected, rtol=1e-5, atol=1e-6)


@needs_tensorflow
def test_what_tf2onnx_cannot_do_is_listed_at_once(models: Path) -> None:
    with pytest.raises(ModelError, match="tf2onnx cannot") as caught:
        as_onnx(models / "net", TensorFlowOptions(signature="bad"))
    assert {fault.what.rpartition(" ")[2] for fault in caught.value.faults} == {"Betainc", "Igamma"}


@needs_tensorflow
@pytest.mark.native
def test_a_function_that_xla_would_compile_is_inlined(models: Path, tmp_path: Path) -> None:
    result = npukit.convert(models / "compiled", output=tmp_path / "m.dlc", target="qnn-cpu", random=1)
    assert result.converted.stamp.verified == "yes"
    assert result.converted.ops["DepthWiseConv2d"] == 1
    note = next(note for note in result.converted.notes if "differ by at most" in note)
    assert not note.startswith("WARNING")


@needs_tensorflow
@pytest.mark.native
def test_fake_quantization_becomes_encodings(models: Path, tmp_path: Path) -> None:
    result = npukit.convert(
        models / "quant.pb", output=tmp_path / "q.dlc", target="qnn-cpu", batch=1, random=1, outputs=("fake",)
    )
    assert result.converted.precision == "int8"
    made = as_onnx(models / "quant.pb", TensorFlowOptions(batch=1, outputs=("fake",)))
    assert made is not None
    note = next(note for note in made.notes if "differ by at most" in note)
    # a code that falls between two may go either way: one step of 4/255 of the range
    assert float(note.partition("same inputs, ")[2].split()[0]) <= 1 / 250
    import onnx

    held = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(made.path).graph.initializer}
    scales = next(value for name, value in held.items() if "PerChannel" in name and "scale" in name)
    np.testing.assert_allclose(scales, np.array([2, 1.8, 1, 2]) / 254, rtol=1e-6)


@needs_tensorflow
@pytest.mark.native
def test_a_checkpoint_gives_what_its_frozen_graph_gives(models: Path, tmp_path: Path) -> None:
    frozen = npukit.convert(
        models / "quant.pb", output=tmp_path / "a.dlc", target="qnn-cpu", batch=1, verify=False, outputs=("act",)
    )
    point = npukit.convert(
        models / "point.ckpt.meta", output=tmp_path / "b.dlc", target="qnn-cpu", batch=1, verify=False, outputs=("act",)
    )
    image = np.random.default_rng(0).standard_normal((1, 8, 8, 3)).astype(np.float32)
    results = []
    for made in (frozen, point):
        with npukit.Session(made.path, backend="qnn-cpu") as session:
            results.append(session.run({"image": image})["act"])
    np.testing.assert_array_equal(*results)


@needs_tensorflow
@pytest.mark.slow
def test_a_checkpoint_without_its_values_and_unknown_names_are_refused(models: Path, tmp_path: Path) -> None:
    alone = write(tmp_path / "alone.meta", (models / "point.ckpt.meta").read_bytes())
    with pytest.raises(ModelError, match=r"alone\.index"):
        as_onnx(alone)
    with pytest.raises(ModelError, match="no such tensors") as caught:
        as_onnx(models / "quant.pb", TensorFlowOptions(outputs=("acts", "nothing")))
    assert len(caught.value.faults) == 2
    assert "act" in caught.value.faults[0].hint
    with pytest.raises(ModelError, match="has the shape"):
        as_onnx(models / "quant.pb", TensorFlowOptions(shapes={"image": (1, 3, 8, 8)}))


@needs_tensorflow
@pytest.mark.slow
def test_damaged_parts_of_a_saved_model_are_a_sentence(models: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "net"
    shutil.copytree(models / "net", folder)
    data = next((folder / "variables").glob("*.data-*"))
    data.write_bytes(data.read_bytes()[:40])
    with pytest.raises(NpukitError, match="TensorFlow"):
        as_onnx(folder)
    data.unlink()
    with pytest.raises(NpukitError, match="TensorFlow"):
        as_onnx(folder, TensorFlowOptions(batch=1))
