# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The op definitions of package `qti.aisw`, and the check of a graph against them.

The table `data/opdefs.json` states facts of the QAIRT 2.25 op pages and the op names of the 2.43 API. It says
what an op may be in general; what one backend accepts is for `Backend.validate` to say, and the dtype rows of
`OpDef.rows` are only a hint about it (they are those of QAIRT 2.25).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import numpy as np

from npukit.errors import Fault, GraphError, UsageError, nearest
from npukit.qnn.graph import DType, Graph, Op, Param, Tensor, TensorKind

PACKAGE = "qti.aisw"

_SHORT = {
    **{
        f"{letter}{bits}": f"{name}_{bits}"
        for letter, name in (("i", "INT"), ("u", "UINT"))
        for bits in (8, 16, 32, 64)
    },
    **{
        f"{letter}{bits}": f"{name}_POINT_{bits}"
        for letter, name in (("s", "SFIXED"), ("q", "UFIXED"))
        for bits in (4, 8, 16, 32)
    },
    **{"f16": "FLOAT_16", "bf16": "BFLOAT_16", "f32": "FLOAT_32", "f64": "FLOAT_64", "b8": "BOOL_8", "str": "STRING"},
}
_EITHER = {("ExpandDims", "axis"): "axes"}  # a mandatory param that another one replaces


@dataclass(frozen=True)
class TensorDef:
    """A positional input or output: `ranks` is None where any rank is allowed; `repeated` ones fill a range."""

    name: str
    mandatory: bool
    ranks: tuple[int, ...] | None
    first: int
    last: int | None

    @property
    def repeated(self) -> bool:
        return self.last is None or self.last > self.first


@dataclass(frozen=True)
class ParamDef:
    """A named parameter. `dtype` None: the dtype of the data. `values`: enum names to codes, if it is an enum.

    `default` is the plain value; None where there is none, and a sentence ("rank(in[0])-1") where it depends.
    """

    name: str
    tensor: bool
    dtype: DType | None
    mandatory: bool
    default: object
    shape: str
    values: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class OpDef:
    """What one op type takes and gives. `since` is the first op set and the first SDK that has it."""

    type: str
    inputs: tuple[TensorDef, ...]
    outputs: tuple[TensorDef, ...]
    params: Mapping[str, ParamDef]
    since: tuple[str, str]
    layout: str
    deprecated: bool
    backends: Mapping[str, Mapping[str, tuple[str, ...]]]

    def rows(self, backend: str) -> list[dict[str, tuple[DType, ...]]]:
        """Dtype combinations of `backend` ("cpu" or "htp") as of QAIRT 2.25: "in0", "out0", ... to dtypes."""
        found = []
        for row in self.backends.get(backend, {}).get("rows", ()):
            cells = (cell.split("=") for cell in row.split(" ")[1:])
            found.append(
                {name: tuple(DType[_SHORT[code]] for code in codes.split("/") if code) for name, codes in cells}
            )
        return found

    def rules(self, backend: str) -> list[tuple[str, str, str]]:
        """Restrictions of `backend` as of QAIRT 2.25: (configuration, tensor or param, rule)."""
        split = (text.split("|", 2) for text in self.backends.get(backend, {}).get("rules", ()))
        return [(config, on, rule) for config, on, rule in split]


def _tensor_defs(rows: list[list[object]]) -> tuple[TensorDef, ...]:
    defs: list[TensorDef] = []
    for position, (name, mandatory, ranks, span) in enumerate(rows):
        first: int = position
        last: int | None = position
        if isinstance(span, str):
            low, high = span.split("..")
            first, last = int(low), int(high) if high.isdigit() else None
        elif defs and (end := defs[-1].last) is not None:
            first = last = end + 1
        allowed = tuple(int(r) for r in ranks) if isinstance(ranks, list) else None
        defs.append(TensorDef(str(name), bool(mandatory), allowed, first, last))
    return tuple(defs)


