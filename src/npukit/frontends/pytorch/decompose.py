# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Operators that torch 2.13's exporter to ONNX does not have, or gets wrong, in terms of others that it has.

`squeeze` of an axis that is not 1 does nothing, but becomes an invalid Squeeze; `copy` does not broadcast.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any


def decomposed(torch: Any, program: Any) -> Any:
    """The program without such operators; the same one where it has none."""
    table = _table(torch)
    found = any(
        _needs(torch, node) for node in program.graph.nodes if node.op == "call_function" and node.target in table
    )
    return program.run_decompositions(table) if found else program


def _needs(torch: Any, node: Any) -> bool:
    """Whether a node is not among the many that the exporter gets right."""
    aten = torch.ops.aten
    if node.target not in (aten.squeeze.dim, aten.squeeze.dims):
        return True
    shape = node.args[0].meta["val"].shape
    dims = [node.args[1]] if isinstance(node.args[1], int) else node.args[1]
    return any(isinstance(shape[axis], int) and shape[axis] != 1 for axis in dims)


def _table(torch: Any) -> dict[Any, Callable[..., Any]]:
    aten = torch.ops.aten

    def squeeze(x: Any, dims: int | list[int]) -> Any:
        axes = {axis % x.dim() for axis in ([dims] if isinstance(dims, int) else dims)} if x.dim() else set()
        kept = [size for axis, size in enumerate(x.shape) if axis not in axes or size != 1]
        return aten.view.default(x, kept)

    def copy(target: Any, source: Any, non_blocking: bool = False) -> Any:
        return source.to(target.dtype).expand(target.shape)

    def pool(x: Any, size: list[int]) -> Any:
        """Adaptive average pooling: cell i of n over extent m is the mean of [floor(i m/n), ceil((i+1) m/n))."""
        for axis, count in zip(range(-len(size), 0), size, strict=True):
            extent = x.shape[axis]
            if count == 1:
                x = x.mean(axis, keepdim=True)
                continue
            edges = [(i * extent // count, -(-(i + 1) * extent // count)) for i in range(count)]
            cells = [x.narrow(axis, a, b - a).mean(axis, keepdim=True) for a, b in edges]
            x = torch.cat(cells, axis)
        return x

    def length(difference: Any, p: float) -> Any:
        """The p-norm over the last axis."""
        size = difference.abs()
        if p == 1:
            return size.sum(-1)
        if p == float("inf"):
            return size.amax(-1)
        return (size**p).sum(-1) ** (1 / p) if p != 2 else (size * size).sum(-1).sqrt()

    def cdist(x: Any, y: Any, p: float = 2.0, compute_mode: int | None = None) -> Any:
        return length(x.unsqueeze(-2) - y.unsqueeze(-3), p)

    def pdist(x: Any, p: float = 2.0) -> Any:
        pairs = list(itertools.combinations(range(x.shape[0]), 2))
        first, second = (torch.cat([x.narrow(0, pair[k], 1) for pair in pairs]) for k in (0, 1))
        return length(first - second, p)

    return {
        aten.squeeze.dim: squeeze,
        aten.squeeze.dims: squeeze,
        aten.copy.default: copy,
        aten._adaptive_avg_pool3d.default: pool,
        aten.adaptive_avg_pool3d.default: pool,
        aten._cdist_forward.default: cdist,
        aten.cdist.default: cdist,
        aten._pdist_forward.default: pdist,
        aten.pdist.default: pdist,
    }
