# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The QNN binding without native code: layouts, marshalling, hazards, the search for libraries."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npukit.errors import GraphError, MissingDependency, NativeError, UsageError
from npukit.qnn.api import declarations as d
from npukit.qnn.api import libraries, marshal, native
from npukit.qnn.api.hazards import hazard
from npukit.qnn.api.native import NativeLock
from npukit.qnn.api.quiet import quiet_fds
from npukit.qnn.graph import DType, Encoding, Op, Param, Tensor, TensorKind

# ---- layouts: shared/reference/qnn_abi.md section 4, 6; qnn_more.md section 6

SIZES = {
    d.Scalar: 16,
    d.QuantizeParams: 40,
    d.BlockwiseExpansion: 40,
    d.BwAxisScaleOffset: 32,
    d.Tensor: 144,
    d.Param: 160,
    d.OpConfig: 80,
    d.Config: 16,
    d.HtpDeviceConfig: 24,
    d.HtpGraphConfig: 56,
    d.HtpContextConfig: 24,
    d.IrGraphConfig: 24,
    d.ExtendedEvent: 56,
    d.GraphInfo: 88,
    d.ModelGraphInfo: 48,
    d.BinaryInfo: 8 + 136,
    d.GraphConfigInfo: 32,
    d.InterfaceHead: 40,
    d.SystemInterfaceHead: 32,
}
OFFSETS = {
    d.Tensor: {
        "id": 8, "name": 16, "type": 24, "dataFormat": 28, "dataType": 32, "quantizeParams": 40, "rank": 80,
        "dimensions": 88, "memType": 96, "data": 104, "dataSize": 112, "isDynamicDimensions": 120, "sparseType": 128,
        "isProduced": 140,
    },
    d.OpConfig: {
        "name": 8, "packageName": 16, "typeName": 24, "numOfParams": 32, "params": 40, "numOfInputs": 48,
        "inputTensors": 56, "numOfOutputs": 64, "outputTensors": 72,
    },
    d.BinaryInfo: {
        "backendId": 8, "buildId": 16, "core": 24, "backend": 36, "socVersion": 48, "contextBlobVersion": 56,
        "contextBlobSize": 72, "numGraphs": 96, "graphs": 104, "metadataSize": 120, "metadata": 128, "socModel": 136,
    },
    d.ExtendedEvent: {"type": 8, "unit": 12, "value": 16, "timestamp": 40, "identifier": 48},
    d.IrGraphConfig: {"serializationType": 8, "outputPath": 16},
    d.BlockwiseExpansion: {
        "scaleOffsets": 8, "numBlocksPerAxis": 16, "blockScaleBitwidth": 20, "blockScaleStorageType": 24,
        "blocksScale": 32,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.__name__)
def test_sizes(kind):
    assert ctypes.sizeof(kind) == SIZES[kind]


@pytest.mark.parametrize("kind", OFFSETS, ids=lambda kind: kind.__name__)
def test_offsets(kind):
    assert {name: getattr(kind, name).offset for name in OFFSETS[kind]} == OFFSETS[kind]


def test_slots():
    numbers = {"backendValidateOpConfig": 7, "graphAddNode": 18, "tensorCreateGraphTensor": 24, "contextAddToDlc": 71}
    assert {name: d.CORE_SLOTS.index(name) for name in numbers} == numbers
    assert len(d.CORE_SLOTS) == 75 == len(set(d.CORE_SLOTS))
    assert d.SYSTEM_SLOTS.index("systemDlcSave") == 21
    assert len(d.SYSTEM_SLOTS) == 26
    assert set(d.PROTOTYPES) <= {*d.CORE_SLOTS, *d.SYSTEM_SLOTS}


@pytest.mark.parametrize(
    ("minor", "expected"), [(23, (62, False)), (27, (68, True)), (33, (71, False)), (36, (72, True)), (40, (75, True))]
)
def test_slot_counts(minor, expected):
    assert d.core_slot_count((2, minor, 0)) == expected


def test_interface_by_value_has_the_measured_sizes():
    assert ctypes.sizeof(d.interface_by_value(72)) == 616
    assert ctypes.sizeof(d.interface_by_value(75)) == 640


# ---- marshalling

ENCODINGS = [
    None,
    Encoding.per_tensor(0.5, -3),
    Encoding.per_tensor(0.25, 0, 4),
    Encoding((0.5, 0.25), (0, -1), axis=0),
    Encoding((0.5, 0.25), (0, 0), axis=0, bitwidth=4),
    Encoding((0.5, 0.25, 1.0, 2.0), (0, 0, 1, 0), block_shape=(1, 2)),
    Encoding((0.5, 0.25), (0, 0), axis=0, block_scales=(1, 2, 3, 4), blocks_per_axis=2, block_scale_bits=4),
    Encoding((0.5, 2.0), (0, 0), 0, block_scales=(1, 999), blocks_per_axis=1, block_scale_bits=4, block_storage=1),
]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.kind if e else "undefined")
def test_tensor_round_trip(encoding):
    data = np.arange(8, dtype=np.int8).reshape(4, 2).T  # not dense: copied
    keep: list[object] = []
    tensor = Tensor("wäight", DType.SFIXED_POINT_8, (2, 4), TensorKind.STATIC, encoding, data)
    back = marshal.tensor_from_c(marshal.tensor_to_c(tensor, keep))
    assert (back.name, back.dtype, back.shape, back.kind) == ("wäight", tensor.dtype, tensor.shape, tensor.kind)
    assert back.encoding == encoding
    np.testing.assert_array_equal(back.data, data)


