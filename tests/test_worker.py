# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The worker process: values, errors, deaths, limits, and the places it must work in."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npukit import _wire, log, worker
from npukit.errors import Fault, InputError, ModelError, UsageError, WorkerDied
from npukit.qnn.graph import DType, Encoding, Graph, Op, Param, Tensor, TensorKind
from npukit.worker import Pool, RemoteFault, Worker

DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"

ECHO = "npukit._probe:echo"
linux = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc as Linux has them")


@pytest.fixture(scope="module")
def shared():
    with Worker(timeout=20) as one:
        yield one


def there_and_back(value, folder):
    stream = io.BytesIO()
    _wire.send(stream, {"v": value}, str(folder))
    stream.seek(0)
    frame = _wire.receive(stream)
    assert frame is not None
    return _wire.decode(*frame)["v"]


# ---------------------------------------------------------------- values

json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner, max_size=4)
        | st.frozensets(st.integers() | st.text(), max_size=4)
    ),
    max_leaves=12,
)


@given(json_like)
@settings(max_examples=150, deadline=None)
def test_plain_values_come_back_equal(tmp_path_factory, value):
    back = there_and_back(value, tmp_path_factory.getbasetemp())
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::2],
        np.array(3.5, np.float16),
        np.zeros((0, 3), np.uint8),
        np.array([True, False]),
        np.array([1 + 2j], np.complex64),
        np.array([1.5, -2], ml_dtypes.bfloat16),
        np.array([1, -8], ml_dtypes.int4),
        np.array([0.5], ml_dtypes.float8_e4m3fn),
        np.array(["a", "ä"], dtype=object),
        np.array(["ab", "c"]),
        np.array([1, 2], ">i4"),
    ],
    ids=lambda a: f"{a.dtype}-{a.shape}",
)
def test_arrays_come_back_equal(array, tmp_path):
    back = there_and_back(array, tmp_path)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)


def test_big_arrays_go_through_a_file_that_does_not_stay(shared):
    array = np.random.default_rng(0).integers(0, 255, (3, 1 << 20), dtype=np.uint8)
    (back, small), _ = shared.call(ECHO, array, np.arange(3))
    assert np.array_equal(back, array)
    assert small.tolist() == [0, 1, 2]
    back[0, 0] = 7  # fresh and writable
    assert [name for name in os.listdir(shared.folder) if name != "note"] == []


def test_identity_within_a_graph_survives(shared):
    x = Tensor("x", DType.FLOAT_32, (2,), TensorKind.APP_WRITE)
    w = Tensor("w", DType.FLOAT_32, (2,), TensorKind.STATIC, Encoding.per_tensor(0.5), np.ones(2, np.float32))
    y = Tensor("y", DType.FLOAT_32, (2,), TensorKind.APP_READ)
    op = Op("add", "ElementWiseAdd", [x, None, w], [y], {"axis": Param(DType.UINT_32, 1)}, origin=("n",))
    (graph,), _ = shared.call(ECHO, Graph("g", [x], [y], [op]))
    assert graph.ops[0].inputs[0] is graph.inputs[0]
    assert graph.ops[0].outputs[0] is graph.outputs[0]
    assert graph.ops[0].inputs[1] is None
    got = graph.ops[0].inputs[2]
    assert (got.name, got.dtype, got.kind, got.encoding) == ("w", DType.FLOAT_32, TensorKind.STATIC, w.encoding)
    assert isinstance(got.dtype, DType)
    assert np.array_equal(got.data, w.data)


@pytest.mark.parametrize(
    "value", [object(), lambda: 0, np.array([object()]), Path], ids=["object", "function", "object array", "class"]
)
def test_what_cannot_travel_is_refused_and_harms_nothing(shared, value):
    with pytest.raises(TypeError, match="cannot be sent"):
        shared.call(ECHO, value)
    assert shared.call(ECHO, 1) == ((1,), {})


@pytest.mark.parametrize(
    "header",
    [b"{}", b"[]", b"\xff", b'{"m":{"q":1},"n":[]}', b'{"m":{"c":[0,"os:system",{}]},"n":[]}',
     b'{"m":{"c":[0,"npukit.worker:Worker",{}]},"n":[]}', b'{"m":{"x":["npukit.worker:call","","","",[]]},"n":[]}'],
)  # fmt: skip
def test_frames_that_are_none_are_refused(header):
    stream = io.BytesIO(len(header).to_bytes(4, "little") + header)
    with pytest.raises(_wire.WireError):
        _wire.decode(*_wire.receive(stream))


