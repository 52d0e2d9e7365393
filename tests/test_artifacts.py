# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""npukit.artifacts: stamps, DLCs and context binaries, written, read back and damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npukit import files
from npukit.artifacts import context, dlc
from npukit.artifacts import stamp as stamps
from npukit.artifacts.stamp import IoTensor, Stamp, native_stamp
from npukit.errors import ArtifactError, GraphError, NpukitError, UsageError
from npukit.qnn.graph import DType, Encoding, Graph, Model, Op, Param, Tensor, TensorKind
from npukit.targets import target
from tests.sample_graphs import assert_same, cnn, quantized

STAMP = Stamp(
    npukit_version="0.1.0",
    qairt_build="v2.47.0.260601114230",
    core_api_version="2.36.0",
    needs_qairt="2.47",
    source_name="digits.onnx",
    source_sha256="ab" * 32,
    targets=("sm8650", "qnn-cpu"),
    options={"float_bitwidth": 16, "input_shape": {"x": [1, 3, 8, 8]}, "dry_run": False, "range": 0.5, "none": None},
    inputs=(
        IoTensor("x", "float32", (1, 3, 8, 8), "x", "UFIXED_POINT_8", (0, 2, 3, 1), Encoding((0.1,), (-128,))),
        IoTensor("ids", "int64", (4,), "ids", "INT_32", narrowed=True, graph="g"),
    ),
    outputs=(
        IoTensor(
            "/tmp/y",
            "bfloat16",
            (),
            "y",
            "SFIXED_POINT_8",
            encoding=Encoding((0.1, 0.2), (0, 0), axis=1, bitwidth=4, block_shape=(1, 2), block_scales=(1, 15)),
        ),
    ),
    names={"/tmp/y": "y", "é": "e"},
    verified="yes",
    seed=0,
)


def test_a_stamp_reads_back_and_is_deterministic() -> None:
    text = STAMP.to_json()
    assert Stamp.from_json(text) == STAMP
    assert Stamp.from_json(text).to_json() == text
    shuffled = dataclasses.replace(STAMP, options=dict(reversed(STAMP.options.items())))
    assert shuffled.to_json() == text
    assert text.isascii()


def test_a_stamp_holds_no_paths() -> None:
    stamp = Stamp(
        "0.1.0",
        source_name="/home/someone/models/m.onnx",
        options={
            "model": Path("/srv/someone/m.onnx"),
            "calibration": "/home/someone/d",
            "target": ("a", "b"),
            "n": np.int64(3),
        },
    )
    text = stamp.to_json()
    assert "someone" not in text
    assert json.loads(text)["options"] == {"model": "m.onnx", "calibration": "d", "target": ["a", "b"], "n": 3}
    with pytest.raises(TypeError, match="no JSON form"):
        Stamp("0", options={"x": float("nan")}).to_json()
    with pytest.raises(TypeError, match="object"):
        Stamp("0", options={"x": object()}).to_json()


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(STAMP.to_json()), **changes})


IO = json.loads(STAMP.to_json())["inputs"][0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "stamp cannot be read"),
        ("null", "not an object"),
        ("{}", "format"),
        (b"\xff\xfe\x00", "not JSON"),
        ('{"format": 1, "format": 1}', "repeated"),
        ('{"format": NaN}', "not a number"),
        ('{"format": 2}', "has format 2"),
        ('{"format": 1}', "lacks a field"),
        (changed(surprise=1), "unknown field 'surprise'"),
        (changed(seed=True), r"seed is not an integer"),
        (changed(seed=1 << 70), r"seed is not an integer"),
        (changed(verified="perhaps"), "none of yes, no, failed"),
        (changed(npukit_version="x" * 70_000), "at most 65536 characters"),
        (changed(names={"a": 1}), r"names\['a'\]"),
        (changed(inputs={}), "not a list"),
        (changed(inputs=[{**IO, "perm": [0, 0, 1, 2]}]), r"inputs\[0\].perm"),
        (changed(inputs=[{**IO, "shape": [1, -1, 8, 8]}]), r"inputs\[0\].shape\[1\]"),
        (changed(inputs=[{**IO, "dtype": "__class__"}]), "element type"),
        (changed(inputs=[{**IO, "held_dtype": []}]), "data type"),
        (changed(inputs=[{**IO, "encoding": {"scales": [1], "offsets": []}}]), "1 scales and 0 offsets"),
        (changed(inputs=[{**IO, "encoding": {"scales": [1e999], "offsets": [0]}}]), "Infinity is not a number"),
        (changed(options=[]), "not an object"),
        (changed(options={}).replace("{}", '{"a": 1e999}'), "not finite"),
    ],
)
def test_hostile_stamps_are_refused_with_a_sentence(text: str | bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        Stamp.from_json(text, where="m.dlc")
    assert "m.dlc" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(json.loads(STAMP.to_json()))), JSON)
