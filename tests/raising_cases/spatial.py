# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions, pools, resizes."""

from __future__ import annotations

from tests.raising_cases.case import Case, f, s


def _conv():
    for k, st, pad, g, dil in (
        ((3, 3), (1, 1), [[1, 1], [1, 1]], 1, None),
        ((1, 1), (2, 2), [[0, 0], [0, 0]], 1, None),
        ((3, 2), (2, 1), [[0, 1], [1, 0]], 2, (1, 2)),
        ((2, 2), (1, 2), [[2, 1], [0, 3]], 4, (2, 1)),
    ):
        d = dil or (1, 1)
        size = [(9 + sum(pad[a]) - (k[a] - 1) * d[a] - 1) // st[a] + 1 for a in (0, 1)]
        params = {"stride": st, "pad_amount": pad, "group": g} | ({"dilation": dil} if dil else {})
        yield Case("Conv2d", [f(2, 9, 9, 4), s(*k, 4 // g, 8), s(8)], params, [(2, *size, 8)])
        depthwise = {key: value for key, value in params.items() if key != "group"}
        yield Case("DepthWiseConv2d", [f(2, 9, 9, 4), s(*k, 1, 8), s(8)], depthwise, [(2, *size, 8)])
    yield Case(
        "Conv2d", [f(1, 4, 4, 2), s(3, 3, 2, 3)], {"stride": (1, 1), "pad_amount": [[0, 0], [0, 0]]}, [(1, 2, 2, 3)]
    )
    yield Case(
        "Conv2d", [f(1, 4, 4, 2), f(3, 3, 2, 3)], {"stride": (1, 1), "pad_amount": [[0, 0], [0, 0]]}, [(1, 2, 2, 3)]
    )
    for st, pad, g in (
        ((1, 1, 1), [[0, 0]] * 3, 1),
        ((2, 1, 2), [[1, 0], [0, 1], [1, 1]], 1),
        ((1, 1, 1), [[1, 1]] * 3, 1),
    ):
        size = [(5 + sum(pad[a]) - 2) // st[a] + 1 for a in range(3)]
        yield Case(
            "Conv3d",
            [f(1, 5, 5, 5, 2), s(2, 2, 2, 2 // g, 4), s(4)],
            {"stride": st, "pad_amount": pad, "group": g},
            [(1, *size, 4)],
        )
    for st, pad, g in ((1, [0, 0], 1), (2, [1, 2], 2), (1, [2, 0], 1)):
        size = (9 + sum(pad) - 3) // st + 1
        yield Case(
            "Conv1d",
            [f(2, 9, 4), s(3, 4 // g, 6), s(6)],
            {"stride": st, "pad_amount": pad, "group": g},
            [(2, size, 6)],
            oracle="numpy",
            note="no backend has 1-D convolutions",
        )
        yield Case(
            "DepthWiseConv1d",
            [f(2, 9, 4), s(3, 1, 8), s(8)],
            {"stride": st, "pad_amount": pad},
            [(2, size, 8)],
            oracle="numpy",
            note="as Conv1d",
        )
        size = st * 8 + 3 - sum(pad)
        yield Case(
            "TransposeConv1d",
            [f(2, 9, 4), s(3, 4, 6 // g), s(6)],
            {"stride": st, "pad_amount": pad, "group": g},
            [(2, size, 6)],
            oracle="numpy",
            note="as Conv1d",
        )
    for k, st, pad, op, g in (
        ((3, 3), (1, 1), [[0, 0], [0, 0]], (0, 0), 1),
        ((3, 2), (2, 3), [[1, 0], [0, 1]], (1, 2), 1),
        ((2, 2), (2, 2), [[1, 1], [0, 0]], (0, 1), 2),
    ):
        size = [st[a] * 4 + k[a] - sum(pad[a]) + op[a] for a in (0, 1)]
        params = {"stride": st, "pad_amount": pad, "output_padding": op, "group": g}
        yield Case("TransposeConv2d", [f(1, 5, 5, 4), s(*k, 4, 6 // g), s(6)], params, [(1, *size, 6)])
    for st, pad, dil in (
        ((1, 1, 1), [[0, 0]] * 3, (1, 1, 1)),
        ((2, 2, 2), [[1, 0]] * 3, (1, 1, 1)),
        ((1, 2, 1), [[0, 0]] * 3, (2, 1, 1)),
    ):
        size = [st[a] * 2 + dil[a] + 1 - sum(pad[a]) for a in range(3)]
        yield Case(
            "TransposeConv3d",
            [f(1, 3, 3, 3, 2), s(2, 2, 2, 2, 4), s(4)],
            {"stride": st, "pad_amount": pad, "dilation": dil},
            [(1, *size, 4)],
        )


def _pool():
    for k, st, pad in (
        ((2, 2), (2, 2), [[0, 0], [0, 0]]),
        ((3, 3), (1, 2), [[1, 1], [1, 0]]),
        ((3, 2), (2, 2), [[1, 0], [0, 1]]),
    ):
        size = [(8 + sum(pad[a]) - k[a]) // st[a] + 1 for a in (0, 1)]
        params = {"filter_size": k, "stride": st, "pad_amount": pad}
        yield Case("PoolMax2d", [f(2, 8, 8, 3, low=-5, high=-1)], params, [(2, *size, 3)])
        yield Case("PoolAvg2d", [f(2, 8, 8, 3)], params, [(2, *size, 3)])
        yield Case("PoolAvg2d", [f(2, 8, 8, 3)], params | {"count_pad_for_edges": True}, [(2, *size, 3)])
        yield Case("L2Pool2d", [f(2, 8, 8, 3)], params, [(2, *size, 3)])
    for k, st, pad in (
        ((2, 2, 2), (2, 2, 2), [[0, 0]] * 3),
        ((3, 2, 3), (1, 2, 1), [[1, 1], [0, 0], [1, 1]]),
        ((2, 2, 2), (1, 1, 1), [[0, 1]] * 3),
    ):
        size = [(6 + sum(pad[a]) - k[a]) // st[a] + 1 for a in range(3)]
        params = {"filter_size": k, "stride": st, "pad_amount": pad}
        yield Case("PoolMax3d", [f(1, 6, 6, 6, 2, low=-5, high=-1)], params, [(1, *size, 2)])
        yield Case("PoolAvg3d", [f(1, 6, 6, 6, 2)], params, [(1, *size, 2)])
        yield Case("PoolAvg3d", [f(1, 6, 6, 6, 2)], params | {"count_pad_for_edges": True}, [(1, *size, 2)])


def _resize():
    for shape, y in (((1, 4, 5, 2), (1, 8, 10, 2)), ((1, 6, 6, 3), (1, 3, 4, 3)), ((2, 3, 4, 1), (2, 7, 5, 1))):
        for name in ("ResizeBilinear", "ResizeNearestNeighbor"):
            yield Case(name, [f(*shape)], {}, [y])
            yield Case(name, [f(*shape)], {"align_corners": True}, [y])
            yield Case(name, [f(*shape)], {"half_pixel_centers": True}, [y])
        for mode in ("HALF_PIXEL", "PYTORCH_HALF_PIXEL", "ALIGN_CORNERS", "ASYMMETRIC"):
            yield Case("Resize", [f(*shape)], {"transformation_mode": mode, "interpolation_mode": "LINEAR"}, [y])
            yield Case("Resize", [f(*shape)], {"transformation_mode": mode, "interpolation_mode": "CUBIC"}, [y])
        for mode in ("ROUND_PREFER_FLOOR", "ROUND_PREFER_CEIL", "FLOOR", "CEIL"):
            yield Case("Resize", [f(*shape)], {"interpolation_mode": "NEAREST", "nearest_mode": mode}, [y])
    yield Case("Resize", [f(1, 5, 4, 1)], {"interpolation_mode": "CUBIC", "cubic_coeff": -0.5}, [(1, 9, 9, 1)])


CASES = [case for family in (_conv, _pool, _resize) for case in family()]
