# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The script that an interpreter with TensorFlow and tf2onnx runs; it has no npukit: `python THIS request.json`.

The request says `path`, `kind`, `output` (the ONNX file), `arrays` (an .npz of inputs and TensorFlow's results),
`reply` (a JSON file), `inputs`, `outputs`, `shapes`, `batch`, `tag`, `signature`, `compare`. The reply has `notes` and
`compared`, or `error` with `faults`: lists of [what, where, hint].
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

OPSET = 18  # the newest that tf2onnx 1.17 writes
# Leaves of a graph that are no results: of training, saving and checking.
_NO_RESULT = ("NoOp", "Assert", "Assign", "Apply", "ResourceApply", "Save", "Restore", "Merge", "Const", "Placeholder")
_VARIABLE = ("VarHandleOp", "Variable", "HashTable", "Shard")
_MAX_SHOWN = 40

Loaded = tuple[Any, list[str], list[str], dict[str, str], list[str]]
"""A frozen graph, the tensors that it takes and gives, what these are called, and notes."""


class Refused(Exception):
    """What the user is told: a sentence and faults, each [what, where, hint]."""

    def __init__(self, text: str, faults: list[list[str]] | None = None, hint: str = "") -> None:
        super().__init__(text)
        self.faults, self.hint = faults or [], hint


def main() -> None:
    """Answer the request that the first argument names."""
    del sys.path[0]  # npukit's modules beside this one must not stand in for others
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # plain float32, the same on every machine
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        reply = convert(request)
    except Refused as error:
        reply = {"error": str(error), "faults": error.faults, "hint": error.hint}
    except ImportError as error:
        reply = {"missing": str(error)}
    except Exception as error:
        import traceback

        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[0][:400] if lines else ""
        reply = {"error": f"TensorFlow cannot read it: {type(error).__name__}: {text}", "faults": [], "hint": ""}
    with open(request["reply"], "w", encoding="utf-8") as file:
        json.dump(reply, file)


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Write the ONNX file; gives the reply."""
    import tensorflow as tf
    import tf2onnx

    graph_def, inputs, outputs, names, notes = load(tf, request)
    shapes, drawn = feeds_of(tf, graph_def, inputs, names, request)
    if request["compare"]:
        notes.append(run(tf, graph_def, inputs, outputs, names, shapes, drawn, request["arrays"]))
    model = to_onnx(tf, tf2onnx, graph_def, inputs, outputs, names, shapes)
    name_dimensions(model)
    data = model.SerializeToString()
    with open(request["output"], "wb") as file:
        file.write(data)
    version = f"TensorFlow {tf.__version__}"
    notes.insert(0, f"exported by tf2onnx {tf2onnx.__version__} and {version}, opset {OPSET}")
    return {"notes": notes, "framework": version, "compared": os.path.exists(request["arrays"])}


# ---------------------------------------------------------------- reading


def load(tf: Any, request: dict[str, Any]) -> Loaded:
    """The model of a request."""
    if request["kind"] == "SavedModel":
        return saved_model(tf, request)
    tf.compat.v1.disable_eager_execution()
    graph_def = tf.compat.v1.GraphDef()
    meta = tf.compat.v1.MetaGraphDef()
    try:
        with open(request["path"], "rb") as file:
            (graph_def if request["kind"] == "frozen graph" else meta).ParseFromString(file.read())
    except Exception as error:
        raise Refused(f"it is not a whole {request['kind']}: {error}") from None
    if request["kind"] == "frozen graph":
        return found(tf, graph_def, request)
    return checkpoint(tf, meta, request)


def found(tf: Any, graph_def: Any, request: dict[str, Any]) -> Loaded:
    """Inputs and outputs of a graph: as asked for, else found."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    inputs, outputs, names, notes = ends(graph, request["inputs"], request["outputs"])
    nodes = [name.partition(":")[0] for name in outputs]
    kept = tf.compat.v1.graph_util.extract_sub_graph(graph_def, nodes) if not request["inputs"] else graph_def
    return optimized(tf, kept, inputs, outputs), inputs, outputs, names, notes


def ends(
    graph: Any, asked_in: list[str], asked_out: list[str]
) -> tuple[list[str], list[str], dict[str, str], list[str]]:
    """The input and output tensors of a v1 graph, what they are called, and notes."""
    names: dict[str, str] = {}
    notes = []
    faults: list[list[str]] = []
    outputs = [tensor_of(graph, name, "output", names, faults) for name in asked_out]
    inputs = [tensor_of(graph, name, "input", names, faults) for name in asked_in]
    if faults:
        raise Refused("there are no such tensors in the graph", faults)
    if not outputs:
        outputs = leaves(graph)
        if not outputs:
            raise Refused("no node of the graph looks like an output", hint="name it: --output NODE")
        notes.append(f"outputs were found, not named: {', '.join(outputs[:8])} (--output names others)")
    if not inputs:
        above = ancestors(graph, outputs)
        holders = [op for op in graph.get_operations() if op.type == "Placeholder" and op.name in above]
        inputs = [op.outputs[0].name for op in holders]
    if not inputs:
        raise Refused("nothing that the outputs depend on is an input", hint="name one: --input NODE=SHAPE")
    for name in (*inputs, *outputs):
        names.setdefault(name, name[:-2] if name.endswith(":0") else name)
    return inputs, outputs, names, notes


def tensor_of(graph: Any, name: str, what: str, names: dict[str, str], faults: list[list[str]]) -> str:
    """The tensor that the user calls `name`: a node's first output, or NODE:1; adds a fault where there is none."""
    import difflib

    full = name if ":" in name else f"{name}:0"
    try:
        graph.get_tensor_by_name(full)
    except (KeyError, ValueError):
        known = [op.name for op in graph.get_operations()]
        near = difflib.get_close_matches(name.partition(":")[0], known, 3, 0.5)
        faults.append([f"no {what} {name!r}", "", f"did you mean {', '.join(near)}?" if near else ""])
    names[full] = name
    return full


def ancestors(graph: Any, outputs: list[str]) -> set[str]:
    """Names of all ops that `outputs` depend on."""
    todo = [graph.get_tensor_by_name(name).op for name in outputs]
    seen: set[str] = set()
    while todo:
        op = todo.pop()
        if op.name not in seen:
            seen.add(op.name)
            todo += [tensor.op for tensor in op.inputs]
    return seen


def leaves(graph: Any) -> list[str]:
    """Tensors that nothing reads and that depend on a placeholder."""
    fed = set()
    ops = graph.get_operations()
    for op in ops:  # in topological order but for loops, whose bodies hang below a placeholder anyway
        if op.type == "Placeholder" or any(tensor.op.name in fed for tensor in op.inputs):
            fed.add(op.name)
    plain = [op for op in ops if op.name in fed and not op.type.startswith((*_NO_RESULT, *_VARIABLE))]
    return [t.name for op in plain if not any(t.consumers() for t in op.outputs) for t in op.outputs]


def saved_model(tf: Any, request: dict[str, Any]) -> Loaded:
    """A signature of a SavedModel, with its variables as constants."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model = tf.saved_model.load(request["path"], tags=request["tag"].split(",") if request["tag"] else None)
    known = [key for key in model.signatures if not key.startswith("_")]
    wanted = request["signature"] or ("serving_default" if "serving_default" in known else next(iter(known), ""))
    if not known:
        raise Refused(
            "the SavedModel has no signatures", hint="save it with signatures, or Keras's model.export(FOLDER)"
        )
    if wanted not in known:
        raise Refused(f"there is no signature {wanted!r}", hint=f"it has: {', '.join(known)}")
    notes = []
    if not request["signature"] and len(known) > 1:
        others = ", ".join(key for key in known if key != wanted)
        notes.append(f"the signature {wanted} was taken; there are also: {others} (--saved-model-signature-key)")
    function = model.signatures[wanted]
    frozen = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
    graph_def = frozen.graph.as_graph_def(add_shapes=True)
    keys = getattr(function, "_arg_keywords", None) or []  # the signature's, in the order of its placeholders
    called = dict(zip((tensor.name for tensor in function.inputs), keys, strict=False))  # behind them: variables
    inputs = [tensor.name for tensor in frozen.inputs if tensor.dtype != tf.resource]
    names = {name: called.get(name, name.partition(":")[0]) for name in inputs}
    outputs = [tensor.name for tensor in frozen.outputs]
    if isinstance(function.structured_outputs, dict) and len(function.structured_outputs) == len(outputs):
        names.update(zip(outputs, sorted(function.structured_outputs), strict=True))
    if len(set(outputs)) < len(outputs):
        again = [name for i, name in enumerate(outputs) if name in outputs[:i]]
        raise Refused(f"it gives the same tensor twice ({again[0]})", hint="choose outputs of its graph: --output")
    if not set(inputs):
        raise Refused(f"the signature {wanted!r} takes no tensor")
    with tf.Graph().as_default():
        tf.import_graph_def(graph_def, name="")
        graph_def = optimized(tf, graph_def, inputs, outputs)
    return graph_def, inputs, outputs, names, notes


def checkpoint(tf: Any, meta: Any, request: dict[str, Any]) -> Loaded:
    """A v1 checkpoint: its meta graph, with the variables' values as constants."""
    prefix = request["path"][: -len(".meta")] if request["path"].endswith(".meta") else request["path"]
    if not os.path.exists(f"{prefix}.index"):
        raise Refused(
            f"the values of its variables are missing: {os.path.basename(prefix)}.index and .data-* belong beside it",
            hint="give the .meta file of a whole checkpoint",
        )
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        saver = v1.train.import_meta_graph(meta, clear_devices=True)
        if saver is None:
            raise Refused("the meta graph has no saver, so its variables cannot be restored")
        saver.restore(session, prefix)
        inputs, outputs, names, notes = ends(graph, request["inputs"], request["outputs"])
        nodes = [name.partition(":")[0] for name in (*outputs, *inputs)]
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(add_shapes=True), nodes)
    return optimized(tf, frozen, inputs, outputs), inputs, outputs, names, notes


