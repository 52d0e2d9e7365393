# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Element-wise ops and activations."""

from __future__ import annotations

import numpy as np

from tests.raising_cases.case import B8, I32, Case, b8, f, i32, out


def _elementwise():
    ranges = {
        "ElementWiseAsin": (-1, 1), "ElementWiseLog": (0.1, 5), "ElementWiseRsqrt": (0.1, 5),
        "ElementWiseSquareRoot": (0, 5), "RECIPROCAL": (0.2, 3), "ASIN": (-1, 1), "LOG": (0.1, 5), "RSQRT": (0.1, 5),
        "SQRT": (0, 5),
    }  # fmt: skip
    plain = ["Abs", "Asin", "Atan", "Ceil", "Cos", "Exp", "Floor", "Log", "Neg", "Round", "Rsqrt", "Sign", "Sin"]
    for name in [*(f"ElementWise{n}" for n in plain), "ElementWiseSquareRoot", "Elu", "Gelu", "HardSwish", "Relu"]:
        for shape in ((7,), (2, 3, 4), (1, 3, 2, 5)):
            low, high = ranges.get(name, (-3, 3))
            yield Case(name, [f(*shape, low=low, high=high)])
    for shape in ((7,), (2, 3), (1, 3, 2, 5)):
        yield Case("ElementWiseNot", [b8(*shape)])
        yield Case("Sigmoid", [f(*shape)])
        yield Case("Tanh", [f(*shape)])
        yield Case("Relu6", [f(*shape, low=-8, high=8)])
        yield Case("Relu1", [f(*shape)], oracle="numpy", note="QNN CPU has no Relu1")
        yield Case("ElementWiseSoftplus", [f(*shape)], oracle="numpy", note="QNN CPU takes threshold -1 literally")
        yield Case("Logit", [f(*shape, low=0.05, high=0.95)])
        yield Case("IsNan", [f(*shape)], outputs=[out(*shape, dtype=B8)])
        yield Case("ReluMinMax", [f(*shape)], {"min_value": -1.5, "max_value": 0.5})
    yield Case("ElementWiseRound", [f(8, values=[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.4999, -3.5])])
    yield Case("Elu", [f(5)], {"alpha": 0.3})
    yield Case("ElementWiseSoftplus", [f(9)], {"beta": 2.0, "threshold": 1.0})
    yield Case("ElementWiseSoftplus", [f(9)], {"beta": 0.5, "threshold": 20.0})
    for below, above in ((True, False), (False, True), (True, True)):
        signs = {"detect_negative": below, "detect_positive": above}
        yield Case("IsInf", [f(3, values=[np.inf, -np.inf, 1])], signs, [out(3, dtype=B8)])
    yield Case("IsNan", [f(3, values=[np.nan, np.inf, 1])], {}, [out(3, dtype=B8)])
    yield Case("ReluMinMax", [i32(9)], {"min_value": -2.0, "max_value": 4.0})
    for op in ("ABS", "ASIN", "ATAN", "CEIL", "COS", "EXP", "FLOOR", "LOG", "NEG", "RECIPROCAL", "ROUND", "RSQRT",
               "SIGN", "SIN", "SQRT"):  # fmt: skip
        low, high = ranges.get(op, (-3, 3))
        yield Case("ElementWiseUnary", [f(2, 5, low=low, high=high)], {"operation": op})
    yield Case("ElementWiseUnary", [b8(2, 5)], {"operation": "NOT"})
    for op in ("ELU", "HARD_SIGMOID", "HARD_SWISH", "RELU", "SIGMOID", "TANH"):
        yield Case("ElementWiseNeuron", [f(2, 9, low=-6, high=6)], {"operation": op})
    yield Case(
        "ElementWiseNeuron", [f(2, 9)], {"operation": "GELU"}, tolerance=1e-3, note="QNN CPU uses the tanh form here"
    )
    yield Case("ElementWiseNeuron", [f(3, 9)], {"operation": "HARD_SIGMOID", "alpha": 0.5, "beta": 0.1})
    yield Case("ElementWiseNeuron", [f(3, 9)], {"operation": "ELU", "alpha": 0.5})
    yield Case("ElementWiseNeuron", [f(3, 9)], {"operation": "RELU_MIN_MAX", "min_value": -1.0, "max_value": 2.0})
    yield Case("ElementWiseNeuron", [f(3, 9)], {"operation": "SOFTPLUS", "beta": 2.0, "threshold": 1.0})


