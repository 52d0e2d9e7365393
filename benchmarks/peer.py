# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The peer: ONNX Runtime's QNN provider writes a DLC of a model, and nothing else. Imports no npukit.

    python peer.py MODEL.onnx FOLDER

Making the session writes the DLC. ONNX Runtime would silently go on without the provider when that fails, so the
session's providers are looked at (shared/reference/qnn_abi.md section 7). onnxruntime-qnn 2.3.0 needs an onnxruntime
of its time (1.24.4 tried; 1.31 refuses it): this runs in an environment of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path


def write(model: str, folder: str) -> None:
    """Dump the DLC of `model` into `folder`."""
    import onnxruntime
    import onnxruntime_qnn

    onnxruntime.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == "QNNExecutionProvider"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    backend = Path(onnxruntime_qnn.get_library_path()).with_name("libQnnCpu.so")
    provider = {"backend_path": str(backend), "dump_qnn_ir_dlc": "1", "dump_qnn_ir_dlc_dir": folder}
    options.add_provider_for_devices(devices[:1], provider)
    session = onnxruntime.InferenceSession(model, sess_options=options)
    if session.get_providers()[0] != "QNNExecutionProvider":
        raise SystemExit("ONNX Runtime went on without the QNN provider")
    if not list(Path(folder).glob("**/*.dlc")):
        raise SystemExit("the provider wrote no DLC")


if __name__ == "__main__":
    write(*sys.argv[1:3])
