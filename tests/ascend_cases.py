# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Models for the Ascend lint, generated from the table of limits: for each row one within it and one beyond it.

Reads the table as data and knows nothing of the code that judges by it. A model within every limit must pass without a
finding, one beyond must give the row's finding, at its node, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TABLE: dict[str, Any] = json.loads(
    resources.files("npukit.ascend").joinpath("data/limits.json").read_text(encoding="utf-8")
)

KIND = {
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "bool": TensorProto.BOOL,
    "bfloat16": TensorProto.BFLOAT16,
    **{f"{s}int{b}": getattr(TensorProto, f"{s}int{b}".upper()) for s in ("", "u") for b in (8, 16, 32, 64)},
}
_FIRST_NEWEST = 19  # beyond what any atc reads
NODE = "the_node"


@dataclass(frozen=True)
class Case:
    """A model and what the lint must say of it.

    Attributes:
        name: of the test.
        model: the model.
        cann: version of CANN.
        precision: atc's mode.
        rule: of the one finding; empty where there must be none.
        source: of the finding, where the row has one.
        where: part of the place that is named.
    """

    name: str
    model: onnx.ModelProto
    cann: str
    precision: str = "fp16"
    rule: str = ""
    source: str = ""
    where: str = NODE

    @property
    def op(self) -> str:
        return self.name.partition("-")[0]


@dataclass(frozen=True)
class Unmade:
    """A row that no model stands for, with the reason."""

    name: str
    why: str


# ---------------------------------------------------------------- one-node models


def const(array: Any, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def tensor(name: str, kind: str | int, shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, KIND.get(kind, kind) if isinstance(kind, str) else kind, shape)


def build(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto] = (),  # type: ignore[assignment]
    opset: int = 14,
    **domains: int,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
    imports = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(d.replace("_", "."), v) for d, v in domains.items()),
    ]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