def test_any_value_in_any_field_is_read_or_refused(name: str, value: Any) -> None:
    with contextlib.suppress(ArtifactError):
        assert isinstance(Stamp.from_json(changed(**{name: value})), Stamp)


def test_native_stamp() -> None:
    x = Tensor("x", DType.UFIXED_POINT_8, (1, 4), TensorKind.APP_WRITE, Encoding.per_tensor(0.1, -3))
    y = Tensor("y", DType.INT_32, (2,), TensorKind.APP_READ)
    stamp = native_stamp(Model({"g": Graph("g", [x], [y])}))
    assert stamp.inputs == (IoTensor("x", "uint8", (1, 4), "x", "UFIXED_POINT_8", encoding=x.encoding),)
    assert stamp.outputs == (IoTensor("y", "int32", (2,), "y", "INT_32"),)
    assert Stamp.from_json(stamp.to_json()) == stamp
    two = native_stamp(Model({"g": Graph("g", [x], [y]), "h": Graph("h", [x], [y])}))
    assert [io.graph for io in two.inputs] == ["g", "h"]


def test_every_stamp_field_has_a_reader() -> None:
    for kind, readers in (
        (Stamp, stamps._STAMP_READERS),
        (IoTensor, stamps._IO_READERS),
        (Encoding, stamps._ENCODING_READERS),
    ):
        assert {f.name for f in dataclasses.fields(kind)} == set(readers)


# --- DLCs ---


def written(path: Path, graph: Graph) -> tuple[Path, Stamp]:
    model = Model({graph.name: graph})
    stamp = dataclasses.replace(native_stamp(model), npukit_version="0.1.0", source_name="m.onnx")
    dlc.write(model, path, stamp)
    return path, stamp


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("dlc") / "m.dlc", cnn())[0]


@pytest.mark.native
@pytest.mark.parametrize("graph", [cnn(), quantized()], ids=["float", "quantized"])
def test_a_dlc_reads_back_with_its_stamp(tmp_path: Path, graph: Graph) -> None:
    path, stamp = written(tmp_path / "m.dlc", graph)
    model, found = dlc.read(path)
    assert found == Stamp.from_json(stamp.to_json())
    assert_same(model.graphs[graph.name], graph)
    assert [t.name for t in model.graphs[graph.name].inputs] == [t.name for t in graph.inputs]
    assert str(model.metadata["qairt_build"]).startswith("2.")
    assert [entry.name for entry in dlc.members(path)][-1] == "npukit.json"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.dlc"]


@pytest.mark.native
def test_the_contract_may_name_inputs_that_no_op_reads(tmp_path: Path) -> None:
    graph = cnn()
    graph.inputs.insert(0, Tensor("unused", DType.FLOAT_32, (4,), TensorKind.APP_WRITE))
    path, stamp = written(tmp_path / "m.dlc", graph)
    model, found = dlc.read(path)
    assert found is not None
    assert [io.tensor for io in found.inputs] == ["unused", "z", "x"]
    assert [t.name for t in model.graphs["cnn"].inputs] == ["z", "x"]


@pytest.mark.native
def test_a_stamp_of_another_graph_is_refused(tmp_path: Path) -> None:
    other = native_stamp(Model({"q": quantized()}))
    dlc.write(Model({"cnn": cnn()}), tmp_path / "m.dlc", dataclasses.replace(other, outputs=()))
    with pytest.raises(ArtifactError, match="disagree about the inputs or outputs"):
        dlc.read(tmp_path / "m.dlc")


WRITE = """
import sys
from pathlib import Path
from npukit.artifacts import context, dlc
from npukit.artifacts.stamp import native_stamp
from npukit.qnn.graph import Model
from npukit.targets import target
from tests.sample_graphs import quantized
model = Model({"q": quantized()})
if sys.argv[1].endswith(".dlc"):
    dlc.write(model, sys.argv[1], native_stamp(model))
else:
    context.compile(model, target("sm8650"), sys.argv[1], native_stamp(model))
"""


