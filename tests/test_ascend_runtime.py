# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The backend acl against the double of pyACL (tests/doubles/acl): a program, not a device.

What it shows is the order of calls, what is freed when, and what is refused before the device; not speed, not the
chip's numbers. Results are computed by onnx's reference implementation.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import npukit
from npukit.artifacts.context import sidecar, sidecar_text
from npukit.artifacts.stamp import IoTensor, Stamp
from npukit.errors import ArtifactError, InputError, MissingDependency, ModelError, NativeError, NpukitError, UsageError
from npukit.files import sha256_file
from npukit.runtime import acl as binding

DOUBLE = Path(__file__).parent / "doubles/acl"


@pytest.fixture
def stand_in(acl):
    return importlib.import_module("stand_in")


def graph(text):
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 14]>\n{text}').SerializeToString()


ADD = graph("g (float16[1,4] x, int32[1] at) => (float16[1,4] y, int32[1] n) { y = Add(x, x)  n = Add(at, at) }")
X, AT = np.array([[1, 2, 3, 4]], np.float16), np.array([3], np.int32)

# One decode step: the row of a cache that this token makes, and the sum of the rows so far.
STEP = graph("""g (float16[8,4] cache, float16[1,4] token) => (float16[1,4] row, float16[4] total)
  <int64[1] zero = {0}> { row = Add(token, token)  total = ReduceSum<keepdims = 0>(cache, zero) }""")


@pytest.fixture
def add(stand_in, tmp_path):
    return stand_in.write(tmp_path / "add.om", ADD, "add")


# ---------------------------------------------------------------- running


@pytest.mark.parametrize("in_process", [True, False])
def test_a_model_runs(add, in_process, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(DOUBLE))
    with npukit.Session(add, in_process=in_process) as session:
        assert (session.backend, session.graph) == ("acl", "add")
        assert session.library == "pyACL on Ascend310P3, device 0"
        assert [(i.name, i.dtype, i.shape) for i in session.inputs] == [("x", "float16", (1, 4)), ("at", "int32", (1,))]
        for _ in range(2):
            outputs = session.run({"x": X, "at": AT})
            assert outputs["y"].tolist() == [[2, 4, 6, 8]]
            assert outputs["n"].tolist() == [6]
        events = {event.name: event.value for event in session.profile(runs=3)}
        assert set(events) == {"run", "copy inputs", "execute", "copy outputs"}


def test_the_bytes_of_a_model_run_from_memory(add, acl):
    with npukit.Session(add.read_bytes(), in_process=True) as session:
        assert session.run({"x": X, "at": AT})["n"].tolist() == [6]
    assert acl.calls["mdl.load_from_mem"] == 1


def test_calls_come_in_the_documented_order(add, acl, monkeypatch):
    order = []
    call = binding.Acl.__call__
    monkeypatch.setattr(
        binding.Acl, "__call__", lambda self, name, *args: (order.append(name), call(self, name, *args))[1]
    )
    with npukit.Session(add, in_process=True) as session:
        session.run({"x": X, "at": AT})
    steps = ["init", "rt.set_device", "rt.create_context", "mdl.load_from_file", "mdl.create_desc", "mdl.get_desc",
             "mdl.create_dataset", "mdl.execute", "mdl.destroy_dataset", "mdl.destroy_desc", "mdl.unload",
             "rt.destroy_context", "rt.reset_device", "finalize"]  # fmt: skip
    assert [order.index(name) for name in steps] == sorted(order.index(name) for name in steps)


def test_sessions_of_one_process_share_the_device(add, acl):
    with npukit.Session(add, in_process=True) as one:
        with npukit.Session(add, in_process=True) as two:
            assert acl.live()["contexts"] == 1
            two.run({"x": X, "at": AT})
        one.run({"x": X, "at": AT})
    with npukit.Session(add, in_process=True) as again:  # begun anew after the end
        again.run({"x": X, "at": AT})
    assert acl.calls["init"] == acl.calls["finalize"] == 2