# What a node of an op needs where its schema does not say it all; inputs are (dtype, shape), constants or None.
_F = ("float32", (2, 3))
RECIPES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "AveragePool": ([("float32", (1, 2, 8, 8))], {"kernel_shape": [2, 2]}),
    "BatchNormalization": ([("float32", (1, 2, 4, 4)), *[np.ones(2, np.float32)] * 4], {}),
    "BitShift": ([("uint8", (2, 3)), ("uint8", (2, 3))], {"direction": "LEFT"}),
    "Cast": ([_F], {"to": TensorProto.FLOAT16}),
    "CastLike": ([_F, ("float16", (2, 3))], {}),
    "Col2Im": ([("float32", (1, 5, 5)), np.array([5, 5]), np.array([1, 5])], {}),
    "Compress": ([_F, ("bool", (2,))], {"axis": 0}),
    "Concat": ([_F, _F], {"axis": 0}),
    "ConstantOfShape": ([np.array([2, 3])], {}),
    "Conv": ([("float32", (1, 2, 8, 8)), np.ones((3, 2, 3, 3), np.float32)], {}),
    "ConvTranspose": ([("float32", (1, 2, 8, 8)), np.ones((2, 3, 3, 3), np.float32)], {}),
    "CumSum": ([_F, np.array(1)], {}),
    "DepthToSpace": ([("float32", (1, 4, 2, 2))], {"blocksize": 2}),
    "Det": ([("float32", (3, 3))], {}),
    "Einsum": ([_F, ("float32", (4, 3))], {"equation": "ab,cb->ac"}),
    "Expand": ([_F, np.array([4, 2, 3])], {}),
    "Gather": ([_F, np.array([0, 1])], {}),
    "GatherElements": ([_F, np.array([[0, 1, 0]])], {}),
    "GatherND": ([_F, np.array([[0, 1]])], {}),
    "Gemm": ([_F, ("float32", (3, 4))], {}),
    "GlobalAveragePool": ([("float32", (1, 2, 4, 4))], {}),
    "GlobalLpPool": ([("float32", (1, 2, 4, 4))], {}),
    "GlobalMaxPool": ([("float32", (1, 2, 4, 4))], {}),
    "GridSample": ([("float32", (1, 2, 4, 4)), ("float32", (1, 3, 3, 2))], {}),
    "InstanceNormalization": ([("float32", (1, 2, 4)), np.ones(2, np.float32), np.ones(2, np.float32)], {}),
    "IsInf": ([_F], {}),
    "LRN": ([("float32", (1, 4, 4, 4))], {"size": 3}),
    "LayerNormalization": ([_F, np.ones(3, np.float32)], {}),
    "LpPool": ([("float32", (1, 2, 8, 8))], {"kernel_shape": [2, 2]}),
    "MatMul": ([_F, ("float32", (3, 4))], {}),
    "MaxPool": ([("float32", (1, 2, 8, 8))], {"kernel_shape": [2, 2]}),
    "MaxRoiPool": ([("float32", (1, 2, 8, 8)), ("float32", (3, 5))], {"pooled_shape": [2, 2]}),
    "MaxUnpool": ([("float32", (1, 1, 2, 2)), ("int64", (1, 1, 2, 2))], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "MeanVarianceNormalization": ([("float32", (1, 2, 4, 4))], {}),
    "Mod": ([("int32", (2, 3)), ("int32", (2, 3))], {}),
    "Multinomial": ([_F], {}),
    "NonMaxSuppression": ([("float32", (1, 6, 4)), ("float32", (1, 2, 6))], {}),
    "OneHot": ([("int64", (2, 3)), np.array(4), np.array([0, 1], np.float32)], {}),
    "PRelu": ([_F, np.ones(3, np.float32)], {}),
    "Pad": ([_F, np.array([0, 1, 0, 1])], {}),
    "RandomNormal": ([], {"shape": [2, 3]}),
    "RandomUniform": ([], {"shape": [2, 3]}),
    "Range": ([np.array(0.0, np.float32), np.array(4.0, np.float32), np.array(1.0, np.float32)], {}),
    "ReduceMean": ([_F], {"axes": [1]}),
    "ReduceSum": ([_F, np.array([1])], {}),
    "Reshape": ([_F, np.array([3, 2])], {}),
    "Resize": ([("float32", (1, 2, 4, 4)), np.array([], np.float32), np.array([1, 1, 2, 2], np.float32)], {}),
    "ReverseSequence": ([("float32", (4, 2)), np.array([2, 3])], {"time_axis": 0, "batch_axis": 1}),
    "RoiAlign": ([("float32", (1, 2, 8, 8)), ("float32", (3, 4)), np.array([0, 0, 0])], {}),
    "Scatter": ([_F, np.array([[0, 1, 0]]), ("float32", (1, 3))], {}),
    "ScatterElements": ([_F, np.array([[0, 1, 0]]), ("float32", (1, 3))], {}),
    "ScatterND": ([_F, np.array([[0]]), ("float32", (1, 3))], {}),
    "Slice": ([_F, np.array([0]), np.array([1]), np.array([0])], {}),
    "SoftmaxCrossEntropyLoss": ([_F, ("int64", (2,))], {}),
    "SpaceToDepth": ([("float32", (1, 2, 4, 4))], {"blocksize": 2}),
    "Split": ([("float32", (4, 6))], {"axis": 0}),
    "Squeeze": ([("float32", (1, 3))], {}),
    "TfIdfVectorizer": (
        [("int32", (6,))],
        {"max_gram_length": 1, "max_skip_count": 0, "min_gram_length": 1, "mode": "TF", "ngram_counts": [0],
         "ngram_indexes": [0, 1], "pool_int64s": [2, 3]},
    ),
    "Tile": ([_F, np.array([2, 1])], {}),
    "TopK": ([_F, np.array([2])], {}),
    "Trilu": ([_F], {}),
    "Unsqueeze": ([_F, np.array([0])], {}),
    "Upsample": ([("float32", (1, 2, 4, 4)), np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}),
    "Where": ([("bool", (2, 3)), _F, _F], {}),
    **{
        op: ([("float32", (4, 1, 3)), np.ones((1, g * 2, 3), np.float32), np.ones((1, g * 2, 2), np.float32)],
             {"hidden_size": 2})
        for op, g in (("GRU", 3), ("LSTM", 4), ("RNN", 1))
    },
    **dict.fromkeys(("RandomNormalLike", "RandomUniformLike"), ([_F], {})),
}  # fmt: skip
_OUTPUTS = {"TopK": 2, "Split": 2, "Unique": 1, "MaxUnpool": 1}
# in the opsets below, what became an input was still an attribute
_OLD_AXES = {"Squeeze", "Unsqueeze", "ReduceSum"}


