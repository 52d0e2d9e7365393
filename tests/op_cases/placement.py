# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Rows for Fourier transforms, pooled indices, scatters and other placement, and tensors of many axes."""

from __future__ import annotations

import numpy as np

from . import CPU, HTP, RAISE, OpCase

ALL = (CPU, HTP, RAISE)
_DEEP = (2, 1, 2, 3, 1, 2, 2)


def _pool_indices(values: dict[str, np.ndarray]) -> list[np.ndarray]:
    x = values["x"]
    n, c, h, w = x.shape
    full = np.full((n, c, h + 2, w), -np.inf, np.float32)
    full[:, :, 1:-1] = x
    best, places = np.zeros((n, c, h, w // 2), np.float32), np.zeros((n, c, h, w // 2), np.int64)
    for i in np.ndindex(best.shape):
        window = full[i[0], i[1], i[2] : i[2] + 3, 2 * i[3] : 2 * i[3] + 2]
        row, column = np.unravel_index(int(window.argmax()), window.shape)
        best[i] = window[row, column]
        places[i] = ((i[0] * c + i[1]) * h + i[2] + row - 1) * w + 2 * i[3] + column
    return [best, places]


CASES = [
    OpCase(
        "dft", "DFT", [("x", "float32", (2, 5, 3, 1))], constants={"n": np.int64(8), "axis": np.int64(1)}, backends=ALL
    ),
    OpCase("dft_onesided", "DFT", [("x", "float32", (2, 6, 1))], {"onesided": 1}),
    OpCase("dft_inverse", "DFT", [("x", "float32", (2, 6, 2))], {"inverse": 1}, backends=ALL),
    OpCase(
        "dft_runtime_axis",
        "DFT",
        [("x", "float32", (2, 6, 2)), ("axis", "int64", ())],
        order=("x", "", "axis"),
        rejects="axis of DFT",
    ),
    OpCase(
        "stft",
        "STFT",
        [("x", "float32", (2, 20, 1))],
        constants={"step": np.int64(4), "w": np.hanning(8).astype(np.float32)},
        backends=ALL,
    ),
    OpCase(
        "stft_window",
        "STFT",
        [("x", "float32", (1, 20, 1)), ("w", "float32", (8,))],
        {"onesided": 0},
        {"step": np.int64(3)},
        order=("x", "step", "w"),
    ),
    OpCase(
        "stft_runtime_step",
        "STFT",
        [("x", "float32", (1, 20, 1)), ("step", "int64", ())],
        constants={"w": np.ones(8, np.float32)},
        rejects="only known when it runs",
    ),
    OpCase(
        "max_pool_indices",
        "MaxPool",
        [("x", "float32", (2, 3, 4, 6))],
        {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [1, 0, 1, 0]},
        outputs=("y", "i"),
        expected=_pool_indices,
        backends=ALL,
    ),
    OpCase(
        "max_pool_thinned",
        "MaxPool",
        [("x", "float32", (1, 2, 9, 9))],
        {"kernel_shape": [3, 2], "dilations": [2, 3], "strides": [2, 3]},
        backends=ALL,
    ),
    OpCase(
        "max_pool_dilated",
        "MaxPool",
        [("x", "float32", (1, 2, 5, 6, 7))],
        {"kernel_shape": [2, 2, 2], "dilations": [2, 3, 2]},
        backends=ALL,
    ),
    OpCase(
        "max_unpool",
        "MaxUnpool",
        [("x", "float32", (1, 1, 2, 2)), ("i", "int64", (1, 1, 2, 2))],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        values={"i": np.array([5, 7, 13, 15])},
        backends=ALL,
    ),
    OpCase(
        "col2im",
        "Col2Im",
        [("x", "float32", (2, 8, 6))],
        {"strides": [1, 2], "pads": [0, 1, 1, 0]},
        {"image": np.array([3, 4]), "block": np.array([2, 2])},
        backends=ALL,
    ),
    OpCase(
        "tensor_scatter",
        "TensorScatter",
        [("c", "float32", (2, 3, 5, 2)), ("u", "float32", (2, 3, 2, 2)), ("w", "int64", (2,))],
        {"mode": "circular"},
        values={"w": np.array([1, 4])},
        backends=ALL,
    ),
    OpCase("tensor_scatter_start", "TensorScatter", [("c", "int64", (2, 5, 2)), ("u", "int64", (2, 2, 2))]),
    OpCase(
        "reverse_sequence",
        "ReverseSequence",
        [("x", "float32", (4, 3, 2)), ("n", "int64", (3,))],
        values={"n": np.array([1, 4, 3])},
        backends=ALL,
    ),
    OpCase(
        "reverse_sequence_bool",
        "ReverseSequence",
        [("x", "bool", (3, 4))],
        {"batch_axis": 0, "time_axis": 1},
        {"n": np.array([1, 4, 3])},
        backends=ALL,
    ),
    OpCase(
        "scatter_elements_max",
        "ScatterElements",
        [("x", "float32", (2, 4)), ("i", "int64", (2, 3)), ("u", "float32", (2, 3))],
        {"axis": 1, "reduction": "max"},
        values={"i": np.array([[0, -1, 0], [2, 2, 2]])},
        backends=ALL,
    ),
    OpCase(
        "scatter_nd_min",
        "ScatterND",
        [("x", "float32", (3, 2, 4)), ("i", "int64", (3, 2)), ("u", "float32", (3, 4))],
        {"reduction": "min"},
        values={"i": np.array([[0, 1], [2, -1], [0, 1]])},
        backends=ALL,
    ),
    OpCase(
        "tf_idf",
        "TfIdfVectorizer",
        [("x", "int64", (2, 6))],
        {
            "mode": "TFIDF",
            "min_gram_length": 1,
            "max_gram_length": 2,
            "max_skip_count": 1,
            "ngram_counts": [0, 2],
            "ngram_indexes": [0, 1, 2, 3],
            "pool_int64s": [1, 2, 1, 2, 2, 0],
            "weights": [1.0, 2.0, 3.0, 0.5],
        },
        span=(0, 3),
        backends=ALL,
    ),
    OpCase(
        "compress",
        "Compress",
        [("x", "float32", (3, 4))],
        {"axis": 1},
        {"c": np.array([True, False, True])},
        expected=lambda v: [v["x"][:, [0, 2]]],
        backends=ALL,
    ),
    OpCase("seven_axes", "Neg", [("x", "float32", _DEEP)], backends=(HTP,)),
    OpCase("seven_axes_broadcast", "Mul", [("x", "float32", _DEEP), ("y", "float32", (3, 1, 2, 1))], backends=(HTP,)),
    OpCase("seven_axes_turned", "Transpose", [("x", "int32", _DEEP)], {"perm": [5, 0, 1, 3, 6, 2, 4]}, backends=ALL),
    OpCase(
        "seven_axes_reduced",
        "ReduceSum",
        [("x", "float32", _DEEP)],
        constants={"axes": np.array([2, 3, 6])},
        backends=(HTP,),
    ),
    OpCase("five_axes_of_integers", "Add", [("x", "int32", (2, 2, 3, 2, 2)), ("y", "int32", (2, 1, 2, 1))]),
    OpCase("five_axes_of_integers_less", "Sub", [("x", "int32", (2, 2, 3, 2, 2)), ("y", "int32", (2, 1, 2, 1))]),
]
