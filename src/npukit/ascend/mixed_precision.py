# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The lists of mixed precision: which ops may drop to float16 (white), which may not (black), which follow (grey).

CANN's own lists are in its installation (`precision_reduce` of its ops-info files) and not public: here all ops are
grey but matrix ops, which the 310P has in float16 only, whatever a list says. The file that atc takes as
--modify_mixlist changes that (shared/reference/ascend_facts.md 1.4); it names Ascend's types of ops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx_ir as ir

from npukit.errors import UsageError, nearest
from npukit.files import os_errors
from npukit.frontends.onnx.rewrite import constant

# ONNX type -> Ascend's types that it may become, where the names differ ([GE], [OM], [ON] in the facts, appendix A)
_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "MatMul": ("MatMulV2", "MatMulV3", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"),
    "Gemm": ("MatMulV2", "MatMulV3"),
    "Conv": ("Conv2D", "Conv3D", "DepthwiseConv2D"),
    "ConvTranspose": ("Conv2DTranspose", "Conv2DTransposeD", "Conv3DTranspose"),
    "Softmax": ("SoftmaxV2",),
    "LogSoftmax": ("LogSoftmaxV2",),
    "Where": ("Select", "SelectV2"),
    "Gather": ("GatherV2", "GatherV2D"),
    "GatherND": ("GatherNd",),
    "Div": ("RealDiv",),
    "ReduceMean": ("ReduceMeanD",),
    "ReduceSum": ("ReduceSumD",),
    "BatchNormalization": ("BatchNorm", "BNInfer"),
    "LayerNormalization": ("LayerNorm", "LayerNormV3", "LayerNormV4"),
    "CumSum": ("Cumsum",),
    "LessOrEqual": ("LessEqual",),
    "GreaterOrEqual": ("GreaterEqual",),
    "Clip": ("ClipByValue", "ClipByValueV2"),
    "Pad": ("PadV3",),
    "Concat": ("ConcatD", "ConcatV2"),
    "Max": ("Maximum",),
    "Min": ("Minimum",),
}


@dataclass(frozen=True)
class Lists:
    """Changes to the lists.

    Attributes:
        white: op types put in.
        black: op types put in.
        grey: op types taken out of one of them.
    """

    white: frozenset[str] = frozenset()
    black: frozenset[str] = frozenset()
    grey: frozenset[str] = frozenset()

    def colour(self, types: frozenset[str]) -> str:
        """The colour ("white", "black" or "grey") of an op that may be of any of these types."""
        if types & self.black:
            return "black"
        if types & self.white:
            return "white"
        return "grey"

    def unmatched(self, nodes: Iterable[frozenset[str]]) -> list[str]:
        """A note on each type of the lists that no node is of."""
        known: frozenset[str] = frozenset().union(*nodes)
        wanted = sorted((self.white | self.black | self.grey) - known)
        return [f"the list names {name}, which no op of the model becomes" for name in wanted]


NO_LISTS: Final = Lists()


def ir_types(node: ir.Node) -> frozenset[str]:
    """The node's ONNX type and the types of Ascend's that it may become."""
    names = {node.op_type, *_TYPES.get(node.op_type, ())}
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        names.add("Square")
    if node.op_type == "Pow":
        exponent = constant(node.inputs[1])
        if exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2.0:
            names.add("Square")
    return frozenset(names)


def read_lists(path: Path | str) -> Lists:
    """Read a file as atc takes it with --modify_mixlist.

    Raises:
        UsageError: it is not such a file.
        NpukitError: it cannot be read.
    """
    import json

    with os_errors(Path(path), "read"):
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}", where=str(path), hint="atc allows no comments either") from None
    found = {f"{colour}-list": {"to-add": set[str](), "to-remove": set[str]()} for colour in ("white", "black")}
    if not isinstance(value, dict):
        raise UsageError("not an object", where=str(path), hint='write {"black-list": {"to-add": ["Square"]}}')
    for key, changes in value.items():
        if key not in found:
            raise UsageError(f"there is no list {key!r}", where=str(path), hint=nearest(str(key), found))
        for change, names in changes.items() if isinstance(changes, dict) else (("", None),):
            if change not in found[key] or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise UsageError(f"{key} takes to-add and to-remove with names of op types", where=str(path))
            found[key][change] |= set(names)
    both = found["white-list"]["to-add"] & found["black-list"]["to-add"]
    if both:
        raise UsageError(f"in both lists: {', '.join(sorted(both))}", where=str(path))
    removed = found["white-list"]["to-remove"] | found["black-list"]["to-remove"]
    return Lists(frozenset(found["white-list"]["to-add"]), frozenset(found["black-list"]["to-add"]), frozenset(removed))
