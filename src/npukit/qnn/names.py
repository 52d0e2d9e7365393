# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Names in artifacts: the one place where a source name is made legal.

Model source makes C identifiers of names, so an artifact's names are identifiers too. `Names` is injective
within one graph: two source names never share an artifact name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ILLEGAL = re.compile(r"[^0-9A-Za-z_]")


def legal_form(source: str) -> str:
    """What `source` becomes in an artifact, unless another name became the same before it."""
    name = _ILLEGAL.sub("_", source) or "_"
    return f"_{name}" if name[0].isdigit() else name


def source_name(name: str, known: Iterable[str]) -> str:
    """The one of the source names `known` that `name` is or is the artifact name of; `name` where that is not one."""
    known = list(known)
    found = [name] if name in known else [other for other in known if legal_form(other) == name]
    return found[0] if len(found) == 1 else name


class Names:
    """Hands out artifact names: `legal` for a source name (stable), `fresh` for what has no source."""

    def __init__(self) -> None:
        self._legal: dict[str, str] = {}
        self._used: set[str] = set()

    def legal(self, source: str) -> str:
        """The artifact name of `source`: the same at each call, distinct from every other name."""
        if source not in self._legal:
            self._legal[source] = self.fresh(source)
        return self._legal[source]

    def fresh(self, hint: str) -> str:
        """An unused artifact name that starts like `hint`."""
        base = legal_form(hint)
        name, count = base, 0
        while name in self._used:
            count += 1
            name = f"{base}_{count}"
        self._used.add(name)
        return name

    def release(self, name: str) -> None:
        """Give back a name that `fresh` made and nothing uses any more."""
        self._used.discard(name)

    @property
    def mapping(self) -> dict[str, str]:
        """Source name -> artifact name, for the stamp."""
        return dict(self._legal)