def test_only_functions_of_npukit_are_run(shared):
    with pytest.raises(UsageError, match="cannot be run in a worker"):
        shared.call("os:getpid")
    with pytest.raises(RemoteFault, match="there is no"):
        shared.call("npukit._probe:nothing")


# ---------------------------------------------------------------- errors


def test_errors_of_npukit_come_back_as_they_were(shared):
    with pytest.raises(ModelError) as caught:
        shared.call("npukit._probe:refuse")
    assert caught.value.to_json() == {
        "code": "model",
        "exit_code": 2,
        "what": "two nodes cannot be",
        "where": "m.onnx",
        "hint": "change them",
        "faults": [{"what": "a", "where": "n1", "hint": "h"}, {"what": "b", "where": "", "hint": ""}],
    }


def test_an_error_can_be_an_argument(shared):
    error = InputError("x", where="y", faults=[Fault("a")])
    (back,), _ = shared.call(ECHO, error)
    assert (type(back), str(back)) == (InputError, str(error))


def test_other_exceptions_are_faults_with_the_traceback_there(shared):
    with pytest.raises(RemoteFault, match="ZeroDivisionError: by intent") as caught:
        shared.call("npukit._probe:fault")
    assert "in fault" in caught.value.traceback
    with pytest.raises(FileNotFoundError) as missing:
        shared.call("npukit._probe:no_file")
    assert missing.value.filename == "absent.onnx"


# ---------------------------------------------------------------- deaths and limits


@linux
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGFPE"])
def test_a_crash_names_the_signal_the_call_and_the_native_call(name):
    with Worker() as one:
        with pytest.raises(WorkerDied) as caught:
            one.call("npukit._probe:die", name)
        text = str(caught.value)
        assert name in text
        assert text.startswith("_probe:die")
        assert "during graphFinalize 'probe'" in text
        assert "native line before the end" in text
        assert caught.value.exit_code == 3
        assert not one.alive
        assert not os.path.exists(one.folder)
        with pytest.raises(WorkerDied, match="has ended"):
            one.call(ECHO)


def test_an_exit_is_a_death():
    with Worker() as one, pytest.raises(WorkerDied, match="ended by itself with status 7"):
        one.call("npukit._probe:leave", 7)


def test_a_hang_is_ended():
    with Worker() as one:
        start = time.monotonic()
        with pytest.raises(WorkerDied, match=r"no answer within 2 s .* during graphExecute 'probe'"):
            one.call("npukit._probe:hang", 60, timeout=2)  # room for the child's note on a busy machine
        assert time.monotonic() - start < 20
        assert not one.alive


def test_reading_that_loops_is_ended_by_the_worker_itself():
    with Worker() as one:
        one.call("npukit._probe:hang", 0.01, limit=0.5)
        time.sleep(0.6)  # a limit that was kept does nothing later
        assert one.alive
        with pytest.raises(WorkerDied, match=r"took too long and was ended during graphExecute 'probe'"):
            one.call("npukit._probe:hang", 60, limit=0.5)
    with worker.at_most(0.01):  # outside of a worker there is nobody to tell
        time.sleep(0.05)
    assert worker.reading_limit(10**9) > worker.reading_limit(0) >= 30


@linux
def test_the_memory_limit_holds():
    with Worker(memory_limit=100 << 20) as one:
        assert one.call("npukit._probe:allocate", 32 << 20) == 2
        with pytest.raises(WorkerDied, match="more than the 100 MiB it may"):
            one.call("npukit._probe:allocate", 2 << 30)


def test_notes_are_of_the_last_call_only():
    with Worker() as one:
        one.call("npukit._probe:hang", 0)
        with pytest.raises(WorkerDied) as caught:
            one.call("npukit._probe:leave", 1)
        assert "graphExecute" not in str(caught.value)


def test_closing_is_idempotent_and_leaves_nothing():
    one = Worker()
    pid, folder = one.call("npukit._probe:pid"), one.folder
    one.close()
    one.close()
    assert not os.path.exists(folder)
    assert not alive(pid)


@linux
def test_a_forgotten_worker_ends():
    one = Worker()
    pid = one.call("npukit._probe:pid")
    del one
    gc.collect()
    assert gone(pid)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pid, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not alive(pid):
            return True
        time.sleep(0.02)
    return False


# ---------------------------------------------------------------- output, logging, progress


