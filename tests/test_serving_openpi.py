# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""openpi's published client, in its own environment (numpy before 2), talks to the server unchanged."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from npukit.serving.messages import pack, unpack  # noqa: E402
from npukit.serving.server import PolicyServer, background  # noqa: E402
from tests.serving_tools import DoublePolicy  # noqa: E402

PYTHON = Path(__file__).parents[1] / ".venv-openpi" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="openpi-client is not there: make env-openpi")

CLIENT = """
import json, sys
import numpy as np
from openpi_client import action_chunk_broker, image_tools, websocket_client_policy

host, port, token = sys.argv[1:]
policy = websocket_client_policy.WebsocketClientPolicy(host, int(port), api_key=token)
picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
observation = {
    "observation/image": image_tools.convert_to_uint8(image_tools.resize_with_pad(picture, 24, 32)),
    "observation/wrist_image": np.zeros((24, 32, 3), np.uint8),
    "observation/state": np.arange(8, dtype=np.float64) + 3,
    "prompt": "pick up the bowl",
}
answers = [policy.infer(observation) for _ in range(3)]
policy.reset()
broker = action_chunk_broker.ActionChunkBroker(policy, action_horizon=5)
single = [broker.infer(observation)["actions"].tolist() for _ in range(7)]
errors = []
for wrong in ({}, {**observation, "observation/state": np.zeros(3)}):
    try:
        policy.infer(wrong)
    except RuntimeError as error:
        errors.append(str(error))
last = policy.infer(observation)
print(json.dumps({
    "numpy": np.__version__,
    "metadata": policy.get_server_metadata(),
    "shape": list(answers[0]["actions"].shape),
    "dtype": str(answers[0]["actions"].dtype),
    "first": float(answers[0]["actions"][0, 0]),
    "timing": [sorted(answers[i]["server_timing"]) for i in (0, 1)],
    "infer_ms": answers[0]["policy_timing"]["infer_ms"],
    "single": single,
    "errors": errors,
    "last": float(last["actions"][0, 0]),
}))
"""

PACKER = """
import sys
import numpy as np
from openpi_client import msgpack_numpy

value = {
    "arrays": [np.arange(6).reshape(2, 3).astype(d) for d in ("?", "i1", "<u2", ">i4", "<f2", "<f8")],
    "turned": np.arange(6).reshape(2, 3).T,
    "none": np.zeros((0, 4), np.float32),
    "scalars": [np.float32(0.5), np.int64(-3), np.bool_(True), np.float64(0.25)],
    "text": "pick up the b\\u00f6wl",
}
message = sys.stdin.buffer.read()
back = msgpack_numpy.unpackb(message)
assert list(back) == list(value)
assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(back["arrays"], value["arrays"]))
sys.stdout.buffer.write(msgpack_numpy.packb(value))
"""


def run(program: str, *arguments: str, data: bytes = b"") -> bytes:
    line = [str(PYTHON), "-c", program, *arguments]
    done = subprocess.run(line, input=data, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return done.stdout


def test_the_published_client_works_unchanged() -> None:
    token = "0123456789abcdef"
    with background(PolicyServer(DoublePolicy(), token=token)) as address:
        host, _, port = address.partition(":")
        found: dict[str, Any] = json.loads(run(CLIENT, host, port, token))
    assert found["numpy"].startswith("1.")
    assert found["metadata"]["policy"] == "act"
    assert (found["shape"], found["dtype"], found["first"]) == ([10, 7], "float32", 3.0)
    assert found["timing"][0] == ["decode_ms", "infer_ms", "request", "wait_ms"]
    assert "prev_total_ms" in found["timing"][1]
    assert found["infer_ms"] >= 0
    assert found["single"] == [[3.0] * 7] * 7
    assert "this part of the observation is missing" in found["errors"][0]
    assert "has the shape [3]; it must be [8]" in found["errors"][1]
    assert found["last"] == 3.0


def test_both_write_the_same_bytes() -> None:
    arrays = [np.arange(6).reshape(2, 3).astype(d) for d in ("?", "i1", "<u2", ">i4", "<f2", "<f8")]
    value = {
        "arrays": arrays,
        "turned": np.arange(6).reshape(2, 3).T,
        "none": np.zeros((0, 4), np.float32),
        "scalars": [np.float32(0.5), np.int64(-3), np.bool_(True), np.float64(0.25)],
        "text": "pick up the böwl",
    }
    theirs = run(PACKER, data=pack(value))
    assert theirs == pack(value)
    assert unpack(theirs)["turned"].tolist() == value["turned"].tolist()  # type: ignore[attr-defined]