def test_who_initialized_acl_finalizes_it(add, acl):
    assert acl.init() == 0
    with npukit.Session(add, in_process=True) as session:
        session.run({"x": X, "at": AT})
    assert acl.live() == {"initialized": 1}
    assert acl.finalize() == 0


def test_any_thread_may_run_and_close(add):
    session = npukit.Session(add, in_process=True)
    future = session.run_async({"x": X, "at": AT})
    assert future.result()["n"].tolist() == [6]
    thread = threading.Thread(target=session.close)
    thread.start()
    thread.join()


# ---------------------------------------------------------------- buffers on the device


def test_a_thousand_decode_steps_leak_nothing(stand_in, acl, tmp_path):
    """The cache stays on the device: a step sends a token, copies one row there, and fetches the total."""
    path = stand_in.write(tmp_path / "step.om", STEP)
    cache = np.zeros((8, 4), np.float16)
    with npukit.Session(path, in_process=True) as session:
        binding = session.bind(resident=("cache", "row"))
        binding.write("cache", cache)
        held, copies = acl.live(), acl.calls["rt.memcpy"]
        for step in range(1000):
            token = np.full((1, 4), step % 7, np.float16)
            binding.inputs["token"][...] = token
            binding.run()
            assert np.array_equal(binding.outputs["total"], cache.sum(0, dtype=np.float16))
            binding.copy("row", "cache", row=step % 8)
            cache[step % 8] = 2 * token
        assert acl.live() == held
        assert acl.calls["rt.memcpy"] - copies == 3 * 1000  # the token in, the total out, the row within
        assert np.array_equal(binding.read("row"), 2 * token)


def test_a_prompt_s_cache_goes_to_the_decoder_on_the_device(stand_in, acl, tmp_path):
    prefill = stand_in.write(tmp_path / "p.om", graph("g (float16[5,4] x) => (float16[5,4] kv) { kv = Neg(x) }"))
    step = stand_in.write(tmp_path / "s.om", STEP)
    x = np.arange(20, dtype=np.float16).reshape(5, 4)
    with npukit.Session(prefill, in_process=True) as first, npukit.Session(step, in_process=True) as second:
        prompt, decoder = first.bind(resident=("kv",)), second.bind(resident=("cache",))
        prompt.write("x", x)
        prompt.run()
        copies = acl.calls["rt.memcpy"]
        decoder.copy("kv", "cache", row=2, source=prompt)
        assert acl.calls["rt.memcpy"] - copies == 1
        decoder.run()
        assert np.array_equal(decoder.read("total"), -x.sum(0))
        for other in (first.bind(), second.bind()):  # what does not stay goes through the host, with one result
            assert other.resident == frozenset()
        plain = second.bind(resident=("cache",))
        through = first.bind()
        through.write("x", x)
        through.run()
        plain.copy("kv", "cache", row=1, source=through)
        plain.run()
        assert np.array_equal(plain.read("total"), -x.sum(0))


@pytest.mark.parametrize("backend", ["ort", "acl"])
@pytest.mark.parametrize("in_process", [True, False])
def test_copies_are_the_same_on_every_backend(backend, in_process, stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(DOUBLE))
    model = STEP if backend == "ort" else stand_in.write(tmp_path / "s.om", STEP)
    with npukit.Session(model, backend=backend, in_process=in_process) as session:
        for stays in ((), ("cache", "row"), ("cache",), ("row",), ("cache", "token", "row", "total")):
            binding = session.bind(resident=stays)
            binding.write("cache", np.zeros((8, 4), np.float16))
            for step in range(3):
                binding.write("token", np.full((1, 4), step + 1, np.float16))
                binding.run()
                binding.copy("row", "cache", row=step)
            binding.run()
            assert binding.read("total").tolist() == [12, 12, 12, 12], stays


def test_copies_that_do_not_fit_are_refused(stand_in, tmp_path):
    with npukit.Session(stand_in.write(tmp_path / "s.om", STEP), in_process=True) as session:
        binding = session.bind(resident=("cache", "row"))
        for row in (-1, 8):
            with pytest.raises(UsageError, match="which has 8"):
                binding.copy("row", "cache", row=row)
        with pytest.raises(UsageError, match="must be equal"):
            binding.copy("total", "cache")
        with pytest.raises(InputError, match="no such output"):
            binding.copy("rows", "cache")
        with pytest.raises(InputError, match="no such input"):
            binding.copy("row", "caches")
        with pytest.raises(InputError, match="do not exist"):
            session.bind(resident=("kv",))