def optimized(tf: Any, graph_def: Any, inputs: list[str], outputs: list[str]) -> Any:
    """Constants folded and functions inlined by TensorFlow itself, as tf2onnx wants it."""
    from tf2onnx import tf_loader

    allow_inlining(graph_def)
    with tf.Graph().as_default():
        tf.import_graph_def(graph_def, name="")
        return tf_loader.tf_optimize(list(inputs), list(outputs), graph_def)


def allow_inlining(graph_def: Any) -> None:
    """Take off functions and their calls what only says how to compile them, and keeps them from being inlined.

    Keras 3 has XLA compile its convolutions in groups; others ask that a function stays one.
    """
    functions = graph_def.library.function
    for part in (*graph_def.node, *functions, *(node for function in functions for node in function.node_def)):
        for key in ("_XlaMustCompile", "_noinline"):
            if key in part.attr:
                del part.attr[key]


# ---------------------------------------------------------------- shapes, and TensorFlow's own result


def feeds_of(
    tf: Any, graph_def: Any, inputs: list[str], names: dict[str, str], request: dict[str, Any]
) -> tuple[dict[str, list[int]], dict[str, Any] | str]:
    """Shapes that were asked for by tensor, and drawn arrays; in place of these a reason where they cannot be drawn."""
    import numpy as np

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    asked = {name: list(shape) for name, shape in request["shapes"].items()}
    given: dict[str, list[int]] = {}
    drawn: dict[str, Any] = {}
    why = ""
    generator = np.random.default_rng(0)
    for name in inputs:
        tensor = graph.get_tensor_by_name(name)
        own = tensor.shape.as_list() if tensor.shape.rank is not None else None
        shape = next((asked[key] for key in (names[name], name, name.partition(":")[0]) if key in asked), None)
        if shape is None and own and own[0] is None and request["batch"]:
            shape = [request["batch"], *own[1:]]
        if (
            shape is not None
            and own is not None
            and (len(shape) != len(own) or any(b is not None and a != b for a, b in zip(shape, own, strict=False)))
        ):
            text = f"the input {names[name]!r} has the shape {own}, not {shape}"
            raise Refused(text, hint="--input-shape")
        if shape is not None and None not in shape:
            given[name] = shape
        full = shape or own
        if full is None:
            why = f"the rank of {names[name]!r} is not known (--input-shape)"
            continue
        full = [1 if size is None and i == 0 else size for i, size in enumerate(full)]
        if None in full:
            why = f"the size of {names[name]!r} is not known (--input-shape)"
            continue
        kind = tensor.dtype.as_numpy_dtype
        if tensor.dtype.is_floating:
            drawn[name] = generator.standard_normal(full).astype(kind)
        elif tensor.dtype.is_integer:
            drawn[name] = generator.integers(0, 1000, full).astype(kind)
        else:
            drawn[name] = np.ones(full, kind) if tensor.dtype.is_bool else None
            why = why or ("" if tensor.dtype.is_bool else f"{names[name]!r} holds {tensor.dtype.name}")
    return given, why or drawn