def one_node(op: str, opset: int, recipe: Any = None, **changed: Any) -> onnx.ModelProto:
    """A model of one node called `the_node`, by its recipe or, without one, by its schema."""
    inputs, attributes = recipe or RECIPES.get(op) or _by_schema(op, opset)
    attributes = {**attributes, **changed}
    if op in _OLD_AXES and opset < 13:
        axes = [x for x in inputs[1:] if isinstance(x, np.ndarray)]
        inputs, attributes = inputs[:1], {**attributes, **({"axes": axes[0].tolist()} if axes else {})}
    if op == "ReduceMean" and opset >= 18 and "axes" in attributes:
        inputs = [*inputs, np.array(attributes.pop("axes"))]
    if op == "Split" and opset >= 18 and len(inputs) < 2:
        attributes = {"num_outputs": 2, **attributes}
    names, values, constants = [], [], []
    for i, given in enumerate(inputs):
        name = f"in{i}" if given is not None else ""
        names.append(name)
        if isinstance(given, np.ndarray):
            constants.append(const(given, name))
        elif given is not None:
            values.append(tensor(name, *given))
    outputs = [f"out{i}" for i in range(_OUTPUTS.get(op, 1))]
    node = helper.make_node(op, names, outputs, name=NODE, **attributes)
    values = values or [tensor("unread", "float32", (1,))]
    model = build([node], values, [tensor(name, "float32", None) for name in outputs], constants, opset)
    return typed(model)


def typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the outputs' types that onnx infers."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for output in bare.graph.output:
        output.ClearField("type")
    found = {value.name: value for value in onnx.shape_inference.infer_shapes(bare).graph.output}
    for output in model.graph.output:
        value = found.get(output.name)
        kind = value.type.WhichOneof("value") if value is not None else None
        if value is not None and kind and (kind != "tensor_type" or value.type.tensor_type.HasField("shape")):
            output.type.CopyFrom(value.type)
        elif model.graph.node[0].op_type == "MeanVarianceNormalization":
            output.type.CopyFrom(model.graph.input[0].type)  # onnx infers nothing of it
    return model


def schema(op: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None


_PREFERRED = ("tensor(float)", "tensor(bool)", "tensor(int32)", "tensor(int64)")


def _by_schema(op: str, opset: int) -> tuple[list[Any], dict[str, Any]]:
    found = schema(op, opset)
    if found is None:
        return [_F], {}
    inputs = []
    for formal in list(found.inputs)[: found.min_input]:
        kind = next(k for k in _PREFERRED if k in formal.types)
        inputs.append(({"float": "float32"}.get(kind[7:-1], kind[7:-1]), (2, 3)))
    return inputs, {}


def _sequence_model(op: str, opset: int) -> onnx.ModelProto:
    """Ops on sequences: one is made first where the op takes one."""
    made = helper.make_node("SequenceConstruct", ["x", "x"], ["s"], name="made")
    x, one = tensor("x", "float32", (2, 3)), const(np.array(0), "one")
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    takes = {
        "ConcatFromSequence": (["s"], {"axis": 0}, tensor("y", "float32", (4, 3))),
        "SequenceAt": (["s", "one"], {}, tensor("y", "float32", (2, 3))),
        "SequenceConstruct": (["x"], {}, sequence),
        "SequenceEmpty": ([], {}, sequence),
        "SequenceErase": (["s", "one"], {}, sequence),
        "SequenceInsert": (["s", "x"], {}, sequence),
        "SequenceLength": (["s"], {}, tensor("y", "int64", ())),
        "SplitToSequence": (["x"], {}, sequence),
    }
    inputs, attributes, output = takes[op]
    node = helper.make_node(op, inputs, ["y"], name=NODE, **attributes)
    nodes = [made, node] if "s" in inputs else [node]
    return build(nodes, [x], [output], [one] if "one" in inputs else [], opset)


def _if_model(opset: int) -> onnx.ModelProto:
    branches = [
        helper.make_graph([helper.make_node(op, ["x"], [f"{op}_y"], name=op)], op, [],
                          [tensor(f"{op}_y", "float32", (2, 3))])
        for op in ("Abs", "Neg")
    ]  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], name=NODE, then_branch=branches[0], else_branch=branches[1])
    return build([node], [tensor("c", "bool", ()), tensor("x", "float32", (2, 3))], [tensor("y", "float32", (2, 3))],
                 opset=opset)  # fmt: skip


