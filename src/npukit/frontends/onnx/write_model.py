# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""An ONNX model to a file."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from npukit import files

_EMBED_LIMIT = 1_500_000_000  # one protobuf holds 2 GiB; above this the weights go to a file beside it


def write_model(model: ir.Model, output: Path) -> int:
    """Write a model atomically; with large weights first OUTPUT.data beside it, then the model that refers to it.

    Returns:
        bytes written.

    Raises:
        NpukitError: the file cannot be written.
    """
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    data_size = 0
    if weights > _EMBED_LIMIT:
        data = output.with_name(f"{output.name}.data")
        with files.atomic_write(data) as temp:
            model = ir.external_data.unload_from_model(model.clone(), temp.parent, temp.name)
            data_size = temp.stat().st_size
            proto = ir.to_proto(model)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = data.name
    else:
        proto = ir.to_proto(model)
    content = proto.SerializeToString(deterministic=True)
    files.atomic_write_bytes(output, content)
    return len(content) + data_size