def run(
    tf: Any, graph_def: Any, inputs: list[str], outputs: list[str], names: dict[str, str],
    shapes: dict[str, list[int]], drawn: dict[str, Any] | str, path: str,
) -> str:  # fmt: skip
    """Run TensorFlow on the drawn inputs and save both; gives a note."""
    import numpy as np

    if isinstance(drawn, str):
        return f"TensorFlow was not run: {drawn}"
    reason = ""
    for top in (0, 100, 10, 2, 1):  # whole numbers may be indices: smaller ones until they fit
        feeds = {key: a % top if top and np.issubdtype(a.dtype, np.integer) else a for key, a in drawn.items()}
        with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
            tf.import_graph_def(graph_def, name="")
            try:
                given = session.run(list(outputs), feeds)
            except Exception as error:
                reason = reason or str(error).splitlines()[0][:200]
                continue
        arrays = {f"input_{i}": feeds[name] for i, name in enumerate(inputs)}
        arrays.update({f"output_{i}": np.asarray(value) for i, value in enumerate(given)})
        np.savez(path, **arrays)
        return "TensorFlow ran on inputs that were drawn"
    return f"TensorFlow did not run the graph on drawn inputs ({reason})"


# ---------------------------------------------------------------- to ONNX


def to_onnx(
    tf: Any, tf2onnx: Any, graph_def: Any, inputs: list[str], outputs: list[str], names: dict[str, str],
    shapes: dict[str, list[int]],
) -> Any:  # fmt: skip
    """The ONNX model; everything that tf2onnx cannot do is told at once."""
    from tf2onnx import optimizer, tfonnx

    faults: list[list[str]] = []
    mapping, folding = tfonnx.tensorflow_onnx_mapping, tfonnx.compute_const_folding_using_tf

    def folded(graph: Any, *args: Any, **kwargs: Any) -> Any:
        """What TensorFlow folds, without quantized constants: their encodings would be lost."""
        values, dtypes = folding(graph, *args, **kwargs)
        for op in graph.get_operations():
            if op.type.startswith("FakeQuant") or (op.inputs and any(tensor.name in kept for tensor in op.inputs)):
                kept.update(tensor.name for tensor in op.outputs)
        return {name: value for name, value in values.items() if name not in kept}, dtypes

    kept: set[str] = set()
    tfonnx.compute_const_folding_using_tf = folded

    def watched(graph: Any, ops: Any, *args: Any, **kwargs: Any) -> Any:
        for node in graph.get_nodes():
            if node.type not in ops and not node.need_skip() and len(faults) < _MAX_SHOWN:
                what = f"tf2onnx has no ONNX for {node.type}"
                faults.append([what, f"node {node.name!r}", "cut the graph before it (--output)"])
        mapped, unmapped, exceptions = mapping(graph, ops, *args, **kwargs)
        for error in exceptions:
            text = " ".join(str(error).split())[:300] or type(error).__name__
            if len(faults) < _MAX_SHOWN:
                faults.append([f"tf2onnx: {text}", "", ""])
        return mapped, unmapped, []

    tfonnx.tensorflow_onnx_mapping = watched
    handlers: dict[str, Any] = {
        **{f"FakeQuantWithMinMax{kind}": (fake_quant, []) for kind in ("Args", "Vars", "VarsPerChannel")},
        "Erfc": (erfc, []),
    }
    defaults = [
        node.name for node in graph_def.node if node.op == "PlaceholderWithDefault" and f"{node.name}:0" not in inputs
    ]
    try:
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(graph_def, name="")
            made = tfonnx.process_tf_graph(
                graph, opset=OPSET, input_names=list(inputs), output_names=list(outputs), tensors_to_rename=names,
                shape_override=shapes, custom_op_handlers=handlers, use_default=defaults,
            )  # fmt: skip
    except Exception as error:
        if not faults:
            faults.append([f"tf2onnx: {' '.join(str(error).split())[:300] or type(error).__name__}", "", ""])
    if faults:
        raise Refused("tf2onnx cannot express this graph in ONNX", faults)
    passes = optimizer._get_optimizers()
    del passes["q_dq_optimizer"]  # it moves pairs apart, over ops that compute nothing
    return optimizer.optimize_graph(made, optimizers=passes).make_model("converted from TensorFlow")


