# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Our graph values to C structures and back.

To C: every function takes `keep`, a list that receives each Python object the C structure points into; the
structure is valid as long as that list lives. Data is passed by pointer; only an array whose strides are not
dense row-major is copied. From C: everything is copied out except tensor data, which stays a view unless
`copy` is set (a captured DLC's weights point into the mapped file).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_float, c_int32, c_uint32
from typing import Any, cast

import numpy as np

from npukit.errors import GraphError
from npukit.qnn.api import declarations as d
from npukit.qnn.graph import Array, DType, Encoding, Op, Param, Tensor, TensorKind

# ------------------------------------------------------------------------------------------- to C


def encoding_to_c(encoding: Encoding | None, keep: list[object]) -> d.QuantizeParams:
    """The quantization parameters of a tensor; undefined for None."""
    out = d.QuantizeParams()
    if encoding is None:
        out.definition = out.encoding = d.UNDEFINED
        return out
    out.definition = d.DEFINITION_DEFINED
    _WRITERS[encoding.kind](encoding, out, keep)
    return out


def _pair_view(array: ctypes.Array[d.ScaleOffset]) -> Any:
    return np.frombuffer(cast(Any, array), dtype=[("scale", np.float32), ("offset", np.int32)])


def _pairs(encoding: Encoding, keep: list[object]) -> ctypes.Array[d.ScaleOffset]:
    if len(encoding.offsets) != len(encoding.scales):
        raise GraphError(f"an encoding has {len(encoding.scales)} scales but {len(encoding.offsets)} offsets")
    array = (d.ScaleOffset * len(encoding.scales))()
    view = _pair_view(array)
    view["scale"] = encoding.scales
    view["offset"] = encoding.offsets
    keep.append(array)
    return array


def _write_scale_offset(encoding: Encoding, out: d.QuantizeParams, keep: list[object]) -> None:
    out.encoding = d.ENCODING_SCALE_OFFSET
    out.value.scaleOffset.scale = encoding.scale
    out.value.scaleOffset.offset = encoding.offset


def _write_axis(encoding: Encoding, out: d.QuantizeParams, keep: list[object]) -> None:
    out.encoding = d.ENCODING_AXIS
    out.value.axis.axis = encoding.axis
    out.value.axis.num = len(encoding.scales)
    out.value.axis.scaleOffset = _pairs(encoding, keep)


def _write_bw(encoding: Encoding, out: d.QuantizeParams, keep: list[object]) -> None:
    out.encoding = d.ENCODING_BW
    out.value.bw.bitwidth = encoding.bitwidth
    out.value.bw.scale = encoding.scale
    out.value.bw.offset = encoding.offset


def _write_bw_axis(encoding: Encoding, out: d.QuantizeParams, keep: list[object]) -> None:
    # The offsets are always written: libQnnIr reads through a NULL pointer (qnn_more.md section 3).
    scales = (c_float * len(encoding.scales))(*encoding.scales)
    offsets = (c_int32 * len(encoding.scales))(*encoding.offsets)
    keep += (scales, offsets)
    out.encoding = d.ENCODING_BW_AXIS
    out.value.bwAxis.bitwidth = encoding.bitwidth
    out.value.bwAxis.axis = encoding.axis
    out.value.bwAxis.num = len(encoding.scales)
    out.value.bwAxis.scales = scales
    out.value.bwAxis.offsets = offsets


def _write_block(encoding: Encoding, out: d.QuantizeParams, keep: list[object]) -> None:
    assert encoding.block_shape is not None
    sizes = (c_uint32 * len(encoding.block_shape))(*encoding.block_shape)
    keep.append(sizes)
    out.encoding = d.ENCODING_BLOCK
    out.value.block.blockSize = sizes
    out.value.block.scaleOffset = _pairs(encoding, keep)


def _write_blockwise(encoding: Encoding, out: d.QuantizeParams, keep: list[object]) -> None:
    assert encoding.block_scales is not None
    scales = np.asarray(encoding.block_scales, np.uint16 if encoding.block_storage else np.uint8)
    inner = d.BlockwiseExpansion(
        axis=encoding.axis,
        scaleOffsets=_pairs(encoding, keep),
        numBlocksPerAxis=encoding.blocks_per_axis,
        blockScaleBitwidth=encoding.block_scale_bits,
        blockScaleStorageType=encoding.block_storage,
        blocksScale=scales.ctypes.data,
    )
    keep += (scales, inner)
    out.encoding = d.ENCODING_BLOCKWISE_EXPANSION
    out.value.blockwise = ctypes.pointer(inner)


_WRITERS: dict[str, Callable[[Encoding, d.QuantizeParams, list[object]], None]] = {
    "SCALE_OFFSET": _write_scale_offset,
    "AXIS_SCALE_OFFSET": _write_axis,
    "BW_SCALE_OFFSET": _write_bw,
    "BW_AXIS_SCALE_OFFSET": _write_bw_axis,
    "BLOCK": _write_block,
    "BLOCKWISE_EXPANSION": _write_blockwise,
}


def tensor_to_c(tensor: Tensor, keep: list[object], *, data: bool = True, into: d.Tensor | None = None) -> d.Tensor:
    """A version 2 tensor with id 0; a STATIC tensor's data is pointed to unless `data` is False.

    Raises GraphError when the data does not have the tensor's dtype and shape.
    """
    out = d.Tensor() if into is None else into
    name = tensor.name.encode()
    dimensions = (c_uint32 * tensor.rank)(*tensor.shape)
    keep += (name, dimensions)
    out.version = d.TENSOR_VERSION_2
    out.name = name
    out.type = int(tensor.kind)
    out.dataType = int(tensor.dtype)
    out.quantizeParams = encoding_to_c(tensor.encoding, keep)
    out.rank = tensor.rank
    out.dimensions = dimensions
    out.sparseType = d.UNDEFINED  # 0 would mean a sparse layout, which libQnnIr believes
    if data:
        point_at_data(tensor, out, keep)
    return out


def present_inputs(op: Op) -> list[Tensor | None]:
    """The op's inputs without absent ones at the end, which libQnnCpu does not take."""
    inputs = list(op.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


def null_tensor_to_c(into: d.Tensor) -> None:
    """An absent optional input."""
    into.version = d.TENSOR_VERSION_2
    into.type = int(TensorKind.NULL)
    into.dataType = d.UNDEFINED
    into.quantizeParams.definition = into.quantizeParams.encoding = d.UNDEFINED
    into.sparseType = d.UNDEFINED


def dense(array: Array, dtype: DType) -> Array:
    """`array` itself when it is dense and row-major in the container dtype of `dtype`, else a copy that is.

    Raises GraphError when the element size differs: values are never converted here.
    """
    wanted = dtype.numpy
    if array.dtype != wanted:
        if array.dtype.itemsize != wanted.itemsize:
            raise GraphError(f"the data is {array.dtype}, a {dtype.name} tensor holds {wanted}")
        array = array.view(wanted)
    return np.ascontiguousarray(array)


def point_at_data(tensor: Tensor, out: d.Tensor, keep: list[object]) -> None:
    """Points `out` at the tensor's data, if it has any. GraphError when that does not fit dtype and shape."""
    if tensor.data is None:
        return
    try:
        values = dense(tensor.data, tensor.dtype)
    except GraphError as error:
        raise GraphError(error.what, where=f"tensor {tensor.name}") from None
    if values.nbytes != tensor.nbytes:
        what = f"the data has shape {list(tensor.data.shape)}, the tensor {list(tensor.shape)}"
        raise GraphError(what, where=f"tensor {tensor.name}")
    keep.append(values)
    out.data = values.ctypes.data
    out.dataSize = values.nbytes


def param_tensor(op: Op, name: str, param: Param) -> Tensor:
    """The STATIC tensor of an array parameter, under a name that is unique in a graph whose op names are."""
    value = param.value
    assert isinstance(value, np.ndarray)
    return Tensor(f"{op.name}_{name}", param.dtype, value.shape, TensorKind.STATIC, data=value)


_SCALAR_FIELDS = {
    DType.FLOAT_32: "f32",
    DType.FLOAT_64: "f64",
    DType.UINT_8: "u8",
    DType.INT_8: "i8",
    DType.UINT_16: "u16",
    DType.INT_16: "i16",
    DType.UINT_32: "u32",
    DType.INT_32: "i32",
    DType.UINT_64: "u64",
    DType.INT_64: "i64",
    DType.BOOL_8: "bool8",
}


def all_params(op: Op) -> dict[str, Param]:
    """The op's params, a MatMul's with both transposes: without them a per-axis weight crashes HTP's validation."""
    if op.type != "MatMul":
        return op.params
    return {"transpose_in0": _FALSE, "transpose_in1": _FALSE, **op.params}


_FALSE = Param(DType.BOOL_8, False)


def params_to_c(op: Op, keep: list[object]) -> ctypes.Array[d.Param]:
    """The params of an op, in its order. The tensor of an array param still has id 0 (create it in the graph)."""
    params = all_params(op)
    array = (d.Param * len(params))()
    keep.append(array)
    for out, (name, param) in zip(array, params.items(), strict=True):
        encoded = name.encode()
        keep.append(encoded)
        out.name = encoded
        if param.is_tensor:
            out.paramType = d.PARAM_TENSOR
            tensor_to_c(param_tensor(op, name, param), keep, into=out.value.tensor)
            continue
        out.paramType = d.PARAM_SCALAR
        out.value.scalar.dataType = int(param.dtype)
        field = _SCALAR_FIELDS.get(param.dtype)
        if field is None:
            raise GraphError(f"a scalar parameter cannot be {param.dtype.name}", where=f"op {op.name}, {name}")
        setattr(out.value.scalar.value, field, param.value)
    return array


def op_to_c(
    op: Op,
    inputs: ctypes.Array[d.Tensor],
    outputs: ctypes.Array[d.Tensor],
    params: ctypes.Array[d.Param],
    keep: list[object],
) -> d.OpConfig:
    """The op's configuration around ready tensor and param arrays."""
    name, package, kind = op.name.encode(), op.package.encode(), op.type.encode()
    keep += (name, package, kind, inputs, outputs, params)
    return d.OpConfig(
        version=d.OPCONFIG_VERSION_1,
        name=name,
        packageName=package,
        typeName=kind,
        numOfParams=len(params),
        params=params,
        numOfInputs=len(inputs),
        inputTensors=inputs,
        numOfOutputs=len(outputs),
        outputTensors=outputs,
    )


def tensor_array(tensors: Sequence[Tensor | None], fill: Callable[[Tensor, d.Tensor], None]) -> ctypes.Array[d.Tensor]:
    """A C array with one tensor each; `fill` writes the present ones, absent ones become NULL tensors."""
    array = (d.Tensor * len(tensors))()
    for tensor, out in zip(tensors, array, strict=True):
        if tensor is None:
            null_tensor_to_c(out)
        else:
            fill(tensor, out)
    return array


def copy_tensor(source: d.Tensor, into: d.Tensor) -> None:
    """Copies the structure (not what it points to; the keep list of `source` must outlive `into`)."""
    ctypes.memmove(byref(into), byref(source), ctypes.sizeof(d.Tensor))


# ----------------------------------------------------------------------------------------- from C


def encoding_from_c(params: d.QuantizeParams, shape: tuple[int, ...]) -> Encoding | None:
    """The encoding as our value; None when undefined. GraphError for a kind that we do not know."""
    if params.definition == d.UNDEFINED or params.encoding == d.UNDEFINED:
        return None
    reader = _READERS.get(params.encoding)
    if reader is None:
        name = d.ENCODING_NAMES.get(params.encoding, str(params.encoding))
        raise GraphError(f"the quantization encoding {name} is not supported")
    return reader(params, shape)


def _read_pairs(pointer: ctypes._Pointer[d.ScaleOffset], count: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    if not count:
        return (), ()
    array = ctypes.cast(pointer, POINTER(d.ScaleOffset * count)).contents
    view = _pair_view(array)
    return tuple(view["scale"].tolist()), tuple(view["offset"].tolist())


def _read_scale_offset(params: d.QuantizeParams, shape: tuple[int, ...]) -> Encoding:
    value = params.value.scaleOffset
    return Encoding.per_tensor(value.scale, value.offset)


def _read_axis(params: d.QuantizeParams, shape: tuple[int, ...]) -> Encoding:
    value = params.value.axis
    scales, offsets = _read_pairs(value.scaleOffset, value.num)
    return Encoding(scales, offsets, axis=_positive(value.axis, shape))


def _read_bw(params: d.QuantizeParams, shape: tuple[int, ...]) -> Encoding:
    value = params.value.bw
    return Encoding.per_tensor(value.scale, value.offset, bitwidth=value.bitwidth)


def _read_bw_axis(params: d.QuantizeParams, shape: tuple[int, ...]) -> Encoding:
    value = params.value.bwAxis
    scales = tuple(value.scales[: value.num])
    offsets = tuple(value.offsets[: value.num]) if value.offsets else (0,) * value.num
    return Encoding(scales, offsets, axis=_positive(value.axis, shape), bitwidth=value.bitwidth)


def _read_block(params: d.QuantizeParams, shape: tuple[int, ...]) -> Encoding:
    value = params.value.block
    sizes = tuple(value.blockSize[: len(shape)])
    count = 1
    for extent, size in zip(shape, sizes, strict=True):
        count *= -(-extent // size) if size else 1
    scales, offsets = _read_pairs(value.scaleOffset, count)
    return Encoding(scales, offsets, block_shape=sizes)


def _read_blockwise(params: d.QuantizeParams, shape: tuple[int, ...]) -> Encoding:
    value = params.value.blockwise.contents
    axis = _positive(value.axis, shape)
    channels = shape[axis]
    scales, offsets = _read_pairs(value.scaleOffsets, channels)
    kind = ctypes.c_uint16 if value.blockScaleStorageType else ctypes.c_uint8
    blocks = ctypes.cast(value.blocksScale, POINTER(kind))[: channels * value.numBlocksPerAxis]
    return Encoding(
        scales,
        offsets,
        axis=axis,
        block_scales=tuple(blocks),
        blocks_per_axis=value.numBlocksPerAxis,
        block_scale_bits=value.blockScaleBitwidth,
        block_storage=value.blockScaleStorageType,
    )


def _positive(axis: int, shape: tuple[int, ...]) -> int:
    return axis + len(shape) if axis < 0 else axis


_READERS: dict[int, Callable[[d.QuantizeParams, tuple[int, ...]], Encoding]] = {
    d.ENCODING_SCALE_OFFSET: _read_scale_offset,
    d.ENCODING_AXIS: _read_axis,
    d.ENCODING_BW: _read_bw,
    d.ENCODING_BW_AXIS: _read_bw_axis,
    d.ENCODING_BLOCK: _read_block,
    d.ENCODING_BLOCKWISE_EXPANSION: _read_blockwise,
}


def tensor_from_c(source: d.Tensor, *, copy: bool = False, owner: object = None) -> Tensor:
    """The tensor as our value, version 1 or 2; a NULL tensor has kind NULL.

    Args:
        source: the C tensor.
        copy: copy the data of a STATIC tensor; otherwise it is a read-only view of the library's memory.
        owner: an object to keep alive for as long as such a view lives.

    Raises GraphError for a dtype, tensor type or encoding that we do not know.
    """
    name = (source.name or b"").decode("utf-8", "replace")
    shape = tuple(source.dimensions[: source.rank]) if source.rank else ()
    try:
        dtype, kind = DType(source.dataType), TensorKind(source.type)
        encoding = encoding_from_c(source.quantizeParams, shape)
    except ValueError as error:
        raise GraphError(f"unknown tensor type or data type: {error}", where=f"tensor {name}") from None
    except GraphError as error:
        raise GraphError(error.what, where=f"tensor {name}") from None
    tensor = Tensor(name, dtype, shape, kind, encoding)
    if kind is TensorKind.STATIC and source.memType == d.MEMTYPE_RAW and source.data:
        tensor.data = view_memory(source.data, source.dataSize, dtype, shape, name, copy=copy, owner=owner)
    return tensor


class _Memory:
    """A stretch of foreign memory for numpy; holds what owns it."""

    def __init__(self, address: int, size: int, owner: object) -> None:
        self.owner = owner
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, True)}


def view_memory(
    address: int, size: int, dtype: DType, shape: tuple[int, ...], name: str, *, copy: bool, owner: object
) -> Array:
    """`size` bytes at `address` as an array; GraphError when they are not what dtype and shape need."""
    needed = int(np.prod(shape, dtype=np.int64)) * dtype.numpy.itemsize
    if size != needed:
        raise GraphError(f"has {size} bytes of data, its shape needs {needed}", where=f"tensor {name}")
    array = np.asarray(_Memory(address, size, owner)).view(dtype.numpy).reshape(shape)
    return array.copy() if copy else array


def param_from_c(source: d.Param, *, copy: bool = True) -> tuple[str, Param]:
    """Name and value of a param; an array param is copied by default. GraphError for an unknown scalar type."""
    name = (source.name or b"").decode("utf-8", "replace")
    if source.paramType == d.PARAM_TENSOR:
        tensor = tensor_from_c(source.value.tensor, copy=copy)
        if tensor.data is None:
            raise GraphError("the tensor of a parameter has no data", where=f"param {name}")
        return name, Param(tensor.dtype, tensor.data)
    dtype, value = scalar_from_c(source.value.scalar, f"param {name}")
    return name, Param(dtype, value)


def scalar_from_c(scalar: d.Scalar, where: str) -> tuple[DType, int | float | bool]:
    """Data type and value of a scalar. GraphError, naming `where`, for a type that we do not know."""
    try:
        dtype = DType(scalar.dataType)
        return dtype, getattr(scalar.value, _SCALAR_FIELDS[dtype])
    except (ValueError, KeyError):
        raise GraphError(f"unknown scalar data type {scalar.dataType:#x}", where=where) from None


def op_from_c(source: d.OpConfig, tensor: Callable[[d.Tensor], Tensor | None], *, copy: bool = True) -> Op:
    """The op as our value; `tensor` maps each C tensor (by id or name) to the Tensor already known."""
    outputs = [tensor(source.outputTensors[i]) for i in range(source.numOfOutputs)]
    return Op(
        name=(source.name or b"").decode("utf-8", "replace"),
        type=(source.typeName or b"").decode("utf-8", "replace"),
        inputs=[tensor(source.inputTensors[i]) for i in range(source.numOfInputs)],
        outputs=[t for t in outputs if t is not None],
        params=dict(param_from_c(source.params[i], copy=copy) for i in range(source.numOfParams)),
        package=(source.packageName or b"").decode("utf-8", "replace"),
    )
