# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Matrix products, norms, reductions, recurrent and quantized ops."""

from __future__ import annotations

import numpy as np

from npukit.qnn.graph import DType, Encoding
from tests.raising_cases.case import B8, F32, I32, Q8, U32, Case, In, f, i32, index, out, q8, s


def _matrix():
    for a, w, y in (((2, 5), (3, 5), (2, 3)), ((2, 3, 4), (6, 4), (6, 6)), ((2, 3, 4), (6, 12), (2, 6))):
        yield Case("FullyConnected", [f(*a), s(*w), s(w[0])], {}, [y])
    yield Case("FullyConnected", [f(2, 5), s(3, 5)], {}, [(2, 3)])
    yield Case("FullyConnected", [f(2, 3, 4), s(6, 4), s(6)], {"keep_dims": True}, [(2, 3, 6)])
    for a, b, t0, t1, y in (
        ((2, 3), (3, 4), 0, 0, (2, 4)), ((3, 2), (4, 3), 1, 1, (2, 4)), ((2, 3, 5), (2, 4, 5), 0, 1, (2, 3, 4)),
        ((1, 2, 3, 5), (3, 5, 5), 0, 0, None), ((2, 1, 3, 5), (1, 4, 5, 2), 0, 0, (2, 4, 3, 2)),
    ):  # fmt: skip
        if y is not None:
            yield Case("MatMul", [f(*a), f(*b)], {"transpose_in0": t0, "transpose_in1": t1}, [y])
    yield Case("MatMul", [f(2, 3), s(3, 4), s(4)], {"transpose_in0": 0, "transpose_in1": 0}, [(2, 4)])
    yield Case("MatMul", [f(2, 3), s(4, 3)], {"transpose_in1": 1}, [(2, 4)])
    for shape in ((2, 4), (1, 3, 8), (1, 2, 2, 16)):
        yield Case("HadamardTransform", [f(*shape)], {"scale": 0.5})
    for shape in ((3, 4), (2, 5, 3), (1, 2, 3, 4)):
        yield Case("Batchnorm", [f(*shape), s(shape[-1]), s(shape[-1])])
    yield Case("Batchnorm", [f(2, 3), s(3)])