def test_what_native_code_prints_becomes_debug_records(shared, caplog, capfd):
    with caplog.at_level(logging.DEBUG, logger="npukit"):
        shared.call("npukit._probe:speak", "hello")
        end = time.monotonic() + 3
        while "hello on 2" not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)
    found = {(r.name, r.levelno, r.getMessage()) for r in caplog.records}
    assert ("npukit.native", logging.DEBUG, "hello on 1") in found
    assert ("npukit.native", logging.DEBUG, "hello on 2") in found
    assert ("npukit.probe", logging.WARNING, "hello logged") in found
    assert capfd.readouterr().out == ""


def test_progress_arrives_here(shared):
    seen = []
    assert shared.call("npukit._probe:work", 4, progress=lambda what, share: seen.append((what, share))) == 4
    assert seen == [("working", 0.25), ("working", 0.5), ("working", 0.75), ("working", 1.0)]


def test_the_worker_imports_only_what_the_function_needs():
    found = worker.call("npukit._probe:modules", timeout=20)
    assert not {"numpy", "onnx", "onnxruntime", "multiprocessing", "asyncio"} & set(found)


def test_sympy_is_loaded_only_when_a_symbol_is_computed_with():
    assert worker.call("npukit._probe:symbolic", timeout=60) == (True, "n + 1")


# ---------------------------------------------------------------- where it must work


def test_calls_from_threads_queue(shared):
    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(lambda i: shared.call(ECHO, np.full(5, i)), range(40)))
    assert [int(args[0][0]) for args, _ in results] == list(range(40))


SCRIPT = """
from npukit import worker
import numpy as np
(a,), _ = worker.call("npukit._probe:echo", np.arange(3))
print("got", a.tolist())
"""


def run_python(arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, **options)


def test_a_script_without_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # a file named like a module of the standard library must not get into the worker's way
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    done = run_python(["-P", str(script)], cwd=tmp_path)
    assert done.stdout == "got [0, 1, 2]\n"
    assert done.returncode == 0


def test_as_in_a_notebook():
    # A notebook's cells run in a module without a file, inside a running event loop, with a replaced stdout.
    cell = f"""
import asyncio, io, sys
async def kernel():
    shown = io.StringIO()
    sys.stdout, real = shown, sys.stdout
    exec(compile({SCRIPT!r}, "<ipython-input-1>", "exec"), {{"__name__": "__main__"}})
    sys.stdout = real
    print(shown.getvalue().strip())
asyncio.run(kernel())
"""
    done = run_python(["-c", cell])
    assert done.stdout == "got [0, 1, 2]\n"


