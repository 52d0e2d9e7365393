# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Make digits_qdq.onnx from digits.onnx with ONNX Runtime's own static quantizer.

Activations uint8, weights int8 with a scale per output channel, calibrated on the 128 calibration images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

HERE = Path(__file__).parent


class Images(CalibrationDataReader):  # type: ignore[misc]
    """The calibration images, one at a time."""

    def __init__(self) -> None:
        with np.load(HERE / "digits.npz") as data:
            self._images = iter((data["calibration"][:, None, None] / 16).astype(np.float32))

    def get_next(self) -> dict[str, Any] | None:
        """The next input, or None at the end."""
        image = next(self._images, None)
        return None if image is None else {"image": image}


def main() -> None:
    """Write digits_qdq.onnx beside this script."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(HERE / "digits.onnx", prepared)
        quantize_static(
            prepared,
            HERE / "digits_qdq.onnx",
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    model = onnx.load(HERE / "digits_qdq.onnx")
    used = {node.domain for node in model.graph.node}
    keep = [opset for opset in model.opset_import if opset.domain in used]  # the quantizer lists every domain it knows
    del model.opset_import[:]
    model.opset_import.extend(keep)
    onnx.save(model, HERE / "digits_qdq.onnx")


if __name__ == "__main__":
    main()
