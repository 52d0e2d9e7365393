# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""An ONNX model run on ONNX Runtime piece by piece, for models that no machine at hand can hold as a whole.

A piece is a run of nodes whose names begin with the same layer ("layers.3/", "featurizer/blocks.0/"; see
`onnx_writer`): its weights are in memory while it runs, widened to float32 where they are of half precision, as ONNX
Runtime's CPU provider does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]

_LAYER = re.compile(r"(.*?\b(?:layers|blocks)\.\d+)/|([^/]*)/|()")


@dataclass(frozen=True)
class _Piece:
    name: str
    nodes: list[onnx.NodeProto]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]


class Pieces:
    """A model and how it is cut.

    Args:
        path: an ONNX file whose nodes are in order, and whose values all have a type in it.
        threads: of ONNX Runtime; None for its choice.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.path, self._threads = path, threads
        self._model = onnx.load(path, load_external_data=False)
        graph = self._model.graph
        self._types = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = [value.name for value in graph.output]
        self._pieces = self._cut()

    @property
    def names(self) -> list[str]:
        """Of the pieces, in the order they run."""
        return [piece.name for piece in self._pieces]

    def _cut(self) -> list[_Piece]:
        runs: list[tuple[str, list[onnx.NodeProto]]] = []
        for node in self._model.graph.node:
            match = _LAYER.match(node.name)
            name = (match[1] or match[2] or "") if match else ""
            if not runs or runs[-1][0] != name:
                runs.append((name, []))
            runs[-1][1].append(node)
        needed = set(self._outputs)
        made = []
        for name, nodes in reversed(runs):
            given = {value for node in nodes for value in node.output}
            taken = dict.fromkeys(value for node in nodes for value in node.input if value and value not in given)
            made.append(
                _Piece(
                    name, nodes, tuple(value for value in taken if value not in self._weights),
                    tuple(sorted(given & needed)), tuple(value for value in taken if value in self._weights),
                )
            )  # fmt: skip
            needed |= set(taken)
        return made[::-1]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name; values between pieces are let go after their last use."""
        values = dict(feeds)
        last = {name: i for i, piece in enumerate(self._pieces) for name in piece.inputs}
        for i, piece in enumerate(self._pieces):
            session = self._session(piece)
            made = session.run(list(piece.outputs), {name: values[name] for name in piece.inputs})
            del session
            values.update(zip(piece.outputs, made, strict=True))
            for name in list(values):
                if last.get(name, len(self._pieces)) <= i and name not in self._outputs:
                    del values[name]
        return {name: values[name] for name in self._outputs}

    def _session(self, piece: _Piece) -> Any:
        import onnxruntime as ort

        graph = onnx.helper.make_graph(
            piece.nodes, piece.name or "piece", [self._types[name] for name in piece.inputs],
            [self._types[name] for name in piece.outputs], [self._weights[name] for name in piece.weights],
        )  # fmt: skip
        model = onnx.helper.make_model(
            graph, ir_version=self._model.ir_version, opset_imports=list(self._model.opset_import)
        )
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        settings.enable_cpu_mem_arena = False
        settings.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self.path.resolve().parent)
        )
        if self._threads:
            settings.intra_op_num_threads = self._threads
        return ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
