# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Models of operators that need others around them: spectra, control flow, variables, detection post-processing."""

from __future__ import annotations

from typing import Any

import numpy as np
from flatbuffers import flexbuffers

from tools.tflite_cases import Array, f
from tools.tflite_writer import Model, Subgraph

MODELS: dict[str, list[tuple[bytes, dict[str, Array]]]] = {}


def _add(code: str, model: Model, feeds: dict[str, Array]) -> None:
    MODELS.setdefault(code, []).append((model.content(), feeds))


def _input(graph: Subgraph, name: str, value: Array) -> int:
    index = graph.tensor(name, value.shape, value.dtype.name)
    graph.table.inputs.append(index)
    return index


def _constant(graph: Subgraph, value: Any, dtype: Any = np.int32) -> int:
    data = np.array(value, dtype)
    return graph.tensor(f"constant_{len(graph.table.tensors)}", data.shape, data.dtype.name, data)


def _output(graph: Subgraph, shape: tuple[int, ...], dtype: str = "float32") -> int:
    index = graph.tensor(f"y{len(graph.table.outputs)}", shape, dtype)
    graph.table.outputs.append(index)
    return index


def _spectrum(parts: list[str], shape: tuple[int, ...], length: tuple[int, int]) -> tuple[Model, dict[str, Array]]:
    model = Model()
    graph = model.subgraph()
    x = f(*shape)
    start, size = _input(graph, "x", x), _constant(graph, length)
    bins = (*shape[:-2], length[0], length[1] // 2 + 1)
    spectrum = graph.tensor("spectrum", bins, "complex64")
    graph.operator("RFFT2D", [start, size], [spectrum], "Rfft2dOptions")
    for part in parts:
        graph.operator(part, [spectrum], [_output(graph, bins)])
    return model, {"x": x}


for _shape, _length in (((1, 1, 16), (1, 16)), ((2, 8, 8), (8, 8)), ((3, 1, 12), (1, 16))):
    for _part in ("REAL", "IMAG", "COMPLEX_ABS"):
        _add(_part, *_spectrum([_part], _shape, _length))
    _add("RFFT2D", *_spectrum(["REAL", "IMAG"], _shape, _length))


def _branches(decided: bool | None, *, inputs: bool = True) -> tuple[Model, dict[str, Array]]:
    """IF: the condition a constant, or sum(x) > 0."""
    model = Model()
    graph = model.subgraph()
    x = f(2, 3)
    start = _input(graph, "x", x)
    if decided is None:
        total, condition = graph.tensor("total", (), "float32"), graph.tensor("condition", (), "bool")
        graph.operator("SUM", [start, _constant(graph, [0, 1])], [total], "ReducerOptions")
        graph.operator("GREATER", [total, _constant(graph, 0, np.float32)], [condition], "GreaterOptions")
    else:
        condition = _constant(graph, decided, np.bool_)
    graph.operator("IF", [condition, start], [_output(graph, (2, 3))], "IfOptions", thenSubgraphIndex=1,
                   elseSubgraphIndex=2)  # fmt: skip
    for name, code in (("then", "SQUARE"), ("else", "NEG")):
        branch = model.subgraph(name)
        branch.operator(code, [_input(branch, "v", x)], [_output(branch, (2, 3))], f"{code.capitalize()}Options")
    return model, {"x": x}


for _decided in (True, False, None):
    _add("IF", *_branches(_decided))


def _loop(turns: int, *, through: bool) -> tuple[Model, dict[str, Array]]:
    """WHILE i < turns: x = x * w + i; `through`: w is carried as well."""
    model = Model()
    graph = model.subgraph()
    x, w = f(2, 3), f(3)
    start, zero = _input(graph, "x", x), _constant(graph, 0)
    carried = [zero, start, *([_input(graph, "w", w)] if through else [])]
    kinds = [((), "int32"), ((2, 3), "float32"), ((3,), "float32")][: len(carried)]
    results = [graph.tensor(f"result_{i}", shape, dtype) for i, (shape, dtype) in enumerate(kinds)]
    graph.operator("WHILE", carried, results, "WhileOptions", condSubgraphIndex=1, bodySubgraphIndex=2)
    graph.operator("NEG", [results[1]], [_output(graph, (2, 3))], "NegOptions")
    condition, body = model.subgraph("condition"), model.subgraph("body")
    for part in (condition, body):
        for i, (shape, dtype) in enumerate(kinds):
            part.table.inputs.append(part.tensor(f"v{i}", shape, dtype))
    condition.operator("LESS", [0, _constant(condition, turns)], [_output(condition, (), "bool")], "LessOptions")
    after, number = body.tensor("after", (), "int32"), body.tensor("number", (), "float32")
    product = body.tensor("product", (2, 3), "float32")
    total = body.tensor("total", (2, 3), "float32")
    body.operator("ADD", [0, _constant(body, 1)], [after], "AddOptions")
    body.operator("MUL", [1, 2 if through else _constant(body, w, np.float32)], [product], "MulOptions")
    body.operator("CAST", [0], [number], "CastOptions")
    body.operator("ADD", [product, number], [total], "AddOptions")
    body.table.outputs = [after, total, *([2] if through else [])]
    return model, {"x": x, "w": w} if through else {"x": x}


for _turns, _through in ((3, False), (5, True), (1, False)):
    _add("WHILE", *_loop(_turns, through=_through))


def _variable(*, shared: bool, twice: bool) -> tuple[Model, dict[str, Array]]:
    """X + variable, its first value from a subgraph that runs once."""
    model = Model()
    graph = model.subgraph()
    x = f(4, 2)
    start, handle = _input(graph, "x", x), graph.tensor("handle", (1,), "resource")
    value = graph.tensor("v", (4, 2), "float32")
    names = {"container": "", "sharedName": "weights" if shared else "other"}
    graph.operator("CALL_ONCE", [], [], "CallOnceOptions", initSubgraphIndex=1)
    graph.operator("VAR_HANDLE", [], [handle], "VarHandleOptions", **names)
    graph.operator("READ_VARIABLE", [handle], [value], "ReadVariableOptions")
    total = graph.tensor("total", (4, 2), "float32") if twice else _output(graph, (4, 2))
    graph.operator("ADD", [start, value], [total], "AddOptions")
    if twice:
        graph.operator("MUL", [total, value], [_output(graph, (4, 2))], "MulOptions")
    once = model.subgraph("once")
    there = once.tensor("there", (1,), "resource")
    once.operator("VAR_HANDLE", [], [there], "VarHandleOptions", **names)
    once.operator("ASSIGN_VARIABLE", [there, _constant(once, f(4, 2), np.float32)], [], "AssignVariableOptions")
    return model, {"x": x}


for _shared, _twice in ((True, False), (False, False), (True, True)):
    for _code in ("CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"):
        _add(_code, *_variable(shared=_shared, twice=_twice))


def _composite(scale: float) -> tuple[Model, dict[str, Array]]:
    """A composite whose decomposition is tanh(x * scale)."""
    model = Model()
    graph = model.subgraph()
    x = f(3, 4)
    graph.operator("STABLEHLO_COMPOSITE", [_input(graph, "x", x)], [_output(graph, (3, 4))],
                   "StableHLOCompositeOptions", name="own.tanh", decompositionSubgraphIndex=1, version=1,
                   compositeAttributes=list(flexbuffers.Dumps({})))  # fmt: skip
    inner = model.subgraph("decomposition")
    scaled = inner.tensor("scaled", (3, 4), "float32")
    inner.operator("MUL", [_input(inner, "v", x), _constant(inner, scale, np.float32)], [scaled], "MulOptions")
    inner.operator("TANH", [scaled], [_output(inner, (3, 4))])
    return model, {"x": x}


for _scale in (1.0, 0.5, -2.0):
    _add("STABLEHLO_COMPOSITE", *_composite(_scale))


def detection(anchors: int, classes: int, most: int, overlap: float, least: float) -> tuple[Model, dict[str, Array]]:
    """The post-processing of an SSD network: encodings, scores with a background class, anchors."""
    model = Model()
    graph = model.subgraph()
    random = np.random.default_rng(anchors)
    encodings = random.normal(0, 1, (1, anchors, 4)).astype(np.float32)
    scores = random.permutation(anchors * (classes + 1)).reshape(1, anchors, -1).astype(np.float32)
    scores /= scores.size
    centres = random.uniform(0.1, 0.9, (anchors, 2))
    grid = np.concatenate([centres, random.uniform(0.1, 0.4, (anchors, 2))], 1).astype(np.float32)
    options = {"max_detections": most, "max_classes_per_detection": 1, "num_classes": classes,
               "nms_score_threshold": least, "nms_iou_threshold": overlap, "y_scale": 10.0, "x_scale": 10.0,
               "h_scale": 5.0, "w_scale": 5.0, "use_regular_nms": False}  # fmt: skip
    inputs = [_input(graph, "boxes", encodings), _input(graph, "scores", scores), _constant(graph, grid, np.float32)]
    outputs = [_output(graph, shape) for shape in ((1, most, 4), (1, most), (1, most), (1,))]
    graph.operator("TFLite_Detection_PostProcess", inputs, outputs, custom=bytes(flexbuffers.Dumps(options)))
    return model, {"boxes": encodings, "scores": scores}


for _setting in ((40, 5, 10, 0.5, 0.3), (24, 2, 4, 0.6, 0.0), (60, 3, 6, 0.2, 0.9)):
    _add("TFLite_Detection_PostProcess", *detection(*_setting))