@given(
    st.lists(st.floats(2**-20, 2**20, width=32), min_size=1, max_size=6),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 8),
)
def test_axis_encodings_round_trip(scales, offset, bitwidth):
    encoding = Encoding(tuple(scales), (offset,) * len(scales), axis=1, bitwidth=bitwidth)
    keep: list[object] = []
    assert marshal.encoding_from_c(marshal.encoding_to_c(encoding, keep), (3, len(scales))) == encoding


def test_trap_per_axis_offsets_are_never_null_and_dense_is_not_sparse():
    keep: list[object] = []
    encoding = Encoding((1.0, 2.0), (0, 0), axis=0, bitwidth=4)
    tensor = Tensor("w", DType.SFIXED_POINT_8, (2,), TensorKind.STATIC, encoding)
    made = marshal.tensor_to_c(tensor, keep)
    assert made.quantizeParams.value.bwAxis.offsets[:2] == [0, 0]
    assert made.sparseType == 0x7FFFFFFF
    made.quantizeParams.value.bwAxis.offsets = None  # what others write
    assert marshal.tensor_from_c(made).encoding == tensor.encoding


def test_dense_data_is_passed_by_pointer():
    data = np.ones((4, 8), np.float32)
    made = marshal.tensor_to_c(Tensor("w", DType.FLOAT_32, (4, 8), TensorKind.STATIC, data=data), [])
    assert (made.data, made.dataSize) == (data.ctypes.data, data.nbytes)
    assert np.shares_memory(marshal.tensor_from_c(made, owner=data).data, data)
    assert not np.shares_memory(marshal.tensor_from_c(made, copy=True).data, data)


@pytest.mark.parametrize("data", [np.ones(3, np.float64), np.ones(4, np.float32)], ids=["dtype", "size"])
def test_data_that_does_not_fit_is_refused(data):
    tensor = Tensor("w", DType.FLOAT_32, (3,), TensorKind.STATIC, data=data)
    with pytest.raises(GraphError, match="tensor w"):
        marshal.tensor_to_c(tensor, [])


def test_reading_refuses_what_it_does_not_know():
    made = marshal.tensor_to_c(Tensor("w", DType.FLOAT_32, (2,)), [])
    made.dataType = 0x999
    with pytest.raises(GraphError, match="tensor w"):
        marshal.tensor_from_c(made)
    made.dataType = int(DType.FLOAT_32)
    made.quantizeParams.definition, made.quantizeParams.encoding = 1, 6
    with pytest.raises(GraphError, match="VECTOR"):
        marshal.tensor_from_c(made)


def test_static_data_of_a_wrong_size_is_refused():
    data = np.ones(4, np.float32)
    made = marshal.tensor_to_c(Tensor("w", DType.FLOAT_32, (4,), TensorKind.STATIC, data=data), [])
    made.dataSize = 12
    with pytest.raises(GraphError, match="12 bytes"):
        marshal.tensor_from_c(made)


