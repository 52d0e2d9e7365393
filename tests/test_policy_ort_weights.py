# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""8-bit weights for ONNX Runtime: the codes by their definition, and a small network against its float32 self."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from npukit.policies.ort_weights import BLOCK, Counts, blocks, channels, quantize_weights

RNG = np.random.default_rng(0)


def weight(rows: int, inputs: int) -> np.ndarray:
    return RNG.standard_normal((rows, inputs)).astype(np.float32) * inputs**-0.5


def test_channels() -> None:
    w = weight(5, 70)
    w[3] = 0
    codes, scales = channels(w)
    assert codes.shape == (70, 5)
    np.testing.assert_allclose((codes * scales).T, w, atol=float(scales.max()) / 2 * 1.001)
    assert np.abs(codes[:, [0, 1, 2, 4]]).max(axis=0).tolist() == [127] * 4
    assert not codes[:, 3].any()


def test_blocks() -> None:
    w = weight(5, 70)
    codes, scales = blocks(w)
    assert codes.shape == (5, 3, BLOCK)
    assert scales.shape == (5, 3)
    back = ((codes.astype(np.float32) - 128) * scales[:, :, None]).reshape(5, -1)
    np.testing.assert_allclose(back[:, :70], w, atol=float(scales.max()) / 2 * 1.001)
    assert (codes[:, 2, 70 - 64 :] == 128).all()  # the padding is zero


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A gated MLP with a residual: products with and without bias, turned and not, and one that is too small."""
    node = helper.make_node
    nodes = [
        node("Gemm", ["x", "up", "bias"], ["a"], transB=1), node("MatMul", ["x", "gate"], ["b"]),
        node("Sigmoid", ["b"], ["s"]), node("Mul", ["a", "s"], ["m"]), node("Gemm", ["m", "down"], ["d"], transB=1),
        node("Add", ["x", "d"], ["r"]), node("MatMul", ["r", "small"], ["y"]),
    ]  # fmt: skip
    constants = {"up": weight(128, 96), "bias": weight(1, 128)[0], "gate": weight(96, 128), "down": weight(96, 128),
                 "small": weight(96, 4)}  # fmt: skip
    graph = helper.make_graph(
        nodes, "mlp", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [7, 96])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [7, n]) for name, n in (("d", 96), ("y", 4))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    onnx.save(made, tmp_path / "mlp.onnx")
    return tmp_path / "mlp.onnx"


def outputs(path: Path) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["d", "y"], {"x": np.random.default_rng(1).standard_normal((7, 96)).astype(np.float32)})


@pytest.mark.parametrize("fine", [True, False, None])
def test_a_network(model: Path, fine: bool | None) -> None:
    output = model.with_name("mlp.int8.onnx")
    counts = quantize_weights(model, output) if fine is None else quantize_weights(model, output, fine=lambda _: fine)
    assert counts == {True: Counts(0, 3, 1), False: Counts(3, 0, 1), None: Counts(2, 1, 1)}[fine]
    for want, got in zip(outputs(model), outputs(output), strict=True):
        noise = 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum())
        assert noise > 30
    sizes = [sum(path.stat().st_size for path in model.parent.glob(f"{name}.onnx*")) for name in ("mlp", "mlp.int8")]
    assert sizes[1] < 0.4 * sizes[0]
    held = onnx.load(output, load_external_data=False)
    assert [o.name for o in held.graph.output] == ["d", "y"]
    assert not {i.name for i in held.graph.initializer} & {"up", "gate", "down"}


def test_the_same_model_gives_the_same_file(model: Path) -> None:
    data = []
    for name in ("one", "two"):
        folder = model.parent / name
        folder.mkdir()
        quantize_weights(model, folder / "m.onnx")
        data.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert data[0] == data[1]
