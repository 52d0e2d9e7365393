# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Write the DLCs of this folder with ONNX Runtime's QNN provider.

Run in an environment of its own: pip install onnxruntime==1.24.4 onnxruntime-qnn==2.3.0 (newer onnxruntime does not
load this provider, and npukit's own environment has a newer one).
"""

import pathlib
import tempfile

import onnxruntime
import onnxruntime_qnn

HERE = pathlib.Path(__file__).parent
DIGITS = HERE.parents[2] / "examples" / "digits"


def main() -> None:
    """Write digits.dlc and digits_qdq.dlc."""
    libraries = pathlib.Path(onnxruntime_qnn.__file__).parent
    name = "QNNExecutionProvider"
    onnxruntime.register_execution_provider_library(name, str(libraries / "libonnxruntime_providers_qnn.so"))
    device = next(d for d in onnxruntime.get_ep_devices() if d.ep_name == name)
    for model in ("digits", "digits_qdq"):
        with tempfile.TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            settings = {
                "backend_path": str(libraries / "libQnnHtp.so"),
                "qnn_ir_backend_path": str(libraries / "libQnnIr.so"),
                "soc_model": "57",
                "htp_arch": "75",
                "dump_qnn_ir_dlc": "1",
                "dump_qnn_ir_dlc_dir": folder,
            }
            options.add_provider_for_devices([device], settings)
            onnxruntime.InferenceSession(str(DIGITS / f"{model}.onnx"), options).disable_fallback()
            (written,) = pathlib.Path(folder).glob("*.dlc")
            (HERE / f"{model}.dlc").write_bytes(written.read_bytes())


if __name__ == "__main__":
    main()