def test_op_round_trip():
    x, y = Tensor("x", DType.FLOAT_32, (1, 4)), Tensor("y", DType.FLOAT_32, (1, 4))
    params = {
        "flag": Param(DType.BOOL_8, True),
        "count": Param(DType.UINT_32, 2**32 - 1),
        "small": Param(DType.INT_32, -7),
        "alpha": Param(DType.FLOAT_32, 0.25),
        "perm": Param(DType.UINT_32, np.array([1, 0], np.uint32)),
    }
    op = Op("o", "Transpose", [x, None], [y], params)
    keep: list[object] = []

    def fill(tensor: Tensor, out: d.Tensor) -> None:
        marshal.tensor_to_c(tensor, keep, into=out)

    arrays = marshal.tensor_array(op.inputs, fill), marshal.tensor_array(op.outputs, fill)
    config = marshal.op_to_c(op, *arrays, marshal.params_to_c(op, keep), keep)
    known = {"x": x, "y": y, "": None}
    back = marshal.op_from_c(config, lambda c: known[(c.name or b"").decode()])
    assert (back.name, back.type, back.inputs, back.outputs) == ("o", "Transpose", [x, None], [y])
    assert {k: p.dtype for k, p in back.params.items()} == {k: p.dtype for k, p in params.items()}
    for name, param in params.items():
        np.testing.assert_array_equal(back.params[name].value, param.value)


def test_trap_matmul_always_has_both_transposes():
    op = Op("m", "MatMul", [], [], {"transpose_in1": Param(DType.BOOL_8, True)})
    made = dict(marshal.param_from_c(param) for param in marshal.params_to_c(op, []))
    assert {name: param.value for name, param in made.items()} == {"transpose_in0": False, "transpose_in1": True}


# ---- hazards


def _quantized(op_type: str, *, encoding: Encoding, shape: tuple[int, ...], bias: bool = False) -> Op:
    x = Tensor("x", DType.UFIXED_POINT_8, (1, 4, 4, 2), encoding=Encoding.per_tensor(1.0))
    w = Tensor("w", DType.SFIXED_POINT_8, shape, TensorKind.STATIC, encoding)
    b = Tensor("b", DType.SFIXED_POINT_32, (2,), TensorKind.STATIC)
    return Op("o", op_type, [x, w, b] if bias else [x, w], [Tensor("y", DType.UFIXED_POINT_8, (1, 4, 4, 2))])


def _transposed(kernel: TensorKind, bias: TensorKind) -> Op:
    x, y = (Tensor(name, DType.FLOAT_32, (1, 4, 4, 2)) for name in "xy")
    w = Tensor("w", DType.FLOAT_32, (3, 3, 2, 2), kernel)
    return Op("o", "TransposeConv2d", [x, w, Tensor("b", DType.FLOAT_32, (2,), bias)], [y])


_AXIS = Encoding((1.0, 2.0), (0, 0), axis=0)
_LOW = Encoding((1.0, 2.0), (0, 0), axis=0, bitwidth=4)
_LPBQ = Encoding((1.0, 2.0), (0, 0), axis=3, block_scales=(1, 1), blocks_per_axis=1, block_scale_bits=4)


@pytest.mark.parametrize(
    ("role", "op", "says"),
    [
        ("cpu", _quantized("Conv2d", encoding=_AXIS, shape=(3, 3, 2, 2)), "zero bias"),
        ("cpu", _quantized("Conv2d", encoding=_AXIS, shape=(3, 3, 2, 2), bias=True), None),
        ("htp", _quantized("Conv2d", encoding=_AXIS, shape=(3, 3, 2, 2)), None),
        ("cpu", _quantized("FullyConnected", encoding=_AXIS, shape=(2, 2)), "first scale"),
        ("cpu", _quantized("FullyConnected", encoding=Encoding.per_tensor(1.0), shape=(2, 2)), None),
        ("cpu", _quantized("Dequantize", encoding=_AXIS, shape=(2, 2)), "second run"),
        ("htp", _quantized("Dequantize", encoding=_AXIS, shape=(2, 2)), None),
        ("cpu", _transposed(TensorKind.STATIC, TensorKind.STATIC), None),
        ("cpu", _transposed(TensorKind.APP_WRITE, TensorKind.STATIC), "not a constant"),
        ("cpu", _transposed(TensorKind.STATIC, TensorKind.NATIVE), "not a constant"),
        ("htp", _transposed(TensorKind.APP_WRITE, TensorKind.STATIC), None),
        ("htp", _quantized("FullyConnected", encoding=_AXIS, shape=(2, 2)), None),
        ("htp", _quantized("Conv2d", encoding=_LPBQ, shape=(3, 3, 2, 2), bias=True), "first tap"),
        ("htp", _quantized("Conv2d", encoding=_LPBQ, shape=(1, 1, 2, 2), bias=True), None),
        ("ir", _quantized("FullyConnected", encoding=_LOW, shape=(2, 2)), "libs add 2.7.0"),
        ("ir", _quantized("FullyConnected", encoding=_AXIS, shape=(2, 2)), None),
    ],
)
def test_hazards(role, op, says):
    found = hazard(role, (2, 47, 0), op)
    assert (says in found) if says else found is None


