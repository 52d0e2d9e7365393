# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The TensorFlow commands of docs/guides/from-snpe.md on models that TensorFlow makes; test_docs.py runs the others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_docs import ROOT, blocks

_PLACE = Path(os.environ.get("NPUKIT_TENSORFLOW_PYTHON", ROOT / ".venv-tensorflow" / "bin" / "python"))
PYTHON = _PLACE if _PLACE.exists() else None
GUIDE = ROOT / "docs" / "guides" / "from-snpe.md"


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="no TensorFlow environment here (make env-tensorflow)")
def test_tensorflow_commands_of_the_pages(tmp_path: Path) -> None:
    for name in ("from_snpe", "recipes"):
        shutil.copytree(ROOT / "examples" / name, tmp_path / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "NPUKIT_TENSORFLOW_PYTHON": str(PYTHON), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(
        [str(PYTHON), "from_snpe/make_models.py", "tensorflow"], cwd=tmp_path, env=env, check=True, timeout=300
    )
    picture = np.random.default_rng(3).integers(0, 255, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "street.png")
    commands = [block for block in blocks() if block.page == GUIDE and block.kind == "double"]
    assert len(commands) == 4
    for block in commands:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text], cwd=tmp_path, env=env, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"line {block.line}:\n{done.stdout}\n{done.stderr}"
        assert "PASSED" in done.stdout
    assert Image.open(tmp_path / "segmented" / "map.png").size == (200, 120)
    shares = json.loads((tmp_path / "segmented" / "results.json").read_text())["shares"]
    assert sum(shares.values()) == pytest.approx(1)
