# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Shape and dtype inference, one node at a time (no protobuf size limit; constants are passed as they become known)."""

from __future__ import annotations

import functools
import operator

import numpy as np
import onnx
import onnx_ir as ir

from npukit import plugins
from npukit.frontends.onnx.rewrite import constant, newest_version, schema_of, subgraphs_of, version_of
from npukit.frontends.onnx.shape_rules import correct_shapes

# Constants with more elements than this are never a shape, an axis list or a scale that inference reads.
MAX_DATA = 4096


class InferenceFailed(Exception):
    """The node contradicts its op's definition; the text is onnx's."""


@functools.lru_cache(maxsize=4096)
def _tensor_type(dtype: int, shape: tuple[int, ...] | None) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(dtype, shape)


def type_proto(value: ir.Value) -> onnx.TypeProto | None:
    """The value's ONNX type, None when nothing is known."""
    if isinstance(value.type, ir.TensorType):
        dims = None if value.shape is None else value.shape.dims
        if dims is None:
            return _tensor_type(int(value.type.dtype), None)
        if all(isinstance(d, int) for d in dims):
            return _tensor_type(int(value.type.dtype), tuple(int(d) for d in dims))  # type: ignore[arg-type]
    if value.type is None:
        return None
    return ir.serde.serialize_value(value).type


def allowed_types(node: ir.Node) -> list[str]:
    """Faults of the node's input dtypes against its schema, as sentences."""
    schema = schema_of(node.domain, node.op_type, version_of(node))
    if schema is None:
        return []
    faults = []
    bound: dict[str, tuple[str, ir.Value]] = {}
    formal = list(schema.inputs)
    for i, value in enumerate(node.inputs):
        if value is None or value.type is None or not formal:
            continue
        parameter = formal[min(i, len(formal) - 1)]
        have = _type_string(value)
        if have is None:
            continue
        if parameter.types and have not in parameter.types:
            faults.append(f"input {i} ({parameter.name}) {value.name!r} is {have}, which {node.op_type} does not take")
        elif parameter.is_homogeneous and "(" not in parameter.type_str:
            seen = bound.setdefault(parameter.type_str, (have, value))
            if seen[0] != have:
                faults.append(f"inputs {seen[1].name!r} ({seen[0]}) and {value.name!r} ({have}) must have one type")
    return faults


@functools.cache
def _dtype_string(dtype: ir.DataType) -> str:
    return f"tensor({onnx.helper.tensor_dtype_to_string(int(dtype)).removeprefix('TensorProto.').lower()})"


def _type_string(value: ir.Value) -> str | None:
    if isinstance(value.type, ir.TensorType):
        return _dtype_string(value.type.dtype)
    return None


def infer_node(node: ir.Node) -> None:
    """Set dtype and shape of the node's outputs from those of its inputs.

    Raises:
        InferenceFailed: the inputs contradict the op's definition.
    """
    version = version_of(node)
    schema = schema_of(node.domain, node.op_type, version)
    if schema is None:
        _infer_custom(node)
        return
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    values = {v for v in node.inputs if v is not None}
    if subgraphs_of(node):
        return  # control flow is resolved, or reported, by its own pass
    for value in values:
        proto = type_proto(value)
        if proto is None:
            return
        types[value.name or ""] = proto
        tensor = value.const_value
        if tensor is not None and tensor.size <= MAX_DATA and tensor.dtype != ir.DataType.STRING:
            # scales and sizes are read as floats or integers; other dtypes never steer a shape
            data[value.name or ""] = onnx.numpy_helper.from_array(np.asarray(tensor.numpy(), order="C"), value.name)
    try:
        proto = ir.serde.serialize_node(node)
    except ir.serde.SerdeError as error:
        raise InferenceFailed(f"its attributes cannot be written: {_clean(str(error.__cause__ or error))}") from None
    for i, output in enumerate(node.outputs):
        if i < len(proto.output) and not output.name:
            proto.output[i] = ""
    imports = [onnx.helper.make_opsetid(node.domain, version)]
    if node.domain:
        imports.append(onnx.helper.make_opsetid("", newest_version("")))
    try:
        result = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=imports, ir_version=onnx.IR_VERSION
        )
    except (
        onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError, IndexError,
    ) as error:  # fmt: skip
        raise InferenceFailed(_clean(str(error))) from None
    for output in node.outputs:
        found = result.get(output.name or "")
        if found is None or found.WhichOneof("value") is None:
            continue
        kind = ir.serde.deserialize_type_proto_for_type(found)
        if kind is not None and not (isinstance(kind, ir.TensorType) and kind.dtype == ir.DataType.UNDEFINED):
            output.type = kind
        shape = ir.serde.deserialize_type_proto_for_shape(found)
        if shape is not None:
            output.shape = shape
    correct_shapes(node)


