# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes acme.onnx: a small network with two ops that ONNX does not have."""

import numpy as np
import onnx

TEXT = """
<ir_version: 9, opset_import: ["": 18, "com.acme": 1]>
acme (float[1, 3, 16, 16] image) => (float[1, 8, 16, 16] features)
{
    wide = Conv <pads = [1, 1, 1, 1]> (image, weight)
    active = com.acme.Snake <alpha = 0.5> (wide)
    features = com.acme.UnitChannels (active)
}
"""

model = onnx.parser.parse_model(TEXT)
weight = np.random.default_rng(0).normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32)
model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
onnx.save(model, "acme.onnx")