def _constant_model(opset: int) -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["c"], name=NODE, value=const(np.ones((2, 3), np.float32), "c"))
    add = helper.make_node("Add", ["x", "c"], ["y"], name="add")
    return build([node, add], [tensor("x", "float32", (2, 3))], [tensor("y", "float32", (2, 3))], opset=opset)


_SEQUENCES = {"SplitToSequence", "ConcatFromSequence"} | {
    f"Sequence{what}" for what in ("At", "Construct", "Empty", "Erase", "Insert", "Length")
}


def model_of(op: str, opset: int) -> onnx.ModelProto:
    if op == "If":
        return _if_model(opset)
    if op == "Constant":
        return _constant_model(opset)
    if op in _SEQUENCES:
        return _sequence_model(op, opset)
    return one_node(op, opset)


# ---------------------------------------------------------------- rows of ops


def op_cases() -> Iterator[Case | Unmade]:
    """Each op in an opset that it is registered for, and in one that it is not, or on a CANN that does not list it."""
    for op, row in TABLE["ops"].items():
        if row["opsets"] is None:
            yield Case(f"{op}-listed", model_of(op, 14), "8.0")
            if op == "Constant":
                yield Case(f"{op}-opset", model_of(op, _FIRST_NEWEST), "9.0", rule="atc-opset", where="opset_import")
            else:
                yield Case(f"{op}-unregistered", model_of(op, 14), "9.0", rule="atc-op-unlisted")
            continue
        first, last = row["opsets"]
        opsets = {v for v in range(first, last + 1) if v not in row.get("without", ())}
        old = [v for v in range(11, 16) if v in opsets]
        new = [v for v in range(11, 19) if v in opsets]
        # ONNX has some ops only in later opsets than atc's registration of another op of that name
        in_onnx = [v for v in new if schema(op, v) is not None] or new
        if row["listed"] and set(old) & set(in_onnx):
            yield Case(f"{op}-legal", model_of(op, max(set(old) & set(in_onnx))), "8.0")
        else:
            yield Case(f"{op}-legal", model_of(op, min(in_onnx)), "9.0")
        outside = [v for v in range(11, 19) if v not in opsets]
        if outside:
            better = [v for v in outside if schema(op, v) is not None] or outside
            yield Case(f"{op}-opset", model_of(op, better[-1]), "9.0", rule="atc-op")
        else:
            yield Case(f"{op}-opset", model_of(op, _FIRST_NEWEST), "9.0", rule="atc-opset", where="opset_import")
        if op.startswith("Sequence") and op not in ("SequenceConstruct", "SequenceEmpty") or op == "ConcatFromSequence":
            yield Unmade(f"{op}-unlisted", "it needs a sequence, and no op that makes one is listed either")
        elif not row["listed"] and set(old) & set(in_onnx):
            yield Case(f"{op}-unlisted", model_of(op, max(set(old) & set(in_onnx))), "8.0", rule="atc-op-unlisted")


# ---------------------------------------------------------------- rows of limits


def _versions(row: dict[str, Any]) -> tuple[str, int]:
    """A CANN and an opset that the row holds for."""
    first, last = row.get("cann", (None, None))
    cann = last or first or "8.2"
    low, high = row.get("opsets", (14, 18))
    opset = min(max(14, low, TABLE["ops"][row["op"]]["opsets"][0]), high)
    return ("9.0", opset) if opset > 15 else (cann, opset)