def _infer_custom(node: ir.Node) -> None:
    """Types of the outputs of an op that a plugin defines: by its `infer`, which its body may not contradict."""
    custom = plugins.find(node.domain, node.op_type)
    types = [type_proto(value) if value is not None else onnx.TypeProto() for value in node.inputs]
    if custom is None or any(value is not None and not is_static(value) for value in node.inputs):
        return
    found: list[onnx.TypeProto | None] = [None] * len(node.outputs)
    if custom.function is not None:
        found = _by_body(custom, node, types)
    if custom.infer is not None:
        given = _by_plugin(custom, node)
        for i, (body, said) in enumerate(zip(found, given, strict=False)):
            if body is not None and _static(body) and body != said:
                what = custom.broken("infers a wrong type")
                raise InferenceFailed(f"{what}: output {i} is {_type_text(said)}, by its body {_type_text(body)}")
        found = list(given)
    for output, proto in zip(node.outputs, found, strict=False):
        if proto is not None:
            output.type = ir.serde.deserialize_type_proto_for_type(proto)
            output.shape = ir.serde.deserialize_type_proto_for_shape(proto)


def _by_body(
    custom: plugins.CustomOp, node: ir.Node, types: list[onnx.TypeProto | None]
) -> list[onnx.TypeProto | None]:
    attributes = list(ir.serde.serialize_node(node).attribute)
    given = {attr.name for attr in attributes}
    attributes += [attr for attr in custom.function.attribute_proto if attr.name not in given]  # type: ignore[union-attr]
    try:
        return list(onnx.shape_inference.infer_function_output_types(custom.function, types, attributes))  # type: ignore[arg-type]
    except (
        onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError, IndexError,
    ) as error:  # fmt: skip
        raise InferenceFailed(f"{custom.broken('gives a body that does not fit')}: {_clean(str(error))}") from None


def _by_plugin(custom: plugins.CustomOp, node: ir.Node) -> list[onnx.TypeProto]:
    assert custom.infer is not None
    try:
        given = custom.infer(node)
    except Exception as error:
        raise InferenceFailed(f"{custom.broken('fails to infer shapes')}: {type(error).__name__}: {error}") from error
    try:
        found = [
            _tensor_type(int(ir.DataType.from_numpy(np.dtype(dtype))), tuple(operator.index(dim) for dim in shape))
            for dtype, shape in given
        ]
    except (TypeError, ValueError) as error:
        raise InferenceFailed(
            f"{custom.broken('infers no types')}: {str(given)[:100]} is no list of (dtype, shape): {error}"
        ) from None
    if len(found) < len(node.outputs) or any(dim < 0 for _, shape in given for dim in shape):
        raise InferenceFailed(
            f"{custom.broken('infers a wrong type')}: {str(given)[:100]} for {len(node.outputs)} outputs"
        )
    return found


def _static(proto: onnx.TypeProto) -> bool:
    tensor = proto.tensor_type
    return (
        bool(tensor.elem_type) and tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)
    )


def _type_text(proto: onnx.TypeProto) -> str:
    dims = [d.dim_value for d in proto.tensor_type.shape.dim]
    return f"{onnx.helper.tensor_dtype_to_np_dtype(proto.tensor_type.elem_type).name} {dims}"


def _clean(text: str) -> str:
    text = text.replace("\n", " ").strip()
    for prefix in ("[ShapeInferenceError] ", "[TypeInferenceError] "):
        text = text.replace(prefix, "")
    return text[:400]


def is_static(value: ir.Value) -> bool:
    """Whether the dtype and every dimension are known."""
    return (
        isinstance(value.type, ir.TensorType)
        and value.shape is not None
        and all(isinstance(d, int) for d in value.shape.dims)
    )


__all__ = ["InferenceFailed", "allowed_types", "constant", "infer_node", "is_static", "type_proto"]
