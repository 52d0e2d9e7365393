# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Our own declarations of the QNN C API: structures, function tables, codes.

Written from measured facts (shared/reference/qnn_abi.md sections 3, 4 and 6, qnn_more.md sections 1 and 6), not
from a header. Layouts are LP64, little-endian; `tests/test_qnn_api.py` asserts every size and offset that was
measured. Where the C type is a union whose members share a prefix (tensor version 1 and 2), one flat
structure holds both.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    Union,
    c_bool,
    c_char_p,
    c_double,
    c_float,
    c_int8,
    c_int16,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any, Final

from npukit.qnn.api.codes import error_symbol as error_symbol

SUCCESS: Final = 0
UNDEFINED: Final = 0x7FFFFFFF
ERROR_MASK: Final = 0xFFFF  # the code is in the low 16 bits of the returned uint64
TENSOR_ID_UNSET: Final = 0

# Qnn_QuantizationEncoding_t
ENCODING_SCALE_OFFSET: Final = 0
ENCODING_AXIS: Final = 1
ENCODING_BW: Final = 2
ENCODING_BW_AXIS: Final = 3
ENCODING_BLOCK: Final = 4
ENCODING_BLOCKWISE_EXPANSION: Final = 5
ENCODING_NAMES: Final = {
    0: "SCALE_OFFSET",
    1: "AXIS_SCALE_OFFSET",
    2: "BW_SCALE_OFFSET",
    3: "BW_AXIS_SCALE_OFFSET",
    4: "BLOCK",
    5: "BLOCKWISE_EXPANSION",
    6: "VECTOR",
    7: "FLOAT_BLOCK",
    8: "BW_AXIS_SCALE_OFFSET_MAPPED",
    9: "BW_BLOCK_MAPPED",
    10: "BW_BLOCKWISE_EXPANSION_MAPPED",
    11: "BW_FLOAT_BLOCK",
    12: "MICROSCALING",
    13: "ARRAY_OF",
}
DEFINITION_IMPL_GENERATED: Final = 0
DEFINITION_DEFINED: Final = 1

PARAM_SCALAR: Final = 0
PARAM_TENSOR: Final = 1
MEMTYPE_RAW: Final = 0
DATA_FORMAT_DENSE: Final = 0
OPCONFIG_VERSION_1: Final = 1
TENSOR_VERSION_1: Final = 1
TENSOR_VERSION_2: Final = 2

# Qnn_LogLevel_t
LOG_ERROR: Final = 1
LOG_WARN: Final = 2
LOG_INFO: Final = 3
LOG_VERBOSE: Final = 4
LOG_DEBUG: Final = 5

# config options in use
GRAPH_CONFIG_CUSTOM: Final = 0
CONTEXT_CONFIG_CUSTOM: Final = 0
DEVICE_CONFIG_CUSTOM: Final = 0
HTP_DEVICE_SOC: Final = 0
HTP_GRAPH_OPTIMIZATION: Final = 1
HTP_GRAPH_PRECISION: Final = 2
HTP_GRAPH_VTCM_MB: Final = 3
HTP_GRAPH_HVX_THREADS: Final = 6
HTP_OPTIMIZATION_FINALIZE_LEVEL: Final = 3
HTP_CONTEXT_WEIGHT_SHARING: Final = 1
IR_GRAPH_SERIALIZATION: Final = 1
IR_SERIALIZATION_FLAT_BUFFER: Final = 1


# ---------------------------------------------------------------------------------------- values


class _ScalarValue(Union):
    _fields_ = [
        ("f32", c_float),
        ("f64", c_double),
        ("u8", c_uint8),
        ("i8", c_int8),
        ("u16", c_uint16),
        ("i16", c_int16),
        ("u32", c_uint32),
        ("i32", c_int32),
        ("u64", c_uint64),
        ("i64", c_int64),
        ("bool8", c_bool),
        ("string", c_char_p),
    ]