def _with_dtype(op: str, at: list[Any], kind: str, opset: int) -> onnx.ModelProto | None:
    """The op's model with these inputs (and those of the same type) in another dtype, where ONNX allows it."""
    found = schema(op, opset)
    if found is None:
        return None
    inputs, attributes = RECIPES.get(op) or _by_schema(op, opset)
    places = range(len(inputs)) if at == ["*"] else [i for i in at if i < len(inputs)]
    formal = list(found.inputs)
    variables = {formal[min(i, len(formal) - 1)].type_str for i in places}
    allowed = set.intersection(*(set(formal[min(i, len(formal) - 1)].types) for i in places))
    onnx_name = {"float32": "float", "float64": "double"}.get(kind, kind)
    if not places or f"tensor({onnx_name})" not in allowed:
        return None
    changed = []
    for i, given in enumerate(inputs):
        same = formal[min(i, len(formal) - 1)].type_str in variables
        if given is None or not same:
            changed.append(given)
        elif isinstance(given, np.ndarray):
            changed.append(given.astype(helper.tensor_dtype_to_np_dtype(KIND[kind])))
        else:
            changed.append((kind, given[1]))
    return one_node(op, opset, (changed, attributes))


_ALL = tuple(kind for kind in KIND if kind != "bfloat16")  # bfloat16 is a fault of its own


def _dtype(row: dict[str, Any]) -> Iterator[Case | Unmade]:
    cann, opset = _versions(row)
    name = f"{row['op']}-{row['kind']}-{'-'.join(map(str, row['at']))}-{cann}"
    counted = {*row["allow"], *(["float32"] if "float16" in row["allow"] else [])}  # mode fp16 narrows float32
    legal = [(kind, m) for kind in row["allow"] if (m := _with_dtype(row["op"], row["at"], kind, opset)) is not None]
    beyond = [
        (kind, m)
        for kind in _ALL
        if kind not in counted and (m := _with_dtype(row["op"], row["at"], kind, opset)) is not None
    ]
    for kind, model in legal:
        yield Case(f"{name}-{kind}", model, cann)
    for kind, model in beyond:
        yield Case(f"{name}-not-{kind}", model, cann, rule="atc-undocumented", source=row["source"])
    if not legal or not beyond:
        yield Unmade(name, "ONNX allows no dtype " + ("of the row" if not legal else "beyond the row"))


def _cast_out(row: dict[str, Any]) -> Iterator[Case | Unmade]:
    for kind in _ALL:
        model = one_node("Cast", 14, to=KIND[kind])
        rule = "" if kind in row["allow"] else "atc-undocumented"
        yield Case(f"Cast-to-{kind}", model, "8.2", rule=rule, source=row["source"] if rule else "")


_Pair = tuple[onnx.ModelProto | None, onnx.ModelProto | None]


def _attribute(row: dict[str, Any]) -> _Pair:
    name, (allowed,) = row["at"], row["allow"]
    if row["op"] == "NPURmsNorm":
        recipe = ([_F, ("float32", (3,))], {})
        return one_node(row["op"], 14, recipe, epsilon=allowed), one_node(row["op"], 14, recipe, epsilon=1e-5)
    if row["op"] == "Conv":
        grouped = ([("float32", (1, 2, 8, 8)), np.ones((2, 1, 3, 3), np.float32)], {"group": 2})
        return one_node("Conv", 14, group=1), one_node("Conv", 14, grouped)
    beyond = allowed + 1 if isinstance(allowed, int) else 0.5
    return one_node(row["op"], 14, **{name: allowed}), one_node(row["op"], 14, **{name: beyond})


def _attribute_range(row: dict[str, Any]) -> _Pair:
    name, last = row["at"], row["allow"][1]

    def conv(number: int) -> onnx.ModelProto:
        width = 2 * number + 3
        values = [number] * 4 if name == "pads" else [number] * 2
        return one_node("Conv", 14, ([("float32", (1, 1, width, width)), np.ones((1, 1, 3, 3), np.float32)],
                                     {name: values}))  # fmt: skip

    return conv(last), conv(last + 1)


