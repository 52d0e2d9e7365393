# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Shape and data movement."""

from __future__ import annotations

import numpy as np

from tests.raising_cases.case import I32, U32, Case, b8, f, i32, index, out


def _movement():
    yield Case("Reshape", [f(2, 3, 4)], {}, [(6, 4)])
    yield Case("Reshape", [i32(2, 6)], {}, [(3, 2, 2)])
    yield Case("Reshape", [f(8)], {}, [(2, 1, 4)])
    yield Case("ExpandDims", [f(2, 3)], {"axis": 1}, [(2, 1, 3)])
    yield Case("ExpandDims", [f(2, 3)], {"axis": 2}, [(2, 3, 1)])
    yield Case("ExpandDims", [i32(4)], {"axis": 0}, [(1, 4)], oracle="numpy", note="QNN CPU: floats only")
    yield Case("Squeeze", [f(2, 1, 3)], {}, [(2, 3)])
    yield Case("Squeeze", [f(1, 2, 1, 3)], {}, [(2, 3)])
    yield Case("Squeeze", [f(1, 2, 1)], {}, [(2,)])
    for perm, shape in (((1, 0), (2, 3)), ((0, 2, 3, 1), (1, 2, 3, 4)), ((2, 0, 1), (2, 3, 4))):
        yield Case("Transpose", [f(*shape)], {"perm": perm}, [tuple(shape[p] for p in perm)])
    yield Case("Transpose", [b8(2, 3)], {"perm": (1, 0)}, [(3, 2)])
    yield Case("Concat", [f(2, 3), f(2, 4)], {}, [(2, 7)])
    yield Case("Concat", [f(2, 3), f(1, 3), f(3, 3)], {"axis": 0}, [(6, 3)])
    yield Case("Concat", [i32(2, 3, 1), i32(2, 1, 1)], {"axis": 1}, [(2, 4, 1)])
    yield Case("Pack", [f(2, 3), f(2, 3)], {"axis": 0}, [(2, 2, 3)])
    yield Case("Pack", [f(2, 3), f(2, 3), f(2, 3)], {"axis": 2}, [(2, 3, 3)])
    yield Case("Pack", [i32(3), i32(3)], {"axis": 1}, [(3, 2)])
    yield Case("UnPack", [f(2, 3)], {"axis": 0}, [(3,), (3,)])
    yield Case("UnPack", [f(2, 3, 4)], {"axis": 1}, [(2, 4)] * 3)
    yield Case("UnPack", [i32(3, 2)], {"axis": 1}, [(3,)] * 2, oracle="numpy", note="QNN CPU: floats only")
    yield Case("Split", [f(2, 7)], {"axis": 1, "split_index": [3]}, [(2, 3), (2, 4)])
    yield Case("Split", [f(6, 2)], {"axis": 0, "split_index": [1, 4]}, [(1, 2), (3, 2), (2, 2)])
    yield Case("Split", [i32(1, 4, 2)], {"axis": 1, "split_index": [2]}, [(1, 2, 2)] * 2)
    yield Case("StridedSlice", [f(6, 5)], {"ranges": [[1, 5, 2], [0, 5, 1]]}, [(2, 5)])
    yield Case("StridedSlice", [f(6, 5)], {"ranges": [[5, -1, -1], [3, 0, -2]]}, [(6, 2)])
    yield Case("StridedSlice", [f(6, 5)], {"ranges": [[2, 3, 1], [1, 4, 1]], "shrink_axes": 1}, [(3,)])
    yield Case("StridedSlice", [f(6, 5)], {"ranges": [[3, 2, 1], [4, 2, 1]], "begin_mask": 1, "end_mask": 2}, [(2, 1)])
    yield Case(
        "StridedSlice", [f(6, 5)], {"ranges": [[0, 1, 1], [0, 6, 2], [0, 5, 1]], "new_axes_mask": 1}, [(1, 3, 5)]
    )
    yield Case("StridedSlice", [i32(6)], {"ranges": [[4, 1, -1]]}, [(3,)])
    for scheme in ("CONSTANT", "MIRROR_SYMMETRIC", "MIRROR_REFLECT", "EDGE"):
        oracle, note = ("numpy", "QNN CPU gives zeros below rank 4") if scheme == "MIRROR_SYMMETRIC" else ("cpu", "")
        yield Case("Pad", [f(3, 4)], {"scheme": scheme, "pad_amount": [[1, 2], [2, 1]]}, [(6, 7)], oracle, note)
        yield Case(
            "Pad", [f(1, 3, 4, 2)], {"scheme": scheme, "pad_amount": [[0, 0], [1, 1], [2, 0], [0, 0]]}, [(1, 5, 6, 2)]
        )
    yield Case(
        "Pad", [f(3, 4)], {"scheme": "CONSTANT", "pad_amount": [[1, 0], [0, 1]], "pad_constant_value": 2.5}, [(4, 5)]
    )
    yield Case(
        "Pad",
        [i32(3)],
        {"scheme": "CONSTANT", "pad_amount": [[1, 2]], "pad_constant_value": 7},
        [(6,)],
        oracle="numpy",
        note="QNN CPU: floats only",
    )
    yield Case("Tile", [f(2, 3)], {"multiples": [2, 1]}, [(4, 3)])
    yield Case("Tile", [f(1, 3, 2)], {"multiples": [3, 1, 2]}, [(3, 3, 4)])
    yield Case("Tile", [i32(3)], {"multiples": [3]}, [(9,)])
    yield Case("Gather", [f(5, 3), index([4, 0, 2])], {"axis": 0}, [(3, 3)])
    yield Case("Gather", [f(2, 5, 3), index([[1, 0], [3, 4]])], {"axis": 1}, [(2, 2, 2, 3)])
    yield Case("Gather", [i32(6), index([5], U32)], {"axis": 0}, [(1,)])
    yield Case("Gather", [f(5, 3), index([-1, 0])], {"axis": 0}, [(2, 3)], oracle="numpy", note="refused by QNN CPU")
    yield Case("GatherElements", [f(3, 4), index([[2, 1, 0, 2]])], {"axis": 0}, [(1, 4)])
    yield Case("GatherElements", [f(3, 4), index([[0, 3], [1, 1], [2, 0]])], {"axis": 1}, [(3, 2)])
    yield Case("GatherElements", [f(2, 3, 2), index(np.ones((2, 1, 2)))], {"axis": 1}, [(2, 1, 2)])
    yield Case(
        "GatherNd",
        [f(3, 4), index([[2, 1], [0, 0]], static=False)],
        {},
        [(2,)],
        oracle="numpy",
        note="QNN CPU wants batch_dims",
    )
    yield Case("GatherNd", [f(3, 4, 2), index([[2, 1], [0, 0]], static=False)], {"batch_dims": 0}, [(2, 2)])
    yield Case("GatherNd", [f(2, 3, 4, 2), index([[1], [0]], static=False)], {"batch_dims": 0}, [(2, 3, 4, 2)])
    yield Case("GatherNd", [f(2, 3, 4), index([[[1]], [[2]]], static=False)], {"batch_dims": 1}, [(2, 1, 4)])
    yield Case("ScatterElements", [f(3, 4), index([[2, 1, 0, 2]]), f(1, 4)], {"axis": 0})
    yield Case(
        "ScatterElements",
        [f(3, 4), index([[0, 3], [1, 1], [2, 0]]), f(3, 2)],
        {"axis": 1, "reduction": "ADD"},
        oracle="numpy",
        note="QNN CPU misplaces indices narrower than the data",
    )
    yield Case("ScatterElements", [f(4), index([1, 3]), f(2)], {"axis": 0, "reduction": "MUL"})
    yield Case("ScatterElements", [f(4), index([1, 3]), f(2)], {"axis": 0, "reduction": "MAX"})
    yield Case("ScatterNd", [f(3, 4), index([[2, 1], [0, 0]]), f(2)], {})
    yield Case("ScatterNd", [f(3, 4), index([[2], [0]]), f(2, 4)], {"reduction": "ADD"})
    yield Case("ScatterNd", [f(3, 4), index([[1, 1], [1, 1]]), f(2)], {"reduction": "MUL"})
    yield Case("OneHot", [index([0, 2, 1], I32, False)], {"depth": 3, "on_value": 1.0, "off_value": 0.0}, [out(3, 3)])
    yield Case(
        "OneHot",
        [index([[0, 2], [3, 1]], U32, False)],
        {"depth": 4, "axis": 0, "on_value": 5.0, "off_value": -1.0},
        [out(4, 2, 2)],
    )
    yield Case(
        "OneHot",
        [index([[0, 2], [3, 1]], I32, False)],
        {"depth": 4, "axis": 1, "on_value": 5, "off_value": 2},
        [out(2, 4, 2, dtype=I32)],
        oracle="numpy",
        note="QNN CPU writes float bits",
    )
    yield Case("Shape", [f(2, 3, 4)], {}, [out(3, dtype=U32)], oracle="numpy", note="QNN CPU corrupts its heap")
    yield Case(
        "Shape", [f(2, 3, 4)], {"start": 1}, [out(2, dtype=U32)], oracle="numpy", note="QNN CPU corrupts its heap"
    )
    yield Case(
        "Shape",
        [f(2, 3, 4)],
        {"start": 1, "end": 2},
        [out(1, dtype=U32)],
        oracle="numpy",
        note="QNN CPU corrupts its heap",
    )
    for value in (2.5, 3.0, -1.0):
        yield Case(
            "ConstantOfShape",
            [index([2, 3], U32)],
            {"value": value},
            [out(2, 3)],
            oracle="numpy",
            note="a graph without inputs",
        )
    yield Case(
        "NonZero", [b8(3, 4)], {}, [out(12, 2, dtype=I32)], oracle="numpy", note="rows behind the count are not defined"
    )
    yield Case(
        "NonZero",
        [i32(6, low=-1, high=1)],
        {},
        [out(6, 1, dtype=I32)],
        oracle="numpy",
        note="rows behind the count are not defined",
    )
    yield Case(
        "NonZero",
        [f(2, 2, 2)],
        {},
        [out(8, 3, dtype=I32)],
        oracle="numpy",
        note="rows behind the count are not defined",
    )
    yield Case("ChannelShuffle", [f(1, 2, 2, 6)], {"num_groups": 2})
    yield Case("ChannelShuffle", [f(1, 2, 2, 6)], {"num_groups": 3, "axis": 3})
    yield Case("ChannelShuffle", [f(2, 8)], {"num_groups": 4, "axis": 1})
    yield Case("BatchPermutation", [f(4, 3), index([3, 1, 0, 2])], {})
    yield Case("BatchPermutation", [f(3, 2, 2), index([2, 0, 1])], {})
    yield Case("BatchPermutation", [f(3, 2, 2, 1), index([1, 0, 2])], {})
    for mode in ("DCR", "CRD"):
        yield Case("DepthToSpace", [f(1, 2, 3, 8)], {"block_size": (2, 2), "mode": mode}, [(1, 4, 6, 2)])
        yield Case("DepthToSpace", [f(2, 2, 2, 6)], {"block_size": (1, 3), "mode": mode}, [(2, 2, 6, 2)])
        yield Case("SpaceToDepth", [f(1, 4, 6, 2)], {"block_size": (2, 2), "mode": mode}, [(1, 2, 3, 8)])
    yield Case(
        "SpaceToDepth",
        [f(2, 2, 6, 2)],
        {"block_size": (1, 3)},
        [(2, 2, 2, 6)],
        oracle="numpy",
        note="refused by QNN CPU",
    )
    yield Case("SpaceToBatch", [f(1, 4, 4, 2)], {"block_size": (2, 2), "pad_amount": [[0, 0], [0, 0]]}, [(4, 2, 2, 2)])
    yield Case("SpaceToBatch", [f(2, 3, 4, 1)], {"block_size": (2, 2), "pad_amount": [[1, 0], [0, 2]]}, [(8, 2, 3, 1)])
    yield Case("SpaceToBatch", [f(1, 4, 6, 1)], {"block_size": (2, 3), "pad_amount": [[0, 0], [0, 0]]}, [(6, 2, 2, 1)])
    yield Case("BatchToSpace", [f(4, 2, 2, 2)], {"block_size": (2, 2)}, [(1, 4, 4, 2)])
    yield Case("BatchToSpace", [f(8, 2, 3, 1)], {"block_size": (2, 2), "crops": [[1, 0], [0, 2]]}, [(2, 3, 4, 1)])
    yield Case("BatchToSpace", [f(6, 2, 2, 1)], {"block_size": (2, 3)}, [(1, 4, 6, 1)])


CASES = [case for family in (_movement,) for case in family()]