class Scalar(Structure):
    """Qnn_Scalar_t, 16 bytes: the data type's code at 0, the value at 8."""

    _fields_ = [("dataType", c_uint32), ("value", _ScalarValue)]


class ScaleOffset(Structure):
    """One pair, 8 bytes: real = (q + offset) * scale."""

    _fields_ = [("scale", c_float), ("offset", c_int32)]


class AxisScaleOffset(Structure):
    """16 bytes: axis, count, pointer to the pairs."""

    _fields_ = [("axis", c_int32), ("num", c_uint32), ("scaleOffset", POINTER(ScaleOffset))]


class BwScaleOffset(Structure):
    """12 bytes: bitwidth, scale, offset."""

    _fields_ = [("bitwidth", c_uint32), ("scale", c_float), ("offset", c_int32)]


class BwAxisScaleOffset(Structure):
    """32 bytes. `offsets` may be NULL in what we read; libQnnIr crashes on NULL, so we always write zeros."""

    _fields_ = [
        ("bitwidth", c_uint32),
        ("axis", c_int32),
        ("num", c_uint32),
        ("scales", POINTER(c_float)),
        ("offsets", POINTER(c_int32)),
    ]


class Block(Structure):
    """16 bytes: pointer to the block size of each axis (rank values), pointer to a pair for each block."""

    _fields_ = [("blockSize", POINTER(c_uint32)), ("scaleOffset", POINTER(ScaleOffset))]


class BlockwiseExpansion(Structure):
    """40 bytes, held behind a pointer (LPBQ)."""

    _fields_ = [
        ("axis", c_int32),
        ("scaleOffsets", POINTER(ScaleOffset)),
        ("numBlocksPerAxis", c_uint32),
        ("blockScaleBitwidth", c_uint32),
        ("blockScaleStorageType", c_uint32),  # 0 = 8 bit, 1 = 16 bit
        ("blocksScale", c_void_p),
    ]


class _Encoding(Union):
    _fields_ = [
        ("scaleOffset", ScaleOffset),
        ("axis", AxisScaleOffset),
        ("bw", BwScaleOffset),
        ("bwAxis", BwAxisScaleOffset),
        ("block", Block),
        ("blockwise", POINTER(BlockwiseExpansion)),
    ]


class QuantizeParams(Structure):
    """Qnn_QuantizeParams_t, 40 bytes."""

    _fields_ = [("definition", c_uint32), ("encoding", c_uint32), ("value", _Encoding)]


class Tensor(Structure):
    """Qnn_Tensor_t, 144 bytes; version 1 ends before `isDynamicDimensions` (at byte 120)."""

    _fields_ = [
        ("version", c_uint32),
        ("_pad", c_uint32),
        ("id", c_uint32),
        ("name", c_char_p),
        ("type", c_uint32),
        ("dataFormat", c_uint32),
        ("dataType", c_uint32),
        ("quantizeParams", QuantizeParams),
        ("rank", c_uint32),
        ("dimensions", POINTER(c_uint32)),
        ("memType", c_uint32),
        ("data", c_void_p),
        ("dataSize", c_uint32),
        ("isDynamicDimensions", POINTER(c_uint8)),
        ("sparseType", c_uint32),
        ("sparse1", c_uint32),
        ("sparse2", c_uint32),
        ("isProduced", c_uint8),
    ]


class _ParamValue(Union):
    _fields_ = [("scalar", Scalar), ("tensor", Tensor)]


class Param(Structure):
    """Qnn_Param_t, 160 bytes."""

    _fields_ = [("paramType", c_uint32), ("name", c_char_p), ("value", _ParamValue)]