def _norm():
    for axis, shape in ((1, (2, 5)), (2, (2, 3, 4)), (3, (1, 2, 3, 4)), (1, (2, 3, 4))):
        yield Case("Softmax", [f(*shape)], {"axis": axis, "beta": 1.0})
        oracle, note = ("cpu", "") if axis == len(shape) - 1 else ("numpy", "refused by QNN CPU")
        yield Case("LogSoftmax", [f(*shape)], {"axis": axis, "beta": 1.0}, oracle=oracle, note=note)
    yield Case("Softmax", [f(2, 5)])
    yield Case("Softmax", [f(2, 5)], {"beta": 2.5})
    yield Case("LogSoftmax", [f(2, 5)], {"axis": 1, "beta": 0.5}, oracle="numpy", note="QNN CPU: beta 1 only")
    for axes, shape in (([1], (3, 8)), ([2], (2, 3, 8)), ([1, 2], (2, 3, 4)), ([3], (1, 2, 3, 4))):
        own = tuple(shape[a] for a in axes)
        yield Case("LayerNorm", [f(*shape), s(*own), s(*own)], {"axes": axes, "epsilon": 1e-5})
        yield Case(
            "RmsNorm",
            [f(*shape), s(*own), s(*own)],
            {"axes": axes, "epsilon": 1e-6},
            tolerance=1e-4,
            note="QNN CPU adds epsilon outside the root",
        )
    yield Case(
        "LayerNorm",
        [f(3, 8), s(8), s(8)],
        {"axes": [1]},
        oracle="numpy",
        note="the default is 1e-5 on QNN CPU, 1e-3 on HTP",
    )
    yield Case("LayerNorm", [f(3, 8), s(8)], {"axes": [1], "epsilon": 0.1})
    yield Case("LayerNorm", [f(3, 8)], {"axes": [1], "epsilon": 0.1})
    yield Case("RmsNorm", [f(3, 8), s(8)], {"axes": [1]})
    for shape in ((2, 4, 5, 3), (1, 2, 2, 4), (1, 6, 3, 2)):
        for mode in ("MU_SIGMA", "RMS"):
            for region in ("ACROSS_SPATIAL", "ACROSS_CHANNEL", "ACROSS_ALL"):
                oracle = "cpu" if (mode, region) == ("MU_SIGMA", "ACROSS_SPATIAL") else "numpy"
                params = {"epsilon": 1e-5, "mode": mode, "region": region}
                note = "" if oracle == "cpu" else "refused by QNN CPU"
                yield Case("InstanceNorm", [f(*shape), s(shape[-1]), s(shape[-1])], params, oracle=oracle, note=note)
    yield Case("InstanceNorm", [f(1, 4, 5, 3), s(3), s(3)])
    yield Case(
        "InstanceNorm",
        [f(1, 4, 5, 3), s(3), s(3)],
        {"normalize_variance": False},
        oracle="numpy",
        note="QNN CPU leaves out gamma and beta, HTP ignores the flag",
    )
    for shape, group in (((1, 3, 3, 4), 2), ((2, 4, 2, 6), 3), ((1, 2, 5, 4), 1)):
        yield Case("GroupNorm", [f(*shape), s(shape[-1]), s(shape[-1])], {"epsilon": 1e-4, "group": group})
    for shape, params in (
        ((3, 4), {"axis": 1}),
        ((2, 3, 4), {"axes": [1, 2]}),
        ((2, 3, 4), {"axis": 2, "epsilon": 2.0}),
        ((1, 2, 2, 5), {"axes": [3]}),
    ):
        oracle, note = ("numpy", "QNN CPU takes axis only") if "axes" in params else ("cpu", "")
        yield Case("L2Norm", [f(*shape)], params, oracle=oracle, note=note)
    for radius, params in (
        (1, {}),
        (2, {"alpha": 0.5, "beta": 0.75, "bias": 2.0}),
        (1, {"alpha": 0.1, "region": "WITHIN_CHANNEL"}),
    ):
        yield Case("Lrn", [f(1, 4, 4, 6)], {"radius": radius, **params})
    for batch, width in ((1, 4), (2, 3), (1, 6)):
        mask = np.where(np.arange(batch * width) % 3 == 1, -10000.0, 0.0)
        given = f(batch, width, values=mask)
        yield Case("MaskedSoftmax", [f(batch, 2, 3, width), given], {"mode": "UNCOMPRESSED"})
    for lengths in ([[1, 2]], [[1, 3]], [[1, 1, 2]]):
        x = f(len(lengths), 2, 4, 4)
        yield Case("MaskedSoftmax", [x, index(lengths, static=False)], {"mode": "COMPRESSED"})


def _reduce():
    shapes = (((2, 5), [1]), ((2, 3, 4), [0, 2]), ((1, 2, 3, 4), [1, 2]), ((2, 3), [0, 1]))
    for name in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"):
        for shape, axes in shapes:
            kept = tuple(1 if a in axes else d for a, d in enumerate(shape))
            less = tuple(d for a, d in enumerate(shape) if a not in axes) or (1,)
            if name == "ReduceSumSquare" and len(axes) == len(shape):
                note = "QNN CPU squares twice"
                yield Case(name, [f(*shape)], {"axes": axes, "keep_dims": True}, [kept], oracle="numpy", note=note)
                continue
            yield Case(name, [f(*shape)], {"axes": axes, "keep_dims": True}, [kept])
            yield Case(name, [f(*shape)], {"axes": axes}, [less])
    for name in ("Argmax", "Argmin"):
        yield Case(name, [f(3, 5)], {"axis": 1}, [out(3, dtype=I32)])
        yield Case(name, [f(2, 3, 4)], {"axis": 1, "keep_dims": True}, [out(2, 1, 4, dtype=U32)])
        yield Case(name, [f(6)], {"axis": 0}, [out(1, dtype=I32)])
        yield Case(name, [f(4, values=[1, 3, 3, 1])], {"axis": 0}, [out(1, dtype=I32)])
    for params in (
        {"axis": 1},
        {"axis": 0, "exclusive": True},
        {"axis": 1, "reverse": True},
        {"axis": 1, "exclusive": True, "reverse": True},
    ):
        yield Case("CumulativeSum", [f(3, 5)], params)
    yield Case("CumulativeSum", [i32(3, 5)], {"axis": 1})
    for shape, axes, keep, y in (
        ((3, 5), [1], True, (3, 1)),
        ((2, 3, 4), [0, 1], False, (4,)),
        ((1, 4, 4, 2), [1, 2], True, (1, 1, 1, 2)),
    ):
        yield Case("Moments", [f(*shape)], {"axes": axes, "keep_dims": keep}, [y, y])
    yield Case("TopK", [f(3, 6)], {"k": 2}, [(3, 2), out(3, 2, dtype=U32)])
    yield Case("TopK", [f(6, values=[1, 3, 3, 2, 3, 0])], {"k": 3}, [(3,), out(3, dtype=I32)])
    yield Case("TopK", [f(2, 2, 5)], {"k": 5, "largest": False}, [(2, 2, 5), out(2, 2, 5, dtype=I32)])