# ---------------------------------------------------------------- gears


def test_dynamic_dims_choose_the_gear(stand_in, tmp_path):
    model = graph("""g (int32[1,N] ids) => (float16[1,N,2] out) <int64[1] a = {2}>
      { e = Cast<to = 10>(ids)  f = Unsqueeze(e, a)  out = Concat<axis = 2>(f, f) }""")
    path = stand_in.write(tmp_path / "e.om", model, dynamic_dims=[[1, 1], [1, 32]])
    with npukit.Session(path, in_process=True) as session:
        assert session.inputs[0].shape == (1, None)
        assert session.notes == ["gear 1 of 2: [1, 1]", "gear 2 of 2: [1, 32]"]
        for count in (32, 1, 32):
            ids = np.arange(count, dtype=np.int32)[None]
            out = session.run({"ids": ids})["out"]
            assert np.array_equal(out, np.stack([ids, ids], 2).astype(np.float16))
        with pytest.raises(InputError, match=r"not compiled for ids \[1, 7\]") as caught:
            session.run({"ids": np.zeros((1, 7), np.int32)})
        assert len(caught.value.faults) == 2
        with pytest.raises(UsageError, match="every shape is fixed"):
            session.bind()


@pytest.mark.parametrize(("gears", "shapes"), [
    ({"dynamic_batch": [1, 4]}, [(1, 3), (4, 3)]),
    ({"dynamic_hw": [[2, 3], [4, 5]]}, [(2, 3), (4, 5)]),
])  # fmt: skip
def test_batches_and_image_sizes_are_gears_too(gears, shapes, stand_in, tmp_path):
    dims = "N,3" if "dynamic_batch" in gears else "H,W"
    path = stand_in.write(
        tmp_path / "b.om", graph(f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Neg(x) }}"), **gears
    )
    with npukit.Session(path, in_process=True) as session:
        for shape in shapes:
            assert np.array_equal(session.run({"x": np.ones(shape, np.float32)})["y"], -np.ones(shape))
        with pytest.raises(InputError, match="not compiled for"):
            session.run({"x": np.ones((3, 3), np.float32)})


def test_open_shapes_without_gears_are_refused(acl, stand_in, tmp_path, monkeypatch):
    path = stand_in.write(tmp_path / "o.om", graph("g (float[1,3] x) => (float[1,3] y) { y = Neg(x) }"))
    monkeypatch.setattr(acl._Model, "gives", lambda self: [(n, t, [-1, 3], 12) for n, t, _ in self.outputs])
    with pytest.raises(ModelError, match="open shapes"):
        npukit.Session(path, in_process=True)


# ---------------------------------------------------------------- errors


CALLS = ["init", "rt.set_device", "rt.create_context", "rt.get_run_mode", "mdl.load_from_file", "mdl.create_desc",
         "mdl.get_desc", "mdl.get_input_dims", "mdl.get_output_dims", "mdl.create_dataset", "mdl.create_dataset@2",
         "rt.malloc", "rt.malloc@3", "create_data_buffer", "create_data_buffer@4", "mdl.add_dataset_buffer@2",
         "rt.memcpy", "rt.memcpy@2", "rt.memcpy@4", "mdl.execute"]  # fmt: skip


@pytest.mark.parametrize("where", CALLS)
def test_an_error_at_any_call_leaves_nothing_behind(where, add, acl, monkeypatch):
    name, _, number = where.partition("@")
    monkeypatch.setenv("ACL_DOUBLE_FAIL", f"{name}=507011@{number or 1}")
    with pytest.raises(NativeError, match=re.escape(name)) as caught, npukit.Session(add, in_process=True) as session:
        session.run({"x": X, "at": AT})
    assert f"told to fail in {name}" in str(caught.value)
    if name not in ("mdl.create_desc", "mdl.create_dataset", "create_data_buffer"):  # these give no code
        assert "507011, the model failed on the AI Core" in str(caught.value)
    # the fixture looks whether anything is left