class OpConfig(Structure):
    """Qnn_OpConfig_t version 1, 80 bytes; passed by value."""

    _fields_ = [
        ("version", c_uint32),
        ("name", c_char_p),
        ("packageName", c_char_p),
        ("typeName", c_char_p),
        ("numOfParams", c_uint32),
        ("params", POINTER(Param)),
        ("numOfInputs", c_uint32),
        ("inputTensors", POINTER(Tensor)),
        ("numOfOutputs", c_uint32),
        ("outputTensors", POINTER(Tensor)),
    ]


# --------------------------------------------------------------------------------------- configs


class Config(Structure):
    """QnnGraph_Config_t, QnnContext_Config_t and QnnDevice_Config_t alike, 16 bytes: option, union at 8."""

    _fields_ = [("option", c_uint32), ("value", c_void_p)]


class HtpDeviceConfig(Structure):
    """QnnHtpDevice_CustomConfig_t, 24 bytes.

    Up to QAIRT 2.43 it is 12 bytes with its union at 4, in the libraries we tried (2.47, 2.51) the union is at 8.
    Both places are filled, so one value serves either layout.
    """

    _fields_ = [("option", c_uint32), ("oldValue", c_uint32), ("value", c_uint32), ("_rest", c_uint32 * 3)]


class _HtpOptimization(Structure):
    _fields_ = [("type", c_uint32), ("value", c_float)]


class _HtpGraphValue(Union):
    _fields_ = [("optimization", _HtpOptimization), ("u32", c_uint32), ("u64", c_uint64), ("_size", c_uint64 * 6)]


class HtpGraphConfig(Structure):
    """QnnHtpGraph_CustomConfig_t, 56 bytes: option at 0, union at 8."""

    _fields_ = [("option", c_uint32), ("value", _HtpGraphValue)]


class _HtpContextValue(Union):
    _fields_ = [("flag", c_bool), ("_size", c_uint64 * 2)]


class HtpContextConfig(Structure):
    """QnnHtpContext_CustomConfig_t, 24 bytes: option at 0, union at 8."""

    _fields_ = [("option", c_uint32), ("value", _HtpContextValue)]


class IrGraphConfig(Structure):
    """QnnIrGraph_CustomConfig_t, 24 bytes: where libQnnIr writes the DLC at graphFinalize."""

    _fields_ = [
        ("option", c_uint32),
        ("_pad", c_uint32),
        ("serializationType", c_uint32),
        ("outputPath", c_char_p),
    ]


# --------------------------------------------------------------------------- descriptions (read)


class OperationName(Structure):
    """QnnBackend_OperationName_t, 24 bytes: a row of backendGetSupportedOperations."""

    _fields_ = [("packageName", c_char_p), ("name", c_char_p), ("target", c_char_p)]


class ExtendedEvent(Structure):
    """QnnProfile_ExtendedEventData_t version 1, 56 bytes (set `version` to 1 before the call)."""

    _fields_ = [
        ("version", c_uint32),
        ("_pad", c_uint32),
        ("type", c_uint32),
        ("unit", c_uint32),
        ("value", Scalar),
        ("_reserved", c_uint64),
        ("timestamp", c_uint64),
        ("identifier", c_char_p),
    ]


class GraphInfo(Structure):
    """QnnSystemContext_GraphInfo_t, 88 bytes, flat over its versions 1 to 3 (they share the prefix).

    `startOp` and `endOp` hold garbage in what was read: do not show them.
    """

    _fields_ = [
        ("version", c_uint32),
        ("name", c_char_p),
        ("numInputs", c_uint32),
        ("inputs", POINTER(Tensor)),
        ("numOutputs", c_uint32),
        ("outputs", POINTER(Tensor)),
        ("numUpdateable", c_uint32),
        ("updateable", POINTER(Tensor)),
        ("blobInfoSize", c_uint32),
        ("blobInfo", c_void_p),
        ("startOp", c_uint32),
        ("endOp", c_uint32),
    ]


