# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Parameter sets of PyTorch's core ATen operators: for each op three calls that differ in shapes, axes or attributes.

A case is a function of tensors that calls the operator by its overload, and the tensors. What is not tried has a
reason in `NOT_TRIED`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

A = torch.ops.aten
Case = tuple[Callable[..., Any], tuple[torch.Tensor, ...]]

TRAINING = "a gradient: only training computes it"
RANDOM = "draws random numbers: there is no result to compare, and no such op in QNN"
COMPLEX = "complex numbers: QNN has no such type"
DYNAMIC = "the size of its result is only known when it runs"
MEMORY = "about the memory of a tensor, which a graph of values does not have"

NOT_TRIED: dict[str, str] = {
    **dict.fromkeys(
        (
            "_adaptive_avg_pool2d_backward",
            "avg_pool2d_backward",
            "convolution_backward",
            "embedding_dense_backward",
            "max_pool2d_with_indices_backward",
            "native_group_norm_backward",
            "native_layer_norm_backward",
        ),
        TRAINING,
    ),
    **dict.fromkeys(("rand", "randn", "randperm"), RANDOM),
    **dict.fromkeys(("_fft_c2r", "_fft_r2c"), COMPLEX),
    "nonzero": DYNAMIC,
    **dict.fromkeys(("sym_storage_offset", "sym_stride"), MEMORY),
    **dict.fromkeys(("empty", "empty_strided"), "its values are not defined: there is no result to compare"),
    "_local_scalar_dense": "gives Python a number: torch.export makes it a size only known when it runs",
}


def f(*shape: int, low: float = -2.0, high: float = 2.0) -> torch.Tensor:
    """Floats between `low` and `high`."""
    return torch.rand(shape, generator=_generator) * (high - low) + low


def i(*shape: int, low: int = 0, high: int = 5) -> torch.Tensor:
    """Whole numbers, int64, from `low` to below `high`."""
    return torch.randint(low, high, shape, generator=_generator)


def b(*shape: int) -> torch.Tensor:
    """Truth values."""
    return i(*shape, high=2).bool()


_generator = torch.Generator().manual_seed(0)
_SHAPES = ((2, 3), (1, 4, 5), (2, 3, 4, 2))


def unary(op: Any, low: float = -2.0, high: float = 2.0) -> list[Case]:
    """One tensor in three ranks."""
    return [(op, (f(*shape, low=low, high=high),)) for shape in _SHAPES]


def binary(op: Any, low: float = -2.0, high: float = 2.0) -> list[Case]:
    """Two tensors: of one shape, with broadcasting, and with a row."""
    pairs = (((2, 3), (2, 3)), ((2, 1, 4), (3, 1)), ((2, 3, 4), (4,)))
    return [(op, (f(*x, low=low, high=high), f(*y, low=low, high=high))) for x, y in pairs]


def logical(op: Any) -> list[Case]:
    """Two tensors of truth values."""
    return [(op, (b(2, 3), b(2, 3))), (op, (b(2, 1, 4), b(3, 1))), (op, (b(5), b(5)))]


def compared(name: str) -> list[Case]:
    """A comparison with a tensor, a number and whole numbers; equal values are among them."""
    op = getattr(A, name)
    return [
        (op.Tensor, (i(2, 6).float(), i(2, 6).float())),
        (lambda x: op.Scalar(x, 2), (i(3, 4).float(),)),
        (op.Tensor, (i(2, 1, 5), i(3, 1))),
    ]


def bits(name: str) -> list[Case]:
    """Truth values with a tensor, whole numbers with a tensor and with a number."""
    op = getattr(A, name)
    return [
        (op.Tensor, (b(2, 3), b(2, 3))),
        (op.Tensor, (i(2, 4, high=100), i(2, 4, high=100))),
        (lambda x: op.Scalar(x, 5), (i(6, high=100),)),
    ]


def reduced(name: str, overload: str) -> list[Case]:
    """A reduction over axes: one, several kept, the last."""
    op = getattr(getattr(A, name), overload)
    return [
        (lambda x: op(x, [1]), (f(2, 3, 4),)),
        (lambda x: op(x, [0, 2], True), (f(2, 3, 4),)),
        (lambda x: op(x, [-1]), (f(1, 5, 2, 3),)),
    ]


