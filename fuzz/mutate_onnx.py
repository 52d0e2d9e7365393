# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Mutations of ONNX models: fields of the parsed proto, by meaning and blindly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from fuzz.mutate import FLOATS, HUGE, INTEGERS, TEXTS, Files, integer, raw

_DTYPES = tuple(onnx.TensorProto.DataType.values())
_OPS = ("Add", "Conv", "MatMul", "Reshape", "Concat", "Gather", "Slice", "Resize", "Cast", "If", "Loop", "Split", "Pad",
        "Softmax", "ReduceSum", "Transpose", "LSTM", "TopK", "Identity", "ConstantOfShape", "Range", "Tile", "Expand",
        "QuantizeLinear", "DequantizeLinear", "Constant", "NoSuchOp", "Einsum", "NonZero", "ScatterND")  # fmt: skip

Mutator = Callable[[random.Random, onnx.ModelProto], None]


def mutate(rng: random.Random, files: Files, main: str) -> Files:
    """The seed's files with one to three mutations of the model, or one raw one of any file."""
    if rng.random() < 0.1:
        name = rng.choice(list(files))
        return {**files, name: raw(rng, files[name])}
    model = onnx.ModelProto()
    model.ParseFromString(files[main])
    changed = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if len(files) > 1 and rng.random() < 0.2:
            name = rng.choice([name for name in files if name != main])
            changed[name] = raw(rng, changed[name])
            continue
        for _ in range(10):  # a mutator that finds nothing to change leaves the model as it is
            before = model.SerializeToString(deterministic=True)
            _apply(rng, model)
            if model.SerializeToString(deterministic=True) != before:
                break
    changed[main] = model.SerializeToString(deterministic=True)
    return changed


def _apply(rng: random.Random, model: onnx.ModelProto) -> None:
    mutator = rng.choice(_BY_MEANING) if rng.random() < 0.7 else _any_field
    try:
        mutator(rng, model)
    except (ValueError, IndexError, TypeError, OverflowError, DecodeError):
        _any_field(rng, model)


# ---------------------------------------------------------------- blind: any field of any message


def _messages(message: Message, depth: int = 0) -> Iterator[Message]:
    yield message
    if depth > 12:
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if _repeated(field) else (value,):
                yield from _messages(inner, depth + 1)


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _any_field(rng: random.Random, model: onnx.ModelProto) -> None:
    message = rng.choice(list(_messages(model)))
    present = [field for field, _ in message.ListFields()]
    fields = present if present and rng.random() < 0.8 else list(message.DESCRIPTOR.fields)
    field = rng.choice(fields)
    if _repeated(field):
        _any_repeated(rng, model, message, field)
    elif field.type == field.TYPE_MESSAGE:
        if rng.random() < 0.5:
            message.ClearField(field.name)
        else:
            _graft(rng, model, getattr(message, field.name))
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(rng, field, getattr(message, field.name)))


def _any_repeated(rng: random.Random, model: onnx.ModelProto, message: Message, field: Any) -> None:
    items = getattr(message, field.name)
    choice = rng.random()
    if field.type == field.TYPE_MESSAGE:
        if not len(items) or choice < 0.2:
            _graft(rng, model, items.add())
        elif choice < 0.5:
            del items[rng.randrange(len(items))]
        elif choice < 0.7:
            items.add().CopyFrom(rng.choice(items))
        elif choice < 0.85:
            _graft(rng, model, rng.choice(items))
        else:
            reverse = list(items)[::-1]
            del items[:]
            items.extend(reverse)
    elif not len(items) or choice < 0.25:
        items.append(_scalar(rng, field, 0))
    elif choice < 0.45:
        del items[rng.randrange(len(items))]
    elif choice < 0.5:
        del items[:]
    else:
        at = rng.randrange(len(items))
        items[at] = _scalar(rng, field, items[at])


def _graft(rng: random.Random, model: onnx.ModelProto, message: Message) -> None:
    """Put another message of the same kind in its place (a graph into its own node, for instance)."""
    donors = [m for m in _messages(model) if m.DESCRIPTOR is message.DESCRIPTOR and m is not message]
    if donors:
        donor = type(message)()
        donor.CopyFrom(rng.choice(donors))
        message.CopyFrom(donor)


def _scalar(rng: random.Random, field: Any, old: Any) -> Any:
    kinds = {field.TYPE_INT32: (-(1 << 31), (1 << 31) - 1), field.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
             field.TYPE_UINT64: (0, (1 << 64) - 1)}  # fmt: skip
    if field.type in kinds:
        return integer(rng, old if isinstance(old, int) else 0, *kinds[field.type])
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    if field.type == field.TYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    if field.type == field.TYPE_BYTES:
        return raw(rng, old) if isinstance(old, bytes) and old else rng.choice(TEXTS).encode()
    return rng.choice(TEXTS)