@pytest.mark.parametrize(
    "name", ["rt.free", "destroy_data_buffer", "mdl.destroy_dataset", "mdl.destroy_desc", "mdl.unload"]
)
def test_an_error_while_closing_is_told_and_the_rest_is_freed(name, add, acl, monkeypatch):
    session = npukit.Session(add, in_process=True)
    session.run({"x": X, "at": AT})
    monkeypatch.setenv("ACL_DOUBLE_FAIL", f"{name}=107000@1")
    with pytest.raises(NativeError, match=re.escape(name)):
        session.close()
    left = acl.live()
    assert sum(left.get(kind, 0) for kind in ("devices", "contexts", "initialized")) == 0
    assert sum(left.get(kind, 0) for kind in ("allocations", "buffers", "datasets", "descs", "models")) == 1
    for table in (acl._s.memory, acl._s.buffers, acl._s.datasets, acl._s.descs, acl._s.models):
        table.clear()  # the one that the double refused to free
    acl.violations.clear()


@pytest.mark.parametrize("where", ["rt.malloc@3", "mdl.create_dataset@2", "rt.memcpy@1"])
def test_a_binding_that_cannot_be_made_leaves_nothing_on_the_device(where, stand_in, acl, tmp_path, monkeypatch):
    with npukit.Session(stand_in.write(tmp_path / "s.om", STEP), in_process=True) as session:
        held = acl.live()
        monkeypatch.setenv("ACL_DOUBLE_FAIL", where.replace("@", "=207001@"))
        with pytest.raises(NativeError):
            session.bind(resident=("cache",))
        assert acl.live() == held
        monkeypatch.delenv("ACL_DOUBLE_FAIL")
        session.bind(resident=("cache",)).run()


def test_a_full_device_says_so(add, acl, monkeypatch):
    monkeypatch.setenv("ACL_DOUBLE_MEMORY", "100")
    with pytest.raises(NativeError, match="the device's memory is full") as caught:
        npukit.Session(add, in_process=True)
    assert "npu-smi" in caught.value.hint


def test_wrong_inputs_do_not_reach_the_device(add, acl):
    with npukit.Session(add, in_process=True) as session:
        session.run({"x": X, "at": AT})
        copies, runs = acl.calls["rt.memcpy"], acl.calls["mdl.execute"]
        wrong = [{"x": X}, {"x": X[0], "at": AT}, {"x": X, "at": AT.astype(np.float32)}, {"x": "a", "at": AT},
                 {"x": X, "at": AT, "z": X}, {"x": X, "at": np.array([2**40])}]  # fmt: skip
        for feeds in wrong:
            with pytest.raises(InputError):
                session.run(feeds)
        assert (acl.calls["rt.memcpy"], acl.calls["mdl.execute"]) == (copies, runs)


def test_broken_files_do_not_reach_the_device(add, acl, tmp_path):
    data = add.read_bytes()
    for broken in (data[:-1], data + b"x", data[:300], b"IMOD"):
        path = tmp_path / "broken.om"
        path.write_bytes(broken)
        with pytest.raises(ArtifactError):
            npukit.Session(path, in_process=True)
    assert not acl.calls


def test_a_model_that_cann_refuses(add, stand_in, tmp_path):
    path = tmp_path / "foreign.om"
    path.write_bytes(stand_in.build([(0, b"no stand-in"), (1, b"")]))
    with pytest.raises(NativeError, match="145006"):
        npukit.Session(path, in_process=True)


def test_another_device_and_another_chip(add, monkeypatch):
    monkeypatch.setenv("NPUKIT_ASCEND_DEVICE", "3")
    with pytest.raises(NativeError, match="there is no such device"):
        npukit.Session(add, in_process=True)
    monkeypatch.setenv("NPUKIT_ASCEND_DEVICE", "first")
    with pytest.raises(UsageError, match="not the number"):
        npukit.Session(add, in_process=True)
    monkeypatch.setenv("NPUKIT_ASCEND_DEVICE", "0")
    with pytest.raises(UsageError, match="the device is Ascend310P3, not Ascend310P1"):
        npukit.Session(add, in_process=True, target="ascend310p1")
    npukit.Session(add, in_process=True, target="ascend310p3").close()


