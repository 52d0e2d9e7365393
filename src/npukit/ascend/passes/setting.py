# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What every pass is given, and the tools that all of them use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from npukit.ascend.limits import Cann, limits
from npukit.ascend.rules import KINDS, Context, integer_inputs
from npukit.errors import ModelError
from npukit.frontends.onnx.infer_shapes import InferenceFailed, infer_node
from npukit.frontends.onnx.ranges import Ranges
from npukit.frontends.onnx.rewrite import Builder, Names, replace_node


@dataclass(frozen=True)
class Setting:
    """What a model is prepared for.

    Attributes:
        cann: the CANN version.
        precision: atc's --precision_mode_v2.
    """

    cann: Cann
    precision: str


def beyond(model: ir.Model, node: ir.Node, setting: Setting, fix: str, ranges: Ranges | None = None) -> list[str]:
    """What the table has against a node that the pass `fix` is for; rows for the opsets ahead of the newest count."""
    if node.domain:
        return []
    rows = [row for row in limits().get(node.op_type, ()) if row.fix == fix and row.holds(setting.cann, _OPSET)]
    if not rows:
        return []
    context = Context(setting.precision, ranges or Ranges(integer_inputs(model)))
    return [said for row in rows if (said := KINDS[row.kind](context, node, row))]


_OPSET = 14  # what models are brought to, where they can be


class Rewriter(Builder):
    """A builder of replacements for `node` that infers what it builds."""

    def __init__(self, model: ir.Model, names: Names, node: ir.Node) -> None:
        super().__init__(model.graph, names, node)

    def put(self, values: Sequence[ir.Value | None]) -> None:
        """Put what was built in place of the node; `values[i]` takes over output i. Raises ModelError as `ahead`."""
        self._infer()
        replace_node(self.graph, self.source, self.nodes, values)
        self.nodes = []

    def ahead(self) -> None:
        """Put what was built before the node, which stays.

        Raises:
            ModelError: the node's inputs contradict its definition.
        """
        self._infer()
        self.graph.insert_before(self.source, self.nodes)
        self.nodes = []

    def _infer(self) -> None:
        for node in self.nodes:
            try:
                infer_node(node)
            except InferenceFailed as error:
                where = f"{self.source.op_type} {self.source.name!r}"
                raise ModelError(f"its inputs contradict its definition: {error}", where=where) from None
