# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The stamp of what is made from a source model, and its I/O contract: how each source value is held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import npukit
from npukit import plugins

if TYPE_CHECKING:
    import onnx_ir as ir

    from npukit.artifacts.stamp import IoTensor, Stamp
    from npukit.lowering import Lowered
    from npukit.qnn.graph import Tensor
    from npukit.targets import Target

SOURCE_DTYPES = {"float": "float32", "double": "float64"}
_NARROWED = {
    "int64": ("INT_32",),
    "uint64": ("INT_32", "UINT_32"),
    "uint32": ("INT_32",),
    "float64": ("FLOAT_32", "FLOAT_16"),
}


def source_stamp(source: Path, targets: Sequence[Target], lowered: Lowered, options: dict[str, Any]) -> Stamp:
    """The stamp of what is made from a source model, without its contract and the source's hash."""
    from npukit.artifacts.stamp import Stamp
    from npukit.qnn.api import libraries

    library = libraries.find("ir")
    named = plugins.titles()
    return Stamp(
        npukit_version=npukit.__version__,
        qairt_build=library.build_id,
        core_api_version=".".join(map(str, library.core_version)),
        needs_qairt=".".join(library.build_id.lstrip("v").split(".")[:2]),
        source_name=source.name,
        targets=tuple(target.name for target in targets),
        options={**options, **({"plugins": named} if named else {})},
        names={value: name for value, name in lowered.names.items() if value != name},
    )


def contract_inputs(lowered: Lowered, order: list[str]) -> tuple[IoTensor, ...]:
    """The inputs of the contract in source order, those that nothing depends on included: they have no tensor."""
    from npukit.artifacts.stamp import IoTensor

    found = [io_tensor(tensor) for tensor in lowered.graph.inputs]
    for held in lowered.unused:
        dtype = SOURCE_DTYPES.get(held.dtype, held.dtype)
        found.append(IoTensor(held.source, dtype, held.shape, "", "UNDEFINED"))
    place = {name: i for i, name in enumerate(order)}
    return tuple(sorted(found, key=lambda io: place.get(io.name, len(place))))


def contract_outputs(lowered: Lowered, model: ir.Model) -> tuple[IoTensor, ...]:
    """The outputs of the contract; what provably fits its narrower tensor is not narrowed."""
    from npukit.frontends.onnx.ranges import Ranges, fits_int32

    ranges = Ranges()
    values = {value.name: value for value in model.graph.outputs}
    found = []
    for tensor in lowered.graph.outputs:
        io = io_tensor(tensor)
        if io.narrowed and io.held_dtype == "INT_32" and fits_int32(values[io.name], ranges):
            io = replace(io, narrowed=False)
        found.append(io)
    return tuple(found)


def io_tensor(tensor: Tensor) -> IoTensor:
    """The contract of one graph input or output."""
    from npukit.artifacts.stamp import IoTensor

    held = tensor.held
    if held is None:
        return IoTensor(tensor.name, tensor.dtype.numpy.name, tensor.shape, tensor.name, tensor.dtype.name)
    dtype = SOURCE_DTYPES.get(held.dtype, held.dtype)
    narrowed = tensor.dtype.name in _NARROWED.get(dtype, ())
    return IoTensor(
        held.source, dtype, held.shape, tensor.name, tensor.dtype.name, held.perm, tensor.encoding, narrowed
    )
