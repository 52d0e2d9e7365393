# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""More of tools/tflite_cases.py: moves, scatters, recurrent layers, boxes, spectra."""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.tflite_cases import CASES, SHAPES, TANH, Fixed, State, add, f, k, n, one

__all__ = ["CASES"]

# ---------------------------------------------------------------- shapes and moves

for _shape in ((6, 20), (4, -1), (2, 3, 5, 4)):
    add("RESHAPE", f(2, 3, 4, 5), k(*_shape), options="ReshapeOptions", fields={"newShape": list(_shape)}, integer=True)
for _dims in ([0], [2], []):
    add("SQUEEZE", f(1, 3, 1, 4), options="SqueezeOptions", fields={"squeezeDims": _dims})
for _axis in (0, -1, 2):
    add("EXPAND_DIMS", f(2, 3), one(_axis), options="ExpandDimsOptions")
for _perm in ((0, 3, 1, 2), (3, 2, 1, 0), (0, 2, 1, 3)):
    add("TRANSPOSE", f(2, 3, 4, 5), k(*_perm), options="TransposeOptions", integer=True)
for _axis, _one, _two in ((-1, (2, 3), (2, 5)), (0, (1, 3, 2), (4, 3, 2)), (1, (1, 2, 2, 3), (1, 4, 2, 3))):
    add("CONCATENATION", f(*_one), f(*_two), options="ConcatenationOptions", fields={"axis": _axis}, integer=True)
for _axis, _shape in ((0, (3, 4)), (1, (2, 5)), (-1, (2, 2, 3))):
    add("PACK", f(*_shape), f(*_shape), options="PackOptions", fields={"axis": _axis, "valuesCount": 2})
    _count = _shape[_axis]
    add("UNPACK", f(*_shape), options="UnpackOptions", fields={"axis": _axis, "num": _count},
        outputs=("float32",) * _count)  # fmt: skip
for _axis, _shape, _count in ((1, (2, 6), 3), (-1, (2, 3, 4), 2), (0, (4, 3), 4)):
    add("SPLIT", one(_axis), f(*_shape), options="SplitOptions", fields={"numSplits": _count},
        outputs=("float32",) * _count)  # fmt: skip
for _axis, _sizes in ((1, (1, 3, 2)), (1, (2, -1)), (0, (1, 1, 2))):
    add("SPLIT_V", f(4, 6), k(*_sizes), one(_axis), options="SplitVOptions", fields={"numSplits": len(_sizes)},
        outputs=("float32",) * len(_sizes))  # fmt: skip
for _begin, _size, _out in (((0, 1, 2), (2, -1, 1), (2, 4, 1)), ((1, 0, 0), (1, 5, 4), (1, 5, 4)),
                            ((0, 0, 1), (2, 2, 2), (2, 2, 2))):  # fmt: skip
    add("SLICE", f(2, 5, 4), k(*_begin), k(*_size), options="SliceOptions", integer=True, shapes=(_out,))
for _begin, _end, _step, _masks in (
    ((0, 4, 0), (2, 0, 4), (1, -2, 1), {"shrinkAxisMask": 0}),
    ((0, -1, 0), (0, 0, 4), (1, 1, 1), {"beginMask": 1, "endMask": 1, "shrinkAxisMask": 2}),
    ((0, 0, 1), (0, 0, 3), (1, 1, 1), {"ellipsisMask": 1, "newAxisMask": 2}),
):
    add("STRIDED_SLICE", f(2, 5, 4), k(*_begin), k(*_end), k(*_step), options="StridedSliceOptions", fields=_masks,
        integer=True)  # fmt: skip
for _pads in ([[0, 0], [1, 2], [0, 1]], [[1, 1], [0, 0], [0, 0]], [[0, 0], [3, 0], [2, 2]]):
    _edges = Fixed(np.array(_pads, np.int32))
    add("PAD", f(2, 5, 4), _edges, options="PadOptions", integer=True)
    add("PADV2", f(2, 5, 4), _edges, one(3.0, np.float32), options="PadV2Options")
for _mode, _pads in ((0, [[0, 0], [1, 2], [0, 1]]), (1, [[0, 0], [1, 2], [0, 1]]), (0, [[1, 1], [0, 0], [3, 2]])):
    add("MIRROR_PAD", f(2, 5, 4), Fixed(np.array(_pads, np.int32)), options="MirrorPadOptions", fields={"mode": _mode})