@linux
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_worker_ends_with_its_parent(how):
    code = (
        "from npukit.worker import Worker\n"
        "w = Worker()\n"
        "print(w.call('npukit._probe:pid'), w.folder, flush=True)\n"
        "w.call('npukit._probe:hang', 60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pid, folder = parent.stdout.readline().split()
    time.sleep(0.1)
    parent.send_signal(how)
    _, errors = parent.communicate(timeout=20)
    assert gone(int(pid))
    assert not os.path.exists(folder)
    if how == signal.SIGINT:
        assert "KeyboardInterrupt" in errors


@linux
def test_a_worker_that_can_do_nothing_ends_after_its_parent_too():
    code = (
        "from npukit.worker import Worker\n"
        "w = Worker()\n"
        "print(w.call('npukit._probe:pid'), flush=True)\n"
        "w.call('npukit._probe:seize', 60, 0.5)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait(20)
    parent.stdout.close()
    assert gone(pid, 0.5 + worker._ALARM_SECONDS + 5)


@linux
@pytest.mark.native
@pytest.mark.slow
def test_a_worker_that_compiles_ends_with_its_parent(tmp_path):
    _deep_model(tmp_path / "deep.onnx")
    code = (
        "import npukit\n"
        "npukit.convert('deep.onnx', output='deep.dlc', target='sm8650', verify=False)\n"
        "print('compiling', flush=True)\n"
        "npukit.compile('deep.dlc', output='deep.bin', target='sm8650')\n"
        "print('done', flush=True)\n"
    )
    command = [sys.executable, "-c", code]
    parent = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "compiling\n"
    child = _child_that_says(parent.pid, b"graphFinalize")
    parent.kill()
    parent.wait(20)
    assert parent.stdout.read() == ""  # it was killed before the end
    parent.stdout.close()
    assert gone(child, 3.0)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".bin"] == []


def _deep_model(path: Path) -> None:
    """A stack of convolutions that libQnnHtp compiles for several seconds."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.05, (64, 64, 3, 3)).astype(np.float32), f"w{i}") for i in range(300)
    ]
    nodes = [helper.make_node("Conv", [f"t{i}", f"w{i}"], [f"t{i + 1}"], pads=[1] * 4) for i in range(len(weights))]
    ends = [helper.make_tensor_value_info(name, 1, [1, 64, 112, 112]) for name in ("t0", f"t{len(weights)}")]
    graph = helper.make_graph(nodes, "deep", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _child_that_says(parent: int, words: bytes) -> int:
    """The child of a process whose note of its native call begins with `words`, waited for."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            arguments = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            folder = Path(arguments[-2].decode()) if len(arguments) > 2 else Path()
            with contextlib.suppress(OSError):
                if words in (folder / "note").read_bytes():
                    return int(child)
        time.sleep(0.01)
    raise AssertionError("the worker never came to it")


# ---------------------------------------------------------------- pool


def test_the_pool_replaces_only_the_dead():
    with Pool(1, timeout=20) as pool:
        first = pool.call("npukit._probe:pid")
        assert pool.call("npukit._probe:pid") == first
        with pytest.raises(ModelError):
            pool.call("npukit._probe:refuse")
        assert pool.call("npukit._probe:pid") == first
        with pytest.raises(WorkerDied):
            pool.call("npukit._probe:leave", 1)
        assert pool.call("npukit._probe:pid") != first
        assert pool.started == 2


def test_the_pool_works_in_parallel():
    with Pool(2) as pool:
        results = [f.result()[0][0] for f in pool.map(ECHO, [(i,) for i in range(12)])]
        assert results == list(range(12))
        assert pool.started <= 2
    with pytest.raises(UsageError, match="closed"):
        pool.call(ECHO)


def test_notes_cost_nothing_outside_a_worker():
    assert not worker.in_worker()
    worker.note("nothing")


def test_no_thread_is_left_behind():
    before = threading.active_count()
    for _ in range(3):
        with Worker() as one:
            one.call(ECHO)
    assert threading.active_count() <= before


# --- what the libraries print ---


def test_a_bar_is_progress_and_no_log_line(caplog) -> None:
    told: list[tuple[str, float]] = []
    ear = worker._Ear()
    ear.sink = lambda what, share: told.append((what, share))
    reading, writing = os.pipe()
    thread = threading.Thread(target=worker._read_lines, args=(os.fdopen(reading, "rb"), ear))
    with caplog.at_level(logging.DEBUG, log.NATIVE):
        thread.start()
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            pipe.write(b"Starting stage: Graph Sequencing for Target\n [    ]   0%\r [##  ]  5")
            pipe.write(b"0%\r [####] 100%\rCompleted stage: Graph Sequencing for Target (9 us)\r\nlast words")
        thread.join()
    stage = "Graph Sequencing for Target"
    assert told == [(stage, 0.74), (stage, 0.74), (stage, pytest.approx(0.82)), (stage, pytest.approx(0.9))]
    assert list(ear.tail) == [f"Starting stage: {stage}", f"Completed stage: {stage} (9 us)", "last words"]
    assert [record.message for record in caplog.records] == list(ear.tail)


def test_a_listener_that_fails_does_not_stop_the_reading() -> None:
    ear = worker._Ear()
    ear.sink = lambda what, share: 1 / 0  # type: ignore[assignment,return-value]
    ear.hear("Starting stage: Completion")
    ear.hear("more")
    assert list(ear.tail) == ["Starting stage: Completion", "more"]


@pytest.mark.parametrize("line", ["", "Starting stage: Something new", " [##  ] 50%", "50%", "[a] 5%"])
def test_other_lines_are_no_progress(line: str) -> None:
    assert log.Stages().read(line) is None


@pytest.mark.native
def test_compiling_tells_its_stages(tmp_path: Path) -> None:
    import npukit

    told: list[tuple[str, float]] = []
    npukit.convert(DIGITS, output=tmp_path / "d.dlc", verify=False)
    with log.progress_to(lambda what, share: told.append((what, share))):
        npukit.compile(tmp_path / "d.dlc", output=tmp_path / "d.bin", target="sm8650")
    stages = [(what, share) for what, share in told if what in log._STAGES]
    assert [what for what, _ in stages] == list(log._STAGES)
    assert [share for _, share in stages] == sorted(share for _, share in stages)
