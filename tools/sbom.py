# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Print a software bill of materials (CycloneDX 1.5 JSON) of this environment: `make sbom` or `python tools/sbom.py`.

Every installed distribution with its version and licence as its own metadata gives them; nothing is looked up.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from typing import Any


def component(distribution: importlib.metadata.Distribution) -> dict[str, Any]:
    """One distribution as a CycloneDX component."""
    metadata = distribution.metadata
    name, version = metadata["Name"], distribution.version
    return {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name.lower()}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name.lower()}@{version}",
        "licenses": _licences(metadata),
    }


def _licences(metadata: Any) -> list[dict[str, Any]]:
    if metadata.get("License-Expression"):
        return [{"expression": metadata["License-Expression"]}]
    classifiers = [text.split(" :: ")[-1] for text in metadata.get_all("Classifier", []) if text.startswith("License")]
    text = (metadata.get("License") or "").strip().splitlines()
    names = classifiers or text[:1]
    return [{"license": {"name": name}} for name in names]


def bill() -> dict[str, Any]:
    """The bill of materials of the running environment, in order of name; no time stamp, so that it can be compared."""
    found = {d.metadata["Name"].lower(): d for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "components": [component(found[name]) for name in sorted(found)],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(bill(), indent=2) + "\n")