def _kernel(row: dict[str, Any]) -> _Pair:
    def conv(size: int) -> onnx.ModelProto:
        return one_node("Conv", 14, ([("float32", (1, 1, 1, 300)), np.ones((1, 1, 1, size), np.float32)], {}))

    return conv(row["allow"][1]), conv(row["allow"][1] + 1)


def _dimension(row: dict[str, Any]) -> _Pair:
    def conv(width: int) -> onnx.ModelProto:
        return one_node("Conv", 14, ([("float32", (1, 1, 3, width)), np.ones((1, 1, 3, 3), np.float32)], {}))

    return conv(row["allow"][1]), conv(row["allow"][1] + 1)


def _rank(row: dict[str, Any]) -> _Pair:
    def matmul(rank: int) -> onnx.ModelProto:
        shape = ("float32", (1,) * (rank - 2) + (3, 3))
        return one_node("MatMul", 14, ([shape, shape], {}))

    if row["op"] == "MatMul":
        return matmul(6), matmul(7)
    if row["op"] == "Slice":
        ends = [np.array([0]), np.array([1]), np.array([0])]
        return one_node("Slice", 14), one_node("Slice", 14, ([("float32", (4,)), *ends], {}))
    return one_node(row["op"], 14), None  # Gemm: ONNX has no other rank


def _indices(row: dict[str, Any]) -> _Pair:
    if row["op"] == "Gather":
        return one_node("Gather", 14), one_node("Gather", 14, ([_F, np.array([0, -1])], {}))
    return one_node("ScatterND", 14), one_node("ScatterND", 14, ([_F, np.array([[-1]]), ("float32", (1, 3))], {}))


def _constant(row: dict[str, Any]) -> _Pair:
    shape = helper.make_node("Shape", ["like"], ["shape"], name="shape")
    node = helper.make_node("Expand", ["x", "shape"], ["y"], name=NODE)
    inputs = [tensor("x", "float32", (1, 3)), tensor("like", "float32", (2, 3))]
    return one_node("Expand", 14), build([shape, node], inputs, [tensor("y", "float32", (2, 3))])


def _value(row: dict[str, Any]) -> _Pair:
    return one_node("Trilu", 14, ([_F, np.array(0)], {})), one_node("Trilu", 14, ([_F, np.array(1)], {}))


def _magnitude(row: dict[str, Any]) -> _Pair:
    def angles(largest: float) -> onnx.ModelProto:
        node = helper.make_node(row["op"], ["a"], ["b"], name=NODE)
        add = helper.make_node("Add", ["x", "b"], ["y"], name="add")
        # in float64: a float32 constant beyond float16 has a finding of its own
        array = np.array([1.0, largest], np.float64)
        value = tensor("x", "float64", (2,)), tensor("y", "float64", (2,))
        return build([node, add], [value[0]], [value[1]], [const(array, "a")])

    return angles(row["allow"]), angles(row["allow"] + 1)


def _same_dtype(row: dict[str, Any]) -> _Pair:
    return one_node("Pow", 14, ([_F, np.array(2.0, np.float32)], {})), one_node(
        "Pow", 14, ([_F, np.array(3, np.int32)], {})
    )


def _same_shape(row: dict[str, Any]) -> _Pair:
    return one_node("Equal", 14, ([_F, _F], {})), one_node("Equal", 14, ([_F, ("float32", (1, 3))], {}))


def _pieces(row: dict[str, Any]) -> _Pair:
    def split(*sizes: int) -> onnx.ModelProto:
        return one_node("Split", 14, ([("float32", (4, 6)), np.array(sizes)], {"axis": 0}))

    return split(2, 2), split(4, 0) if row["allow"][0] == 1 else split(3, 1)


