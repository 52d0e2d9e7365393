# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the policy server share: a double of a policy, a tiny policy folder, observations, a client."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from npukit.policies.package import Camera, Component, Feature, Manifest, Port, hashes

ACTIONS, STEPS, STATE = 7, 10, 8
IMAGE = (24, 32, 3)
TOP, WRIST, JOINTS = "observation.images.top", "observation.images.wrist", "observation.state"

MANIFEST = Manifest(
    kind="act",
    config={},
    inputs={
        TOP: Feature("VISUAL", (3, *IMAGE[:2])),
        WRIST: Feature("VISUAL", (3, *IMAGE[:2])),
        JOINTS: Feature("STATE", (STATE,)),
    },
    outputs={"action": Feature("ACTION", (ACTIONS,))},
    cameras=(Camera(TOP, 0), Camera(WRIST, 1)),
    preprocessing=(),
    postprocessing=(),
    components=(),
    chunk_size=STEPS,
    n_action_steps=STEPS,
    tokenizer={"file": "tokenizer.json"},
)


class DoublePolicy:
    """Stands in for `npukit.Policy`: every action is the first number of the state; it can be held and made to fail.

    Attributes:
        gate: while it is cleared, a prediction waits (10 s at most).
        begun: set whenever a prediction begins.
        seen: the observations.
        fault: raised by a prediction where it is set.
        actions: given instead where it is set.
    """

    def __init__(self, manifest: Manifest = MANIFEST) -> None:
        self.manifest = manifest
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.seen: list[Mapping[str, Any]] = []
        self.seconds = {"vision": 0.001, "head": 0.002}
        self.fault: Exception | None = None
        self.actions: Any = None
        self.resets = 0

    def predict_chunk(self, observation: Mapping[str, Any]) -> Any:
        self.begun.set()
        assert self.gate.wait(10)
        self.seen.append(observation)
        if self.fault is not None:
            raise self.fault
        if self.actions is not None:
            return self.actions
        return np.full((STEPS, ACTIONS), observation[JOINTS][0], np.float32)

    def reset(self) -> None:
        self.resets += 1


def libero(value: float = 1.0) -> dict[str, Any]:
    """An observation with the keys of openpi's LIBERO client."""
    return {
        "observation/image": np.full(IMAGE, 10, np.uint8),
        "observation/wrist_image": np.full(IMAGE, 20, np.uint8),
        "observation/state": np.full(STATE, value),
        "prompt": "pick up the bowl",
    }


def frame(payload: bytes, *, opcode: int = 2, final: bool = True, announce: int | None = None) -> bytes:
    """A client's frame as bytes (masked with zeros), for what no library sends; `announce` lies about its length."""
    length = len(payload) if announce is None else announce
    first = bytes([(0x80 if final else 0) | opcode])
    if length < 126:
        head = bytes([0x80 | length])
    elif length < 1 << 16:
        head = bytes([0x80 | 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([0x80 | 127]) + length.to_bytes(8, "big")
    return first + head + bytes(4) + payload


@contextlib.contextmanager
def client(address: str, *, token: str | None = None, **options: Any) -> Iterator[Any]:
    """A web socket whose first message was read (`.metadata`)."""
    from websockets.sync.client import connect

    from npukit.serving.messages import unpack

    headers = {"Authorization": f"Api-Key {token}"} if token is not None else None
    options = {"compression": None, "additional_headers": headers, **options}
    host, _, port = address.rpartition(":")
    link = socket.create_connection((host, int(port)), timeout=10)  # not through a proxy
    with connect(f"ws://{address}", sock=link, **options) as opened:
        opened.metadata = unpack(opened.recv(timeout=10))
        yield opened


def ask(opened: Any, observation: Any) -> Any:
    """The answer to an observation: a map, or the text of an error."""
    from npukit.serving.messages import pack

    opened.send(pack(observation))
    return answer(opened)


def answer(opened: Any) -> Any:
    from npukit.serving.messages import unpack

    found = opened.recv(timeout=10)
    return found if isinstance(found, str) else unpack(found)


def write_package(folder: Path) -> Path:
    """A policy folder of kind "act" whose actions are the state's first number plus the mean of the top image."""
    folder.mkdir()
    image, state = [1, 3, *IMAGE[:2]], [1, STATE]
    nodes = [
        helper.make_node("Slice", ["state", "starts", "ends"], ["first"]),
        helper.make_node("ReduceMean", ["top"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("ReduceMean", ["wrist"], ["other"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["other", "nothing"], ["gone"]),
        helper.make_node("Add", ["mean", "gone"], ["both"]),
        helper.make_node("Add", ["first", "both"], ["value"]),
        helper.make_node("Unsqueeze", ["value", "one"], ["column"]),
        helper.make_node("Expand", ["column", "shape"], ["actions"]),
    ]
    constants = [
        helper.make_tensor("starts", TensorProto.INT64, [2], [0, 0]),
        helper.make_tensor("ends", TensorProto.INT64, [2], [1, 1]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("shape", TensorProto.INT64, [3], [1, STEPS, ACTIONS]),
    ]
    shapes = {"top": image, "wrist": image, "state": state}
    graph = helper.make_graph(
        nodes,
        "act",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, STEPS, ACTIONS])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "policy.onnx")
    ports = tuple(Port(name, "float32", tuple(shape)) for name, shape in shapes.items())
    component = Component(
        "policy", ports, (Port("actions", "float32", (1, STEPS, ACTIONS)),), artifacts={"ort": "policy.onnx"}
    )
    config = {"inputs": {"top": TOP, "wrist": WRIST, "state": JOINTS}, "temporal_ensemble_coeff": None}
    manifest = replace(
        MANIFEST, config=config, components=(component,), tokenizer=None, preprocessing=({"step": "batch"},),
        source={"name": "made by a test", "files": {}}, files=hashes(folder),
    )  # fmt: skip
    manifest.write(folder)
    return folder