for _axis, _batch, _indices in ((1, 0, (3,)), (0, 0, (2, 2)), (1, 1, (2, 3))):
    add("GATHER", f(2, 5, 4), n(*_indices, high=2), options="GatherOptions",
        fields={"axis": _axis, "batchDims": _batch}, integer=_batch == 0)  # fmt: skip
for _rows in ([[0, 1], [1, 4]], [[1], [0], [1]], [[0, 2, 3]]):
    add("GATHER_ND", f(2, 5, 4), Fixed(np.array(_rows, np.int32)), options="GatherNdOptions")
for _times in ((1, 2, 3), (2, 1, 1), (1, 1, 1)):
    add("TILE", f(2, 5, 4), k(*_times), options="TileOptions")
for _shape in ((2, 4, 5), (4, 5), (3, 1, 4, 5)):
    add("BROADCAST_TO", f(4, 5), k(*_shape), options="BroadcastToOptions")
    add("BROADCAST_ARGS", k(*_shape), k(4, 1), outputs="int32")
for _axis in (0, 1, -1):
    add("REVERSE_V2", f(2, 5, 4), k(_axis % 3), options="ReverseV2Options")
for _lengths, _seq, _batch in (((3, 2), 1, 0), ((1, 5), 1, 0), ((1, 2, 2, 1), 0, 2)):
    add("REVERSE_SEQUENCE", f(2, 5, 4), k(*_lengths), options="ReverseSequenceOptions",
        fields={"seqDim": _seq, "batchDim": _batch})  # fmt: skip
for _shape in SHAPES:
    add("SHAPE", f(*_shape), options="ShapeOptions", fields={"outType": 2}, outputs="int32")
    add("RANK", f(*_shape), options="RankOptions", outputs="int32")
    add("FILL", k(*_shape), f(1).reshape(()), options="FillOptions")
for _ends in ((0, 5, 1), (3, -4, -2), (10, 30, 7)):
    add("RANGE", *(one(v) for v in _ends), options="RangeOptions", outputs="int32")
for _steps, _value in (((2, 1), 0.0), ((1, 3), 1.5), ((2, 2), -1.0)):
    add("DILATE", f(3, 4), k(*_steps), one(_value, np.float32), options="DilateOptions")
for _shape in ((4,), (2, 3), (1, 2, 4)):
    add("MATRIX_DIAG", f(*_shape), options="MatrixDiagOptions")
for _shape, _size in (((3, 3), (3,)), ((2, 3, 5), (2, 3)), ((4, 2), (2,))):
    add("MATRIX_SET_DIAG", f(*_shape), f(*_size), options="MatrixSetDiagOptions")

# ---------------------------------------------------------------- scatters and segments

for _rows, _values, _shape in (([[1], [3]], (2, 4), (5, 4)), ([[0, 1], [2, 2], [0, 1]], (3,), (3, 4)),
                               ([[4], [0]], (2, 2, 3), (6, 2, 3))):  # fmt: skip
    add("SCATTER_ND", Fixed(np.array(_rows, np.int32)), f(*_values), k(*_shape), options="ScatterNdOptions")
add("SPARSE_TO_DENSE", k(1, 3, 4), k(6), f(3), one(0.0, np.float32), options="SparseToDenseOptions")
add("SPARSE_TO_DENSE", Fixed(np.array([[0, 1], [2, 0]], np.int32)), k(3, 2), f(2), one(-1.0, np.float32),
    options="SparseToDenseOptions")  # fmt: skip
add("SPARSE_TO_DENSE", k(0, 2), k(5), one(4.0, np.float32), one(0.5, np.float32), options="SparseToDenseOptions")
for _ids in ((0, 0, 1, 2), (0, 1, 1, 2), (0, 0, 0, 0)):
    add("SEGMENT_SUM", f(4, 3), k(*_ids), options="SegmentSumOptions")
    for _kind in ("Sum", "Prod", "Max", "Min"):
        add(f"UNSORTED_SEGMENT_{_kind.upper()}", f(4, 3), k(*_ids[::-1]), one(4),
            options=f"UnsortedSegment{_kind}Options")  # fmt: skip
for _start, _shape, _block in (((1, 0), (4, 3), (2, 3)), ((9, 9), (4, 5), (2, 2)), ((0, 2, 0), (1, 6, 4), (1, 1, 4))):
    add("DYNAMIC_UPDATE_SLICE", f(*_shape), f(*_block), np.array(_start, np.int32),
        options="DynamicUpdateSliceOptions")  # fmt: skip

# ---------------------------------------------------------------- codes

