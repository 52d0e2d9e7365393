# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a model file of any kind holds, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npukit.analysis import text
from npukit.analysis.subject import KINDS, GraphView, Subject, TensorView, open_subject
from npukit.qnn.graph import Encoding


@dataclass(frozen=True)
class Description:
    """The description of a file.

    Attributes:
        data: everything, JSON-ready.
    """

    data: dict[str, Any]
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return self.data

    def to_text(self) -> str:
        """The description for a console."""
        d = self.data
        lines = [f"{d['file']}: {KINDS[d['kind']]}, {text.size(d['bytes'])}, sha256 {d['sha256'][:16]}..."]
        facts = [(key, _flat(value)) for key, value in d["facts"].items()]
        lines += [text.fields(facts)] if facts else []
        if d["needs"]:
            lines.append(d["needs"])
        lines += _stamp_lines(d["stamp"], d["kind"])
        lines += [d["unread"]] if d["unread"] else []
        for graph in d["graphs"]:
            lines += ["", *_graph_lines(graph)]
        if d["parts"]:
            rows = [(part["name"], text.size(part["bytes"])) for part in d["parts"]]
            lines += ["", text.table(("part", "size"), rows)]
        return "\n".join(lines)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def describe(path: Path, graph: str | None = None, *, ops: bool = False, tensors: bool = False) -> Description:
    """Read a file and describe it; with `graph` only that one.

    Args:
        path: the file.
        graph: name of the graph to describe; None for all.
        ops: whether to list every op.
        tensors: whether to list every tensor.

    Raises:
        NpukitError: see `open_subject`.
    """
    subject = open_subject(path, graph, partly=True)
    stamp = subject.stamp
    data = {
        "file": path.name,
        "kind": subject.kind,
        "bytes": subject.size,
        "sha256": subject.sha256,
        "facts": {key: value for key, value in subject.facts.items() if value not in (None, "", {})},
        "needs": needs(subject),
        "unread": subject.unread,
        "stamp": None if stamp is None else stamp.to_dict(),
        "graphs": [_graph(view, ops=ops, tensors=tensors) for view in subject.graphs],
        "parts": [{"name": name, "bytes": size} for name, size in subject.parts],
    }
    return Description(data)


def needs(subject: Subject) -> str:
    """What the device needs to load the file, as far as the file says; empty for an ONNX model."""
    if subject.kind == "onnx":
        return ""
    if subject.kind == "om":
        chip = subject.facts.get("SoC") or (subject.stamp.options.get("soc_version") if subject.stamp else "")
        return f"needs {chip}, and the CANN that compiled it or a newer one" if chip else ""
    version = subject.stamp.needs_qairt if subject.stamp is not None else ""
    build = str(subject.facts.get("QAIRT build", ""))
    if not version and build:
        version = ".".join(build.lstrip("v").split(".")[:2])
    return f"needs QAIRT >= {version} on the device" if version else ""


def _graph(view: GraphView, *, ops: bool, tensors: bool) -> dict[str, Any]:
    constants = view.constants
    by_dtype: Counter[str] = Counter()
    for tensor in constants:
        by_dtype[tensor.dtype] += tensor.nbytes
    encoded = Counter(t.encoding.kind for t in view.tensors.values() if t.encoding is not None)
    found: dict[str, Any] = {
        "name": view.name,
        "inputs": [tensor_json(t) for t in view.inputs],
        "outputs": [tensor_json(t) for t in view.outputs],
        "op_count": None if view.ops is None else len(view.ops),
        "ops": view.op_types() if view.ops is not None else None,
        "constants": {
            "count": len(constants),
            "bytes": sum(t.nbytes for t in constants),
            "by_dtype": dict(by_dtype.most_common()),
        },
        "tensor_count": len(view.tensors),
        "encodings": dict(encoded.most_common()),
    }
    if ops and view.ops is not None:
        found["op_list"] = [
            {
                "name": op.name,
                "type": op.type,
                "inputs": list(op.inputs),
                "outputs": list(op.outputs),
                "params": {key: _param(value) for key, value in op.params.items()},
            }
            for op in view.ops
        ]
    if tensors:
        found["tensor_list"] = [{**tensor_json(t), "constant": t.load is not None} for t in view.tensors.values()]
    return found


def _param(value: Any) -> Any:
    """A parameter as JSON; long tensors only by shape."""
    if hasattr(value, "tolist"):
        return value.tolist() if value.size <= 64 else f"<{value.dtype} {list(value.shape)}>"
    return value


