# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a conversion is compared with: its source, changed where the options change it."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from npukit.verbs.source import exported_source

if TYPE_CHECKING:
    from npukit.artifacts.stamp import Stamp
    from npukit.verbs.convert import ConvertOptions


def cut_source(options: ConvertOptions, stamp: Stamp, stack: contextlib.ExitStack) -> Path:
    """The model to compare with: the source, or a copy that is cut, shaped or without quantization as asked for."""
    from npukit.verbs.convert import load_options

    made = exported_source(options)
    if made is not None:
        options = replace(options, model=made.path)
    if options.strip_quantization:
        from npukit.analysis.reference import without_quantization

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="npukit-float-")))
        return without_quantization(options.model, load_options(options), folder)
    from npukit.frontends.onnx.read_model import is_tflite, read_model

    cuts = tuple(name for name, value in options.inputs if not isinstance(value, Path))
    if options.io_config is not None:
        from npukit.analysis.reference import customized

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="npukit-io-")))
        return customized(options.model, load_options(options), folder)
    if not cuts:
        if not options.input_shapes or is_tflite(options.model):  # LiteRT takes any size where the model does
            return options.model
        from npukit.analysis.reference import with_shapes

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="npukit-shapes-")))
        return with_shapes(options.model, {io.name: io.shape for io in stamp.inputs}, folder)
    import numpy as np
    import onnx_ir as ir

    from npukit.frontends.onnx import LoadOptions
    from npukit.frontends.onnx.cut_graph import cut_graph

    model = read_model(
        options.model, LoadOptions(signature=options.tflite_signature, inputs=cuts, outputs=options.outputs)
    ).model
    cut_graph(model, LoadOptions(inputs=cuts, outputs=options.outputs))
    contract = {io.name: io for io in stamp.inputs}
    for value in model.graph.inputs:
        io = contract[value.name or ""]
        value.dtype, value.shape = ir.DataType.from_numpy(np.dtype(io.dtype)), ir.Shape(io.shape)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="npukit-cut-")))
    ir.save(model, folder / "cut.onnx", external_data="cut.data")
    return folder / "cut.onnx"
