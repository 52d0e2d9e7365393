# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""npukit reports nothing to anyone, and neither do the libraries that it loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_onnxruntime_does_not_report_usage(tmp_path: Path) -> None:
    # Its telemetry leaves a session file in the temporary folder as soon as it is imported.
    variables = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"TMPDIR": str(tmp_path)}
    for line in ("import npukit, onnxruntime", "import npukit.runtime.ort, onnxruntime"):
        subprocess.run([sys.executable, "-c", line], check=True, env=variables)
        assert list(tmp_path.iterdir()) == []
