# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Statistics taken from data, so that a network with random weights is alive.

Batch-norm layers get the mean and variance of what reaches them, all in one run: in a copy of the model each is
spelled so that it normalizes by its own batch, and those figures are outputs. A classifier's weights then lose
the direction of the mean of its features, as far as needed: features are mostly positive, and random weights would
give every input nearly the same scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
_ALIKE = 0.8  # cosine between the scores of two inputs that will do, with a margin to the 0.9 of the tests


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The model's outputs by name, from ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def settle(model: onnx.ModelProto, feeds: Mapping[str, Array], classifier: str = "") -> None:
    """Set the batch-norm statistics of `model` from a batch, and make the Gemm behind `classifier` discern."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if norms:
        found = run(_by_batch(model), feeds)
        for node in norms:
            for name, value in zip(node.input[3:], _figures(node), strict=True):
                weights[name].CopyFrom(numpy_helper.from_array(found[value], name))
    if classifier:
        last = next(node for node in model.graph.node if classifier in node.output)
        features = run(_ending_at(model, last.input[0]), feeds)[last.input[0]]
        weight, bias = weights[last.input[1]], numpy_helper.to_array(weights[last.input[2]])
        rows, mean = numpy_helper.to_array(weight), features.mean(0)
        along = np.outer(rows @ mean, mean) / (mean @ mean)
        # No more than needed: what is taken away is signal, and the rounding errors stay.
        for share in (0.0, 0.5, 0.7, 0.8, 0.9, 1.0):
            fewer = rows - share * along
            if nearest_pair(features[:12] @ fewer.T + bias) < _ALIKE:
                break
        rows = fewer
        weight.CopyFrom(numpy_helper.from_array(rows.astype(np.float32), weight.name))


def nearest_pair(rows: Array) -> float:
    """The largest cosine between two rows of a matrix."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = units @ units.T
    return float(cosines[~np.eye(len(rows), dtype=bool)].max())


def _ending_at(model: onnx.ModelProto, value: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
    return copy


def _figures(node: onnx.NodeProto) -> tuple[str, str]:
    return f"{node.name}/mean", f"{node.name}/variance"


def _by_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose batch-norm layers normalize by their own batch and give mean and variance as outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    nodes, outputs = [], []
    for node in graph.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        x, mean, variance = node.input[0], *_figures(node)
        base = node.name
        nodes += [
            helper.make_node("ReduceMean", [x], [f"{base}/m"], axes=[0, 2, 3], keepdims=1),
            helper.make_node("Sub", [x, f"{base}/m"], [f"{base}/d"]),
            helper.make_node("Mul", [f"{base}/d", f"{base}/d"], [f"{base}/dd"]),
            helper.make_node("ReduceMean", [f"{base}/m"], [mean], axes=[0, 2, 3], keepdims=0),
            helper.make_node("ReduceMean", [f"{base}/dd"], [variance], axes=[0, 2, 3], keepdims=0),
        ]
        same = onnx.NodeProto()
        same.CopyFrom(node)
        same.input[3], same.input[4] = mean, variance
        nodes.append(same)
        outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in (mean, variance)]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.output[:]
    graph.output.extend(outputs)
    return copy
