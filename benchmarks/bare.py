# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The yardstick: a graph written, or run, by C API calls and nothing else. Imports neither npukit nor numpy.

    python bare.py write LIBQNNIR SPEC.json OUT.dlc
    python bare.py loop LIBQNNCPU RUNS ELEMENTS

`write` composes the chain of `models.make` and lets libQnnIr write it; weights are passed by pointer into the mapped
file. `loop` runs a graph of one Relu and prints the seconds of each call. Structures are laid out by hand
(shared/reference/qnn_abi.md section 4), without any checks: this is the least that a program can do.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
import time
from ctypes import byref, c_char, c_char_p, c_uint32, c_uint64, c_void_p

# Slots of QnnInterface_t's table, and the arguments that each takes.
_SLOTS = {
    "backendCreate": (1, (c_void_p, c_void_p, c_void_p)),
    "contextCreate": (9, (c_void_p, c_void_p, c_void_p, c_void_p)),
    "graphCreate": (15, (c_void_p, c_char_p, c_void_p, c_void_p)),
    "graphFinalize": (19, (c_void_p, c_void_p, c_void_p)),
    "graphExecute": (21, (c_void_p, c_void_p, c_uint32, c_void_p, c_uint32, c_void_p, c_void_p)),
    "tensorCreateGraphTensor": (24, (c_void_p, c_void_p)),
}
_APP_WRITE, _APP_READ, _NATIVE, _STATIC = 0, 1, 3, 4
_FLOAT_32, _UINT_32, _UNDEFINED = 0x0232, 0x0132, 0x7FFFFFFF


class Tensor(ctypes.Structure):
    """Qnn_Tensor_t version 2, 144 bytes."""

    _fields_ = [
        ("version", c_uint32),
        ("pad", c_uint32),
        ("id", c_uint32),
        ("name", c_char_p),
        ("type", c_uint32),
        ("format", c_uint32),
        ("dtype", c_uint32),
        ("pad2", c_uint32),
        ("definition", c_uint32),
        ("encoding", c_uint32),
        ("quant", c_uint64 * 4),
        ("rank", c_uint32),
        ("dims", c_void_p),
        ("memory", c_uint32),
        ("data", c_void_p),
        ("size", c_uint32),
        ("dynamic", c_void_p),
        ("sparse", c_uint32 * 3),
        ("produced", c_uint32),
    ]


class Param(ctypes.Structure):
    """Qnn_Param_t, 160 bytes, for a tensor."""

    _fields_ = [("kind", c_uint32), ("name", c_char_p), ("tensor", Tensor)]


class Op(ctypes.Structure):
    """Qnn_OpConfig_t, 80 bytes, passed by value."""

    _fields_ = [
        ("version", c_uint32),
        ("name", c_char_p),
        ("package", c_char_p),
        ("type", c_char_p),
        ("params_count", c_uint32),
        ("params", c_void_p),
        ("inputs_count", c_uint32),
        ("inputs", c_void_p),
        ("outputs_count", c_uint32),
        ("outputs", c_void_p),
    ]


assert (ctypes.sizeof(Tensor), ctypes.sizeof(Param), ctypes.sizeof(Op)) == (144, 160, 80)
_keep: list[object] = []


