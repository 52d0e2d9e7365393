# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes acme.onnx and signal.onnx: small networks with ops that ONNX does not have."""

import numpy as np
import onnx

ACME = """
<ir_version: 9, opset_import: ["": 18, "com.acme": 1]>
acme (float[1, 3, 16, 16] image) => (float[1, 8, 16, 16] features)
{
    wide = Conv <pads = [1, 1, 1, 1]> (image, weight)
    active = com.acme.Snake <alpha = 0.5> (wide)
    features = com.acme.UnitChannels (active)
}
"""
SIGNAL = """
<ir_version: 9, opset_import: ["": 18, "com.acme": 1]>
signal (float[1, 2, 64] wave) => (float[1, 4, 64] level)
{
    bands = Conv <pads = [2, 2]> (wave, filters)
    loud = Abs (bands)
    peaks = com.acme.Envelope <decay = 0.9> (loud)
    level = Sqrt (peaks)
}
"""


def save(text: str, name: str, **weights: tuple[int, ...]) -> None:
    """Write a model with random weights of these shapes."""
    model = onnx.parser.parse_model(text)
    for weight, shape in weights.items():
        values = np.random.default_rng(0).normal(0, 0.3, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, weight))
    onnx.save(model, name)


save(ACME, "acme.onnx", weight=(8, 3, 3, 3))
save(SIGNAL, "signal.onnx", filters=(4, 2, 5))
