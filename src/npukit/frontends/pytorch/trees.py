# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the containers of other packages (the output classes of transformers) that an archive names.

torch can read such an archive only where the package has been imported. All that an export needs of a container is
which fields it has, and the archive says that: so no package is imported, and none has to be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_TYPE = re.compile(rb'\\"type\\": \\"([\w.]+)\\"')


def named_types(program: bytes) -> set[str]:
    """The names of all containers in a serialized program."""
    return {name.decode() for name in _TYPE.findall(program)}


def stand_in(torch: Any, names: Iterable[str]) -> None:
    """Let torch read containers called `names`: those that it does not know become dicts of their fields."""
    pytree = torch.utils._pytree
    for name in sorted(set(names) - set(pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE)):
        kind = type(name.rpartition(".")[2] or "Container", (dict,), {})
        pytree.register_pytree_node(
            kind,
            lambda value: (list(value.values()), list(value)),
            _builder(kind),
            serialized_type_name=name,
            flatten_with_keys_fn=lambda value: ([(pytree.MappingKey(k), v) for k, v in value.items()], list(value)),
        )


def _builder(kind: type) -> Any:
    def build(values: Iterable[Any], context: Any) -> Any:
        values = list(values)
        fields = context[0] if isinstance(context, list) and context and isinstance(context[0], list) else context
        named = isinstance(fields, list) and len(fields) == len(values)
        return kind(zip(map(str, fields) if named else map(str, range(len(values))), values, strict=True))

    return build
