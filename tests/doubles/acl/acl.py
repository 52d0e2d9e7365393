# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A double of pyACL, the Python module `acl` of CANN. NOT a device: tests put its folder on PYTHONPATH.

It has the functions of calls.tsv and no others, takes the argument types that are written there, and answers with the
codes of errors.tsv; every line of these files says where that is documented. Device memory is counted, and its
addresses are none of this process: who reads them without memcpy crashes. "Models" are the files of stand_in.py,
computed by onnx's reference implementation. Knows nothing of npukit.

For tests: `live()` says what is still held, `violations` what a real device would not forgive. Variables:
ACL_DOUBLE_MEMORY bytes of the device, ACL_DOUBLE_SOC its name, ACL_DOUBLE_FAIL "mdl.execute=507011@3": the third call
fails so, ACL_DOUBLE_REPORT a file that gets `live()`, `violations` and the calls' counts at every acl.finalize.
"""

from __future__ import annotations

import collections
import ctypes
import itertools
import json
import os
import struct
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

_HERE = Path(__file__).parent


def _table(name):
    lines = (_HERE / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


CALLS = {row[0]: row[1:] for row in _table("calls.tsv")}
ERRORS = {row[0]: int(row[1]) for row in _table("errors.tsv")}
DTYPES = {row[1]: int(row[0]) for row in _table("dtypes.tsv")}
GEAR_INPUT = "ascend_mbatch_shape_data"

violations: list[str] = []
calls: collections.Counter = collections.Counter()
_numbers = itertools.count(0x1000)
_thread = threading.local()


class _State:
    def __init__(self):
        self.initialized = False
        self.ever = False
        self.devices = collections.Counter()
        self.contexts = {}  # handle -> device
        self.memory = {}  # address -> bytearray
        self.models, self.descs, self.datasets, self.buffers = {}, {}, {}, {}
        self.next_address = 0x7D00_0000_0000_0000  # not canonical on x86-64 and AArch64: cannot be read by mistake
        self.message = ""


_s = _State()


class _Refused(Exception):
    def __init__(self, situation):
        super().__init__(situation)
        self.code = ERRORS[situation]


def live():
    """What has not been given back."""
    found = {
        "initialized": int(_s.initialized), "devices": sum(_s.devices.values()), "contexts": len(_s.contexts),
        "allocations": len(_s.memory), "bytes": used(), "models": len(_s.models), "descs": len(_s.descs),
        "datasets": len(_s.datasets), "buffers": len(_s.buffers),
    }  # fmt: skip
    return {name: count for name, count in found.items() if count}


def used():
    """Bytes of the device in use."""
    return sum(map(len, _s.memory.values())) + sum(model.weights for model in _s.models.values())


def _need(room):
    if used() + room > int(os.environ.get("ACL_DOUBLE_MEMORY", 1 << 30)):
        raise _Refused("device memory full")


def _handle(table, value):
    handle = next(_numbers) << 4
    table[handle] = value
    return handle


def _held(table, handle, situation="unknown handle"):
    if handle not in table:
        raise _Refused(situation)
    return table[handle]


def _at(items, index):
    if not 0 <= index < len(items):
        raise _Refused("index out of range")
    return items[index]


# ---------------------------------------------------------------- process, device, memory


def init(path=None):
    if _s.initialized:
        raise _Refused("initialized twice")
    _s.initialized = True


def finalize():
    for name, count in live().items():
        if name != "initialized":
            violations.append(f"finalize with {count} {name}")
    _s.initialized = False
    if "ACL_DOUBLE_REPORT" in os.environ:
        text = json.dumps({"live": live(), "violations": violations, "calls": dict(calls)})
        Path(os.environ["ACL_DOUBLE_REPORT"]).write_text(text, encoding="utf-8")


def get_soc_name():
    return os.environ.get("ACL_DOUBLE_SOC", "Ascend310P3")


def get_recent_err_msg():
    message, _s.message = _s.message, ""
    return message


def set_device(device):
    if device != 0:
        raise _Refused("no device")
    _s.devices[device] += 1
    _thread.context = "default"


def reset_device(device):
    if not _s.devices[device]:
        raise _Refused("no device")
    _s.devices[device] -= 1
    held = [name for name in live() if name in ("allocations", "models", "contexts")]
    if held and not _s.devices[device]:
        violations.append(f"reset_device with {', '.join(held)}")
    _thread.context = None


def create_context(device):
    if not _s.devices[device]:
        raise _Refused("no device")
    _thread.context = _handle(_s.contexts, device)
    return _thread.context


def set_context(context):
    _held(_s.contexts, context, "no context")
    _thread.context = context


def destroy_context(context):
    _held(_s.contexts, context, "no context")
    del _s.contexts[context]
    if _thread.context == context:
        _thread.context = None


def get_run_mode():
    return 1


def malloc(size, policy):
    if size <= 0 or policy not in (0, 1, 2):
        raise _Refused("unknown address")
    _need(size)
    address = _s.next_address
    _s.next_address += (size + 32 + 511) // 512 * 512
    _s.memory[address] = bytearray(size)
    return address


def free(address):
    _held(_s.memory, address, "unknown address")
    del _s.memory[address]


def _region(address, size):
    """The block and the offset in it of a piece of device memory."""
    for begin, block in _s.memory.items():
        if begin <= address and address + size <= begin + len(block):
            return block, address - begin
    raise _Refused("unknown address")


def memcpy(target, most, source, size, kind):
    if size > most or kind not in (1, 2, 3) or size <= 0:
        raise _Refused("unknown address")
    data = ctypes.string_at(source, size) if kind == 1 else None
    if data is None:
        block, at = _region(source, size)
        data = bytes(block[at : at + size])
    if kind == 2:
        ctypes.memmove(target, data, size)
        return
    block, at = _region(target, size)
    block[at : at + size] = data


# ---------------------------------------------------------------- models


class _Model:
    def __init__(self, data, context):
        if data[:4] != b"IMOD" or len(data) < 264:
            raise _Refused("not an om")
        (length,) = struct.unpack_from("<Q", data, 184)
        if length != len(data) - 256:
            raise _Refused("wrong size")
        (count,) = struct.unpack_from("<I", data, 256)
        begin = 264 + 24 * count
        parts = {}
        for i in range(count):
            kind, _, offset, size = struct.unpack_from("<IIQQ", data, 264 + 24 * i)
            parts[kind] = data[begin + offset : begin + offset + size]
        try:
            self.about = json.loads(parts[0])
            proto = onnx.load_model_from_string(parts[1])
        except Exception as error:
            raise _Refused("not an om") from error
        self.weights, self.context = len(parts[1]), context
        self.evaluator = ReferenceEvaluator(proto)
        initial = {tensor.name for tensor in proto.graph.initializer}
        self.inputs = [self._io(v, "input_names", i) for i, v in enumerate(
            v for v in proto.graph.input if v.name not in initial)]  # fmt: skip
        self.feeds = [v.name for v in proto.graph.input if v.name not in initial]
        self.gears = self._gears()
        self.gear = self.gears[-1] if self.gears else [dims for _, _, dims in self.inputs]
        self.results = self._shapes(self.gear)
        self.outputs = [
            (self._name("output_names", i, v.name), result.dtype.name, list(result.shape))
            for i, (v, result) in enumerate(zip(proto.graph.output, self.results, strict=False))
        ]

    def _name(self, key, i, name):
        return (self.about.get(key) or {i: name})[i]

    def _io(self, value, key, i):
        kind = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        return self._name(key, i, value.name), onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, dims

    def _gears(self):
        gears = []
        for row in self.about.get("dynamic_dims") or []:
            left = iter(row)
            gears.append([[next(left) for _ in dims] for _, _, dims in self.inputs])
        for size in self.about.get("dynamic_batch") or []:
            gears.append([[size if d < 0 else d for d in dims] for _, _, dims in self.inputs])
        for pair in self.about.get("dynamic_hw") or []:
            row = []
            for _, _, dims in self.inputs:
                left = iter(pair)
                row.append([next(left) if d < 0 else d for d in dims])
            gears.append(row)
        return sorted(gears, key=lambda gear: sum(int(np.prod(dims)) for dims in gear))

    def _shapes(self, gear):
        zeros = {
            name: np.zeros(dims, dtype)
            for name, (_, dtype, _), dims in zip(self.feeds, self.inputs, gear, strict=False)
        }
        return self.evaluator.run(None, zeros)

    def takes(self):
        """Inputs as the device has them: sizes of the largest gear, and the gear input last."""
        largest = self.gears[-1] if self.gears else self.gear
        rows = [
            (n, t, d, int(np.prod(big)) * np.dtype(t).itemsize)
            for (n, t, d), big in zip(self.inputs, largest, strict=False)
        ]
        return [*rows, (GEAR_INPUT, "int32", [8], 32)] if self.gears else rows

    def gives(self):
        return [(n, t, d, int(np.prod(d)) * np.dtype(t).itemsize) for n, t, d in self.outputs]


def _load(data):
    model = _Model(data, _thread.context)
    _need(model.weights)
    return _handle(_s.models, model)


def load_from_file(path):
    if not Path(path).is_file():
        raise _Refused("no such file")
    return _load(Path(path).read_bytes())


def load_from_mem(address, size):
    return _load(ctypes.string_at(address, size))


def _model(number):
    model = _held(_s.models, number, "unknown model")
    if model.context != _thread.context:
        raise _Refused("model of another context")
    return model


def unload(number):
    _model(number)
    del _s.models[number]


def create_desc():
    return _handle(_s.descs, None)


def get_desc(desc, number):
    _held(_s.descs, desc)
    _s.descs[desc] = _model(number)


def destroy_desc(desc):
    _held(_s.descs, desc)
    del _s.descs[desc]


def _described(desc):
    model = _held(_s.descs, desc)
    if model is None:
        raise _Refused("unknown handle")
    return model


def _dims(row):
    return {"name": row[0], "dimCount": len(row[2]), "dims": list(row[2])}


def get_num_inputs(desc):
    return len(_described(desc).takes())


def get_num_outputs(desc):
    return len(_described(desc).gives())


def get_input_size_by_index(desc, index):
    return _at(_described(desc).takes(), index)[3]


def get_output_size_by_index(desc, index):
    return _at(_described(desc).gives(), index)[3]


def get_input_data_type(desc, index):
    return DTYPES[_at(_described(desc).takes(), index)[1]]


def get_output_data_type(desc, index):
    return DTYPES[_at(_described(desc).gives(), index)[1]]


def get_input_name_by_index(desc, index):
    return _at(_described(desc).takes(), index)[0]


def get_output_name_by_index(desc, index):
    return _at(_described(desc).gives(), index)[0]


def get_input_dims(desc, index):
    return _dims(_at(_described(desc).takes(), index))


def get_output_dims(desc, index):
    return _dims(_at(_described(desc).gives(), index))


def get_cur_output_dims(desc, index):
    model = _described(desc)
    name, dtype, _, _ = _at(model.gives(), index)
    return _dims((name, dtype, model.results[index].shape))


def get_input_index_by_name(desc, name):
    names = [row[0] for row in _described(desc).takes()]
    if name not in names:
        raise _Refused("unknown handle")
    return names.index(name)


def _flat(model):
    return [[d for dims in gear for d in dims] for gear in model.gears]


def get_input_dynamic_gear_count(desc, index):
    model = _described(desc)
    return len(model.gears) if model.about.get("dynamic_dims") else 0


def get_input_dynamic_dims(desc, index, count):
    if count > 4096:
        raise _Refused("too many gears asked for")
    rows = _flat(_described(desc))[:count]
    return [{"name": "", "dimCount": len(row), "dims": row} for row in rows]


def get_dynamic_batch(desc):
    sizes = _described(desc).about.get("dynamic_batch") or []
    return {"batchCount": len(sizes), "batch": list(sizes)}


def get_dynamic_hw(desc, index):
    pairs = _described(desc).about.get("dynamic_hw") or []
    return {"hwCount": len(pairs), "hw": [list(pair) for pair in pairs]}


def _select(number, dataset, index, wanted):
    model = _model(number)
    if not model.gears:
        raise _Refused("model is not dynamic")
    if index != len(model.inputs) or index >= len(_held(_s.datasets, dataset)):
        raise _Refused("index out of range")
    for gear in model.gears:
        if wanted(gear):
            model.gear = gear
            return
    raise _Refused("no such gear")


def set_input_dynamic_dims(number, dataset, index, dims):
    row = list(dims["dims"])
    _select(number, dataset, index, lambda gear: [d for one in gear for d in one] == row)


def _open_extents(gear, inputs):
    """What a gear puts in place of -1, for each input that has one."""
    rows = [
        [g for g, d in zip(one, dims, strict=True) if d < 0] for one, (_, _, dims) in zip(gear, inputs, strict=True)
    ]
    return [row for row in rows if row]


def set_dynamic_batch_size(number, dataset, index, size):
    inputs = _model(number).inputs
    _select(number, dataset, index, lambda gear: all(row == [size] for row in _open_extents(gear, inputs)))


def set_dynamic_hw_size(number, dataset, index, height, width):
    inputs = _model(number).inputs
    _select(number, dataset, index, lambda gear: all(row == [height, width] for row in _open_extents(gear, inputs)))


# ---------------------------------------------------------------- datasets, execution


def create_data_buffer(address, size):
    return _handle(_s.buffers, (address, size))


def destroy_data_buffer(buffer):
    _held(_s.buffers, buffer)
    del _s.buffers[buffer]


def create_dataset():
    return _handle(_s.datasets, [])


def add_dataset_buffer(dataset, buffer):
    _held(_s.buffers, buffer)
    _held(_s.datasets, dataset).append(buffer)
    return dataset


def destroy_dataset(dataset):
    _held(_s.datasets, dataset)
    del _s.datasets[dataset]


def _buffers(dataset, rows, situation):
    handles = _held(_s.datasets, dataset)
    if len(handles) != len(rows):
        raise _Refused(situation)
    found = []
    for handle, row in zip(handles, rows, strict=False):
        address, size = _held(_s.buffers, handle)
        if size != row[3]:
            raise _Refused(situation)
        found.append(_region(address, size))
    return found


def execute(number, given, made):
    model = _model(number)
    feeds = {}
    pieces = _buffers(given, model.takes(), "input does not match")
    targets = _buffers(made, model.gives(), "output does not match")
    for name, (_, dtype, _), dims, (block, at) in zip(model.feeds, model.inputs, model.gear, pieces, strict=False):
        count = int(np.prod(dims))
        feeds[name] = np.frombuffer(bytes(block[at:]), dtype, count).reshape(dims)
    with np.errstate(all="ignore"):
        model.results = model.evaluator.run(None, feeds)
    for (block, at), result in zip(targets, model.results, strict=False):
        data = np.ascontiguousarray(result).tobytes()
        block[at : at + len(data)] = data


# ---------------------------------------------------------------- the module


def _check_types(name, kinds, args):
    wanted = [] if kinds == "-" else list(kinds.replace("?", ""))
    least = 0 if "?" in kinds else len(wanted)
    if not least <= len(args) <= len(wanted):
        raise TypeError(f"acl.{name} takes {len(wanted)} arguments, got {len(args)}")
    for kind, value in zip(wanted, args, strict=False):
        fits = {
            "i": type(value) is int,
            "s": type(value) is str,
            "d": type(value) is dict and type(value.get("dims")) is list and all(type(d) is int for d in value["dims"]),
        }[kind]
        if not fits:
            raise TypeError(f"acl.{name}: {value!r} is of the wrong type")


def _planned(name):
    """The code that ACL_DOUBLE_FAIL plans for this call of the function, 0 for none."""
    for plan in os.environ.get("ACL_DOUBLE_FAIL", "").split(","):
        function, _, rest = plan.partition("=")
        code, _, number = rest.partition("@")
        if function == name and calls[name] == int(number or 1):
            return int(code)
    return 0


def _function(name, kinds, returns, needs):
    body = globals()[name.rpartition(".")[2]]

    def answer(value, code):
        if returns == "ret":
            return code
        if returns == "plain":
            return value if not code else 0
        return ({} if returns.startswith("dims") and code and "dynamic" not in name else value, code)

    def call(*args):
        _check_types(name, kinds, args)
        calls[name] += 1
        try:
            if needs != "-" and not _s.initialized:
                raise _Refused("finalized twice" if name == "finalize" and _s.ever else "not initialized")
            if needs in ("device", "context") and not sum(_s.devices.values()) and name != "rt.reset_device":
                raise _Refused("no context" if needs == "context" else "no device")
            if needs == "context" and getattr(_thread, "context", None) is None:
                raise _Refused("no context")
            planned = _planned(name)
            if planned:
                _s.message = f"EZ9999: the double was told to fail in {name}"
                return answer(None, planned)
            value = body(*args)
            _s.ever = _s.ever or name == "init"
        except _Refused as error:
            _s.message = f"EZ9999: {error}"
            return answer(None, error.code)
        return answer(value, 0)

    call.__name__ = name
    return call


_made = {name: _function(name, *row[:3]) for name, row in CALLS.items()}
rt = SimpleNamespace(**{name[3:]: call for name, call in _made.items() if name.startswith("rt.")})
mdl = SimpleNamespace(**{name[4:]: call for name, call in _made.items() if name.startswith("mdl.")})
for _name, _call in _made.items():
    if "." not in _name:
        globals()[_name] = _call
# what a caller may not reach: the bodies behind the functions of rt and mdl
for _name in {name.rpartition(".")[2] for name in CALLS if "." in name}:
    del globals()[_name]