@pytest.mark.native
@pytest.mark.parametrize("kind", ["dlc", "bin"])
def test_two_processes_write_the_same_bytes(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{i}.{kind}" for i in range(2)]
    for path in paths:
        subprocess.run(
            [sys.executable, "-c", WRITE, path], check=True, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL
        )
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if kind == "bin":
        assert context.sidecar(paths[0]).read_bytes() == context.sidecar(paths[1]).read_bytes()


@pytest.mark.native
def test_source_date_epoch_is_the_date_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    path, _ = written(tmp_path / "m.dlc", cnn())
    metadata = dlc.read_info(path).metadata
    assert metadata["header"]["timestamp"] == "2023-11-14 22:13:20 UTC"
    assert "1980" not in json.dumps(metadata)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "nonsense")
    assert dlc.source_date().year == 1980


@pytest.mark.native
def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    graph = cnn()
    graph.ops[1].type = "NoSuchOp"
    (tmp_path / "m.dlc").write_bytes(b"old")
    with pytest.raises(GraphError, match="NoSuchOp"):
        written(tmp_path / "m.dlc", graph)
    assert (tmp_path / "m.dlc").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(NpukitError, match="no such file or folder"):
        written(tmp_path / "missing" / "m.dlc", cnn())


def repacked(source: Path, path: Path, *, drop: str = "", method: int = zipfile.ZIP_STORED, **extra: bytes) -> Path:
    data = source.read_bytes()
    with zipfile.ZipFile(path, "w", method) as archive:
        for entry in files.zip_entries(data):
            if entry.name != drop and entry.name not in extra:
                archive.writestr(entry.name, files.zip_read(data, entry, limit=1 << 20))
        for name, content in extra.items():
            archive.writestr(name, content)
    return path


@pytest.mark.native
@pytest.mark.parametrize("member", ["model", "model.params", "model.params.bin"])
def test_a_dlc_without_a_member_is_refused(sample: Path, tmp_path: Path, member: str) -> None:
    expected = "lacks its weights" if member == "model.params.bin" else f"(lacks|no member) .?{member}"
    with pytest.raises(ArtifactError, match=expected):
        dlc.read(repacked(sample, tmp_path / "m.dlc", drop=member))


@pytest.mark.native
def test_a_graph_without_weights_is_written_and_read(tmp_path: Path) -> None:
    x = Tensor("x", DType.FLOAT_32, (2, 3), TensorKind.APP_WRITE)
    y = Tensor("y", DType.FLOAT_32, (2, 3), TensorKind.APP_READ)
    graph = Graph("g", [x], [y], [Op("r", "ElementWiseNeuron", [x], [y], {"operation": Param(DType.UINT_32, 4)})])
    path, _ = written(tmp_path / "m.dlc", graph)
    assert "model.params.bin" not in {entry.name for entry in dlc.members(path)}  # libQnnIr leaves it out
    assert_same(dlc.read(path)[0].graphs["g"], graph)


@pytest.mark.native
def test_a_repacked_dlc(sample: Path, tmp_path: Path) -> None:
    assert_same(dlc.read(repacked(sample, tmp_path / "a.dlc"))[0].graphs["cnn"], cnn())
    with pytest.raises(ArtifactError, match="is compressed"):
        dlc.read(repacked(sample, tmp_path / "b.dlc", method=zipfile.ZIP_DEFLATED))
    with pytest.raises(ArtifactError, match="stamp cannot be read"):
        dlc.read(repacked(sample, tmp_path / "c.dlc", **{"npukit.json": b"{}"}))
    names = [entry.name for entry in dlc.members(sample) if entry.name.startswith("dlc.metadata")]
    odd = dict.fromkeys(names, b'{"dlcGenerationInfo": [{"converterCommand": 7}]}')
    assert dlc.read_info(repacked(sample, tmp_path / "d.dlc", **odd)).converter == ""
    assert dlc.read_info(repacked(sample, tmp_path / "e.dlc", **dict.fromkeys(names, b"a=1"))).metadata == {}


@pytest.mark.native
def test_truncated_dlcs_and_other_files_are_refused_before_native_code(sample: Path, tmp_path: Path) -> None:
    data = sample.read_bytes()
    path = tmp_path / "m.dlc"
    for size in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ArtifactError, match="not a sound zip"):
            dlc.check(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "")
    with pytest.raises(ArtifactError, match="not a DLC"):
        dlc.check(path)
    with pytest.raises(NpukitError, match="no such file"):
        dlc.check(tmp_path / "gone.dlc")


@pytest.mark.native
def test_mutated_directories_and_stamps_never_raise_anything_else(sample: Path, tmp_path: Path) -> None:
    seed = sample.read_bytes()
    entries = files.zip_entries(seed)
    spans = [(entry.header, entry.offset) for entry in entries]
    spans += [(max(entry.offset + entry.stored for entry in entries), len(seed))] * 6
    spans += [(e.offset, e.offset + e.stored) for e in entries if "json" in e.name or "metadata" in e.name]
    rng = np.random.default_rng(5)
    path = tmp_path / "m.dlc"
    sound = 0
    for _ in range(300):
        data = bytearray(seed)
        for _ in range(int(rng.integers(1, 5))):
            low, high = spans[int(rng.integers(len(spans)))]
            data[int(rng.integers(low, high))] = int(rng.integers(256))
        path.write_bytes(data)
        with contextlib.suppress(ArtifactError):
            dlc.check(path)
            sound += 1
    assert 30 < sound < 270


