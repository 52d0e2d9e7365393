# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX models written node by node, and weights of any size written once, one tensor in memory at a time.

For networks that no exporter can hold: the graphs name their weights, which lie in a file that several graphs share.
Nodes and values are named by the part of the network that they belong to ("layers.3/self_attn/MatMul"), so that a
message of a compiler says where, and so that `pieces` can cut a graph.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from npukit import files
from npukit.errors import ModelError

Array = npt.NDArray[Any]

IR_VERSION = 8
_ALIGN = 4096  # so that a runtime can map each tensor; what ONNX recommends


@dataclass(frozen=True)
class Stored:
    """A tensor of a weight file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class WeightFile:
    """A file of tensors that ONNX models name as external data.

    Args:
        path: in the folder of the models.
        dtype: of all that is added, a float.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self.stored: dict[str, Stored] = {}
        self._at = 0
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> WeightFile:
        with files.os_errors(self.path, "write"):
            self._stream = open(self.path, "wb")  # noqa: SIM115 - closed in __exit__
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        with files.os_errors(self.path, "write"):
            self._stream.close()

    def add(self, name: str, array: Array) -> None:
        """Write a tensor.

        Raises:
            ModelError: a number is beyond the dtype's range.
        """
        assert self._stream is not None
        assert name not in self.stored, name
        with np.errstate(over="ignore"):
            made = np.ascontiguousarray(array, self.dtype)
        if self.dtype == np.float16 and not np.isfinite(made).all():
            raise ModelError(f"holds {np.abs(array).max():.6g}, which float16 cannot (65504 at most)", where=name,
                             hint="export with --precision float32")  # fmt: skip
        with files.os_errors(self.path, "write"):
            self._stream.write(bytes(-self._at % _ALIGN))
            self._at += -self._at % _ALIGN
            self.stored[name] = Stored(self.dtype, made.shape, self._at)
            self._stream.write(made.reshape(-1).view(np.uint8).data)
        self._at += made.nbytes


class Graph:
    """One model in the making. Values are named by strings.

    Args:
        name: of the model.
        weights: where `weight` looks.
        opset: version of ai.onnx.
    """

    def __init__(self, name: str, weights: WeightFile, opset: int) -> None:
        self.name, self.weights, self.opset = name, weights, opset
        self.dtype = weights.dtype
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count: Counter[str] = Counter()
        self._scope = ""

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Name what is made inside `name`/..."""
        before = self._scope
        self._scope = f"{before}{name}/"
        try:
            yield
        finally:
            self._scope = before

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int]) -> str:
        """An input of the model."""
        self._inputs.append(_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[int], dtype: npt.DTypeLike | None = None) -> None:
        """Make a value the output `name` of the model."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for i, found in enumerate(names):
                    if found == value:
                        names[i] = name
        self._outputs.append(_info(name, dtype or self.dtype, shape))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; its output's name, or a list of them where `outputs` is more than one."""
        stem = f"{self._scope}{kind}"
        self._count[stem] += 1
        name = f"{stem}_{self._count[stem]}" if self._count[stem] > 1 else stem
        made = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), made, name=name, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, array: Array | Sequence[int] | float) -> str:
        """A small tensor inside the model, one for equal ones: a list is int64, a number of the weights' dtype."""
        if isinstance(array, float | int):
            array = np.asarray(array, self.dtype)
        elif not isinstance(array, np.ndarray):
            array = np.asarray(array, np.int64)
        key = f"{array.dtype}{list(array.shape)}"
        for i in range(1 + len(self._tensors)):
            name = f"constant/{key}_{i}"
            if name not in self._tensors:
                self._tensors[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
                return name
            if np.array_equal(numpy_helper.to_array(self._tensors[name]), array):
                return name
        raise AssertionError

    def weight(self, name: str) -> str:
        """A tensor of the weight file."""
        if name not in self._tensors:
            stored = self.weights.stored[name]
            tensor = TensorProto(name=name, dims=stored.shape, data_location=TensorProto.EXTERNAL)
            tensor.data_type = helper.np_dtype_to_tensor_dtype(stored.dtype)
            for key, value in (
                ("location", self.weights.path.name),
                ("offset", stored.offset),
                ("length", stored.size),
            ):
                tensor.external_data.add(key=key, value=str(value))
            self._tensors[name] = tensor
        return name

    def save(self) -> Path:
        """Write `<name>.onnx` beside its weights; the whole is checked, and its shapes inferred into the file.

        Raises:
            ModelError: it is no sound model, or a shape is not what the outputs say: a fault of npukit.
        """
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, list(self._tensors.values()))
        model = helper.make_model(graph, producer_name="npukit", ir_version=IR_VERSION,
                                  opset_imports=[helper.make_opsetid("", self.opset)])  # fmt: skip
        path = self.weights.path.with_name(f"{self.name}.onnx")
        try:
            model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
            files.atomic_write_bytes(path, model.SerializeToString())
            onnx.checker.check_model(str(path))
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
            raise ModelError(f"the model that was written is not sound: {error}", where=self.name) from error
        return path


def _info(name: str, dtype: npt.DTypeLike, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))
