# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The I/O config of a conversion: read from the options, or written for a model to be filled in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from npukit import files
from npukit.errors import UsageError
from npukit.qnn.graph import DType

if TYPE_CHECKING:
    from npukit.artifacts.stamp import Stamp
    from npukit.frontends.onnx.io_config import IoConfig
    from npukit.qnn.graph import Graph
    from npukit.verbs.convert import ConvertOptions


def io_config(options: ConvertOptions) -> IoConfig | None:
    """The I/O config that was given."""
    from npukit.frontends.onnx.io_config import IoConfig

    return None if options.io_config is None else IoConfig.load(options.io_config)


def check_held(config: IoConfig | None, graph: Graph) -> None:
    """Refuse a graph whose targets made it hold floats in another width than the config asks for."""
    wanted = {entry.name: entry.dtype for entry in config.entries} if config is not None else {}
    for tensor in (*graph.inputs, *graph.outputs):
        name = tensor.held.source if tensor.held is not None else tensor.name
        if wanted.get(name) == "float16" and tensor.dtype is not DType.FLOAT_16:
            raise UsageError(
                f"{name!r} cannot be float16: a target does not hold it", where="--io-config",
                hint="convert for a chip alone (--target): QNN CPU has no float16",
            )  # fmt: skip


def write_template(path: Path, stamp: Stamp) -> None:
    """Write a config with the inputs and outputs of a contract, in which nothing is changed yet."""
    from npukit.frontends.onnx.io_config import IoEntry, template

    inputs, outputs = (
        [IoEntry(io.name, source_dtype=io.dtype, shape=io.shape) for io in side]
        for side in (stamp.inputs, stamp.outputs)
    )
    files.atomic_write_bytes(path, template(inputs, outputs).encode())
