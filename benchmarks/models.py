# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Models of a given size, made on the fly: the ONNX file with external data, and the same graph for `bare`.

`linear` is a chain of Gemm (weights [out, in], as PyTorch's Linear exports) and Relu: QNN takes its weights as they
lie in the file. `conv` is a chain of 3x3 Conv and Relu: QNN wants [height, width, in, out] where ONNX has
[out, in, height, width], so that a converter must permute every weight; the bare program gets them permuted already.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

MB = 1_000_000
KINDS = ("linear", "conv")


@dataclass(frozen=True)
class Made:
    """A model on disk.

    Attributes:
        onnx: the ONNX file; its weights lie beside it.
        spec: the JSON file that `bare` reads.
        weight_bytes: size of all weights.
        layers: how many layers with weights.
    """

    onnx: Path
    spec: Path
    weight_bytes: int
    layers: int


def widths(size: int, kind: str) -> tuple[int, int]:
    """Channels and layers of about `size` bytes: layers grow slower than widths, as in real networks."""
    taps = 9 if kind == "conv" else 1
    layers = max(4, round(8 * math.log2(max(size / MB, 2))))
    width = round(math.sqrt(size / (4 * taps * layers)) / 32) * 32 or 32
    return width, max(1, round(size / (4 * taps * width * width)))


def make(folder: Path, size: int, kind: str) -> Made:
    """Write a model of about `size` bytes of float32 weights into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    width, layers = widths(size, kind)
    shape = (width, width, 3, 3) if kind == "conv" else (width, width)
    io_shape = [1, width, 4, 4] if kind == "conv" else [4, width]
    rng = np.random.default_rng(0)
    base = (rng.standard_normal(shape) / math.sqrt(np.prod(shape[1:]))).astype(np.float32)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    rows: list[dict[str, Any]] = []
    bare_name = "model.bare" if kind == "conv" else "model.data"
    with open(folder / "model.data", "wb") as data, open(folder / "model.bare", "wb") as bare:
        for i in range(layers):
            weight, bias = np.roll(base, i + 1, axis=1), np.full(width, 0.01 * (i % 7), np.float32)
            offset = data.tell()
            weights += [_external(f"w{i}", weight, data), _external(f"b{i}", bias, data)]
            if kind == "conv":
                offset = bare.tell()
                bare.write(np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).tobytes())
                bare.write(bias.tobytes())
                weight = weight.transpose(2, 3, 1, 0)
            row = {"shape": list(weight.shape), "offset": offset, "bias_offset": offset + weight.nbytes}
            source = "x" if i == 0 else f"r{i - 1}"
            result = "y" if i == layers - 1 else f"r{i}"
            attributes: dict[str, Any] = {"pads": [1, 1, 1, 1]} if kind == "conv" else {"transB": 1}
            nodes.append(
                helper.make_node(
                    "Conv" if kind == "conv" else "Gemm", [source, f"w{i}", f"b{i}"], [f"h{i}"], f"l{i}", **attributes
                )
            )
            nodes.append(helper.make_node("Relu", [f"h{i}"], [result], f"a{i}"))
            rows.append(row)
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, io_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, io_shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    held = [1, 4, 4, width] if kind == "conv" else io_shape
    spec = {"kind": kind, "data": str(folder / bare_name), "io_shape": held, "layers": rows}
    (folder / "spec.json").write_text(json.dumps(spec))
    if kind != "conv":
        (folder / "model.bare").unlink()
    return Made(folder / "model.onnx", folder / "spec.json", (math.prod(shape) + width) * 4 * layers, layers)


def _external(name: str, array: np.ndarray[Any, Any], file: IO[bytes]) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "model.data"), ("offset", file.tell()), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    file.write(np.ascontiguousarray(array).tobytes())
    return tensor