def _einsum(row: dict[str, Any]) -> _Pair:
    def einsum(equation: str) -> onnx.ModelProto:
        terms = equation.split("->")[0].split(",")
        sizes = {c: i + 2 for i, c in enumerate(sorted(set("".join(terms))))}
        return one_node(
            "Einsum", 14, ([("float32", tuple(sizes[c] for c in t)) for t in terms], {"equation": equation})
        )

    if row["kind"] == "inputs":
        return einsum("ab,cb->ac"), einsum("ab,bc,cd->ad")
    # the letters of an equation mean nothing
    return einsum(row["allow"][1].translate(str.maketrans("abcde", "bqhdk"))), einsum("ab,bc->ac")


def _absent(row: dict[str, Any]) -> _Pair:
    a, b = ("float32", (2, 3)), ("float32", (3, 4))
    return one_node("Gemm", 14), one_node("Gemm", 14, ([a, b, np.ones(4, np.float32)], {}))


def _axes(row: dict[str, Any]) -> _Pair:
    return one_node(row["op"], 14), one_node(row["op"], 14, ([_F], {}))


def _last_step(row: dict[str, Any]) -> _Pair:
    def sliced(axis: int) -> onnx.ModelProto:
        spec = [np.array([0]), np.array([4]), np.array([axis]), np.array([2])]
        return one_node("Slice", 14, ([("float32", (4, 4)), *spec], {}))

    return sliced(0), sliced(1)


def _top_k(row: dict[str, Any]) -> _Pair:
    def used(*nodes: onnx.NodeProto) -> onnx.ModelProto:
        top = helper.make_node("TopK", ["x", "k"], ["v", "i"], name=NODE)
        values = [tensor("x", "float32", (2, 5)), tensor("o", "int64", (2, 2))]
        outputs = [
            tensor("v", "float32", (2, 2)),
            tensor("y", "int64" if nodes[-1].op_type == "Add" else "float32", (2, 2)),
        ]
        return build([top, *nodes], values, outputs, [const(np.array([2]), "k")])

    cast = helper.make_node("Cast", ["i"], ["y"], name="cast", to=TensorProto.FLOAT)
    return used(cast), used(helper.make_node("Add", ["i", "o"], ["y"], name="add"))


def _documented(row: dict[str, Any]) -> _Pair:
    last = row["allow"][1]
    return one_node(row["op"], last), one_node(row["op"], last + 1)


_PAIRS: dict[str, Callable[[dict[str, Any]], _Pair]] = {
    "absent": _absent,
    "attribute": _attribute,
    "attribute_range": _attribute_range,
    "axes_given": _axes,
    "constant": _constant,
    "dimension": _dimension,
    "documented_opsets": _documented,
    "equation": _einsum,
    "indices_meet_int64": _top_k,
    "inputs": _einsum,
    "kernel": _kernel,
    "last_step": _last_step,
    "magnitude": _magnitude,
    "non_negative": _indices,
    "pieces": _pieces,
    "rank": _rank,
    "same_dtype": _same_dtype,
    "same_shape": _same_shape,
    "value": _value,
}
_NOT_MADE = {"length_is_rank": "ONNX itself asks for one repeat for each dimension"}


def limit_cases() -> Iterator[Case | Unmade]:
    """For each limit a model within it and one beyond it."""
    for row in TABLE["limits"]:
        name = f"{row['op']}-{row['kind']}-{row.get('at', '')}-{row.get('cann', [''])[-1] or ''}"
        if row["kind"] in ("dtype", "dtype_out"):
            yield from _dtype(row) if row["kind"] == "dtype" else _cast_out(row)
            continue
        if row["kind"] in _NOT_MADE:
            yield Unmade(name, _NOT_MADE[row["kind"]])
            continue
        legal, beyond = _PAIRS[row["kind"]](row)
        cann, _ = _versions(row)
        if row["kind"] == "documented_opsets" or not TABLE["ops"][row["op"]]["listed"]:
            cann = "9.0"
        rule = "atc-limit" if row["level"] == "error" else "atc-undocumented"
        if legal is not None:
            yield Case(f"{name}-legal", legal, cann)
        if beyond is None:
            yield Unmade(name, "ONNX itself has this limit")
        else:
            yield Case(f"{name}-beyond", beyond, cann, rule=rule, source=row["source"])