class ModelGraphInfo(Structure):
    """GraphInfo of a model library (QnnModel_composeGraphs), 48 bytes."""

    _fields_ = [
        ("graph", c_void_p),
        ("name", c_char_p),
        ("inputs", POINTER(Tensor)),
        ("numInputs", c_uint32),
        ("outputs", POINTER(Tensor)),
        ("numOutputs", c_uint32),
    ]


class BinaryInfo(Structure):
    """QnnSystemContext_BinaryInfo_t version 3: u32 version at 0, then 136 bytes."""

    _fields_ = [
        ("version", c_uint32),
        ("_pad", c_uint32),
        ("backendId", c_uint32),
        ("buildId", c_char_p),
        ("core", c_uint32 * 3),
        ("backend", c_uint32 * 3),
        ("socVersion", c_char_p),
        ("contextBlobVersion", c_uint32 * 3),
        ("contextBlobSize", c_uint64),
        ("numContextTensors", c_uint32),
        ("contextTensors", POINTER(Tensor)),
        ("numGraphs", c_uint32),
        ("graphs", POINTER(GraphInfo)),
        ("platformInfo", c_void_p),
        ("metadataSize", c_uint32),
        ("metadata", c_void_p),
        ("socModel", c_uint32),
    ]


class GraphConfigInfo(Structure):
    """QnnSystemDlc_GraphConfigInfo_t, 32 bytes."""

    _fields_ = [
        ("version", c_uint32),
        ("graphName", c_char_p),
        ("configs", c_void_p),
        ("numConfigs", c_uint32),
    ]


# ---------------------------------------------------------------------------------------- tables


class InterfaceHead(Structure):
    """What precedes the slots of QnnInterface_t, 40 bytes."""

    _fields_ = [
        ("backendId", c_uint32),
        ("providerName", c_char_p),
        ("core", c_uint32 * 3),
        ("backend", c_uint32 * 3),
    ]


class SystemInterfaceHead(Structure):
    """What precedes the slots of QnnSystemInterface_t, 32 bytes."""

    _fields_ = [("backendId", c_uint32), ("providerName", c_char_p), ("core", c_uint32 * 3)]


_CORE_WORDS = """
    propertyHasCapability backendCreate backendSetConfig backendGetApiVersion backendGetBuildId
    backendRegisterOpPackage backendGetSupportedOperations backendValidateOpConfig backendFree
    contextCreate contextSetConfig contextGetBinarySize contextGetBinary contextCreateFromBinary contextFree
    graphCreate graphCreateSubgraph graphSetConfig graphAddNode graphFinalize graphRetrieve
    graphExecute graphExecuteAsync tensorCreateContextTensor tensorCreateGraphTensor
    logCreate logSetLogLevel logFree profileCreate profileSetConfig profileGetEvents profileGetSubEvents
    profileGetEventData profileGetExtendedEventData profileFree memRegister memDeRegister
    deviceGetPlatformInfo deviceFreePlatformInfo deviceGetInfrastructure deviceCreate deviceSetConfig
    deviceGetInfo deviceFree signalCreate signalSetConfig signalTrigger signalFree
    errorGetMessage errorGetVerboseMessage errorFreeVerboseMessage graphPrepareExecutionEnvironment
    graphReleaseExecutionEnvironment graphGetProperty contextValidateBinary contextCreateFromBinaryWithSignal
    contextCreateFromBinaryListAsync tensorUpdateGraphTensors tensorUpdateContextTensors contextGetBinarySectionSize
    contextGetBinarySection contextApplyBinarySection backendGetProperty contextGetProperty
    contextGetIncrementalBinary contextReleaseIncrementalBinary contextFinalize globalConfigSet
    contextCreateFromBinaryWithCallback contextGetBinarySectionUpdate
    contextFreeBinarySectionUpdate contextAddToDlc graphValidate graphFreeValidationResult
    backendRegisterOpPackageFromBinary
"""
CORE_SLOTS: Final = tuple(_CORE_WORDS.split())
"""The slots of QnnInterface_t in order; the table is append-only."""