def fake_quant(graph: Any, node: Any, name: str, args: Any) -> None:
    """QuantizeLinear and DequantizeLinear with the nudged range that TensorFlow uses.

    Formula: Nudge in tensorflow/core/kernels/fake_quant_ops_functor.h. Codes are uint8 for activations, int8 for
    constants and narrow ranges, whose zero point is then 0 where the range is symmetric.
    """
    import numpy as np
    from tf2onnx import utils

    bits, narrow = node.get_attr_value("num_bits", 8), bool(node.get_attr_value("narrow_range", False))
    utils.make_sure(2 <= bits <= 8, "%s node %s has %r bits; at most 8 become encodings", node.type, name, bits)
    if node.type == "FakeQuantWithMinMaxArgs":
        low, high = (np.asarray(node.get_attr_value(key, edge), np.float32) for key, edge in (("min", -6), ("max", 6)))
    else:
        for i in (1, 2):
            utils.make_sure(node.inputs[i].is_const(), "%s node %s has a range that is not constant", node.type, name)
        low, high = (np.asarray(node.inputs[i].get_tensor_value(as_list=False), np.float32) for i in (1, 2))
    first, last = int(narrow), 2**bits - 1
    scale = ((high - low) / np.float32(last - first)).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))
    zero = np.clip(np.floor(first - low / scale + np.float32(0.5)), first, last).astype(np.int64)
    signed = narrow or node.inputs[0].is_const()
    shift, dtype = (128, np.int8) if signed else (0, np.uint8)
    value = node.input[0]
    shape, kind = graph.get_shape(value), graph.get_dtype(value)
    scale, zero = np.asarray(scale, np.float32), zero - shift
    scales = graph.make_const(utils.make_name(f"{name}_scale"), scale)
    zeros = graph.make_const(utils.make_name(f"{name}_zero"), np.asarray(zero).astype(dtype))
    axis = {} if np.ndim(zero) == 0 else {"axis": len(shape) - 1}
    low, high = ((code - shift - zero) * scale for code in (first, last))
    if node.inputs[0].is_const():
        real = np.clip(node.inputs[0].get_tensor_value(as_list=False), low, high).astype(np.float32)
        value = graph.make_const(utils.make_name(f"{name}_value"), real).output[0]
    elif narrow or bits < 8:  # fewer codes than the type has
        for op, edge in (("Max", low), ("Min", high)):
            bound = graph.make_const(utils.make_name(f"{name}_{op}"), np.asarray(edge, np.float32))
            value = graph.make_node(op, [value, bound.name], shapes=[shape], dtypes=[kind]).output[0]
    inputs, code = [value, scales.name, zeros.name], utils.map_numpy_to_onnx_dtype(np.dtype(dtype))
    quantized = graph.make_node("QuantizeLinear", inputs, attr=axis, shapes=[shape], dtypes=[code]).output[0]
    outputs = node.output
    graph.remove_node(node.name)
    graph.make_node(
        "DequantizeLinear", [quantized, scales.name, zeros.name], attr=axis, name=node.name, outputs=outputs,
        shapes=[shape], dtypes=[kind],
    )  # fmt: skip


def erfc(graph: Any, node: Any, name: str, args: Any) -> None:
    """1 - erf(x): what Keras 3 spells GELU with, and tf2onnx does not have."""
    import numpy as np
    from tf2onnx import utils

    shape, kind = graph.get_shape(node.input[0]), graph.get_dtype(node.input[0])
    one = graph.make_const(utils.make_name(f"{name}_one"), np.array(1, utils.map_onnx_to_numpy_type(kind)))
    erf = graph.make_node("Erf", [node.input[0]], shapes=[shape], dtypes=[kind])
    outputs = node.output
    graph.remove_node(node.name)
    graph.make_node("Sub", [one.name, erf.output[0]], name=name, outputs=outputs, shapes=[shape], dtypes=[kind])


def name_dimensions(model: Any) -> None:
    """Open dimensions of inputs get names that say which they are; those of outputs none."""
    for value in model.graph.input:
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") or dim.dim_value < 0:
                dim.dim_param = f"{value.name}_dim_{i}"
    for value in (*model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") or dim.dim_value < 0:
                dim.Clear()


if __name__ == "__main__":
    main()