for _shape in SHAPES:
    add("QUANTIZE", f(*_shape), options="QuantizeOptions", outputs="int8", fixed=(4 / 255, 1))
    add("DEQUANTIZE", n(*_shape, low=-128, high=128, dtype=np.int8), options="DequantizeOptions", fixed=(4 / 255, 1))

# ---------------------------------------------------------------- recurrent layers


def _small(*shape: int) -> Fixed:
    return Fixed(f(*shape, low=-0.5, high=0.5))


def _lstm(width: int, cells: int, hidden: int, *, coupled: bool = False, peephole: bool = False) -> list[Any]:
    """Inputs 1 to 17 of a layer."""
    gates = [None if coupled and i == 0 else _small(cells, width) for i in range(4)]
    turns = [None if coupled and i == 0 else _small(cells, hidden) for i in range(4)]
    holes = [_small(cells) if peephole and not (coupled and i == 0) else None for i in range(3)]
    biases = [None if coupled and i == 0 else _small(cells) for i in range(4)]
    return [*gates, *turns, *holes, *biases, *([_small(hidden, cells), None] if hidden != cells else [None, None])]


for _major, _coupled, _peephole, _hidden, _normed in (
    (False, False, False, 6, False), (True, True, True, 6, False), (False, False, True, 4, True),
):  # fmt: skip
    _states = [State((2, _hidden)), State((2, 6))]
    _norms = [_small(6) for _ in range(4)] if _normed else []
    add("UNIDIRECTIONAL_SEQUENCE_LSTM", f(*((5, 2, 3) if _major else (2, 5, 3))),
        *_lstm(3, 6, _hidden, coupled=_coupled, peephole=_peephole), *_states, *_norms,
        options="UnidirectionalSequenceLSTMOptions",
        fields={"fusedActivationFunction": TANH, "timeMajor": _major, "cellClip": 0.4 * _coupled})  # fmt: skip
for _major, _merged, _hidden in ((True, True, 6), (False, False, 6), (True, False, 4)):
    add("BIDIRECTIONAL_SEQUENCE_LSTM", f(*((5, 2, 3) if _major else (2, 5, 3))),
        *_lstm(3, 6, _hidden), *_lstm(3, 6, _hidden), *([State((2, _hidden)), State((2, 6))] * 2), *[None] * 9,
        outputs=("float32",) if _merged else ("float32", "float32"), options="BidirectionalSequenceLSTMOptions",
        fields={"fusedActivationFunction": TANH, "timeMajor": _major, "mergeOutputs": _merged})  # fmt: skip
for _major, _act in ((False, TANH), (True, 0), (True, 1)):
    _x = f(*((5, 2, 3) if _major else (2, 5, 3)))
    add("UNIDIRECTIONAL_SEQUENCE_RNN", _x, _small(4, 3), _small(4, 4), _small(4), State((2, 4)),
        options="SequenceRNNOptions", fields={"timeMajor": _major, "fusedActivationFunction": _act})  # fmt: skip
    _two = [_small(4, 3), _small(4, 4), _small(4), State((2, 4))]
    add("BIDIRECTIONAL_SEQUENCE_RNN", _x, *_two, *_two, None, None, None, options="BidirectionalSequenceRNNOptions",
        outputs=("float32", "float32") if _act else "float32",
        fields={"timeMajor": _major, "fusedActivationFunction": _act, "mergeOutputs": not _act})  # fmt: skip

# ---------------------------------------------------------------- boxes and spectra


def _boxes(count: int) -> Any:
    corner = f(count, 2, low=0, high=3)
    return np.concatenate([corner, corner + f(count, 2, low=0.5, high=2)], 1)


def _scores(count: int) -> Any:
    return (np.random.default_rng(count).permutation(count).astype(np.float32) + 1) / count


for _count, _most, _overlap, _least in ((30, 8, 0.5, 0.2), (12, 12, 0.3, 0.0), (20, 5, 0.1, 0.9)):
    _fixed = [one(_most), one(_overlap, np.float32), one(_least, np.float32)]
    add("NON_MAX_SUPPRESSION_V4", _boxes(_count), _scores(_count), *_fixed, options="NonMaxSuppressionV4Options",
        outputs=("int32", "int32"))  # fmt: skip
    add("NON_MAX_SUPPRESSION_V5", _boxes(_count), _scores(_count), *_fixed, one(0.0, np.float32),
        options="NonMaxSuppressionV5Options", outputs=("int32", "float32", "int32"))  # fmt: skip