_NUMERIC = ["Add", "Divide", "FloorDiv", "Fmod", "Maximum", "Minimum", "Multiply", "SquaredDifference", "Subtract"]
_COMPARE = ["Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual"]
_PAIRS = [((2, 3), (2, 3), (2, 3)), ((2, 3, 4), (4,), (2, 3, 4)), ((1, 3, 1, 5), (2, 1, 4, 1), (2, 3, 4, 5))]


def _binary():
    for name in _NUMERIC:
        for a, b, y in _PAIRS:
            yield Case(f"ElementWise{name}", [f(*a), f(*b, low=0.5)], outputs=[y])
    for name in ("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Divide"):
        yield Case(f"ElementWise{name}", [i32(4, 5), i32(4, 5, low=1)], outputs=[(4, 5)])
    for name in ("FloorDiv", "Fmod", "SquaredDifference"):
        yield Case(
            f"ElementWise{name}", [i32(4, 5), i32(4, 5, low=1)], oracle="numpy", note="QNN CPU has it for floats only"
        )
    for name in ("Divide", "Mod"):
        yield Case(
            f"ElementWise{name}",
            [i32(8, values=[7, -7, 7, -7, 6, -6, 1, -1]), i32(8, values=[2, 2, -2, -2, 3, 3, 5, 5])],
        )
    yield Case("ElementWiseMod", [i32(4, 5), i32(5, low=1)])
    yield Case("ElementWiseMod", [i32(2, 1, 3), i32(1, 4, 3, low=2)], outputs=[(2, 4, 3)])
    yield Case(
        "ElementWiseFloorDiv", [f(8, values=[7, -7, 7, -7, 6, -6, 1, -1]), f(8, values=[2, 2, -2, -2, 3, 3, 5, 5])]
    )
    for name in _COMPARE:
        for a, b, y in _PAIRS:
            yield Case(
                f"ElementWise{name}", [i32(*a, low=0, high=2), i32(*b, low=0, high=2)], outputs=[out(*y, dtype=B8)]
            )
        yield Case(
            f"ElementWise{name}",
            [f(5, values=[1, 2, 3, -1, 0]), f(5, values=[1, 3, 2, -2, 0])],
            outputs=[out(5, dtype=B8)],
        )
    for name in ("And", "Or", "Xor"):
        for a, b, y in _PAIRS:
            yield Case(f"ElementWise{name}", [b8(*a), b8(*b)], outputs=[y])
    for a, b, y in _PAIRS:
        yield Case("ElementWisePower", [f(*a, low=0.3), f(*b, low=-2, high=2)], outputs=[y])
        yield Case("ElementWiseSelect", [b8(*a), f(*b), f(*y)], outputs=[out(*y)])
        oracle, note = ("cpu", "") if len(b) == 1 or b == y else ("numpy", "QNN CPU: slopes of the last axis only")
        yield Case("Prelu", [f(*y), f(*b, low=0, high=1)], outputs=[y], oracle=oracle, note=note)
    yield Case("ElementWiseSelect", [b8(3, 4), i32(3, 4), i32(4)], outputs=[out(3, 4, dtype=I32)])
    for op in (
        "ADD",
        "DIVIDE",
        "FLOOR_DIV",
        "FMOD",
        "MAXIMUM",
        "MINIMUM",
        "MULTIPLY",
        "POWER",
        "SQUARED_DIFFERENCE",
        "SUBTRACT",
    ):
        yield Case("ElementWiseBinary", [f(2, 3, low=0.5), f(3, low=0.5)], {"operation": op})
    for op in ("EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL"):
        yield Case(
            "ElementWiseBinary", [i32(9, low=0, high=2), i32(9, low=0, high=2)], {"operation": op}, [out(9, dtype=B8)]
        )
    for op in ("AND", "OR", "XOR"):
        yield Case("ElementWiseBinary", [b8(9), b8(9)], {"operation": op})
    yield Case("ElementWiseBinary", [i32(9), i32(9, low=1)], {"operation": "MOD"})


CASES = [case for family in (_elementwise, _binary) for case in family()]
