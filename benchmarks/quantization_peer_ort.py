# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The peer ONNX Runtime: `quantize_static` with its QNN configuration. Imports no npukit.

    python quantization_peer_ort.py JOB.json

As documented for QNN: quant_pre_process, qnn_preprocess_model, get_qnn_qdq_config, quantize; min-max calibration,
per-channel int8 weights, uint8 or uint16 activations. The job names model, calibration (.npz with a leading sample
axis), output, bits and where to write what it came to.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def quantize(job: dict[str, Any]) -> dict[str, Any]:
    """Write the QDQ model of `job`; gives the seconds without imports, and the settings."""
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType
    from onnxruntime.quantization import quantize as quantize_model
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model
    from onnxruntime.quantization.shape_inference import quant_pre_process

    start = time.perf_counter()
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.load(job["model"], load_external_data=False).graph.input
    }

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        """One sample after the other, as a quantizer's user would read them from disk."""

        def __init__(self) -> None:
            with np.load(job["calibration"]) as data:
                self._data = {name: data[name] for name in data.files}
            self._next = 0

        def get_next(self) -> dict[str, Any] | None:
            index = self._next
            if index == len(next(iter(self._data.values()))):
                return None
            self._next += 1
            return {name: array[index].reshape(shapes[name]) for name, array in self._data.items()}

    prepared = Path(job["folder"]) / "prepared.onnx"
    quant_pre_process(job["model"], prepared)
    model = onnx.load(prepared)
    del model.metadata_props[:]  # qnn_preprocess_model of 1.31.1 cannot read what quant_pre_process writes there
    fused = prepared.with_name("fused.onnx")
    if not qnn_preprocess_model(model, fused, fuse_layernorm=True):
        fused = prepared
    activations = {8: QuantType.QUInt8, 16: QuantType.QUInt16}[job["activations"]]
    samples = Samples()
    config = get_qnn_qdq_config(
        fused, samples, activation_type=activations, weight_type=QuantType.QInt8, per_channel=True
    )
    quantize_model(fused, job["output"], config)
    return {
        "seconds": time.perf_counter() - start,
        "settings": "quant_pre_process, qnn_preprocess_model(fuse_layernorm=True), get_qnn_qdq_config("
        f"calibrate_method=MinMax, activation_type={activations.name}, weight_type=QInt8, per_channel=True)",
    }


def main(path: str) -> None:
    """Do the job in the file at `path`."""
    job = json.loads(Path(path).read_text())
    Path(job["result"]).write_text(json.dumps(quantize(job)))


if __name__ == "__main__":
    main(sys.argv[1])
