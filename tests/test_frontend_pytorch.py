# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The PyTorch front end: what files are, what is refused without torch, and, where torch is, exports against torch.

The archives of the first half are written here by hand, in the form that torch 2.13 writes.
"""

from __future__ import annotations

import collections
import copy
import importlib.util
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npukit
from npukit.errors import MissingDependency, ModelError, NpukitError
from npukit.frontends.exported import plain
from npukit.frontends.onnx import LoadOptions, load
from npukit.frontends.pytorch import archive, as_onnx, kind_of, kinds, script
from npukit.frontends.pytorch import convert as pytorch_convert
from npukit.runtime.file_kind import file_kind

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch (npukit[torch])")


def write(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def tree(*leaves: int, kind: str = "builtins.tuple", context: str = "null") -> str:
    leaf = {"type": None, "context": None, "children_spec": []}
    return json.dumps([1, {"type": kind, "context": context, "children_spec": [leaf for _ in leaves]}])


SIZE = {"as_expr": {"expr_str": "Symbol('s40', positive=True, integer=True)", "hint": {"as_int": 2}}}
PROGRAM: dict[str, Any] = {
    "graph_module": {
        "graph": {
            "inputs": [{"as_tensor": {"name": "x"}}],
            "nodes": [
                {
                    "target": "torch.ops.aten.gelu.default",
                    "inputs": [
                        {"name": "self", "arg": {"as_tensor": {"name": "x"}}, "kind": 1},
                        {"name": "approximate", "arg": {"as_string": "any(text) 'is' repr"}, "kind": 2},
                    ],
                    "metadata": {"stack_trace": 'File "/home/me/net.py", line 8, in forward\n  x = gelu(x)'},
                    "name": "gelu",
                },
                {"target": "torch.ops.aten.sym_size.int", "inputs": [], "metadata": {}, "name": "size"},
                {"target": "_operator.mul", "inputs": [], "metadata": {}, "name": "mul"},
            ],
            "tensor_values": {"x": {"dtype": 7, "sizes": [SIZE, {"as_int": 3}]}},
        },
        "module_call_graph": [{"fqn": "", "signature": {"in_spec": tree(0), "out_spec": tree(0), "names": ["x"]}}],
    },
    "guards_code": ["L['x'].size()[0] >= 2"],
    "torch_version": "2.13.0+cpu",
}
CONFIG = {"config": {"f.weight": {"path_name": "weight_0", "is_param": True, "use_pickle": False}}}


def members(program: Any = PROGRAM, config: Any = CONFIG, **more: bytes) -> dict[str, bytes]:
    found = {
        "m/data/weights/weight_0": bytes(12),
        "m/data/weights/model_weights_config.json": json.dumps(config).encode(),
        "m/data/constants/model_constants_config.json": b'{"config": {}}',
        "m/models/model.json": program if isinstance(program, bytes) else json.dumps(program).encode(),
        "m/archive_format": b"pt2",
        "m/archive_version": b"0",
    }
    return {**found, **{f"m/{name}": content for name, content in more.items()}}


class Bomb:
    """Unpickled by Python it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


# ---------------------------------------------------------------- what a file is


def test_kinds_are_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    state = pickle.dumps(collections.OrderedDict(weight=1))
    assert kind_of(write(tmp_path / "a.onnx", members())) == "export"
    assert kind_of(write(tmp_path / "b", {"serialized_exported_program.json": b"{}", "version": b"8.1"})) == "export"
    assert kind_of(write(tmp_path / "c.dlc", {"c/data.pkl": state, "c/code/__torch__.py": b""})) == "script"
    assert kind_of(write(tmp_path / "d.pt2", {"d/data.pkl": state, "d/version": b"3"})) == "pickle"
    assert kind_of(write(tmp_path / "e.pt", {"x.npy": b""})) is None
    (tmp_path / "f.pt").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + state)
    assert kind_of(tmp_path / "f.pt") == "pickle"
    (tmp_path / "g.pt").write_bytes(b"PK\x03\x04 and then nothing")
    assert kind_of(tmp_path / "g.pt") is None
    assert kind_of(tmp_path / "missing.pt2") is None