def tensor_json(tensor: TensorView) -> dict[str, Any]:
    """A tensor as one JSON-ready object."""
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "encoding": None if tensor.encoding is None else encoding_json(tensor.encoding),
    }


def encoding_json(encoding: Encoding) -> dict[str, Any]:
    """An encoding as one JSON-ready object; fields at their defaults are left out."""
    from npukit.artifacts.stamp import encoding_to_dict

    return {"kind": encoding.kind, **encoding_to_dict(encoding)}


def encoding_text(encoding: dict[str, Any] | None) -> str:
    """An encoding in a few words."""
    if encoding is None:
        return ""
    scales, offsets = encoding["scales"], encoding["offsets"]
    bits = f", {encoding['bitwidth']} bits" if encoding.get("bitwidth") else ""
    if len(scales) == 1:
        return f"scale {scales[0]:.6g}, offset {offsets[0]}{bits}"
    return f"{len(scales)} scales {min(scales):.4g} to {max(scales):.4g} on axis {encoding.get('axis')}{bits}"


def _graph_lines(graph: dict[str, Any]) -> list[str]:
    rows = [
        (side, t["name"], t["dtype"], text.shape(t["shape"]), encoding_text(t["encoding"]))
        for side, tensors in (("input", graph["inputs"]), ("output", graph["outputs"]))
        for t in tensors
    ]
    lines = [f"graph {graph['name']}", text.table(("", "name", "dtype", "shape", "encoding"), rows, indent=2)]
    if graph["ops"] is None:
        lines.append("  compiled code: its ops and weights cannot be seen")
    else:
        shown = ", ".join(f"{name} {count}" for name, count in graph["ops"].items())
        lines.append(f"  {graph['op_count']} ops: {shown}")
        held = graph["constants"]
        kinds = ", ".join(f"{name} {text.size(size)}" for name, size in held["by_dtype"].items())
        lines.append(f"  {held['count']} constants, {text.size(held['bytes'])}{f' ({kinds})' if kinds else ''}")
    if graph["encodings"]:
        kinds = ", ".join(f"{name} {count}" for name, count in graph["encodings"].items())
        lines.append(f"  {sum(graph['encodings'].values())} of {graph['tensor_count']} tensors encoded: {kinds}")
    if "op_list" in graph:
        ops = [
            (op["type"], op["name"], " ".join(op["inputs"]), " ".join(op["outputs"]), _params(op["params"]))
            for op in graph["op_list"]
        ]
        lines.append(text.table(("op", "name", "inputs", "outputs", "params"), ops, indent=2))
    if "tensor_list" in graph:
        tensors = [
            (
                t["name"],
                t["dtype"],
                text.shape(t["shape"]),
                "constant" if t["constant"] else "",
                encoding_text(t["encoding"]),
            )
            for t in graph["tensor_list"]
        ]
        lines.append(text.table(("tensor", "dtype", "shape", "", "encoding"), tensors, indent=2))
    return lines


def _params(params: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in params.items())


def _stamp_lines(stamp: dict[str, Any] | None, kind: str) -> list[str]:
    if kind == "onnx":
        return []
    if stamp is None:
        return ["no stamp: npukit did not make it; its inputs and outputs are its native tensors"]
    source = f"{stamp['source_name']} (sha256 {stamp['source_sha256'][:16]}...)" if stamp["source_sha256"] else ""
    seed = f", seed {stamp['seed']}" if stamp["seed"] is not None else ""
    made = f"npukit {stamp['npukit_version']}"
    if kind != "om":
        made += f", QAIRT {stamp['qairt_build']}, QNN API {stamp['core_api_version']}"
    pairs = [
        ("made by", made),
        ("source", source),
        ("targets", ", ".join(stamp["targets"])),
        ("options", _flat(stamp["options"])),
        ("verified", f"{stamp['verified']}{seed}"),
    ]
    rows = [
        (side, io["name"], io["dtype"], text.shape(io["shape"]), _held(io))
        for side in ("inputs", "outputs")
        for io in stamp[side]
    ]
    return [text.fields(pairs), text.table(("contract", "name", "dtype", "shape", "held as"), rows)]


def _held(io: dict[str, Any]) -> str:
    if not io["tensor"]:
        return "nothing: no output depends on it"
    parts = [f"{io['tensor']}: {io['held_dtype']}"]
    parts += [f"axes {io['perm']}"] if io["perm"] is not None else []
    parts += ["narrowed"] if io["narrowed"] else []
    return ", ".join(parts)