CORE_SLOT_COUNTS: Final = {18: 62, 27: 68, 30: 69, 32: 71, 36: 72, 39: 75, 40: 75}
"""Slots of the table by minor version of core API 2.x, where a header or a library was measured."""

_SYSTEM_WORDS = """
    systemContextCreate systemContextGetBinaryInfo systemContextGetMetaData systemContextFree
    systemTensorGetMemoryFootprint systemLogCreate systemLogSetLogLevel systemLogFree
    systemDlcCreateFromFile systemDlcCreateFromBinary systemDlcComposeGraphs systemDlcGetOpMappings systemDlcFree
    systemProfileCreateSerializationTarget systemProfileSerializeEventData systemProfileFreeSerializationTarget
    systemDlcGetRecordByName systemDlcGetRecordsByType systemDlcGetRecordDataSize
    systemDlcReadRecordDataMemoryMapped systemDlcFreeRecord systemDlcSave
    systemDlcCreateFromFileWithDestinationDir systemDlcCreateFromBinaryWithDestinationDir systemDlcGetBinarySize
    systemDlcGetBinary
"""
SYSTEM_SLOTS: Final = tuple(_SYSTEM_WORDS.split())
"""The slots of QnnSystemInterface_t that we name, in order (later ones exist, we need none of them)."""

SYSTEM_SLOT_COUNTS: Final = {7: 16, 11: 26}
"""Slots by minor version of System API 1.x; from 1.11 on at least 26."""

HEAD_SIZE: Final = 40
SYSTEM_HEAD_SIZE: Final = 32
OLDEST_CORE: Final = (2, 23)
NEWEST_CORE: Final = (2, 40)


def core_slot_count(version: tuple[int, ...]) -> tuple[int, bool]:
    """How many slots a library of core API `version` has, and whether that is exact.

    Between two measured versions of different size the smaller count is right for calling (the table is
    append-only) but not for passing the table by value.
    """
    return _slot_count(version[1], CORE_SLOT_COUNTS)


def system_slot_count(version: tuple[int, ...]) -> int:
    """How many of `SYSTEM_SLOTS` a library of System API `version` is known to have."""
    return _slot_count(version[1], SYSTEM_SLOT_COUNTS)[0]


def _slot_count(minor: int, counts: dict[int, int]) -> tuple[int, bool]:
    below = [m for m in counts if m <= minor]
    above = [m for m in counts if m >= minor]
    if not below:
        return 0, False
    count = counts[max(below)]
    return count, bool(above) and counts[min(above)] == count


# Function prototypes. Handles are void*; every function returns the uint64 error. ctypes releases the GIL.
_H = c_void_p
_HP = POINTER(c_void_p)
_CONFIGS = c_void_p  # NULL-terminated array of pointers, see `config_array`
ComposeInterface = c_uint64  # one slot of the table passed by value, see `interface_by_value`


def _function(*arguments: Any) -> Any:
    return CFUNCTYPE(c_uint64, *arguments)


LogCallback = CFUNCTYPE(None, c_void_p, c_uint32, c_uint64, c_void_p)
"""void (const char* format, level, timestamp, va_list); format the line with `format_log`."""