class Api:
    """The function table of a library."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        providers, count = c_void_p(), c_uint32()
        library.QnnInterface_getProviders.restype = c_uint64
        self.check(library.QnnInterface_getProviders(byref(providers), byref(count)))
        first = c_void_p.from_address(providers.value or 0).value or 0
        table = (c_void_p * 75).from_address(first + 40)
        for name, (slot, arguments) in _SLOTS.items():
            setattr(self, name, ctypes.CFUNCTYPE(c_uint64, *arguments)(table[slot]))
        self.add_node = ctypes.CFUNCTYPE(c_uint64, c_void_p, Op)(table[18])

    @staticmethod
    def check(code: int) -> None:
        if code & 0xFFFF:
            raise SystemExit(f"the library answered {code & 0xFFFF}")


def tensor(name: str, kind: int, shape: list[int], dtype: int = _FLOAT_32, data: int = 0, size: int = 0) -> Tensor:
    """A tensor without encoding."""
    dims, text = (c_uint32 * len(shape))(*shape), name.encode()
    _keep.extend((dims, text))
    made = Tensor(version=2, name=text, type=kind, dtype=dtype, definition=_UNDEFINED, encoding=_UNDEFINED)
    made.rank, made.dims, made.data, made.size = len(shape), ctypes.addressof(dims), data, size
    made.sparse[0] = _UNDEFINED
    return made


def op(name: str, kind: str, inputs: list[Tensor], outputs: list[Tensor], params: list[Param]) -> Op:
    """An op of the standard package."""
    arrays = [(type(items[0]) * len(items))(*items) if items else None for items in (params, inputs, outputs)]
    texts = [name.encode(), b"qti.aisw", kind.encode()]
    _keep.extend((arrays, texts))
    at = [ctypes.addressof(array) if array is not None else None for array in arrays]
    return Op(1, *texts, len(params), at[0], len(inputs), at[1], len(outputs), at[2])


def write(library: str, spec_path: str, output: str) -> None:
    """Write the chain of `spec_path` as a DLC."""
    with open(spec_path, encoding="utf-8") as stream:
        spec = json.load(stream)
    with open(spec["data"], "rb") as weights:
        mapped = mmap.mmap(weights.fileno(), 0, access=mmap.ACCESS_COPY)  # writable for ctypes only; never written
    base = ctypes.addressof(c_char.from_buffer(mapped))
    api = Api(library)
    backend, context, graph = c_void_p(), c_void_p(), c_void_p()
    api.check(api.backendCreate(None, None, byref(backend)))
    api.check(api.contextCreate(backend, None, None, byref(context)))
    path = output.encode()
    custom = (c_uint64 * 3)(1, 1, ctypes.cast(c_char_p(path), c_void_p).value or 0)
    config = (c_uint64 * 2)(0, ctypes.addressof(custom))
    configs = (c_void_p * 2)(ctypes.addressof(config), None)
    api.check(api.graphCreate(context, b"model", configs, byref(graph)))

    def create(*args: object) -> Tensor:
        made = tensor(*args)  # type: ignore[arg-type]
        api.check(api.tensorCreateGraphTensor(graph, byref(made)))
        made.data, made.size = None, 0
        return made

    conv = spec["kind"] == "conv"
    current = create("x", _APP_WRITE, spec["io_shape"])
    for i, row in enumerate(spec["layers"]):
        last = i == len(spec["layers"]) - 1
        size = row["bias_offset"] - row["offset"]
        weight = create(f"w{i}", _STATIC, row["shape"], _FLOAT_32, base + row["offset"], size)
        width = row["shape"][-1] if conv else row["shape"][0]
        bias = create(f"b{i}", _STATIC, [width], _FLOAT_32, base + row["bias_offset"], 4 * width)
        hidden = create(f"h{i}", _NATIVE, spec["io_shape"])
        result = create("y" if last else f"r{i}", _APP_READ if last else _NATIVE, spec["io_shape"])
        params = []
        for name, values in (("stride", [1, 1]), ("pad_amount", [1, 1, 1, 1])) if conv else ():
            data = (c_uint32 * len(values))(*values)
            _keep.append(data)
            shape = [2, 2] if len(values) == 4 else [2]
            at, size = ctypes.addressof(data), ctypes.sizeof(data)
            params.append(Param(1, name.encode(), create(f"l{i}_{name}", _STATIC, shape, _UINT_32, at, size)))
            params[-1].tensor.data, params[-1].tensor.size = at, size
        kind = "Conv2d" if conv else "FullyConnected"
        api.check(api.add_node(graph, op(f"l{i}", kind, [current, weight, bias], [hidden], params)))
        api.check(api.add_node(graph, op(f"a{i}", "Relu", [hidden], [result], [])))
        current = result
    api.check(api.graphFinalize(graph, None, None))


def loop(library: str, runs: int, elements: int) -> None:
    """Run one Relu of `elements` floats `runs` times; print the seconds of each call as JSON."""
    api = Api(library)
    backend, context, graph = c_void_p(), c_void_p(), c_void_p()
    api.check(api.backendCreate(None, None, byref(backend)))
    api.check(api.contextCreate(backend, None, None, byref(context)))
    api.check(api.graphCreate(context, b"model", None, byref(graph)))
    x, y = tensor("x", _APP_WRITE, [1, elements]), tensor("y", _APP_READ, [1, elements])
    for made in (x, y):
        api.check(api.tensorCreateGraphTensor(graph, byref(made)))
    api.check(api.add_node(graph, op("a", "Relu", [x], [y], [])))
    api.check(api.graphFinalize(graph, None, None))
    buffers = [(ctypes.c_float * elements)(), (ctypes.c_float * elements)()]
    for made, buffer in zip((x, y), buffers, strict=True):
        made.data, made.size = ctypes.addressof(buffer), 4 * elements
    inputs, outputs = byref(x), byref(y)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        code = api.graphExecute(graph, inputs, 1, outputs, 1, None, None)
        seconds.append(time.perf_counter() - start)
        api.check(code)
    sys.stdout.write(json.dumps(seconds))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:5])
    else:
        loop(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