def test_a_pytorch_file_does_not_run_itself(tmp_path: Path) -> None:
    # "model..." is how the first member of a DLC is called too
    path = write(tmp_path / "model_a.pt2", {f"model_a/{k[2:]}": v for k, v in members().items()})
    with pytest.raises(ModelError, match="PyTorch") as caught:
        file_kind(path)
    assert "npukit convert" in caught.value.hint


def test_a_state_dict_is_refused_with_advice(tmp_path: Path) -> None:
    path = write(tmp_path / "s.pt", {"s/data.pkl": pickle.dumps({"model": collections.OrderedDict(a=1), "epoch": 3})})
    with pytest.raises(ModelError, match="no program") as caught:
        as_onnx(path)
    assert "load_state_dict" in caught.value.hint
    assert "torch.export" in caught.value.hint


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_bomb_is_named_and_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    path = write(tmp_path / "m.pt", {"m/data.pkl": pickle.dumps(Bomb(mark), protocol)})
    with pytest.raises(ModelError, match=r"pathlib.*not read") as caught:
        as_onnx(path)
    assert "--allow-pickle" in caught.value.hint
    assert not mark.exists()


def test_without_torch_a_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="torch") as caught:
        as_onnx(write(tmp_path / "m.pt2", members()))
    assert "npukit[torch]" in caught.value.hint
    assert caught.value.exit_code == 3


# ---------------------------------------------------------------- hostile archives


def changed(change: Callable[[Any], None]) -> dict[str, bytes]:
    program = copy.deepcopy(PROGRAM)
    change(program)
    return members(program)


def node(program: Any) -> Any:
    return program["graph_module"]["graph"]["nodes"][0]


def signature(program: Any) -> Any:
    return program["graph_module"]["module_call_graph"][0]["signature"]


def set_size(text: str) -> Callable[[Any], None]:
    def change(program: Any) -> None:
        program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text

    return change


def set_target(text: str) -> Callable[[Any], None]:
    return lambda program: node(program).update(target=text)


def hide(name: str) -> Callable[[Any], None]:
    """A tensor named like a field that is not looked into."""

    def change(program: Any) -> None:
        evil = {"sizes": [{"as_expr": {"expr_str": "__import__('os').system('id')"}}], "as_string": "x"}
        program["graph_module"]["graph"]["tensor_values"].update({name: evil, "kind": {}})

    return change


