# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A row of the table that raising is checked with, and short names for its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from npukit.qnn.graph import DType, Encoding, Graph, Op, Param, Tensor, TensorKind
from npukit.qnn.opdefs import opdef

F32, I32, U32, B8, Q8 = DType.FLOAT_32, DType.INT_32, DType.UINT_32, DType.BOOL_8, DType.UFIXED_POINT_8


@dataclass
class In:
    """An input: its shape and how its values are drawn; `static` puts them into the graph."""

    shape: tuple[int, ...]
    dtype: DType = F32
    low: float = -3.0
    high: float = 3.0
    values: object = None
    static: bool = False
    encoding: Encoding | None = None

    def draw(self, rng):
        kind = self.dtype.numpy
        if self.values is not None:
            return np.asarray(self.values).astype(kind).reshape(self.shape)
        if kind == np.bool_:
            return rng.integers(0, 2, self.shape).astype(kind)
        if self.dtype.is_quantized:
            info = np.iinfo(kind)
            low, high = max(info.min, -1000), min(info.max, 1000)
            return rng.integers(low, high + 1, self.shape).astype(kind)
        if kind.kind in "iu":
            return rng.integers(int(self.low), int(self.high) + 1, self.shape).astype(kind)
        return rng.uniform(self.low, self.high, self.shape).astype(kind)


@dataclass
class Case:
    """One row. `oracle`: "cpu" (QNN CPU's result), or "numpy" (the definition, in `definitions`) with a `note` why.

    `tolerance` below 1 is relative to the largest value, from 1 on in steps of integer codes; `compared` names the
    outputs that are compared, all if empty.
    """

    op: str
    inputs: list
    params: dict = field(default_factory=dict)
    outputs: list = field(default_factory=list)
    oracle: str = "cpu"
    note: str = ""
    tolerance: float = 1e-5
    compared: tuple = ()

    @property
    def id(self):
        shapes = "_".join("x".join(map(str, i.shape)) if i is not None else "none" for i in self.inputs[:3])
        words = [f"{k}={v}".replace(" ", "") for k, v in self.params.items()]
        return "-".join([self.op, self.inputs[0].dtype.name.lower() if self.inputs else "", shapes, *words])[:150]

    def graph(self):
        """The graph and the arrays of its inputs."""
        rng = np.random.default_rng(crc32(self.id.encode()))
        tensors, feeds, graph_inputs = [], [], []
        for index, spec in enumerate(self.inputs):
            if spec is None:
                tensors.append(None)
                continue
            data = spec.draw(rng)
            kind = TensorKind.STATIC if spec.static else TensorKind.APP_WRITE
            tensor = Tensor(f"in{index}", spec.dtype, spec.shape, kind, spec.encoding, data if spec.static else None)
            tensors.append(tensor)
            if not spec.static:
                graph_inputs.append(tensor)
                feeds.append(data)
        made = []
        for index, spec in enumerate(self.outputs or [self.inputs[0].shape]):
            out = spec if isinstance(spec, In) else In(spec, self.inputs[0].dtype, encoding=self.inputs[0].encoding)
            made.append(Tensor(f"out{index}", out.dtype, out.shape, TensorKind.APP_READ, out.encoding))
        op = Op("op", self.op, tensors, made, {k: param(self.op, k, v) for k, v in self.params.items()})
        return Graph("g", graph_inputs, made, [op]), feeds


def param(op, name, value):
    """A Param with the dtype of the definition; enum values by name."""
    definition = opdef(op).params[name]
    if isinstance(value, str):
        value = definition.values[value]
    if isinstance(value, Param):
        return value
    if definition.tensor:
        return Param(definition.dtype, np.asarray(value, definition.dtype.numpy))
    if definition.dtype is None:
        return Param(F32, float(value)) if isinstance(value, float) else Param(I32, int(value))
    if definition.dtype is DType.BOOL_8:
        return Param(DType.BOOL_8, bool(value))
    return Param(definition.dtype, float(value) if definition.dtype.is_float else int(value))


def f(*shape, low=-3.0, high=3.0, **kw):
    return In(shape, F32, low, high, **kw)


def i32(*shape, low=-9, high=9, **kw):
    return In(shape, I32, low, high, **kw)


def b8(*shape):
    return In(shape, B8)


def s(*shape, low=-1.0, high=1.0, **kw):
    return In(shape, F32, low, high, static=True, **kw)


def index(values, dtype=I32, static=True):
    values = np.asarray(values)
    return In(values.shape, dtype, values=values, static=static)


def q8(*shape, scale=0.05, offset=-128, static=False):
    return In(shape, Q8, encoding=Encoding.per_tensor(scale, offset), static=static)


def out(*shape, dtype=F32, encoding=None):
    return In(shape, dtype, encoding=encoding)