def _rotary():
    for heads, size, interleaved in ((2, 4, False), (1, 8, True), (3, 6, False)):
        yield Case(
            "RotaryEmbedding",
            [f(1, heads, 3, size), f(1, 3, size // 2), f(1, 3, size // 2)],
            {"interleaved": interleaved},
            oracle="numpy",
            note="no backend of 2.47 has it",
        )


def _recurrent():
    rows = ((True, "FORWARD", True), (True, "REVERSE", True), (False, "FORWARD", True), (True, "FORWARD", False))
    for time_major, direction, state in rows:
        for batch in (1, 2):
            x, y = (f(4, batch, 3), (4, batch, 5)) if time_major else (f(batch, 4, 3), (batch, 4, 5))
            params = {"direction": direction, "time_major": time_major}
            gates = [*(s(5, 3) for _ in range(3)), *(s(5, 5) for _ in range(3)), *(s(5) for _ in range(3))]
            own = [s(batch, 5), s(batch, 5)] if state else [None, None]
            rest = [None] * 4 + [s(5, 3), s(5, 5), None, None, None, s(5)]
            known = state and direction == "FORWARD"
            oracle, note = ("cpu", "") if known else ("numpy", "refused by QNN CPU")
            yield Case("Lstm", [x, *gates, *own, *rest], params, [y, (batch, 5), (batch, 5)], oracle, note)
            weights = [*(s(5, 3) for _ in range(3)), *(s(5, 5) for _ in range(3)), *(s(5) for _ in range(6))]
            first = [s(1, batch, 5)] if state else []
            right = batch == 1 and state and direction == "FORWARD"
            note = (
                "QNN CPU: its Y_h is the initial h"
                if right
                else "QNN CPU: wrong for two batches, dies without initial_h"
            )
            for before in (0, 1):
                both = params | {"linear_before_reset": before}
                shapes, inputs = [y, (1, batch, 5)], [x, *weights, *first]
                yield Case(
                    "Gru", inputs, both, shapes, "cpu" if right else "numpy", note, compared=(0,) if right else ()
                )
    yield Case("Lstm", [f(2, 3), *gates, s(2, 5), s(2, 5), *rest], {"direction": "FORWARD"}, [(2, 5)] * 3)
    peephole = [None] * 4 + [s(5, 3), s(5, 5), s(5), s(5), s(5), s(5)]
    gates = [*(s(5, 3) for _ in range(3)), *(s(5, 5) for _ in range(3)), *(s(5) for _ in range(3))]
    yield Case("Lstm", [f(2, 3), *gates, s(2, 5), s(2, 5), *peephole], {}, [(2, 5)] * 3, note="peephole")
    yield Case("Lstm", [f(2, 3), *gates, s(2, 5), s(2, 5)], {}, [(2, 5)] * 3, note="coupled gates")
    projected = [*(s(5, 3) for _ in range(3)), *(s(5, 4) for _ in range(3)), *(s(5) for _ in range(3))]
    extra = [None] * 4 + [s(5, 3), s(5, 4), None, None, None, s(5), s(4, 5), s(4)]
    yield Case(
        "Lstm",
        [f(2, 3), *projected, s(2, 4), s(2, 5), *extra],
        {"cell_clip_threshold": 0.5, "output_clip_threshold": 0.4},
        [(2, 4), (2, 5), (2, 4)],
        note="projection and clips",
    )


def _quantized():
    x, y = q8(2, 6), q8(2, 6, scale=0.03, offset=-100)
    yield Case("Relu", [x], {}, [q8(2, 6, scale=0.03, offset=0)], tolerance=1.01, note="QNN CPU clips by the encoding")
    for name in ("Sigmoid", "ElementWiseAbs", "ElementWiseNeg"):
        yield Case(name, [x], {}, [y], tolerance=1.01, note="one step: QNN CPU rounds halves differently")
    for name in ("ElementWiseAdd", "ElementWiseMultiply", "ElementWiseMaximum"):
        yield Case(name, [x, q8(6)], {}, [q8(2, 6, scale=0.2, offset=-120)], tolerance=1.01, note="one step")
    yield Case("Reshape", [x], {}, [q8(3, 4)])
    yield Case("Transpose", [x], {"perm": (1, 0)}, [q8(6, 2)])
    for dtype, scale, offset in (
        (Q8, 0.03, -100),
        (DType.UFIXED_POINT_16, 0.0002, -20000),
        (DType.SFIXED_POINT_8, 0.03, 0),
    ):
        coded = In((2, 6), dtype, encoding=Encoding.per_tensor(scale, offset))
        yield Case("Quantize", [f(2, 6)], {}, [coded], tolerance=1.01, note="one step")
        yield Case("Dequantize", [coded], {}, [out(2, 6)])
        wide = In((2, 6), DType.UFIXED_POINT_16, encoding=Encoding.per_tensor(0.01 * (offset % 7 + 1) / 256, -32768))
        narrow = In((2, 6), Q8, encoding=Encoding.per_tensor(0.01 * (offset % 7 + 1), -128))
        yield Case("Convert", [narrow], {}, [wide], tolerance=1.01, note="one step")
    yield Case("Quantize", [f(2, 6)], {}, [q8(2, 6)], tolerance=1.01, note="one step")
    yield Case("Dequantize", [x], {}, [out(2, 6)])
    yield Case(
        "Convert",
        [x],
        {},
        [In((2, 6), DType.UFIXED_POINT_16, encoding=Encoding.per_tensor(0.05 / 256, -32768))],
        tolerance=1.01,
    )
    for a, b in ((F32, I32), (I32, F32), (B8, F32), (F32, DType.INT_64)):
        yield Case("Cast", [In((2, 5), a)], {}, [out(2, 5, dtype=b)])
    yield Case("Cast", [x], {}, [out(2, 6, dtype=F32)])
    weight = In(
        (3, 3, 4, 6),
        DType.SFIXED_POINT_8,
        encoding=Encoding(tuple(0.01 * (i + 1) for i in range(6)), (0,) * 6, axis=3),
        static=True,
    )
    bias = In(
        (6,),
        DType.SFIXED_POINT_32,
        encoding=Encoding(tuple(0.0005 * (i + 1) for i in range(6)), (0,) * 6, axis=0),
        static=True,
    )
    yield Case(
        "Conv2d",
        [q8(1, 5, 5, 4), weight, bias],
        {"stride": (1, 1), "pad_amount": [[1, 1], [1, 1]]},
        [q8(1, 5, 5, 6, scale=0.5)],
        tolerance=1.01,
        note="one step",
    )
    yield Case(
        "FullyConnected", [q8(2, 8), q8(4, 8, static=True)], {}, [q8(2, 4, scale=1.0)], tolerance=1.01, note="one step"
    )


CASES = [case for family in (_matrix, _norm, _reduce, _rotary, _recurrent, _quantized) for case in family()]