def test_the_newer_dlc_writer_is_right():
    assert hazard("ir", (2, 51, 0), _quantized("FullyConnected", encoding=_LOW, shape=(2, 2))) is None


# ---- the search


def _place(folder: Path, build: str, *roles: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for role in roles:
        content = b"\x7fELF" if role == "system" else f"\x7fELF pad v{build}\0".encode()
        (folder / libraries.file_name(role)).write_bytes(content)
    return folder


OLD, NEW = "2.47.0.260601114230", "2.51.0.260929181845"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty world: no variables, an empty data folder, no wheel. The folder in which to place libraries."""
    for name in (libraries.LIB_DIR_VARIABLE, libraries.SDK_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NPUKIT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(libraries, "_wheel_folder", lambda: None)
    return tmp_path


def test_nothing_found(place):
    with pytest.raises(MissingDependency, match="libQnnHtp") as caught:
        libraries.find("htp")
    assert "onnxruntime-qnn" in caught.value.hint
    with pytest.raises(UsageError, match="did you mean 'htp'"):
        libraries.find("hpt")


def test_newest_of_data_folder_and_wheel_by_role(place, monkeypatch):
    wheel = _place(place / "wheel", OLD, "cpu", "htp", "ir", "system")
    monkeypatch.setattr(libraries, "_wheel_folder", lambda: wheel)
    data = _place(place / "data/libs/2.7.0/onnxruntime_qnn", NEW, "htp", "ir", "system")
    assert {role: libraries.find(role).path.parent for role in ("cpu", "htp", "ir", "system")} == {
        "cpu": wheel,
        "htp": data,
        "ir": data,
        "system": data,
    }
    assert libraries.find("system").sdk == (2, 51, 0)  # from the library beside it
    assert [library.source for library in libraries.installed()] == ["data folder"] * 3 + ["wheel"] * 4


def test_named_folders_come_first(place, monkeypatch):
    _place(place / "data/libs/2.7.0/onnxruntime_qnn", NEW, "htp")
    named, option = _place(place / "named", OLD, "htp"), _place(place / "option", OLD, "htp")
    sdk = _place(place / "sdk/lib/x86_64-linux-clang", OLD, "htp")
    monkeypatch.setattr(libraries.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv(libraries.SDK_VARIABLE, str(place / "sdk"))
    assert libraries.find("htp").path.parent == sdk
    monkeypatch.setenv(libraries.LIB_DIR_VARIABLE, str(named))
    assert libraries.find("htp").path.parent == named
    assert libraries.find("htp", lib_dir=option).source == "--qnn-lib-dir"


@pytest.mark.parametrize("build", ["2.25.0.240728110523", "2.60.0.270101000000"])
def test_versions_outside_the_range_are_skipped_with_a_warning(place, monkeypatch, caplog, build):
    monkeypatch.setenv(libraries.LIB_DIR_VARIABLE, str(_place(place / "named", build, "htp")))
    good = _place(place / "data/libs/2.7.0/onnxruntime_qnn", NEW, "htp")
    with caplog.at_level(logging.WARNING):
        assert libraries.find("htp").path.parent == good
    assert build in caplog.text
    assert [bool(library.refused) for library in libraries.installed()] == [True, False]


def test_a_file_that_is_no_library(place):
    folder = _place(place / "data/libs/1/onnxruntime_qnn", OLD, "htp")
    with pytest.raises(NativeError, match="cannot load"):
        libraries.find("htp").load()
    (folder / "libQnnHtp.so").write_bytes(b"")
    with pytest.raises(MissingDependency, match="no QAIRT build id"):
        libraries.find("htp")


def _table(core: tuple[int, int, int], slots: int) -> ctypes.Structure:
    table = d.interface_by_value(slots)()
    table.head.backendId, table.head.providerName = 6, b"DOUBLE"
    table.head.core[:] = core
    return table


def test_a_table_of_an_older_library_lacks_newer_slots():
    table = _table((2, 30, 0), 69)
    table.slots[7] = 1
    loaded = libraries._describe(Path("lib.so"), ctypes.addressof(table), system=False)
    assert (loaded.slots, loaded.exact, loaded.provider) == (69, True, "DOUBLE")
    assert loaded.functions.has("backendValidateOpConfig")
    assert not loaded.functions.has("graphAddNode")  # NULL
    with pytest.raises(NativeError, match="contextAddToDlc"):
        loaded.functions.contextAddToDlc(None, None)


@pytest.mark.parametrize("core", [(2, 22, 0), (2, 41, 0), (3, 30, 0)])
def test_unknown_api_versions_are_never_called(core):
    table = _table(core, 75)
    with pytest.raises(NativeError, match=".".join(map(str, core))):
        libraries._describe(Path("lib.so"), ctypes.addressof(table), system=False)


# ---- libs add


def _wheel(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "onnxruntime_qnn-2.7.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_add_wheel_takes_libraries_only(place, monkeypatch):
    members = {
        "onnxruntime_qnn/libQnnIr.so": f"v{NEW}\0".encode(),
        "onnxruntime_qnn/libHtpPrepare.so": b"p",
        "onnxruntime_qnn/libGenie.so": b"g",
        "onnxruntime_qnn/libonnxruntime_providers_qnn.so": b"o",
        "onnxruntime_qnn/__init__.py": b"evil()",
        "onnxruntime_qnn/Qualcomm_LICENSE.pdf": b"l",
        "onnxruntime_qnn/../../libQnnEvil.so": b"e",
        "onnxruntime_qnn.libs/libc++-71bc274c.so.1.0": b"c",
    }
    monkeypatch.setattr(libraries, "_download", lambda version, folder: _wheel(folder, members))
    for _ in range(2):  # a second time replaces it
        folder = libraries.add_wheel("2.7.0")
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        "onnxruntime_qnn.libs/libc++-71bc274c.so.1.0",
        "onnxruntime_qnn/Qualcomm_LICENSE.pdf",
        "onnxruntime_qnn/libHtpPrepare.so",
        "onnxruntime_qnn/libQnnIr.so",
    ]
    assert libraries.find("ir").build_id == NEW
    assert [p.name for p in folder.parent.iterdir()] == ["2.7.0"]


def test_add_wheel_is_bounded(place, monkeypatch):
    monkeypatch.setattr(libraries, "_UNPACK_LIMIT", 10)
    members = {"onnxruntime_qnn/libQnnIr.so": b"x" * 11}
    monkeypatch.setattr(libraries, "_download", lambda version, folder: _wheel(folder, members))
    with pytest.raises(libraries.NpukitError, match="exceed"):
        libraries.add_wheel("2.7.0")
    assert not list((place / "data/libs").iterdir())


@pytest.mark.parametrize("version", ["", "../x", "2.7.0 --index-url=x", "latest"])
def test_add_wheel_refuses_what_is_no_version(place, version):
    with pytest.raises(UsageError, match="version"):
        libraries.add_wheel(version)


# ---- logs and output


def test_tidy_compacts_the_vendors_lists():
    lines = [
        "Requested I/O datatype set: \n   in[0]:QNN_DATATYPE_INT_64\n   in[1]: (optional)\n"
        "   out[0]:QNN_DATATYPE_INT_64",
        "QnnBackend_validateOpConfig failed 3110",
        "plain",
        "plain",
    ]
    assert native.tidy(lines) == "Requested I/O datatype set: INT_64, (optional) -> INT_64; plain"
    assert native.tidy(lines[1:2]) == lines[1]


def test_quiet_fds_keeps_native_output_off_ours(capfd, caplog):
    with caplog.at_level(logging.DEBUG, logger="npukit.native"), quiet_fds(), quiet_fds():
        os.write(1, b"Starting stage\n")
        os.write(2, b"LIBNATIVE\n")
    os.write(1, b"ours\n")
    assert capfd.readouterr() == ("ours\n", "")
    assert [record.getMessage() for record in caplog.records] == ["Starting stage", "LIBNATIVE"]


def test_importing_the_binding_loads_no_library_and_not_onnxruntime():
    code = (
        "import sys, npukit.qnn.api.backend, npukit.qnn.api.libraries as l\n"
        "l.installed()\n"
        "maps = open('/proc/self/maps').read() if sys.platform == 'linux' else ''\n"
        "print('libQnn' in maps, 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]


def test_what_the_collector_frees_during_a_native_call_waits_for_its_end() -> None:
    lock = NativeLock()
    freed: list[str] = []
    lock.release(freed.append, "at once")
    assert freed == ["at once"]
    with lock:
        with lock:
            lock.release(freed.append, "inner")  # as a finalizer that runs in a callback of the library
        assert freed == ["at once"]
        other = threading.Thread(target=lock.release, args=(freed.append, "of another thread"))
        other.start()
        other.join(10)
        assert not other.is_alive()
        assert freed == ["at once"]
    assert freed == ["at once", "inner", "of another thread"]