def test_without_pyacl_it_says_what_is_missing(tmp_path):
    path = tmp_path / "a.om"
    spec = importlib.util.spec_from_file_location("stand_in_alone", DOUBLE / "stand_in.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    builder.write(path, ADD)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "npukit", "run", str(path), "--random", "1"], env=variables, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "pyACL cannot be imported" in done.stderr
    assert "CANN" in done.stderr
    with pytest.raises(MissingDependency):
        binding.version()


def test_another_module_of_that_name_is_not_taken(tmp_path, monkeypatch):
    (tmp_path / "acl.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "acl", raising=False)
    with pytest.raises(MissingDependency, match="is not CANN's pyACL"):
        binding.load()
    sys.modules.pop("acl", None)


# ---------------------------------------------------------------- the stamp


def io(name, dtype, tensor, held, **more):
    shape = (1, 4) if tensor in ("x", "y") else (1,)
    return IoTensor(name, dtype, shape, tensor, held, **more)


PORTS = {
    "inputs": (io("image", "float32", "x", "FLOAT_16"), io("at", "int64", "at", "INT_32", narrowed=True)),
    "outputs": (io("scores", "float32", "y", "FLOAT_16"), io("n", "int64", "n", "INT_32")),
}
SAME = {
    "inputs": (io("x", "float32", "x", "FLOAT_16"), io("at", "int32", "at", "INT_32")),
    "outputs": (io("y", "float32", "y", "FLOAT_16"), io("n", "int32", "n", "INT_32")),
}


def stamped(path, ports=PORTS, **changes):
    stamp = Stamp("0.1", source_name="m.onnx", targets=("ascend310p3",), **{**ports, **changes})
    sidecar(path).write_text(sidecar_text(stamp, sha256_file(path)))


def test_a_stamped_model_speaks_the_source_s_names(add):
    stamped(add)
    with npukit.Session(add, in_process=True) as session:
        outputs = session.run({"image": X.astype(np.float32), "at": np.array([3], np.int64)})
        assert (outputs["scores"].dtype, outputs["n"].dtype) == (np.float32, np.int64)
        assert outputs["scores"].tolist() == [[2, 4, 6, 8]]
        with pytest.raises(InputError, match="outside"):
            session.run({"image": X, "at": np.array([2**40], np.int64)})


def test_tensors_that_atc_named_otherwise_are_known_by_their_place(stand_in, tmp_path):
    path = stand_in.write(
        tmp_path / "r.om", ADD, input_names=["Data_0", "Data_1"], output_names=["Add_0:0:y", "Add_1:0:n"]
    )
    with npukit.Session(path, in_process=True) as session:
        assert [o.name for o in session.outputs] == ["y", "n"]
        assert [i.name for i in session.inputs] == ["Data_0", "Data_1"]
    stamped(path)
    with npukit.Session(path, in_process=True) as session:
        assert [i.name for i in session.inputs] == ["image", "at"]
        assert session.run({"image": X, "at": AT})["scores"].tolist() == [[2, 4, 6, 8]]


def test_a_stamp_of_another_file_or_chip_is_refused(add):
    stamped(add)
    add.write_bytes(add.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtifactError, match="belongs to another file"):
        npukit.Session(add, in_process=True)
    stamped(add, options={"soc_version": "Ascend310B4"})
    with pytest.raises(UsageError, match="compiled for Ascend310B4"):
        npukit.Session(add, in_process=True)


# ---------------------------------------------------------------- the verbs


def test_verify_against_the_source(stand_in, acl, tmp_path):
    source = tmp_path / "m.onnx"
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 14]>
      g (float[1,4] x, int32[1] at) => (float[1,4] y, int32[1] n) { y = Add(x, x)  n = Add(at, at) }""")
    onnx.save(model, source)
    path = stand_in.write(tmp_path / "m.om", ADD)
    ranges = {"at": (0.0, 9.0)}
    bare = npukit.verify(path, against=source, in_process=True, input_ranges=ranges)
    assert (bare.exit_code, bare.precision, bare.backend) == (0, "float16", "acl")
    assert any("no stamp" in note for note in bare.notes)
    stamped(path, SAME)
    assert npukit.verify(path, against=source, in_process=True, input_ranges=ranges).exit_code == 0
    wrong = graph("g (float16[1,4] x, int32[1] at) => (float16[1,4] y, int32[1] n) { y = Neg(x)  n = Add(at, at) }")
    stand_in.write(path, wrong)
    stamped(path, SAME)
    assert npukit.verify(path, against=source, in_process=True, input_ranges=ranges).exit_code == 1


def test_run_in_a_worker_gives_everything_back(add, tmp_path, monkeypatch):
    report = tmp_path / "report.json"
    variables = {**os.environ, "PYTHONPATH": str(DOUBLE), "ACL_DOUBLE_REPORT": str(report)}
    command = [sys.executable, "-m", "npukit", "run", str(add), "--random", "3", "--input-range", "at=0:9", "--json"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backend"] == "acl"
    found = json.loads(report.read_text())
    assert (found["live"], found["violations"], found["calls"]["mdl.execute"]) == ({}, [], 3)


def test_other_backends_do_not_take_om_files(add):
    with pytest.raises(UsageError, match=r"an Ascend .om file cannot run on ort"):
        npukit.Session(add, backend="ort")
    with pytest.raises(NpukitError):
        npukit.Session(ADD, backend="acl")


# ---------------------------------------------------------------- the double itself


def test_the_double_refuses_what_a_device_would_not_forgive(acl):
    """Wrong order, unknown handles, second frees, wrong types: else the tests above would show nothing."""
    code = acl.ERRORS
    assert acl.rt.set_device(0) == code["not initialized"]
    assert acl.finalize() == code["not initialized"]
    assert acl.init() == 0
    assert acl.init() == code["initialized twice"]
    assert acl.rt.malloc(4, 0) == (None, code["no context"])
    assert acl.rt.set_device(7) == code["no device"]
    assert acl.rt.set_device(0) == 0
    pointer, ret = acl.rt.malloc(4, 0)
    assert ret == 0
    assert acl.rt.memcpy(pointer, 8, pointer, 8, 3) == code["unknown address"]
    assert acl.rt.free(pointer) == 0
    assert acl.rt.free(pointer) == code["unknown address"]
    assert acl.mdl.load_from_file("/nowhere.om") == (None, code["no such file"])
    assert acl.mdl.execute(1, 2, 3) == code["unknown model"]
    assert acl.mdl.get_input_dims(5, 0) == ({}, code["unknown handle"])
    with pytest.raises(TypeError):
        acl.rt.malloc("4", 0)
    with pytest.raises(TypeError):
        acl.rt.malloc(4)
    with pytest.raises(AttributeError):
        acl.mdl.unknown()
    assert acl.rt.reset_device(0) == 0
    assert acl.finalize() == 0
    assert acl.finalize() == code["finalized twice"]
    acl.init()
    acl.rt.set_device(0)
    acl.rt.malloc(4, 0)
    acl.rt.reset_device(0)
    acl.finalize()
    assert acl.violations == ["reset_device with allocations", "finalize with 1 allocations", "finalize with 4 bytes"]
    acl.violations.clear()
    acl._s.memory.clear()


def test_every_line_of_the_double_says_where_it_is_documented():
    for name in ("calls.tsv", "errors.tsv", "dtypes.tsv"):
        lines = [line for line in (DOUBLE / name).read_text().splitlines() if line and not line.startswith("#")]
        assert all(re.search(r"\[(H|RT|GE|SAMP)\b", line.split("\t")[-1]) for line in lines), name


def test_the_double_and_the_product_do_not_know_each_other():
    for file in DOUBLE.glob("*.py"):
        assert not re.search(r"^\s*(import|from) npukit", file.read_text(), re.M)
    source = Path(npukit.__file__).parent
    for file in (source / "runtime").glob("*.py"):
        assert "doubles" not in file.read_text()