def _param_def(name: str, raw: Mapping[str, object]) -> ParamDef:
    dtype, values = raw["dtype"], raw.get("values")
    return ParamDef(
        name,
        raw["kind"] == "tensor",
        DType[str(dtype)] if dtype else None,
        bool(raw.get("mandatory")),
        raw.get("default"),
        str(raw.get("shape", "")),
        {str(k): int(v) for k, v in values.items()} if isinstance(values, dict) else {},
    )


@cache
def _table() -> dict[str, OpDef]:
    text = resources.files("npukit.qnn").joinpath("data/opdefs.json").read_text(encoding="utf-8")
    table = {}
    for name, raw in json.loads(text).items():
        backends = {key: {k: tuple(v) for k, v in raw[key].items()} for key in ("cpu", "htp") if key in raw}
        params = {key: _param_def(key, value) for key, value in raw["params"].items()}
        table[name] = OpDef(
            name,
            _tensor_defs(raw["in"]),
            _tensor_defs(raw["out"]),
            params,
            (raw["since"][0], raw["since"][1]),
            raw.get("layout", ""),
            bool(raw.get("deprecated")),
            backends,
        )
    return table


class _Ops(Mapping[str, OpDef]):
    """All op definitions by type; the table is read at the first look-up."""

    def __getitem__(self, key: str) -> OpDef:
        return _table()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(_table())

    def __len__(self) -> int:
        return len(_table())


OPS: Mapping[str, OpDef] = _Ops()


def opdef(type: str) -> OpDef:
    """The definition of op `type`. Raises UsageError with the nearest name when there is none."""
    found = OPS.get(type)
    if found is None:
        raise UsageError(f"no op {type!r} in package {PACKAGE}", hint=nearest(type, OPS))
    return found


def enum_value(type: str, param: str, name: str) -> int:
    """The code of an enum value, e.g. `enum_value("Pad", "scheme", "CONSTANT")`. Raises UsageError."""
    definition = opdef(type)
    if param not in definition.params:
        raise UsageError(f"op {type} has no param {param!r}", hint=nearest(param, definition.params))
    values = definition.params[param].values
    if name not in values:
        raise UsageError(f"{type}.{param} has no value {name!r}", hint=nearest(name, values))
    return values[name]


def check(graph: Graph) -> None:
    """Raise one GraphError with every fault that `validate` finds in `graph`, if there is any."""
    faults = validate(graph)
    if faults:
        count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        raise GraphError(f"graph {graph.name!r} breaks the op definitions ({count})", faults=faults)


def validate(graph: Graph) -> list[Fault]:
    """Every fault of `graph`: its tensors, its order, and each op against its definition."""
    faults = [fault for tensor in graph.tensors() for fault in _tensor_faults(tensor)]
    faults += _structure_faults(graph)
    for op in graph.ops:
        faults += _op_faults(op)
    return faults


def _tensor_faults(tensor: Tensor) -> Iterator[Fault]:
    where = f"tensor {tensor.name!r}"
    if not tensor.name:
        yield Fault("a tensor has no name", where)
    if any(dim < 1 for dim in tensor.shape):
        yield Fault(f"shape {list(tensor.shape)} has a dimension below 1", where, "QNN has no empty tensors")
    if tensor.kind is TensorKind.STATIC and tensor.data is None:
        yield Fault("a static tensor without data", where)
    if tensor.data is not None:
        yield from _data_faults(tensor, where)
    encoding = tensor.encoding
    if encoding is not None and encoding.axis is not None:
        if not 0 <= encoding.axis < tensor.rank:
            yield Fault(f"encoding axis {encoding.axis} is outside rank {tensor.rank}", where)
        elif len(encoding.scales) != tensor.shape[encoding.axis]:
            dim = tensor.shape[encoding.axis]
            yield Fault(f"{len(encoding.scales)} scales for {dim} channels of axis {encoding.axis}", where)
    if encoding is not None and len(encoding.scales) != len(encoding.offsets):
        yield Fault(f"{len(encoding.scales)} scales but {len(encoding.offsets)} offsets", where)


