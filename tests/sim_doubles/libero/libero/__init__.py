# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Double: as LIBERO's own, this module wants a file that says where things are, and asks on stdin without."""

import os
from pathlib import Path

config = Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser() / "config.yaml"
if not config.is_file():
    input("Where are the files? ")
_assets_path_cache = None


def get_assets_path() -> str:
    if _assets_path_cache is None:
        raise OSError("a double does not download anything")
    return _assets_path_cache
