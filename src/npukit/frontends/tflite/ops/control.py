# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Subgraphs and variables: branches, loops, calls.

IF and WHILE become ONNX's If and Loop. The passes of the ONNX front end then take the branch that a constant decides
(or run both and choose), and unroll a loop whose condition they can compute.
"""

from __future__ import annotations

import onnx_ir as ir

from npukit.frontends.tflite.builder import Builder
from npukit.frontends.tflite.registry import Refused, reads


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _inline(b: Builder, number: int, inputs: tuple[int, ...]) -> None:
    """The operators of a subgraph in place of the one that calls it."""
    inner = b.called(number, b.graph)
    _bind(b, inputs, inner)
    inner.read_operators()
    for i, index in enumerate(_as_many(inner.source.outputs, len(b.op.outputs), "outputs")):
        b.hand_back(inner, index, i)


def _bind(b: Builder, inputs: tuple[int, ...], inner: Builder) -> None:
    for source, index in zip(inputs, _as_many(inner.source.inputs, len(inputs), "inputs"), strict=True):
        b.hand(source, inner, index)


def _as_many(found: tuple[int, ...], count: int, what: str) -> tuple[int, ...]:
    if len(found) != count:
        raise Refused(f"its subgraph has {len(found)} {what} where the operator has {count}")
    return found


def _own(b: Builder, index: int) -> ir.Value:
    """Tensor `index` as a value that a node of `b`'s graph makes for it alone."""
    value = b.value_of(index)
    return b.node("Identity", value)


@reads("IF")
def if_(b: Builder) -> None:
    """The branch that a constant names, else both."""
    numbers = int(b.op.get("ThenSubgraphIndex", -1)), int(b.op.get("ElseSubgraphIndex", -1))
    condition = b.raw_data(0)
    if condition is not None:
        _inline(b, numbers[0 if condition.reshape(-1)[0] else 1], b.op.inputs[1:])
        return
    branches = []
    for number in numbers:
        inner = b.called(number)
        _bind(b, b.op.inputs[1:], inner)
        inner.read_operators()
        outputs = _as_many(inner.source.outputs, len(b.op.outputs), "outputs")
        inner.graph.outputs.extend([_own(inner, index) for index in outputs])
        branches.append(inner.graph)
    values = b.nodes("If", b.x(0), outputs=len(b.op.outputs), then_branch=branches[0], else_branch=branches[1])
    for i, value in enumerate(values):
        b.bind_codes(b.result(i), value)


@reads("WHILE")
def while_(b: Builder) -> None:
    """A Loop whose carried values are those that the body changes; it asks the condition for the next turn itself."""
    numbers = int(b.op.get("CondSubgraphIndex", -1)), int(b.op.get("BodySubgraphIndex", -1))
    inputs = b.op.inputs
    condition = b.called(numbers[0], b.graph)
    _bind(b, inputs, condition)
    condition.read_operators()
    (decides,) = _as_many(condition.source.outputs, 1, "conditions")

    body = b.called(numbers[1])
    starts = _as_many(body.source.inputs, len(inputs), "inputs")
    ends = _as_many(body.source.outputs, len(inputs), "outputs")
    changed = [i for i, (start, end) in enumerate(zip(starts, ends, strict=True)) if start != end]
    ports = [
        ir.Value(name=b.name(f"{b.prefix}/trip"), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(())),
        ir.Value(name=b.name(f"{b.prefix}/again"), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(())),
    ]
    for i, index in enumerate(starts):
        if i not in changed:
            b.hand(inputs[i], body, index)
            continue
        dtype = body.source.tensors[index].dtype
        if dtype is None:
            raise Refused(f"its body changes {body.source.tensors[index].name!r}, a {b.tensor(i).type_name}")
        ports.append(ir.Value(name=b.name(body.source.tensors[index].name), type=ir.TensorType(dtype)))
        body.carried(index, ports[-1])
    body.graph.inputs.extend(ports)
    body.read_operators()
    again = body.called(numbers[0], body.graph)
    _bind(body, ends, again)
    again.read_operators()
    body.graph.outputs.extend([_own(again, decides), *(_own(body, ends[i]) for i in changed)])
    first = [b.value_of(inputs[i]) for i in changed]
    values = b.nodes("Loop", None, condition.value_of(decides), *first, outputs=len(changed), body=body.graph)
    for i in range(len(inputs)):
        if i in changed:
            b.bind_codes(b.result(i), values[changed.index(i)])
        else:
            b.hand_back(b, inputs[i], i)


@reads("STABLEHLO_COMPOSITE")
def composite(b: Builder) -> None:
    """What the file says that it consists of."""
    _inline(b, int(b.op.get("DecompositionSubgraphIndex", -1)), b.op.inputs)


@reads("CALL_ONCE")
def call_once(b: Builder) -> None:
    """First values of variables."""
    inner = b.called(int(b.op.get("InitSubgraphIndex", -1)), ir.Graph([], [], nodes=[], opset_imports={"": 1}))
    inner.initializes = True
    inner.read_operators()


@reads("VAR_HANDLE")
def var_handle(b: Builder) -> None:
    """A variable by its name."""
    b.resources[b.op.outputs[0]] = _text(b.op.get("SharedName", b"")) or b.result().name


@reads("READ_VARIABLE")
def read_variable(b: Builder) -> None:
    """A constant, as variables that change are refused where they do."""
    name = _variable(b)
    if name not in b.shared.variables:
        raise Refused(f"the variable {name!r} has no first value in the file", "export the model with its weights")
    b.set_data(b.result(), b.shared.variables[name])


@reads("ASSIGN_VARIABLE")
def assign_variable(b: Builder) -> None:
    """Only what is done once, before the first run."""
    name, value = _variable(b), b.raw_data(1)
    if not b.initializes:
        raise Refused(
            f"it changes the variable {name!r}, a state that lasts from run to run",
            "make the state an input and an output of the model",
        )
    if value is None:
        raise Refused(f"the first value of the variable {name!r} is computed")
    b.shared.variables[name] = value


def _variable(b: Builder) -> str:
    if b.op.inputs[0] not in b.resources:
        raise Refused("it is not known which variable this is")
    return b.resources[b.op.inputs[0]]