def extreme(op: Any) -> list[Case]:
    """max.dim and min.dim: values and indices."""
    return [
        (lambda x: op(x, 1), (f(2, 5),)),
        (lambda x: op(x, 0, True), (f(4, 3),)),
        (lambda x: op(x, -1), (f(2, 3, 6),)),
    ]


def argument(op: Any) -> list[Case]:
    """Argmax and argmin."""
    return [
        (lambda x: op(x, 1), (f(2, 5),)),
        (lambda x: op(x, -1, True), (f(2, 3, 4),)),
        (lambda x: op(x), (f(7),)),
    ]


def on_axis(op: Any) -> list[Case]:
    """An axis and nothing else."""
    return [
        (lambda x: op(x, 1), (f(2, 5),)),
        (lambda x: op(x, 0), (f(4, 3),)),
        (lambda x: op(x, -1), (f(2, 3, 6),)),
    ]


def padded(op: Any, rank: int) -> list[Case]:
    """reflection_pad and replication_pad over the last `rank` axes."""
    shape = (2, 3, *([4, 5, 6][:rank]))
    even, one = [1, 1] * rank, [1, 0] * rank
    return [
        (lambda x: op(x, even), (f(*shape),)),
        (lambda x: op(x, one), (f(*shape),)),
        (lambda x: op(x, [2, 1] * rank), (f(1, 2, *shape[2:]),)),
    ]


def sized(make: Callable[[torch.Tensor], torch.Tensor]) -> list[Case]:
    """What makes a tensor of a size, added to the input so that the graph depends on it."""
    return [(make, (f(2, 3),)), (make, (f(1, 4, 5),)), (make, (f(6),))]