def _data_faults(tensor: Tensor, where: str) -> Iterator[Fault]:
    data = tensor.data
    assert data is not None
    if tensor.kind is not TensorKind.STATIC:
        yield Fault(f"a tensor of kind {tensor.kind.name} has data", where, "only static tensors hold data")
    if tensor.dtype in (DType.STRING, DType.UNDEFINED):
        yield Fault(f"no data can be held as {tensor.dtype.name}", where)
        return
    if data.dtype != tensor.dtype.numpy:
        yield Fault(f"data is {data.dtype}, {tensor.dtype.name} is held as {tensor.dtype.numpy}", where)
    if data.shape != tensor.shape:
        yield Fault(f"data has shape {list(data.shape)}, the tensor {list(tensor.shape)}", where)


def _structure_faults(graph: Graph) -> Iterator[Fault]:
    yield from _name_faults(graph)
    for tensor in graph.inputs:
        if tensor.kind not in (TensorKind.APP_WRITE, TensorKind.APP_READWRITE):
            yield Fault(f"a graph input of kind {tensor.kind.name}", f"tensor {tensor.name!r}", "use APP_WRITE")
    for tensor in graph.outputs:
        if tensor.kind not in (TensorKind.APP_READ, TensorKind.APP_READWRITE):
            yield Fault(f"a graph output of kind {tensor.kind.name}", f"tensor {tensor.name!r}", "use APP_READ")
    made: dict[int, str] = {id(tensor): "the graph" for tensor in graph.inputs}
    later = {id(tensor): op.name for op in graph.ops for tensor in op.outputs}
    for op in graph.ops:
        for source in op.inputs:
            if source is None or source.kind in (TensorKind.STATIC, TensorKind.NULL) or id(source) in made:
                continue
            maker = later.get(id(source))
            what = f"reads {source.name!r} before op {maker!r} makes it" if maker else f"nothing makes {source.name!r}"
            yield Fault(what, _where(op))
        for tensor in op.outputs:
            if tensor.kind is TensorKind.STATIC:
                yield Fault(f"writes the static tensor {tensor.name!r}", _where(op))
            if id(tensor) in made:
                yield Fault(f"writes {tensor.name!r}, which {made[id(tensor)]} already makes", _where(op))
            made[id(tensor)] = f"op {op.name!r}"
    for tensor in graph.outputs:
        if id(tensor) not in made:
            yield Fault("a graph output that no op makes", f"tensor {tensor.name!r}")


def _name_faults(graph: Graph) -> Iterator[Fault]:
    tensors: dict[str, int] = {}
    for tensor in graph.tensors():
        tensors[tensor.name] = tensors.get(tensor.name, 0) + 1
    yield from (Fault(f"{n} tensors have this name", f"tensor {name!r}") for name, n in tensors.items() if n > 1)
    ops: dict[str, int] = {}
    for op in graph.ops:
        ops[op.name] = ops.get(op.name, 0) + 1
    yield from (Fault(f"{n} ops have this name", f"op {name!r}") for name, n in ops.items() if n > 1)


def _where(op: Op) -> str:
    return f"op {op.name!r} ({op.type})"


def _op_faults(op: Op) -> Iterator[Fault]:
    where = _where(op)
    if not op.name:
        yield Fault("an op has no name", where)
    if op.package != PACKAGE:
        return  # other packages bring their own definitions, which nothing here knows
    definition = OPS.get(op.type)
    if definition is None:
        yield Fault(f"no op {op.type!r} in package {PACKAGE}", where, nearest(op.type, OPS))
        return
    yield from _list_faults(where, "input", definition.inputs, op.inputs)
    yield from _list_faults(where, "output", definition.outputs, op.outputs)
    for name, param in op.params.items():
        if name not in definition.params:
            yield Fault(f"no param {name!r}", where, nearest(name, definition.params))
        else:
            yield from _param_faults(where, definition.params[name], param, op)
    for name, expected in definition.params.items():
        other = _EITHER.get((op.type, name))
        if expected.mandatory and name not in op.params and (other is None or other not in op.params):
            yield Fault(f"param {name!r} is missing", where)


