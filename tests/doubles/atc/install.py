# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Puts the stand-in for atc into a folder laid out as a CANN toolkit."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent


def install(root: Path, version: str = "8.0.0") -> Path:
    """Make `root` a toolkit of this version and give it back."""
    for folder in ("bin", "lib64", "python/site-packages", "opp/built-in/op_impl/ai_core/tbe/config/ascend310p"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for table in HERE.glob("*.tsv"):
        shutil.copy(table, root / "bin")
    shutil.copy(HERE / "atc", root / "bin" / "atc")
    program = (HERE / "atc_bin.py").read_text("utf-8")
    (root / "bin" / "atc.bin").write_text(f"#!{sys.executable} -IB\n{program}", "utf-8")
    for name in ("atc", "atc.bin"):
        (root / "bin" / name).chmod(0o755)
    (root / "version.cfg").write_text(f"# version: 1.0\ntoolkit_running_version=[7.6.0.1.220:{version}]\n")
    (root / "set_env.sh").write_text((HERE / "set_env.sh").read_text("utf-8").replace("@ROOT@", str(root)))
    return root


if __name__ == "__main__":
    install(Path(sys.argv[1]))