# ---------------------------------------------------------------- by meaning


def _graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    return [m for m in _messages(model) if isinstance(m, onnx.GraphProto)]


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [m for m in _messages(model) if isinstance(m, onnx.NodeProto)]


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [m for m in _messages(model) if isinstance(m, onnx.TensorProto)]


def _names(model: onnx.ModelProto) -> list[str]:
    names = [name for node in _nodes(model) for name in (*node.input, *node.output)]
    return [*names, *(t.name for t in model.graph.initializer), *(v.name for v in model.graph.input)] or ["x"]


def _input_dim(rng: random.Random, model: onnx.ModelProto) -> None:
    infos = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    shape = rng.choice(infos).type.tensor_type.shape
    choice = rng.random()
    if choice < 0.15 or not shape.dim:
        shape.dim.add().dim_value = rng.choice((1, 2, 3, 1 << 20))
    elif choice < 0.3:
        del shape.dim[rng.randrange(len(shape.dim))]
    elif choice < 0.4:
        rng.choice(shape.dim).dim_param = rng.choice(TEXTS)
    else:
        dim = rng.choice(shape.dim)
        dim.dim_value = integer(rng, dim.dim_value, -(1 << 63), (1 << 63) - 1)


def _input_type(rng: random.Random, model: onnx.ModelProto) -> None:
    info = rng.choice([*model.graph.input, *model.graph.output, *model.graph.value_info])
    if rng.random() < 0.9:
        info.type.tensor_type.elem_type = rng.choice((*_DTYPES, 99, -1))
    else:
        kind = rng.choice(("sequence_type", "optional_type", "map_type", "sparse_tensor_type"))
        inner = onnx.TypeProto()
        inner.CopyFrom(info.type)
        target = getattr(info.type, kind)
        if kind == "map_type":
            target.key_type = rng.choice(_DTYPES)
            target.value_type.CopyFrom(inner)
        elif kind == "sparse_tensor_type":
            target.elem_type = 1
        else:
            target.elem_type.CopyFrom(inner)