# --- context binaries ---


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("context") / "m.bin"
    model = Model({"q": quantized()})
    context.compile(model, target("sm8650"), path, native_stamp(model))
    return path


@pytest.mark.native
def test_a_context_binary_describes_itself(binary: Path) -> None:
    info, stamp = context.read(binary)
    assert stamp == native_stamp(Model({"q": quantized()}))
    assert (info.backend, info.soc_model, info.arch) == ("htp", 57, 75)
    assert info.core_version[0] == 2
    (graph,) = info.model.graphs.values()
    original = quantized()
    for found, expected in ((graph.inputs, original.inputs), (graph.outputs, original.outputs)):
        for a, b in zip(found, expected, strict=True):
            assert (a.name, a.dtype, a.shape, a.kind) == (b.name, b.dtype, b.shape, b.kind)
            assert a.encoding is not None
            assert b.encoding is not None
            assert np.float32(a.encoding.scale) == np.float32(b.encoding.scale)
            assert a.encoding.offset == b.encoding.offset


@pytest.mark.native
def test_a_changed_binary_or_sidecar_is_refused(binary: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    data = bytearray(binary.read_bytes())
    path.write_bytes(data)
    assert context.read(path)[1] is None
    text = context.sidecar(binary).read_text()
    context.sidecar(path).write_text(text)
    assert context.read(path)[1] is not None
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        context.read(path)
    for damaged in ("", "{}", text[:-20], text.replace('artifact_sha256":"', 'artifact_sha256":"x')):
        context.sidecar(path).write_text(damaged)
        with pytest.raises(ArtifactError, match="sidecar"):
            context.read(path)


@pytest.mark.native
def test_files_that_are_no_context_binary(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    for data in (b"", b"nonsense", bytes(10_000)):
        path.write_bytes(data)
        with pytest.raises(ArtifactError):
            context.read(path)


@pytest.mark.native
def test_compiling_for_what_cannot_hold_it(tmp_path: Path) -> None:
    model = Model({"cnn": cnn()})
    with pytest.raises(UsageError, match="qnn-cpu is none"):
        context.compile(model, target("qnn-cpu"), tmp_path / "m.bin")
    with pytest.raises(GraphError, match="qcs6490 cannot hold") as caught:
        context.compile(model, target("qcs6490"), tmp_path / "m.bin")
    assert {fault.where for fault in caught.value.faults} >= {"graph cnn, op conv (Conv2d)"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.native
@pytest.mark.parametrize(("chip", "size"), [("qcs6490", 2), ("sm8650", 4)])
def test_no_more_vtcm_than_the_chip_has(chip: str, size: int, tmp_path: Path) -> None:
    """The library takes 4 MB unless it is told, of which some chips have 2. Each chip in a process of its own."""
    code = (
        "import sys\nfrom npukit.artifacts import context\nfrom npukit.qnn.graph import Model\n"
        "from npukit.targets import target\nfrom tests.sample_graphs import quantized\n"
        "context.compile(Model({'q': quantized()}), target(sys.argv[1]), sys.argv[2])"
    )
    path = tmp_path / "m.bin"
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, chip, str(path)], check=True, cwd=root)
    info, _ = context.read(path)
    assert (info.soc_model, info.vtcm_mb) == (target(chip).soc_id, {"q": size})
    other = target("sm8550")
    with pytest.raises(ArtifactError, match="does not fit sm8550") as caught:
        context.check(dataclasses.replace(info, vtcm_mb={"q": 16}), other)
    assert [fault.what for fault in caught.value.faults][-1] == "it wants 16 MB of VTCM, sm8550 has 8"
    assert len(caught.value.faults) == 3  # SoC and architecture too
    context.check(info, target(chip))


def test_writing_without_stamp_removes_the_old_sidecar(tmp_path: Path) -> None:
    context.write(b"1", tmp_path / "m.bin", Stamp("0.1.0"))
    assert context.read_sidecar(tmp_path / "m.bin") == Stamp("0.1.0")
    context.write(b"2", tmp_path / "m.bin")
    assert context.read_sidecar(tmp_path / "m.bin") is None
    assert [p.name for p in tmp_path.iterdir()] == ["m.bin"]