HOSTILE: dict[str, tuple[dict[str, bytes], str]] = {
    "size-that-calls": (changed(set_size("__import__('os').system('id')")), "plain expression"),
    "size-with-attribute": (changed(set_size("Symbol('s0').__class__")), "plain expression"),
    "size-with-lambda": (changed(set_size("(lambda: 1)()")), "plain expression"),
    "size-of-text": (changed(set_size("Symbol('s0 or exit()')")), "plain expression"),
    "hidden-as-metadata": (changed(hide("metadata")), "plain expression"),
    "hidden-as-arg": (changed(hide("arg")), "plain expression"),
    "target-os": (changed(set_target("torch.os.system")), "no operator"),
    "target-load": (changed(set_target("torch.ops.load_library")), "no operator"),
    "target-file": (changed(set_target("torch.ops.aten.from_file.default")), "no operator"),
    "target-extension": (changed(set_target("#evil:op")), "no operator"),
    "target-caller": (changed(set_target("_operator.methodcaller")), "no operator"),
    "name-is-code": (changed(lambda p: node(p).update(name="a): import os #(")), "none that torch.export writes"),
    "input-is-code": (changed(lambda p: p.update(user_inputs=["' or f() or '"])), "none that torch.export writes"),
    "tree-defaultdict": (
        changed(lambda p: signature(p).update(in_spec=tree(0, kind="collections.defaultdict"))),
        "container of type",
    ),
    "tree-enum": (
        changed(lambda p: signature(p).update(in_spec=tree(0, context='[{"__enum__": 1, "fqn": "os:x"}]'))),
        "more than names",
    ),
    "tree-damaged": (changed(lambda p: signature(p).update(in_spec="[1")), "damaged"),
    "weights-pickled": (members(config={"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}), "a pickle"),
    "constants-opaque": (members(**{"data/constants/opaque_obj_0": b"x"}), "pickled object"),
    "weights-legacy": (members(**{"data/weights/model.pt": b"x"}), "old form"),
    "compiled": (members(**{"data/aotinductor/model/a.so": b"x"}), "compiled code"),
    "nested": (members(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deeply"),
    "no-json": (members(b"\xff\xfe"), "not JSON"),
    "a-list": (members(b"[]"), "no object"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_would_run_code_is_refused(tmp_path: Path, name: str) -> None:
    content, text = HOSTILE[name]
    with pytest.raises(NpukitError) as caught:
        archive.check_archive(write(tmp_path / "m.pt2", content), allow_pickle=False)
    assert text in str(caught.value)


def test_a_plain_archive_passes_and_allow_pickle_lets_all_but_compiled_code_pass(tmp_path: Path) -> None:
    archive.check_archive(write(tmp_path / "plain.pt2", members()), allow_pickle=False)
    for name, (content, _) in HOSTILE.items():
        path = write(tmp_path / f"{name}.pt2", content)
        if name == "compiled":
            with pytest.raises(ModelError, match="compiled"):
                archive.check_archive(path, allow_pickle=True)
        else:
            archive.check_archive(path, allow_pickle=True)


@pytest.mark.parametrize(
    "expression",
    ["s40", "Symbol('u0', integer=True)", "2*s1 + 1", "FloorDiv(s0 - 1, 2) + 1", "Max(1, s0//4)", "-s3**2", "s0 < 8"],
)
def test_sizes_that_torch_writes_pass(expression: str, tmp_path: Path) -> None:
    archive.check_archive(write(tmp_path / "m.pt2", changed(set_size(expression))), allow_pickle=False)


def test_a_member_that_leads_out_or_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    outside = write(tmp_path / "out.pt2", {**members(), "../evil": b"x"})
    assert kind_of(outside) is None
    with pytest.raises(NpukitError, match="not a relative path"):
        archive.check_archive(outside, allow_pickle=False)
    bomb = write(tmp_path / "bomb.pt2", members(**{"data/weights/weight_1": bytes(64 << 20)}), zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="unpacks to"):
        archive.check_archive(bomb, allow_pickle=False)


def declared(path: Path, name: str, size: int) -> Path:
    """An archive in whose directory the member `name` is deflated and unpacks to `size`."""
    write(path, {**members(), name: bytes(4 << 20)}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    while bytes(data[at + 46 : at + 46 + len(name)]) != name.encode():
        at = data.index(b"PK\1\2", at + 4)
    data[at + 24 : at + 28] = (size & 0xFFFFFFFF).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def test_files_that_unpack_to_gigabytes_or_hold_millions_of_values_are_refused_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time
    import tracemalloc

    monkeypatch.setattr(kinds, "_MAX_UNPACKED", 8 << 20)
    noise = np.random.default_rng(0).bytes(9 << 20)
    script_file = {"m/data.pkl": b"", "m/code/a.py": b"", "m/data/0": bytes(8 << 20)}
    hostile: list[tuple[Path, str]] = [
        (declared(tmp_path / "far.pt2", "m/data/weights/w", 4_000_000_000), "unpacks to 4000000000"),
        (write(tmp_path / "script.pt", script_file, zipfile.ZIP_DEFLATED), "unpacks to"),
        (write(tmp_path / "values.pt2", members(b'{"a":[' + b"[]," * 5_000_000 + b"0]}")), "values"),
        (write(tmp_path / "ops.pt", {"m/data.pkl": b"\x80\x02" + b"N0" * 2_000_000 + b"."}), "no program"),
        (write(tmp_path / "many.pt2", members(**{"data/weights/w": noise}), zipfile.ZIP_DEFLATED), "members unpack to"),
    ]
    for path, text in hostile:
        tracemalloc.start()
        start = time.monotonic()
        with pytest.raises(NpukitError, match=text):
            as_onnx(path)
        seconds, peak = time.monotonic() - start, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 300e6, path
        assert seconds < 30, path  # tracing makes it some ten times slower


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def __setstate__(self):\n  torch.save(1, 'x')\n", "'save'"),
        ("def forward(self):\n  return torch.from_file ('/etc/passwd')\n", "'from_file'"),
        ("def forward(self):\n  return ops.evil.run()\n", "evil"),
    ],
)
def test_torchscript_that_touches_files_is_refused(tmp_path: Path, code: str, text: str) -> None:
    path = write(tmp_path / "m.pt", {"m/data.pkl": b"N.", "m/code/__torch__.py": code.encode()})
    with pytest.raises(ModelError, match="more than compute") as caught:
        script.check_script(path, allow_pickle=False)
    assert text in str(caught.value)
    script.check_script(path, allow_pickle=True)
    plain = "def forward(self, x):\n  return ops.prim.NumToTensor(torch.add(x, 1))\n"
    script.check_script(
        write(tmp_path / "p.pt", {"m/data.pkl": b"N.", "m/code/a.py": plain.encode()}), allow_pickle=False
    )


def test_what_a_framework_says_is_made_plain() -> None:
    # seen: a graph whose target is a number
    given = "Expected target to be str, got <class 'int'>, see <torch.fx.Node object at 0x7f00>"
    assert plain(given) == "Expected target to be str, got int, see torch.fx.Node"


# ---------------------------------------------------------------- with torch


@pytest.fixture(scope="module")
def network() -> Any:
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 8, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(8)
            self.linear = torch.nn.Linear(8, 4)

        def forward(self, image: Any, scale: Any) -> Any:
            x = torch.relu(self.norm(self.convolution(image))).mean((2, 3))
            return {"logits": self.linear(x), "parts": [x * scale, x], "image": image}

    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture(scope="module")
def saved(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    path = tmp_path_factory.mktemp("torch") / "net.pt2"
    shapes = {"image": {0: torch.export.Dim("batch")}, "scale": None}
    program = torch.export.export(network, (torch.randn(2, 3, 8, 8), torch.randn(1)), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


@needs_torch
def test_an_archive_keeps_its_names_takes_shapes_and_says_how_far_torch_is(saved: Path) -> None:
    made = as_onnx(saved, shapes={"image": (5, 3, 8, 8)})
    assert made is not None
    normalized = load(made.path, LoadOptions(input_shapes={"image": (5, 3, 8, 8)}))
    graph = normalized.model.graph
    assert [value.name for value in graph.inputs] == ["image", "scale"]
    assert [value.name for value in graph.outputs] == ["logits", "parts_0", "parts_1", "image_out"]
    assert list(graph.outputs[0].shape or ()) == [5, 4]
    compared = next(note for note in made.notes if "differ by at most" in note)
    assert not compared.startswith("WARNING")
    assert any("image_out" in note for note in made.notes)
    assert as_onnx(saved, shapes={"image": (5, 3, 8, 8)}) is made
    assert made.digest() == npukit.files.sha256_file(saved)  # type: ignore[attr-defined]


@needs_torch
def test_outputs_in_a_class_of_a_package_that_is_not_there_keep_their_fields(saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved) as source:
        content = {name: source.read(name) for name in source.namelist()}
    model = next(name for name in content if name.endswith("models/model.json"))
    out, kind = b'\\"builtins.dict\\", \\"context\\": \\"[\\\\\\"logits', b"absent.package.Output"
    assert out in content[model]
    content[model] = content[model].replace(out, out.replace(b"builtins.dict", kind))
    made = as_onnx(write(tmp_path / "other.pt2", content), shapes={"image": (1, 3, 8, 8)})
    assert made is not None
    graph = load(made.path, LoadOptions(batch=1)).model.graph
    assert [value.name for value in graph.outputs] == ["logits", "parts_0", "parts_1", "image_out"]


@needs_torch
def test_sample_inputs_that_are_more_than_tensors_are_refused(saved: Path, tmp_path: Path) -> None:
    import io

    import torch

    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save((Bomb(mark),), buffer)
    with zipfile.ZipFile(saved) as source:
        content = {name: source.read(name) for name in source.namelist()}
    sample = next(name for name in content if "sample_inputs" in name)
    path = write(tmp_path / "bad.pt2", {**content, sample: buffer.getvalue()})
    with pytest.raises(ModelError, match="more than tensors"):
        as_onnx(path)
    assert not mark.exists()


@needs_torch
def test_torchscript_needs_shapes_and_finds_out_which_inputs_are_whole_numbers(tmp_path: Path) -> None:
    import torch

    class Table(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(50, 8)

        def forward(self, ids, weights):  # type: ignore[no-untyped-def]
            return self.table(ids) * weights

    path = tmp_path / "table.pt"
    torch.jit.trace(Table().eval(), (torch.zeros(1, 6, dtype=torch.int64), torch.randn(1, 6, 8))).save(str(path))
    with pytest.raises(ModelError) as caught:
        as_onnx(path)
    assert "--input-shape ids=" in str(caught.value)
    made = as_onnx(path, shapes={"ids": (1, 6), "weights": (1, 6, 8)})
    assert made is not None
    assert [value.name for value in load(made.path).model.graph.inputs] == ["ids", "weights"]
    assert any("ids int64, weights float32" in note for note in made.notes)


@needs_torch
def test_what_the_exporter_lacks_or_gets_wrong_is_put_in_other_terms() -> None:
    import shutil

    import torch

    class Rare(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any, y: Any) -> Any:
            pooled = torch.nn.functional.adaptive_avg_pool3d(x.reshape(1, 1, 3, 4, 5), (2, 3, 2))
            return x.squeeze(0), torch.ops.aten.copy(x, y), torch.cdist(x, x, 1.0), torch.pdist(x), pooled

    inputs = (torch.randn(12, 5), torch.randn(5))
    made = pytorch_convert.export_object(Rare().eval(), inputs, None, {}, run=True)
    try:
        note = next(note for note in made.notes if "differ by at most" in note)
        assert float(note.partition("same inputs, ")[2].split()[0]) < 1e-5
    finally:
        shutil.rmtree(made.path.parent)


def giving_a_dict() -> Any:
    """A module with control flow that gives a dict, written so that it can be scripted."""
    import torch

    class Giving(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)

        def forward(self, x, scale):  # type: ignore[no-untyped-def]
            # type: (torch.Tensor, torch.Tensor) -> Dict[str, torch.Tensor]
            y = self.linear(x)
            if x.size(0) > 1:
                y = y * 2
            return {"scaled": y * scale, "plain": y}

    return Giving().eval()


@needs_torch
@pytest.mark.parametrize("how", ["script", "trace", "nested"])
def test_torchscript_that_gives_dicts_and_nested_tuples_keeps_keys_and_values(tmp_path: Path, how: str) -> None:
    import onnxruntime
    import torch

    class Nested(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any, scale: Any) -> Any:
            return x + scale, (x * 2, x * 3)

    inputs = (torch.randn(2, 4), torch.full((1,), 3.0))
    module = giving_a_dict()
    if how == "script":
        saved = torch.jit.script(module)
    else:
        saved = torch.jit.trace(module if how == "trace" else Nested(), inputs, strict=False)
    saved.save(str(tmp_path / "m.pt"))
    made = as_onnx(tmp_path / "m.pt", shapes={"x": (2, 4), "scale": (1,)})
    assert made is not None
    session = onnxruntime.InferenceSession(made.path)
    names = [port.name for port in session.get_outputs()]
    assert names == (["output_0", "output_1_0", "output_1_1"] if how == "nested" else ["scaled", "plain"])
    got = session.run(None, {"x": inputs[0].numpy(), "scale": inputs[1].numpy()})
    expected = torch.utils._pytree.tree_leaves(saved(*inputs))
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert not any(note.startswith("WARNING") or "not compared" in note for note in made.notes)


@needs_torch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_exported(dtype: str) -> None:
    import shutil

    import torch

    kind = getattr(torch, dtype)
    made = pytorch_convert.export_object(
        torch.nn.Linear(4, 3).to(kind), (torch.randn(2, 4).to(kind),), None, {}, run=True
    )
    try:
        model = load(made.path).model
        expected = np.float16 if dtype == "float16" else np.float32
        assert model.graph.inputs[0].dtype is not None
        assert model.graph.inputs[0].dtype.numpy() == expected
        assert any("differ by at most" in note and "WARNING" not in note for note in made.notes)
    finally:
        shutil.rmtree(made.path.parent)


@needs_torch
@pytest.mark.native
def test_a_module_in_memory_becomes_a_verified_dlc(network: Any, tmp_path: Path) -> None:
    import torch

    inputs = {"image": torch.randn(1, 3, 8, 8), "scale": torch.randn(1)}
    network.train()
    result = npukit.convert(network, example_inputs=inputs, output=tmp_path / "net.dlc", target="qnn-cpu", random=1)
    assert network.training
    network.eval()
    assert result.converted.stamp.verified == "yes"
    with npukit.Session(result.path) as session, torch.no_grad():
        got = session.run({name: value.numpy() for name, value in inputs.items()})
        expected = network(**inputs)
    np.testing.assert_allclose(got["logits"], expected["logits"].numpy(), atol=1e-5)
    np.testing.assert_allclose(got["parts_0"], expected["parts"][0].numpy(), atol=1e-5)


@needs_torch
@pytest.mark.native
def test_an_exported_program_in_memory_becomes_a_verified_dlc(network: Any, tmp_path: Path) -> None:
    import torch

    inputs = (torch.randn(2, 3, 8, 8), torch.randn(1))
    shapes = {"image": {0: torch.export.Dim("batch")}, "scale": None}
    fixed = torch.export.export(network, inputs)
    opened = torch.export.export(network, inputs, dynamic_shapes=shapes)
    for program, options, rows in ((fixed, {}, 2), (opened, {"input_shapes": {"image": (3, 3, 8, 8)}}, 3)):
        result = npukit.convert(program, output=tmp_path / "net.dlc", target="qnn-cpu", random=1, **options)
        stamp = result.converted.stamp
        assert stamp.verified == "yes"
        assert [io.name for io in stamp.inputs] == ["image", "scale"]
        assert [io.name for io in stamp.outputs] == ["logits", "parts_0", "parts_1", "image_out"]
        note = next(note for note in result.converted.notes if "differ by at most" in note)
        assert not note.startswith("WARNING")
        image, scale = torch.randn(rows, 3, 8, 8), inputs[1]
        with npukit.Session(result.path) as session, torch.no_grad():
            got = session.run({"image": image.numpy(), "scale": scale.numpy()})
            expected = network(image, scale)
        np.testing.assert_allclose(got["logits"], expected["logits"].numpy(), atol=1e-5)
        np.testing.assert_allclose(got["parts_0"], expected["parts"][0].numpy(), atol=1e-5)


PICKLED = """
import torch


class Table(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(50, 8)
        self.linear = torch.nn.Linear(8, 3)

    def forward(self, ids, weights):
        return {"scores": self.linear(self.table(ids) * weights)}
"""


@needs_torch
@pytest.mark.native
@pytest.mark.parametrize(("way", "zipped"), [("python", True), ("command", False)])
def test_a_pickled_module_is_converted_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, zipped: bool
) -> None:
    import sys

    import torch

    from npukit.cli.main import main

    name = "npukit_pickled_table"
    (tmp_path / f"{name}.py").write_text(PICKLED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of the process that torch runs in
    spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    holder = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, holder)
    spec.loader.exec_module(holder)
    module = holder.Table()
    path, output = tmp_path / "whole.pt", tmp_path / "net.dlc"
    torch.save(module, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=name):
        npukit.convert(path, output=output)
    shapes = {"ids": (1, 6), "weights": (1, 6, 8)}
    if way == "python":
        result = npukit.convert(path, output=output, allow_pickle=True, input_shapes=shapes, target="qnn-cpu", random=1)
        assert any("--allow-pickle" in note for note in result.converted.notes)
        assert result.converted.stamp.verified == "yes"
    else:
        words = [f"--input-shape={key}={','.join(map(str, shape))}" for key, shape in shapes.items()]
        assert main(["convert", str(path), "-o", str(output), "--allow-pickle", "--target", "qnn-cpu", *words]) == 0
    ids, weights = torch.arange(6)[None], torch.randn(1, 6, 8)
    with npukit.Session(output) as session, torch.no_grad():
        got = session.run({"ids": ids.numpy(), "weights": weights.numpy()})["scores"]
        expected = module.eval()(ids, weights)["scores"]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("given", [3, object()])
def test_what_is_no_model_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(NpukitError) as caught:
        npukit.convert(given, output=tmp_path / "x.dlc")
    assert caught.value.exit_code in (2, 3)