def _list_faults(
    where: str, word: str, expected: tuple[TensorDef, ...], got: list[Tensor | None] | list[Tensor]
) -> Iterator[Fault]:
    least = max((d.first + 1 for d in expected if d.mandatory), default=0)
    most = (
        None if any(d.last is None for d in expected) else max((d.last or 0) + 1 for d in expected) if expected else 0
    )
    if len(got) < least or (most is not None and len(got) > most):
        wanted = f"{least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
        yield Fault(f"{len(got)} {word}s, the definition has {wanted}", where)
    for index, tensor in enumerate(got):
        spec = next((d for d in expected if d.first <= index and (d.last is None or index <= d.last)), None)
        if spec is None:
            continue
        if tensor is None or tensor.kind is TensorKind.NULL:
            if spec.mandatory and index < least:
                yield Fault(f"{word} {index} ({spec.name}) is mandatory and absent", where)
        elif spec.ranks is not None and tensor.rank not in spec.ranks:
            ranks = " or ".join(str(r) for r in spec.ranks)
            yield Fault(f"{word} {index} ({spec.name}, {tensor.name!r}) has rank {tensor.rank}, not {ranks}", where)


def _param_faults(where: str, expected: ParamDef, param: Param, op: Op) -> Iterator[Fault]:
    name, value = expected.name, param.value
    if expected.tensor != param.is_tensor:
        yield Fault(f"param {name!r} is a {_form(param.is_tensor)}, not a {_form(expected.tensor)}", where)
        return
    if expected.dtype is not None and param.dtype is not expected.dtype:
        yield Fault(f"param {name!r} is {param.dtype.name}, not {expected.dtype.name}", where)
        return
    if isinstance(value, np.ndarray):
        if value.dtype != param.dtype.numpy:
            yield Fault(f"param {name!r} holds {value.dtype}, {param.dtype.name} is {param.dtype.numpy}", where)
        yield from _param_shape_faults(where, expected, value, op)
    elif expected.values and value not in expected.values.values():
        known = ", ".join(f"{k} = {v}" for k, v in expected.values.items())
        yield Fault(f"param {name!r} has no value {value!r}", where, f"known: {known}")
    elif not _fits(param.dtype, value):
        yield Fault(f"param {name!r} = {value!r} does not fit {param.dtype.name}", where)


def _form(tensor: bool) -> str:
    return "tensor" if tensor else "scalar"


def _fits(dtype: DType, value: object) -> bool:
    if dtype is DType.BOOL_8:
        return value in (0, 1)
    if dtype.is_float or dtype in (DType.STRING, DType.UNDEFINED):
        return True
    low, high = integer_range(dtype)
    return isinstance(value, int | np.integer) and bool(low <= value <= high)


def integer_range(dtype: DType) -> tuple[int, int]:
    """Lowest and highest code of an integer or fixed-point dtype."""
    signed = dtype.numpy.kind == "i"
    bits = 4 if dtype in (DType.SFIXED_POINT_4, DType.UFIXED_POINT_4) else dtype.bits
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def _param_shape_faults(where: str, expected: ParamDef, value: np.ndarray, op: Op) -> Iterator[Fault]:
    first = op.inputs[0] if op.inputs else None
    rank = first.rank if first is not None else None
    shape = expected.shape.strip("[]")
    wanted: list[int | None] = []
    for text in expected.shape[1:-1].replace("in[0]", "in0").split(","):
        known = {"N": rank, "rank(in0)": rank, "M": None, "rank(in0)+new": None}
        word = text.strip()
        wanted.append(known[word] if word in known else int(word))
    good = len(wanted) == value.ndim and all(w in (None, got) for w, got in zip(wanted, value.shape, strict=True))
    if not good:
        yield Fault(f"param {expected.name!r} has shape {list(value.shape)}, not [{shape}]", where)