def _dims(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = rng.choice(_tensors(model))
    choice = rng.random()
    if choice < 0.2 and len(tensor.dims) > 1:  # the same number of elements in another form
        dims = list(tensor.dims)
        rng.shuffle(dims)
        tensor.dims[:] = dims
    elif choice < 0.3:
        tensor.dims[:] = [rng.choice((1 << 16, 1 << 31, *HUGE)) for _ in range(rng.choice((1, 2, 4, 200)))]
    elif choice < 0.4:
        tensor.dims.insert(0, 1)
    elif tensor.dims:
        at = rng.randrange(len(tensor.dims))
        tensor.dims[at] = integer(rng, tensor.dims[at], -(1 << 63), (1 << 63) - 1)


def _tensor_dtype(rng: random.Random, model: onnx.ModelProto) -> None:
    rng.choice(_tensors(model)).data_type = rng.choice((*_DTYPES, 99, -1))


def _tensor_data(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = rng.choice(_tensors(model))
    choice = rng.random()
    if tensor.raw_data and choice < 0.6:
        size = len(tensor.raw_data)
        if choice < 0.25:
            tensor.raw_data = tensor.raw_data[: rng.choice((0, size - 1, size // 2))]
        elif choice < 0.35:
            tensor.raw_data += bytes(rng.choice((1, 4, 64)))
        else:  # other values, as many: indices, shapes, axes out of range
            item = rng.choice((4, 8))
            value = rng.choice((*INTEGERS, *HUGE)) % (1 << 8 * item)
            at = rng.randrange(max(1, size // item)) * item
            tensor.raw_data = (tensor.raw_data[:at] + value.to_bytes(item, "little") + tensor.raw_data[at + item :])[
                :size
            ]
    elif choice < 0.7:
        tensor.float_data.extend(rng.choice(FLOATS) for _ in range(rng.choice((1, 4))))
    elif choice < 0.8:
        tensor.int64_data.append(rng.choice((*INTEGERS, *HUGE)))
    elif choice < 0.9:
        tensor.int32_data.append(rng.choice((0, 1, -1, 255, 1 << 20)))
    else:
        tensor.string_data.append(rng.choice((b"", b"\xff\xfe", b"x" * 100)))


def _external(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = rng.choice(_tensors(model))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    if not tensor.external_data or rng.random() < 0.2:
        tensor.ClearField("raw_data")
        tensor.external_data.add(key="location", value="weights.bin")
        return
    entry = rng.choice(tensor.external_data)
    if entry.key == "location":
        entry.value = rng.choice(("../weights.bin", "/etc/passwd", "", ".", "a/../../b", "weights.bin/x", "w\0",
                                  "no.bin", "model.onnx", "C:\\w", "..\\w", "x" * 5000, "/dev/zero",
                                  "./weights.bin"))  # fmt: skip
    elif rng.random() < 0.2:
        entry.key = rng.choice(("offset", "length", "location", "checksum", ""))
    else:
        entry.value = rng.choice(("-1", "0", "1", "4", "x", "", "1e3", "99999999999999999999", " 8", str(1 << 63)))


def _attribute(rng: random.Random, model: onnx.ModelProto) -> None:
    attributes = [m for m in _messages(model) if isinstance(m, onnx.AttributeProto)]
    attr = rng.choice(attributes)
    choice = rng.random()
    if choice < 0.15:
        attr.type = rng.choice(list(onnx.AttributeProto.AttributeType.values()))
    elif choice < 0.2:
        attr.name = rng.choice((*TEXTS, "axis", "perm", "to", "body", "mode", "kernel_shape"))
    elif choice < 0.25:
        attr.ref_attr_name = rng.choice(("x", "axis", attr.name))
    elif attr.ints:
        if choice < 0.4:
            del attr.ints[rng.randrange(len(attr.ints))]
        elif choice < 0.5:
            attr.ints.append(rng.choice(INTEGERS))
        else:
            at = rng.randrange(len(attr.ints))
            attr.ints[at] = integer(rng, attr.ints[at], -(1 << 63), (1 << 63) - 1)
    elif attr.HasField("s"):
        attr.s = rng.choice(
            (b"", b"SAME_UPPER", b"VALID", b"linear", b"cubic", b"\xff", b"bilinear", b"ij,jk->ik", b"edge")
        )
    elif attr.HasField("f"):
        attr.f = rng.choice(FLOATS)
    else:
        attr.i = integer(rng, attr.i, -(1 << 63), (1 << 63) - 1)


def _attribute_list(rng: random.Random, model: onnx.ModelProto) -> None:
    node = rng.choice(_nodes(model))
    if node.attribute and rng.random() < 0.5:
        del node.attribute[rng.randrange(len(node.attribute))]
    elif node.attribute and rng.random() < 0.3:
        node.attribute.add().CopyFrom(rng.choice(node.attribute))
    else:
        name = rng.choice(("axis", "axes", "perm", "group", "to", "pads", "strides", "keepdims", "mode", "value", "x"))
        value: Any = rng.choice((rng.choice(INTEGERS), [rng.choice(INTEGERS) for _ in range(3)], 0.5, "edge"))
        node.attribute.append(onnx.helper.make_attribute(name, value))


def _link(rng: random.Random, model: onnx.ModelProto) -> None:
    """Rewire a node: a cycle, an unknown or missing input, an input too many, two swapped."""
    node = rng.choice(_nodes(model))
    names, choice = _names(model), rng.random()
    if not node.input or choice < 0.1:
        node.input.append(rng.choice(names))
        return
    at = rng.randrange(len(node.input))
    if choice < 0.25 and node.output:
        node.input[at] = rng.choice(node.output)
    elif choice < 0.4:
        node.input[at] = rng.choice(names)
    elif choice < 0.5:
        node.input[at] = rng.choice(("", "no_such_tensor"))
    elif choice < 0.7:
        del node.input[at]
    elif choice < 0.8:
        other = rng.randrange(len(node.input))
        node.input[at], node.input[other] = node.input[other], node.input[at]
    elif node.output and choice < 0.9:
        node.output[rng.randrange(len(node.output))] = rng.choice((*names, "", "new"))
    else:
        node.output.append(rng.choice((*names, "new")))


def _node(rng: random.Random, model: onnx.ModelProto) -> None:
    graph = rng.choice(_graphs(model))
    node = rng.choice(graph.node)
    choice = rng.random()
    if choice < 0.4:
        node.op_type = rng.choice(_OPS)
    elif choice < 0.5:
        node.domain = rng.choice(("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "x", "ai.onnx.training", "qti.aisw"))
    elif choice < 0.65:
        graph.node.add().CopyFrom(node)
    elif choice < 0.8:
        graph.node.remove(node)
    elif choice < 0.9:
        nodes = list(graph.node)
        rng.shuffle(nodes)
        del graph.node[:]
        graph.node.extend(nodes)
    else:
        node.name = rng.choice(TEXTS)


def _versions(rng: random.Random, model: onnx.ModelProto) -> None:
    if model.opset_import and rng.random() < 0.7:
        entry = rng.choice(model.opset_import)
        if rng.random() < 0.8:
            entry.version = rng.choice(
                (0, 1, 6, 7, 9, 10, 11, 12, 13, 15, 17, 18, 21, 22, 24, 25, 26, 99, -1, (1 << 63) - 1)
            )
        else:
            entry.domain = rng.choice(("", "x", "ai.onnx.ml"))
    elif rng.random() < 0.3:
        del model.opset_import[:]
    else:
        model.ir_version = rng.choice((0, 1, 2, 3, 4, 7, 10, 13, 99, -1, (1 << 63) - 1))


def _outputs(rng: random.Random, model: onnx.ModelProto) -> None:
    outputs, choice = model.graph.output, rng.random()
    if choice < 0.2:
        del outputs[:]
    elif choice < 0.4 and outputs:
        outputs.add().CopyFrom(outputs[0])
    elif choice < 0.7:
        outputs.add().name = rng.choice((*_names(model), "no_such_tensor", ""))
    elif outputs:
        rng.choice(outputs).name = rng.choice((*_names(model), "no_such_tensor", ""))


def _initializers(rng: random.Random, model: onnx.ModelProto) -> None:
    graph, choice = rng.choice(_graphs(model)), rng.random()
    if graph.initializer and choice < 0.3:
        del graph.initializer[rng.randrange(len(graph.initializer))]
    elif graph.initializer and choice < 0.5:
        graph.initializer.add().CopyFrom(rng.choice(graph.initializer))
    elif choice < 0.7:
        name = rng.choice(_names(model))
        values = [rng.choice((*INTEGERS, 0, 1, 2)) for _ in range(rng.choice((0, 1, 2, 4)))]
        graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values))
    elif graph.initializer and choice < 0.85:
        rng.choice(graph.initializer).name = rng.choice((*_names(model), ""))
    else:
        sparse = graph.sparse_initializer.add()
        sparse.values.CopyFrom(onnx.helper.make_tensor(rng.choice(_names(model)), 1, [1], [1.0]))
        sparse.indices.CopyFrom(onnx.helper.make_tensor("i", 7, [1], [rng.choice((0, -1, 1 << 40))]))
        sparse.dims[:] = [rng.choice((1, 4, -1, 1 << 40))]


def _functions(rng: random.Random, model: onnx.ModelProto) -> None:
    node = rng.choice(_nodes(model))
    if not model.functions or rng.random() < 0.3:
        function = model.functions.add(name="Own", domain="own")
        function.input[:] = node.input
        function.output[:] = node.output
        function.node.add().CopyFrom(node)
        function.opset_import.add().CopyFrom(model.opset_import[0])
        if rng.random() < 0.8:
            model.opset_import.add(domain="own", version=1)
        node.op_type, node.domain = "Own", "own"
        if rng.random() < 0.3:  # one that calls itself
            function.node[0].op_type, function.node[0].domain = "Own", "own"
            function.opset_import.add(domain="own", version=1)
    else:
        function = rng.choice(model.functions)
        rng.choice((lambda: function.input.append("more"), lambda: function.ClearField("node"),
                    lambda: function.ClearField("output"), lambda: function.attribute.append("alpha"),
                    lambda: model.functions.add().CopyFrom(function)))()  # fmt: skip


def _nest(rng: random.Random, model: onnx.ModelProto) -> None:
    """Put a node into an If or Loop around it, some levels deep."""
    graph = model.graph
    at = rng.randrange(len(graph.node))
    inner = onnx.NodeProto()
    inner.CopyFrom(graph.node[at])
    for _ in range(rng.choice((1, 2, 20, 60))):
        body = onnx.GraphProto(name="body", node=[inner])
        body.output.extend(onnx.ValueInfoProto(name=name) for name in inner.output)
        outer = onnx.NodeProto(op_type="If", input=["condition"], output=inner.output)
        outer.attribute.append(onnx.helper.make_attribute("then_branch", body))
        outer.attribute.append(
            onnx.helper.make_attribute("else_branch", body if rng.random() < 0.01 else onnx.GraphProto())
        )
        inner = outer
    graph.node[at].CopyFrom(inner)
    if rng.random() < 0.8:
        graph.initializer.append(onnx.helper.make_tensor("condition", onnx.TensorProto.BOOL, [], [True]))


_BY_MEANING: tuple[Mutator, ...] = (
    *(_input_dim,) * 4, *(_input_type,) * 3, *(_dims,) * 3, *(_tensor_dtype,) * 2, *(_tensor_data,) * 4, _external,
    *(_attribute,) * 6, *(_attribute_list,) * 3, *(_link,) * 4, *(_node,) * 3, _versions, *(_outputs,) * 2,
    *(_initializers,) * 2, _functions, _nest,
)  # fmt: skip