CASES: dict[str, list[Case]] = {
    **{
        name: unary(getattr(A, name).default)
        for name in [
            "abs",
            "alias",
            "asinh",
            "atan",
            "ceil",
            "clone",
            "cos",
            "cosh",
            "erf",
            "exp",
            "expm1",
            "floor",
            "isinf",
            "isnan",
            "logical_not",
            "neg",
            "reciprocal",
            "relu",
            "round",
            "sigmoid",
            "sign",
            "sin",
            "sinh",
            "tan",
            "tanh",
            "trunc",
            "gelu",
        ]
    },
    **{name: unary(getattr(A, name).default, -0.9, 0.9) for name in ("acos", "asin", "atanh")},
    **{name: unary(getattr(A, name).default, 0.1, 3.0) for name in ("log", "log10", "log1p", "log2", "rsqrt", "sqrt")},
    "acosh": unary(A.acosh.default, 1.1, 4.0),
    **{name: binary(getattr(A, name).default) for name in ("atan2", "maximum", "minimum")},
    **{name: logical(getattr(A, name).default) for name in ("logical_and", "logical_or", "logical_xor")},
    **{name: compared(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{name: bits(name) for name in ("bitwise_and", "bitwise_or", "bitwise_xor")},
    **{name: reduced(name, "default") for name in ("amax", "amin")},
    **{name: on_axis(getattr(A, name).default) for name in ("cumsum",)},
    "_softmax": [
        (lambda x, axis=axis: A._softmax(x, axis, False), (f(*shape),))
        for shape, axis in (((2, 5), 1), ((4, 3), 0), ((1, 2, 3, 4), -1))
    ],
    "_log_softmax": [
        (lambda x, axis=axis: A._log_softmax(x, axis, False), (f(*shape),))
        for shape, axis in (((2, 5), 1), ((4, 3), 0), ((1, 2, 3, 4), -1))
    ],
    "max": extreme(A.max.dim),
    "min": extreme(A.min.dim),
    "argmax": argument(A.argmax.default),
    "argmin": argument(A.argmin.default),
    "mean": [*reduced("mean", "dim")[:2], (A.mean.default, (f(3, 4),))],
    "sum": reduced("sum", "dim_IntList"),
    "prod": [
        (A.prod.default, (f(2, 3),)),
        (lambda x: A.prod.dim_int(x, 1), (f(2, 4),)),
        (lambda x: A.prod.dim_int(x, -1, True), (f(2, 3, 3),)),
    ],
    "var": [
        (lambda x: A.var.dim(x, [1]), (f(2, 6),)),
        (lambda x: A.var.correction(x, [0, 2], correction=0), (f(3, 4, 5),)),
        (lambda x: A.var.correction(x, [-1], correction=1, keepdim=True), (f(2, 7),)),
    ],
    "any": [
        (A.any.default, (b(4),)),
        (lambda x: A.any.dim(x, 1), (b(2, 3),)),
        (lambda x: A.any.dims(x, [0, 2]), (b(2, 3, 4),)),
    ],
    "add": [
        (A.add.Tensor, (f(2, 3), f(3))),
        (lambda x, y: A.add.Tensor(x, y, alpha=2.5), (f(2, 3), f(2, 3))),
        (lambda x: A.add.Scalar(x, 1.5), (f(4),)),
    ],
    "sub": [
        (A.sub.Tensor, (f(2, 3), f(3))),
        (lambda x, y: A.sub.Tensor(x, y, alpha=2), (f(2, 3), f(2, 1))),
        (lambda x: A.sub.Scalar(x, 1.5), (f(4),)),
    ],
    "mul": [
        (A.mul.Tensor, (f(2, 3), f(3))),
        (A.mul.Tensor, (i(2, 3), i(2, 3))),
        (lambda x: A.mul.Scalar(x, 1.5), (f(4),)),
    ],
    "div": [
        (A.div.Tensor, (f(2, 3), f(3, low=0.5))),
        (lambda x: A.div.Scalar(x, 3.0), (f(4),)),
        (lambda x, y: A.div.Tensor_mode(x, y, rounding_mode="floor"), (f(2, 3), f(2, 3, low=0.5))),
    ],
    "fmod": [
        (A.fmod.Tensor, (f(2, 5), f(2, 5, low=0.5))),
        (lambda x: A.fmod.Scalar(x, 0.7), (f(6),)),
        (A.fmod.Tensor, (i(2, 4, low=-9, high=9), i(2, 4, low=1, high=4))),
    ],
    "remainder": [
        (A.remainder.Tensor, (f(2, 5), f(2, 5, low=0.5))),
        (lambda x: A.remainder.Scalar(x, 0.7), (f(6),)),
        (A.remainder.Tensor, (i(2, 4, low=-9, high=9), i(2, 4, low=1, high=4))),
    ],
    "pow": [
        (A.pow.Tensor_Tensor, (f(2, 3, low=0.1), f(2, 3))),
        (lambda x: A.pow.Tensor_Scalar(x, 3), (f(2, 4),)),
        (lambda x: A.pow.Scalar(2.0, x), (f(5),)),
    ],
    "bitwise_not": [
        (A.bitwise_not.default, (b(4),)),
        (A.bitwise_not.default, (i(2, 3, high=100),)),
        (A.bitwise_not.default, (i(2, 3, low=-9, high=9).int(),)),
    ],
    "clamp": [
        (lambda x: A.clamp.default(x, -1.0, 1.0), (f(2, 3),)),
        (lambda x: A.clamp.default(x, min=0.5), (f(6),)),
        (A.clamp.Tensor, (f(2, 3), f(3, low=-1, high=0), f(3, low=0.1, high=1))),
    ],
    "elu": [
        (A.elu.default, (f(2, 3),)),
        (lambda x: A.elu(x, 0.5), (f(4),)),
        (lambda x: A.elu(x, 1.0, 1.5), (f(2, 2, 2),)),
    ],
    "hardtanh": [
        (A.hardtanh.default, (f(2, 3),)),
        (lambda x: A.hardtanh(x, 0.0, 6.0), (f(4, high=9),)),
        (lambda x: A.hardtanh(x, -0.5, 1.5), (f(2, 2, 2),)),
    ],
    "leaky_relu": [
        (A.leaky_relu.default, (f(2, 3),)),
        (lambda x: A.leaky_relu(x, 0.2), (f(4),)),
        (lambda x: A.leaky_relu(x, 0.5), (f(2, 2, 2),)),
    ],
    "mm": [(A.mm.default, (f(2, 3), f(3, 4))), (A.mm.default, (f(1, 8), f(8, 1))), (A.mm.default, (f(5, 5), f(5, 5)))],
    "bmm": [
        (A.bmm.default, (f(2, 3, 4), f(2, 4, 5))),
        (A.bmm.default, (f(1, 2, 8), f(1, 8, 3))),
        (A.bmm.default, (f(4, 1, 3), f(4, 3, 1))),
    ],
    "addmm": [
        (A.addmm.default, (f(4), f(2, 3), f(3, 4))),
        (lambda x, y, z: A.addmm(x, y, z, beta=0.5, alpha=2.0), (f(2, 4), f(2, 3), f(3, 4))),
        (A.addmm.default, (f(1, 1), f(5, 2), f(2, 3))),
    ],
    "cat": [
        (lambda x, y: A.cat([x, y]), (f(2, 3), f(1, 3))),
        (lambda x, y: A.cat([x, y, x], 1), (f(2, 3), f(2, 2))),
        (lambda x, y: A.cat([x, y], -1), (f(1, 2, 3), f(1, 2, 4))),
    ],
    "constant_pad_nd": [
        (lambda x: A.constant_pad_nd(x, [1, 2]), (f(2, 3),)),
        (lambda x: A.constant_pad_nd(x, [1, 0, 0, 2], 1.5), (f(1, 2, 3),)),
        (lambda x: A.constant_pad_nd(x, [-1, 1]), (f(2, 4),)),
    ],
    "convolution": [
        (
            lambda x, w, v: A.convolution(x, w, v, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
            (f(1, 3, 6, 6), f(4, 3, 3, 3), f(4)),
        ),
        (lambda x, w: A.convolution(x, w, None, [2], [1], [1], False, [0], 2), (f(1, 4, 9), f(6, 2, 3))),
        (
            lambda x, w, v: A.convolution(x, w, v, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
            (f(1, 3, 5, 5), f(3, 4, 3, 3), f(4)),
        ),
    ],
    "avg_pool2d": [
        (lambda x: A.avg_pool2d(x, [2, 2]), (f(1, 2, 6, 6),)),
        (lambda x: A.avg_pool2d(x, [3, 3], [2, 2], [1, 1]), (f(1, 2, 7, 7),)),
        (lambda x: A.avg_pool2d(x, [3, 2], [1, 2], [1, 0], False, False), (f(2, 3, 5, 6),)),
    ],
    "avg_pool3d": [
        (lambda x: A.avg_pool3d(x, [2, 2, 2]), (f(1, 2, 4, 4, 4),)),
        (lambda x: A.avg_pool3d(x, [2, 3, 3], [1, 2, 2]), (f(1, 2, 4, 7, 7),)),
        (lambda x: A.avg_pool3d(x, [3, 3, 3], [2, 2, 2], [1, 1, 1]), (f(1, 2, 5, 5, 5),)),
    ],
    "_adaptive_avg_pool2d": [
        (lambda x: A._adaptive_avg_pool2d(x, [1, 1]), (f(1, 3, 5, 7),)),
        (lambda x: A._adaptive_avg_pool2d(x, [2, 3]), (f(1, 2, 4, 6),)),
        (lambda x: A._adaptive_avg_pool2d(x, [3, 2]), (f(1, 2, 5, 7),)),
    ],
    "_adaptive_avg_pool3d": [
        (lambda x: A._adaptive_avg_pool3d(x, [1, 1, 1]), (f(1, 2, 3, 4, 5),)),
        (lambda x: A._adaptive_avg_pool3d(x, [2, 2, 2]), (f(1, 2, 4, 4, 4),)),
        (lambda x: A._adaptive_avg_pool3d(x, [1, 2, 1]), (f(1, 2, 3, 4, 5),)),
    ],
    "max_pool2d_with_indices": [
        (lambda x: A.max_pool2d_with_indices(x, [2, 2])[0], (f(1, 2, 6, 6),)),
        (lambda x: A.max_pool2d_with_indices(x, [3, 3], [2, 2], [1, 1])[0], (f(1, 2, 7, 7),)),
        (lambda x: A.max_pool2d_with_indices(x, [2, 2], [2, 2]), (f(1, 1, 4, 4),)),
    ],
    "max_pool3d_with_indices": [
        (lambda x: A.max_pool3d_with_indices(x, [2, 2, 2])[0], (f(1, 2, 4, 4, 4),)),
        (lambda x: A.max_pool3d_with_indices(x, [3, 3, 3], [2, 2, 2], [1, 1, 1])[0], (f(1, 2, 5, 5, 5),)),
        (lambda x: A.max_pool3d_with_indices(x, [1, 2, 2])[0], (f(1, 2, 3, 4, 4),)),
    ],
    "_native_batch_norm_legit_no_training": [
        (
            lambda x, w, v, m, s: A._native_batch_norm_legit_no_training(x, w, v, m, s, 0.1, 1e-5)[0],
            (f(2, 3, 4, 4), f(3), f(3), f(3), f(3, low=0.5)),
        ),
        (
            lambda x, m, s: A._native_batch_norm_legit_no_training(x, None, None, m, s, 0.1, 1e-3)[0],
            (f(2, 3), f(3), f(3, low=0.5)),
        ),
        (
            lambda x, w, v, m, s: A._native_batch_norm_legit_no_training(x, w, v, m, s, 0.1, 1e-5)[0],
            (f(1, 4, 6), f(4), f(4), f(4), f(4, low=0.5)),
        ),
    ],
    "_native_batch_norm_legit": [
        (lambda x, w, v: A._native_batch_norm_legit.no_stats(x, w, v, True, 0.1, 1e-5)[0], (f(2, 3, 4, 4), f(3), f(3))),
        (lambda x: A._native_batch_norm_legit.no_stats(x, None, None, True, 0.1, 1e-3)[0], (f(4, 3, 5),)),
        (
            lambda x, w, v, m, s: A._native_batch_norm_legit.default(x, w, v, m, s, False, 0.1, 1e-5)[0],
            (f(2, 3, 4), f(3), f(3), f(3), f(3, low=0.5)),
        ),
    ],
    "native_layer_norm": [
        (lambda x, w, v: A.native_layer_norm(x, [4], w, v, 1e-5)[0], (f(2, 3, 4), f(4), f(4))),
        (lambda x: A.native_layer_norm(x, [3, 4], None, None, 1e-6)[0], (f(2, 3, 4),)),
        (lambda x, w: A.native_layer_norm(x, [8], w, None, 1e-5)[0], (f(5, 8), f(8))),
    ],
    "native_group_norm": [
        (lambda x, w, v: A.native_group_norm(x, w, v, 1, 4, 9, 2, 1e-5)[0], (f(1, 4, 3, 3), f(4), f(4))),
        (lambda x: A.native_group_norm(x, None, None, 2, 6, 5, 3, 1e-5)[0], (f(2, 6, 5),)),
        (lambda x, w, v: A.native_group_norm(x, w, v, 1, 4, 4, 4, 1e-3)[0], (f(1, 4, 2, 2), f(4), f(4))),
    ],
    "native_dropout": [
        (lambda x: A.native_dropout(x, 0.5, False)[0], (f(2, 3),)),
        (lambda x: A.native_dropout(x, 0.1, False)[0], (f(5),)),
        (lambda x: A.native_dropout(x, 0.9, False)[0], (f(1, 2, 3),)),
    ],
    "embedding": [
        (A.embedding.default, (f(10, 4), i(2, 3, high=10))),
        (lambda t, x: A.embedding(t, x, 0), (f(7, 3), i(5, high=7))),
        (A.embedding.default, (f(20, 8), i(1, high=20))),
    ],
    "_embedding_bag": [
        (lambda t, x, o: A._embedding_bag(t, x, o)[0], (f(10, 4), i(6, high=10), torch.tensor([0, 2, 4]))),
        (lambda t, x, o: A._embedding_bag(t, x, o, False, 1)[0], (f(10, 4), i(6, high=10), torch.tensor([0, 3]))),
        (lambda t, x, o: A._embedding_bag(t, x, o, False, 2)[0], (f(10, 4), i(4, high=10), torch.tensor([0, 1]))),
    ],
    "gather": [
        (lambda x, n: A.gather(x, 1, n), (f(2, 5), i(2, 3))),
        (lambda x, n: A.gather(x, 0, n), (f(4, 3), i(2, 3, high=4))),
        (lambda x, n: A.gather(x, -1, n), (f(2, 3, 4), i(2, 3, 2, high=4))),
    ],
    "index": [
        (lambda x, n: A.index.Tensor(x, [n]), (f(5, 3), i(4))),
        (lambda x, n: A.index.Tensor(x, [None, n]), (f(2, 5, 3), i(3))),
        (lambda x, n, m: A.index.Tensor(x, [n, m]), (f(5, 4), i(3), i(3, high=4))),
    ],
    "index_select": [
        (lambda x, n: A.index_select(x, 0, n), (f(5, 3), i(4))),
        (lambda x, n: A.index_select(x, 1, n), (f(2, 5), i(3))),
        (lambda x, n: A.index_select(x, -1, n), (f(2, 3, 5), i(2))),
    ],
    "index_put": [
        (lambda x, n, v: A.index_put(x, [n], v), (f(5, 3), torch.tensor([0, 2]), f(2, 3))),
        (lambda x, n, m, v: A.index_put(x, [n, m], v), (f(5, 4), torch.tensor([0, 3]), torch.tensor([1, 2]), f(2))),
        (lambda x, n, v: A.index_put(x, [n], v, True), (f(5, 3), torch.tensor([1, 4]), f(2, 3))),
    ],
    "scatter": [
        (lambda x, n, v: A.scatter.src(x, 1, n, v), (f(2, 5), torch.tensor([[0, 2], [1, 4]]), f(2, 2))),
        (lambda x, n: A.scatter.value(x, 0, n, 1.5), (f(4, 3), torch.tensor([[0, 1, 2]]))),
        (lambda x, n, v: A.scatter.src(x, -1, n, v), (f(2, 2, 4), torch.tensor([[[3], [1]], [[0], [2]]]), f(2, 2, 1))),
    ],
    "scatter_add": [
        (lambda x, n, v: A.scatter_add(x, 1, n, v), (f(2, 5), torch.tensor([[0, 0], [1, 4]]), f(2, 2))),
        (lambda x, n, v: A.scatter_add(x, 0, n, v), (f(4, 3), torch.tensor([[0, 1, 2]]), f(1, 3))),
        (lambda x, n, v: A.scatter_add(x, 0, n, v), (f(6), torch.tensor([2, 2, 5]), f(3))),
    ],
    "scatter_reduce": [
        (lambda x, n, v, how=how: A.scatter_reduce.two(x, 0, n, v, how), (f(6), torch.tensor([2, 2, 5]), f(3)))
        for how in ("sum", "amax", "prod")
    ],
    "masked_scatter": [
        (A.masked_scatter.default, (f(2, 3), torch.tensor([[True, False, True], [False, True, False]]), f(6))),
        (A.masked_scatter.default, (f(5), torch.tensor([True, True, False, False, True]), f(5))),
        (A.masked_scatter.default, (f(2, 2), torch.ones(2, 2).bool(), f(4))),
    ],
    "select_scatter": [
        (lambda x, v: A.select_scatter(x, v, 0, 1), (f(3, 4), f(4))),
        (lambda x, v: A.select_scatter(x, v, 1, -1), (f(3, 4), f(3))),
        (lambda x, v: A.select_scatter(x, v, 2, 0), (f(2, 3, 4), f(2, 3))),
    ],
    "slice_scatter": [
        (lambda x, v: A.slice_scatter(x, v, 0, 1, 3), (f(4, 3), f(2, 3))),
        (lambda x, v: A.slice_scatter(x, v, 1, 0, 6, 2), (f(2, 6), f(2, 3))),
        (lambda x, v: A.slice_scatter(x, v, -1, 2), (f(2, 2, 5), f(2, 2, 3))),
    ],
    "slice": [
        (lambda x: A.slice.Tensor(x, 0, 1, 3), (f(4, 3),)),
        (lambda x: A.slice.Tensor(x, 1, 0, 6, 2), (f(2, 6),)),
        (lambda x: A.slice.Tensor(x, -1, -3), (f(2, 2, 5),)),
    ],
    "select": [
        (lambda x: A.select.int(x, 0, 1), (f(4, 3),)),
        (lambda x: A.select.int(x, 1, -1), (f(2, 6),)),
        (lambda x: A.select.int(x, -1, 0), (f(2, 2, 5),)),
    ],
    "split_with_sizes": [
        (lambda x: A.split_with_sizes(x, [1, 3]), (f(4, 3),)),
        (lambda x: A.split_with_sizes(x, [2, 2, 2], 1), (f(2, 6),)),
        (lambda x: A.split_with_sizes(x, [4, 1], -1), (f(2, 2, 5),)),
    ],
    "squeeze": [
        (lambda x: A.squeeze.dim(x, 0), (f(1, 3),)),
        (lambda x: A.squeeze.dims(x, [0, 2]), (f(1, 3, 1, 2),)),
        (lambda x: A.squeeze.dim(x, 1), (f(2, 3),)),
    ],
    "unsqueeze": on_axis(A.unsqueeze.default),
    "permute": [
        (lambda x: A.permute(x, [1, 0]), (f(2, 3),)),
        (lambda x: A.permute(x, [0, 2, 3, 1]), (f(1, 2, 3, 4),)),
        (lambda x: A.permute(x, [2, 0, 1]), (f(2, 3, 4),)),
    ],
    "view": [
        (lambda x: A.view(x, [6]), (f(2, 3),)),
        (lambda x: A.view(x, [4, -1]), (f(2, 6),)),
        (lambda x: A.view(x, [1, 2, 3, 4]), (f(24),)),
    ],
    "expand": [
        (lambda x: A.expand(x, [2, 3]), (f(1, 3),)),
        (lambda x: A.expand(x, [2, -1, 4]), (f(3, 1),)),
        (lambda x: A.expand(x, [5, 1]), (f(1),)),
    ],
    "repeat": [
        (lambda x: A.repeat(x, [2, 2]), (f(1, 3),)),
        (lambda x: A.repeat(x, [2, 1, 3]), (f(3, 2),)),
        (lambda x: A.repeat(x, [4]), (f(2),)),
    ],
    "flip": [
        (lambda x: A.flip(x, [0]), (f(3, 2),)),
        (lambda x: A.flip(x, [1, 2]), (f(2, 3, 4),)),
        (lambda x: A.flip(x, [-1]), (f(5),)),
    ],
    "diagonal": [
        (A.diagonal.default, (f(3, 3),)),
        (lambda x: A.diagonal(x, 1), (f(3, 4),)),
        (lambda x: A.diagonal(x, -1, 1, 2), (f(2, 4, 3),)),
    ],
    "as_strided": [
        (lambda x: A.as_strided(x, [2, 2], [1, 2]), (f(6),)),
        (lambda x: A.as_strided(x, [3, 2], [2, 1], 1), (f(2, 4),)),
        (lambda x: A.as_strided(x, [4, 3], [1, 1]), (f(6),)),
    ],
    "sort": [
        (A.sort.default, (f(2, 5),)),
        (lambda x: A.sort.default(x, 0, True), (f(4, 2),)),
        (lambda x: A.sort.default(x, -1, False), (f(2, 2, 3),)),
    ],
    "topk": [
        (lambda x: A.topk(x, 2), (f(2, 5),)),
        (lambda x: A.topk(x, 3, 0), (f(4, 2),)),
        (lambda x: A.topk(x, 1, -1, False), (f(2, 2, 3),)),
    ],
    "where": [
        (A.where.self, (b(2, 3), f(2, 3), f(2, 3))),
        (A.where.self, (b(3), f(2, 3), f(1))),
        (A.where.self, (b(2, 1), i(2, 3), i(3))),
    ],
    "grid_sampler_2d": [
        (lambda x, g, a=a: A.grid_sampler_2d(x, g, a[0], a[1], a[2]), (f(1, 2, 5, 5), f(1, 3, 4, 2, low=-1, high=1)))
        for a in ((0, 0, False), (1, 1, True), (0, 0, True))
    ],
    "col2im": [
        (lambda x: A.col2im(x, [4, 4], [2, 2], [1, 1], [0, 0], [2, 2]), (f(1, 8, 4),)),
        (lambda x: A.col2im(x, [4, 4], [3, 3], [1, 1], [1, 1], [1, 1]), (f(1, 9, 16),)),
        (lambda x: A.col2im(x, [5, 5], [3, 3], [1, 1], [0, 0], [1, 1]), (f(2, 18, 9),)),
    ],
    "upsample_bilinear2d": [
        (lambda x: A.upsample_bilinear2d.vec(x, [8, 8], False, None), (f(1, 2, 4, 4),)),
        (lambda x: A.upsample_bilinear2d.vec(x, None, True, [2.0, 2.0]), (f(1, 2, 4, 4),)),
        (lambda x: A.upsample_bilinear2d.vec(x, [3, 5], False, None), (f(1, 1, 4, 4),)),
    ],
    "upsample_nearest2d": [
        (lambda x: A.upsample_nearest2d.vec(x, [8, 8], None), (f(1, 2, 4, 4),)),
        (lambda x: A.upsample_nearest2d.vec(x, None, [2.0, 3.0]), (f(1, 2, 4, 4),)),
        (lambda x: A.upsample_nearest2d.vec(x, [6, 5], None), (f(1, 1, 4, 4),)),
    ],
    "_cdist_forward": [
        (lambda x, y: A._cdist_forward(x, y, 2.0, None), (f(4, 3), f(5, 3))),
        (lambda x, y: A._cdist_forward(x, y, 1.0, None), (f(2, 4, 3), f(2, 5, 3))),
        (lambda x, y: A._cdist_forward(x, y, 3.0, None), (f(4, 2), f(3, 2))),
    ],
    "_pdist_forward": [
        (lambda x: A._pdist_forward(x, 2.0), (f(4, 3),)),
        (lambda x: A._pdist_forward(x, 1.0), (f(5, 2),)),
        (lambda x: A._pdist_forward(x, 3.0), (f(3, 3),)),
    ],
    "_to_copy": [
        (lambda x: A._to_copy(x, dtype=torch.float16), (f(2, 3),)),
        (lambda x: A._to_copy(x, dtype=torch.int32), (f(4),)),
        (lambda x: A._to_copy(x, dtype=torch.float32), (i(5),)),
    ],
    "copy": [(A.copy.default, (f(2, 3), f(2, 3))), (A.copy.default, (f(2, 3), f(3))), (A.copy.default, (f(4), i(4)))],
    "arange": [
        (lambda x: x + A.arange.start_step(0, 4, 1), (f(4),)),
        (lambda x: x + A.arange.start_step(1, 10, 3), (f(3),)),
        (lambda x: x + A.arange.start_step(0.0, 1.0, 0.25), (f(2, 4),)),
    ],
    "fill": sized(lambda x: x + A.fill.Scalar(x, 1.5)),
    "full": sized(lambda x: x + A.full(list(x.shape), 2.5)),
    "full_like": sized(lambda x: x + A.full_like(x, -1.0)),
    "scalar_tensor": sized(lambda x: x + A.scalar_tensor(0.75)),
    "sym_size": sized(lambda x: x + A.sym_size.int(x, 0)),
    "sym_numel": sized(lambda x: x + A.sym_numel(x)),
    "reflection_pad1d": padded(A.reflection_pad1d.default, 1),
    "reflection_pad2d": padded(A.reflection_pad2d.default, 2),
    "reflection_pad3d": padded(A.reflection_pad3d.default, 3),
    "replication_pad2d": padded(A.replication_pad2d.default, 2),
    "replication_pad3d": padded(A.replication_pad3d.default, 3),
}