PROTOTYPES: Final[dict[str, Any]] = {
    "backendCreate": _function(_H, _CONFIGS, _HP),
    "backendGetBuildId": _function(POINTER(c_char_p)),
    "backendGetSupportedOperations": _function(_H, POINTER(c_uint32), POINTER(POINTER(OperationName))),
    "backendValidateOpConfig": _function(_H, OpConfig),
    "backendFree": _function(_H),
    "contextCreate": _function(_H, _H, _CONFIGS, _HP),
    "contextGetBinarySize": _function(_H, POINTER(c_uint64)),
    "contextGetBinary": _function(_H, c_void_p, c_uint64, POINTER(c_uint64)),
    "contextCreateFromBinary": _function(_H, _H, _CONFIGS, c_void_p, c_uint64, _HP, _H),
    "contextFree": _function(_H, _H),
    "contextAddToDlc": _function(_H, _H),
    "graphCreate": _function(_H, c_char_p, _CONFIGS, _HP),
    "graphAddNode": _function(_H, OpConfig),
    "graphFinalize": _function(_H, _H, _H),
    "graphRetrieve": _function(_H, c_char_p, _HP),
    "graphExecute": _function(_H, POINTER(Tensor), c_uint32, POINTER(Tensor), c_uint32, _H, _H),
    "tensorCreateGraphTensor": _function(_H, POINTER(Tensor)),
    "logCreate": _function(LogCallback, c_uint32, _HP),
    "logSetLogLevel": _function(_H, c_uint32),
    "logFree": _function(_H),
    "profileCreate": _function(_H, c_uint32, _HP),
    "profileGetEvents": _function(_H, POINTER(POINTER(c_uint64)), POINTER(c_uint32)),
    "profileGetSubEvents": _function(c_uint64, POINTER(POINTER(c_uint64)), POINTER(c_uint32)),
    "profileGetExtendedEventData": _function(c_uint64, POINTER(ExtendedEvent)),
    "profileFree": _function(_H),
    "deviceCreate": _function(_H, _CONFIGS, _HP),
    "deviceFree": _function(_H),
    "errorGetMessage": _function(c_uint64, POINTER(c_char_p)),
    "systemContextCreate": _function(_HP),
    "systemContextGetBinaryInfo": _function(_H, c_void_p, c_uint64, POINTER(POINTER(BinaryInfo)), POINTER(c_uint64)),
    "systemContextFree": _function(_H),
    "systemDlcCreateFromFile": _function(_H, c_char_p, _HP),
    "systemDlcCreateFromBinary": _function(_H, c_void_p, c_uint64, _HP),
    "systemDlcSave": _function(_H, c_char_p),
    "systemDlcFree": _function(_H),
}


@functools.cache  # ctypes keeps every function type for good
def compose_prototype(table: type[Structure]) -> Any:
    """Prototype of systemDlcComposeGraphs for an interface structure of the library's exact size (by value)."""
    return _function(
        _H,
        POINTER(POINTER(GraphConfigInfo)),
        c_uint32,
        _H,
        _H,
        table,
        c_uint32,
        POINTER(POINTER(GraphInfo)),
        POINTER(c_uint32),
    )


@functools.cache
def interface_by_value(slots: int) -> type[Structure]:
    """A structure type as large as QnnInterface_t with `slots` slots: fields `head` and `slots` (addresses)."""
    fields = [("head", InterfaceHead), ("slots", c_void_p * slots)]
    return type(f"Interface{slots}", (Structure,), {"_fields_": fields})


def config_array(pointers: list[Any]) -> Any:
    """The NULL-terminated array of pointers that every config argument is; None (NULL) for an empty list."""
    if not pointers:
        return None
    array = (c_void_p * (len(pointers) + 1))()
    for i, pointer in enumerate(pointers):
        array[i] = ctypes.addressof(pointer)
    return array


# ------------------------------------------------------------------------------------ log format

if sys.platform == "win32":
    _vsnprintf = ctypes.cdll.msvcrt._vsnprintf
else:
    _vsnprintf = ctypes.CDLL(None).vsnprintf
_vsnprintf.restype = ctypes.c_int
_vsnprintf.argtypes = [c_void_p, ctypes.c_size_t, c_void_p, c_void_p]


def format_log(template: int, arguments: int, limit: int = 16384) -> str:
    """The text of a log line from the callback's format string and va_list, cut at `limit` bytes."""
    buffer = ctypes.create_string_buffer(limit)
    _vsnprintf(buffer, limit - 1, template, arguments)
    return buffer.value.decode("utf-8", "replace").rstrip("\n")
