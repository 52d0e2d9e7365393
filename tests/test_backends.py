# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Backends that a host seldom has: what they answer where they cannot work, and ort-qnn where it can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import npukit
from npukit.cli import main as cli
from npukit.errors import ArtifactError, MissingDependency, NativeError, UsageError
from npukit.runtime import BACKEND_NAMES
from npukit.runtime.session import BACKENDS

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits" / "digits.onnx"
PEER = ROOT / ".venv-peer" / "bin" / "python"  # `make bench` sets it up: an onnxruntime that takes the QNN provider


def test_names() -> None:
    assert {name for names in BACKENDS.values() for name in names} == set(BACKEND_NAMES)
    with pytest.raises(UsageError, match="qnn-gup"):
        npukit.Session(DIGITS, backend="qnn-gup")


def test_acl_runs_om_files_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an ONNX model cannot run on acl") as caught:
        npukit.Session(DIGITS, backend="acl")
    assert "npukit compile" in caught.value.hint
    (tmp_path / "x.om").write_bytes(b"IMOD" + bytes(300))
    with pytest.raises(ArtifactError):
        npukit.Session(tmp_path / "x.om")
    assert cli.main(["run", str(DIGITS), "--backend", "acl", "--random", "1", "-o", str(tmp_path / "out")]) == 2


@pytest.mark.native
@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="there may be a GPU")
def test_gpu_says_in_the_vendors_words_why_not() -> None:
    with pytest.raises(NativeError, match="GPU_ERROR") as caught:
        npukit.Session(DIGITS, backend="qnn-gpu")
    assert caught.value.exit_code == 3
    assert "Adreno" in caught.value.hint


@pytest.mark.native
def test_ort_qnn_names_the_onnxruntime_it_needs(tmp_path: Path) -> None:
    import onnxruntime

    if onnxruntime.__version__.startswith("1.24."):
        pytest.skip("this onnxruntime takes the provider")
    with pytest.raises(MissingDependency, match="do not work together") as caught:
        npukit.Session(DIGITS, backend="ort-qnn")
    assert "onnxruntime==1.24.4" in caught.value.hint
    assert cli.main(["run", str(DIGITS), "--backend", "ort-qnn", "--random", "1", "-o", str(tmp_path / "out")]) == 3


def test_doctor_lists_every_backend() -> None:
    assert {row["backend"] for row in npukit.doctor(run=False).backends} == set(BACKEND_NAMES)


SCRIPT = """
import json, sys
import numpy as np
from npukit import NpukitError, Session

model, target = sys.argv[1:]
try:
    with Session(model, backend="ort-qnn", target=target or None, in_process=target == "qnn-cpu") as session:
        inputs = {i.name: np.load("x.npy") for i in session.inputs}
        told = {
            "outputs": {name: array.tolist() for name, array in session.run(inputs).items()},
            "backend": session.backend, "library": session.library, "ops": [p.type for p in session.placement],
        }
except NpukitError as error:
    told = error.to_json()
print("\\n" + json.dumps(told))
"""


@pytest.fixture
def peer(tmp_path: Path):
    """Run SCRIPT in the environment of the peer, with this npukit and ml_dtypes, which it lacks."""
    if not PEER.exists():
        pytest.skip("no .venv-peer (make bench sets it up)")
    (tmp_path / "npukit").symlink_to(Path(npukit.__file__).parent)
    (tmp_path / "ml_dtypes").symlink_to(Path(ml_dtypes.__file__).parent)
    np.save(tmp_path / "x.npy", np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8))

    def run(model: Path, target: str) -> dict:
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [PEER, "-c", SCRIPT, model, target]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize(("target", "atol"), [("qnn-cpu", 1e-4), ("", 0.1), ("sm8650", 0.1)])
def test_ort_qnn_runs(peer, tmp_path: Path, target: str, atol: float) -> None:
    told = peer(DIGITS, target)
    with npukit.Session(DIGITS) as session:
        expected = session.run({"image": np.load(tmp_path / "x.npy")})["scores"]
    assert np.allclose(told["outputs"]["scores"], expected, atol=atol)
    assert told["backend"] == "ort-qnn"
    assert {"Conv", "Gemm"} <= set(told["ops"])
    assert ("libQnnCpu" if target == "qnn-cpu" else "libQnnHtp") in told["library"]


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("target", ["qnn-cpu", ""])
def test_ort_qnn_never_falls_back(peer, tmp_path: Path, target: str) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Det", ["a"], ["y"], name="det")]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, [1, 1, 8, 8])], [info("y", TensorProto.FLOAT, [1, 1])]
    )
    path = tmp_path / "det.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    told = peer(path, target)
    assert (told["code"], told["exit_code"]) == ("graph", 2)
    assert "does not take" in told["what"]
    if target:
        assert told["faults"][0]["where"] == "det"
