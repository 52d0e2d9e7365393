# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A plugin: an op of an op package on the device, which ONNX cannot say; here Python computes it."""

import numpy as np
import onnx_ir as ir

from npukit.plugins import CustomOp


def infer_envelope(node: ir.Node) -> list[tuple[str, tuple[int, ...]]]:
    """As the input."""
    x = node.inputs[0]
    return [(x.dtype.numpy().name, x.shape.numpy())]


def compute_envelope(x: np.ndarray, decay: float = 1.0) -> np.ndarray:
    """The peak of a signal so far, along the last axis: y[t] = max(x[t], decay * y[t - 1])."""
    y = x.copy()
    for t in range(1, x.shape[-1]):
        y[..., t] = np.maximum(x[..., t], decay * y[..., t - 1])
    return y


OPS = [CustomOp("com.acme", "Envelope", package="acme.ops", infer=infer_envelope, compute=compute_envelope)]
