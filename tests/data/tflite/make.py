# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Makes the TensorFlow Lite files of the tests and what TensorFlow Lite's interpreter computes from them.

Run it in an environment of its own: `pip install tensorflow-cpu`, then `python tests/data/tflite/make.py`. Each case is
a function converted by TensorFlow's converter; NAME.npz of a family holds for each case CASE/model (the bytes of the
.tflite), CASE/in/NAME and CASE/out/NAME.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import tensorflow as tf

warnings.simplefilter("ignore")
HERE = Path(__file__).parent


def log(text):
    sys.stderr.write(f"{text}\n")


rng = np.random.default_rng(7)


def noise(*shape, low=-2.0, high=2.0):
    return np.round(rng.uniform(low, high, shape) * 64).astype(np.float32) / 64  # what compresses well


def spec(shape, dtype=tf.float32):
    return tf.TensorSpec(shape, dtype)


def convert(function, specs, prepare=None, names="xyzw"):
    specs = [tf.TensorSpec(s.shape, s.dtype, name=n) for s, n in zip(specs, names, strict=False)]
    module = tf.Module()
    module.f = tf.function(function, input_signature=specs)
    concrete = module.f.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    if prepare:
        prepare(converter)
    return converter.convert()


# The reference kernel of SUM reads codes wrongly, that of LRN leaves the window's last channel out.
PLAIN = ("sum", "lrn")


def run(content, feeds, plain=False):
    # the reference kernels: XNNPACK and the optimized ones round quantized results differently
    kinds = tf.lite.experimental.OpResolverType
    try:
        if plain:
            raise ValueError
        interpreter = tf.lite.Interpreter(model_content=content, experimental_op_resolver_type=kinds.BUILTIN_REF)
    except ValueError:  # an operator without a reference kernel
        kind = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = tf.lite.Interpreter(model_content=content, experimental_op_resolver_type=kind)
    runner = interpreter.get_signature_runner()
    return runner(**feeds)


def inputs(specs, positive=False, names="xyzw"):
    feeds = {}
    for s, name in zip(specs, names, strict=False):
        shape = [d or 1 for d in s.shape]
        if s.dtype.is_floating:
            feeds[name] = noise(*shape, low=0.1) if positive else noise(*shape)
        elif s.dtype == tf.bool:
            feeds[name] = rng.integers(0, 2, shape).astype(bool)
        else:
            feeds[name] = rng.integers(0, 3, shape).astype(s.dtype.as_numpy_dtype)
    return feeds


F = tf.float32
IMAGE = spec([1, 9, 8, 6])
kernel = lambda *shape: tf.constant(noise(*shape, low=-0.5, high=0.5))  # noqa: E731
K33, KD, KT = kernel(3, 3, 6, 4), kernel(3, 3, 6, 1), kernel(3, 3, 4, 6)

SPATIAL = {
    "conv_same": (lambda x: tf.nn.conv2d(x, K33, 1, "SAME") + [1.0, 2, 3, 4], [IMAGE]),
    "conv_valid_stride": (lambda x: tf.nn.relu6(tf.nn.conv2d(x, K33, [1, 2, 1, 1], "VALID")), [IMAGE]),
    "conv_same_stride": (lambda x: tf.nn.relu(tf.nn.conv2d(x, K33, 2, "SAME")), [IMAGE]),
    "conv_dilated": (lambda x: tf.nn.conv2d(x, K33, 1, "SAME", dilations=2), [IMAGE]),
    "conv_grouped": (lambda x: tf.nn.conv2d(x, kernel(3, 3, 2, 6), 1, "SAME"), [IMAGE]),
    "conv_computed_filter": (lambda x, y: tf.nn.conv2d(x, y, 1, "SAME"), [IMAGE, spec([3, 3, 6, 4])]),
    "depthwise": (lambda x: tf.nn.relu6(tf.nn.depthwise_conv2d(x, KD, [1, 1, 1, 1], "SAME")), [IMAGE]),
    "depthwise_multiplier": (lambda x: tf.nn.depthwise_conv2d(x, kernel(3, 3, 6, 2), [1, 2, 2, 1], "VALID"), [IMAGE]),
    "transpose_conv_same": (lambda x: tf.nn.conv2d_transpose(x, KT, [1, 18, 16, 4], 2, "SAME"), [IMAGE]),
    "transpose_conv_valid": (lambda x: tf.nn.conv2d_transpose(x, KT, [1, 19, 17, 4], 2, "VALID"), [IMAGE]),
    "transpose_conv_odd": (lambda x: tf.nn.conv2d_transpose(x, KT, [1, 17, 15, 4], 2, "SAME"), [IMAGE]),
    "conv3d": (lambda x: tf.nn.conv3d(x, kernel(2, 2, 2, 2, 3), [1] * 5, "SAME"), [spec([1, 4, 5, 4, 2])]),
    "max_pool": (lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME"), [IMAGE]),
    "max_pool_valid": (lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"), [IMAGE]),
    "average_pool": (lambda x: tf.nn.avg_pool2d(x, 3, 2, "SAME"), [IMAGE]),
    "average_pool_valid": (lambda x: tf.nn.avg_pool2d(x, [2, 3], 1, "VALID"), [IMAGE]),
    "bilinear_half": (lambda x: tf.image.resize(x, [13, 5]), [IMAGE]),
    "bilinear_plain": (lambda x: tf.compat.v1.image.resize_bilinear(x, [18, 16]), [IMAGE]),
    "bilinear_corners": (lambda x: tf.compat.v1.image.resize_bilinear(x, [15, 13], align_corners=True), [IMAGE]),
    "nearest_half": (lambda x: tf.image.resize(x, [18, 24], method="nearest"), [IMAGE]),
    "nearest_plain": (lambda x: tf.compat.v1.image.resize_nearest_neighbor(x, [18, 12]), [IMAGE]),
    "nearest_corners": (lambda x: tf.compat.v1.image.resize_nearest_neighbor(x, [17, 15], align_corners=True), [IMAGE]),
    "space_to_depth": (lambda x: tf.nn.space_to_depth(x, 2), [spec([1, 8, 6, 3])]),
    "depth_to_space": (lambda x: tf.nn.depth_to_space(x, 2), [spec([1, 4, 3, 8])]),
    "space_to_batch": (lambda x: tf.space_to_batch(x, [2, 2], [[1, 0], [0, 2]]), [spec([1, 7, 6, 3])]),
    "batch_to_space": (lambda x: tf.batch_to_space(x, [2, 2], [[1, 0], [0, 1]]), [spec([4, 4, 3, 3])]),
    "lrn": (lambda x: tf.nn.local_response_normalization(x, 2, 1.0, 0.1, 0.75), [IMAGE]),
    "pad_conv": (lambda x: tf.nn.conv2d(tf.pad(x, [[0, 0], [1, 1], [2, 0], [0, 0]]), K33, 2, "VALID"), [IMAGE]),
}
V, M = spec([2, 5, 4]), spec([2, 3, 4, 5])
ROW = tf.constant(noise(5))
UNARY = {
    name: (function, [V])
    for name, function in {
        "abs": tf.abs, "ceil": tf.math.ceil, "cos": tf.cos, "exp": tf.exp, "floor": tf.floor, "neg": tf.negative,
        "relu": tf.nn.relu, "relu6": tf.nn.relu6, "elu": tf.nn.elu, "round": tf.round, "sign": tf.sign, "sin": tf.sin,
        "tanh": tf.tanh, "logistic": tf.sigmoid, "square": tf.square,
        "relu_n1_to_1": lambda x: tf.maximum(-1.0, tf.minimum(x, 1.0)),
        "leaky_relu": lambda x: tf.nn.leaky_relu(x, 0.3),
        "hard_swish": lambda x: x * tf.nn.relu6(x + 3) * 0.16666667,
        "gelu": lambda x: tf.nn.gelu(x, approximate=False), "gelu_tanh": lambda x: tf.nn.gelu(x, approximate=True),
        "prelu": lambda x: tf.nn.relu(x) + tf.constant(noise(1, 4)) * -tf.nn.relu(-x),
        "softmax": tf.nn.softmax, "log_softmax": tf.nn.log_softmax, "l2_norm": lambda x: tf.nn.l2_normalize(x, -1),
        "cast": lambda x: tf.cast(x, tf.int32), "zeros_like": lambda x: x + tf.zeros_like(x),
    }.items()
} | {
    name: (function, [V], True)
    for name, function in {"log": tf.math.log, "sqrt": tf.sqrt, "rsqrt": tf.math.rsqrt}.items()
}  # fmt: skip
W = spec([4, 5])
I5 = spec([3, 5], tf.int32)
BINARY = {
    "add": (lambda x, y: x + y, [M, W]), "sub_relu": (lambda x, y: tf.nn.relu(x - y), [M, W]),
    "mul_constant": (lambda x: x * ROW, [M]), "div": (lambda x, y: x / y, [M, W], True),
    "pow": (lambda x, y: tf.pow(x, y), [V, V], True), "maximum": (tf.maximum, [V, V]), "minimum": (tf.minimum, [V, V]),
    "squared_difference": (tf.math.squared_difference, [V, V]), "floor_div": (lambda x, y: x // y, [V, V], True),
    "floor_mod": (lambda x, y: x % y, [V, V], True), "add_n": (lambda x, y, z: tf.add_n([x, y, z]), [V, V, V]),
    "equal": (tf.equal, [I5, I5]), "not_equal": (tf.not_equal, [I5, I5]), "greater": (tf.greater, [V, V]),
    "greater_equal": (tf.greater_equal, [V, V]), "less": (tf.less, [V, V]), "less_equal": (tf.less_equal, [V, V]),
    "logical": (lambda x, y: tf.logical_or(tf.logical_and(x < y, x < 0.5), tf.logical_not(y < 0.0)), [V, V]),
    "select": (lambda x, y: tf.where(x > y, x * 2, y), [V, V]),
    "add_int": (lambda x, y: x + y * 2, [I5, I5]),
}  # fmt: skip
INDEX = spec([3], tf.int32)
MOVES = {
    "reshape": (lambda x: tf.reshape(x, [6, -1]), [M]), "squeeze": (tf.squeeze, [spec([1, 3, 1, 4])]),
    "expand_dims": (lambda x: tf.expand_dims(x, 1), [V]), "transpose": (lambda x: tf.transpose(x, [0, 3, 1, 2]), [M]),
    "concat": (lambda x, y: tf.concat([x, y], -1), [V, V]), "split": (lambda x: tf.split(x, 2, 2), [V]),
    "split_v": (lambda x: tf.split(x, [1, 3, 1], 1), [V]), "slice": (lambda x: tf.slice(x, [0, 1, 2], [2, -1, 1]), [V]),
    "strided": (lambda x: x[:, 4:0:-2, 1], [V]), "strided_new": (lambda x: x[..., tf.newaxis, 1:3], [V]),
    "strided_last": (lambda x: x[:, -1], [V]), "pad": (lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1]]), [V]),
    "pad_value": (lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1]], constant_values=3.0), [V]),
    "mirror": (lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1]], "REFLECT"), [V]),
    "mirror_symmetric": (lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1]], "SYMMETRIC"), [V]),
    "gather": (lambda x, y: tf.gather(x, y, axis=1), [V, INDEX]),
    "gather_batch": (lambda x, y: tf.gather(x, y, axis=1, batch_dims=1), [V, spec([2, 3], tf.int32)]),
    "gather_nd": (lambda x: tf.gather_nd(x, [[0, 1], [1, 4]]), [V]),
    "pack": (lambda x, y: tf.stack([x, y], 1), [V, V]), "unpack": (lambda x: tf.unstack(x, axis=2), [V]),
    "tile": (lambda x: tf.tile(x, [1, 2, 3]), [V]), "reverse": (lambda x: tf.reverse(x, [1]), [V]),
    "broadcast_to": (lambda x: tf.broadcast_to(x, [2, 4, 5]), [W]),
    "scatter_nd": (lambda x: tf.scatter_nd([[1], [3]], x, [5, 5, 4]), [V]),
    "shape": (lambda x: x * tf.cast(tf.shape(x)[1], F), [V]),
    "reverse_sequence": (lambda x: tf.reverse_sequence(x, [3, 2], seq_axis=1, batch_axis=0), [V]),
}  # fmt: skip
REDUCE = {
    "mean": (lambda x: tf.reduce_mean(x, [1, 2]), [M]),
    "mean_keep": (lambda x: tf.reduce_mean(x, [1, 2], True), [M]),
    "sum": (lambda x: tf.reduce_sum(x, -1), [M]),
    "reduce_max": (lambda x: tf.reduce_max(x, 1), [M]),
    "reduce_min": (lambda x: tf.reduce_min(x, [0, 3]), [M]),
    "reduce_prod": (lambda x: tf.reduce_prod(x, 2), [M]),
    "reduce_any": (lambda x: tf.reduce_any(x > 1.5, 2), [M]),
    "reduce_all": (lambda x: tf.reduce_all(x > -1, 2), [M]),
    "arg_max": (lambda x: tf.argmax(x, 2, tf.int32), [M]),
    "arg_min": (lambda x: tf.argmin(x, 1), [M]),
    "top_k": (lambda x: tf.math.top_k(x, 3), [V]),
    "cumsum": (lambda x: tf.cumsum(x, 1), [V]),
    "cumsum_back": (lambda x: tf.cumsum(x, 1, exclusive=True, reverse=True), [V]),
    "one_hot": (lambda x: tf.one_hot(x, 4, 2.0, -1.0), [INDEX]),
    "dense": (lambda x: tf.nn.relu(x @ kernel(4, 3) + [1.0, 2, 3]), [spec([2, 4])]),
    "dense_3d": (lambda x: tf.tensordot(x, kernel(4, 3), 1), [V]),
    "matmul": (lambda x, y: tf.matmul(x, y), [spec([2, 3, 4]), spec([2, 4, 5])]),
    "matmul_turned": (lambda x, y: tf.matmul(x, y, transpose_b=True), [spec([2, 3, 4]), spec([2, 5, 4])]),
    "embedding": (lambda x: tf.nn.embedding_lookup(kernel(6, 4), x), [INDEX]),
    "fake_quant": (lambda x: tf.quantization.fake_quant_with_min_max_args(x, -1.5, 1.5), [V]),
}


def family(name, cases):
    arrays = {}
    for case, (function, specs, *positive) in cases.items():
        try:
            content = convert(function, specs)
        except Exception as error:
            log(f"{case}: {str(error)[:200]}")
            continue
        feeds = inputs(specs, bool(positive))
        store(arrays, case, content, feeds)
    save(name, arrays)


def store(arrays, case, content, feeds):
    arrays[f"{case}/model"] = np.frombuffer(content, np.uint8)
    for key, value in feeds.items():
        arrays[f"{case}/in/{key}"] = value
    for key, value in run(content, feeds, case in PLAIN).items():
        arrays[f"{case}/out/{key}"] = value


def save(name, arrays):
    """In parts that stay below 30 kB."""
    parts, size = [{}], 0
    for case in dict.fromkeys(key.split("/")[0] for key in arrays):
        mine = {key: value for key, value in arrays.items() if key.split("/")[0] == case}
        with io.BytesIO() as buffer:
            np.savez_compressed(buffer, **mine)
            length = len(buffer.getvalue())
        if size + length > 29_000:
            parts.append({})
            size = 0
        parts[-1] |= mine
        size += length
    for old in HERE.glob(f"{name}_?.npz"):
        old.unlink()
    for number, part in enumerate(parts):
        np.savez_compressed(HERE / f"{name}_{number}.npz", **part)
    log(f"{name}: {len({k.split('/')[0] for k in arrays})} cases in {len(parts)} files")


def network():
    """A small CNN with every common block: residual, depthwise, concat, upsampling, pooled head."""
    w = {n: kernel(*s) for n, s in {"a": (3, 3, 3, 8), "d": (3, 3, 8, 1), "p": (1, 1, 8, 8), "h": (8, 5)}.items()}
    bias = tf.constant(noise(8))

    def body(x):
        a = tf.nn.relu6(tf.nn.bias_add(tf.nn.conv2d(x, w["a"], 2, "SAME"), bias))
        d = tf.nn.relu6(tf.nn.depthwise_conv2d(a, w["d"], [1, 1, 1, 1], "SAME") + bias)
        r = a + tf.nn.conv2d(d, w["p"], 1, "SAME")
        c = tf.concat([r, tf.nn.max_pool2d(r, 3, 1, "SAME")], -1)
        u = tf.nn.avg_pool2d(c, 2, 2, "VALID")
        g = tf.reduce_mean(u[..., :8], [1, 2])
        return {"scores": tf.nn.softmax(g @ w["h"] + bias[:5]), "map": tf.nn.relu(u)}

    return body, [spec([1, 16, 16, 3])]


def network_kinds():
    body, specs = network()
    samples = [inputs(specs) for _ in range(8)]

    def representative():
        yield from (dict(sample) for sample in samples)

    def float16(c):
        c.optimizations = [tf.lite.Optimize.DEFAULT]
        c.target_spec.supported_types = [tf.float16]

    def dynamic(c):
        c.optimizations = [tf.lite.Optimize.DEFAULT]

    def integer(c, ops=tf.lite.OpsSet.TFLITE_BUILTINS_INT8, io=tf.int8):
        c.optimizations = [tf.lite.Optimize.DEFAULT]
        c.representative_dataset = representative
        c.target_spec.supported_ops = [ops]
        if io is not None:
            c.inference_input_type = c.inference_output_type = io

    sixteen = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    kinds = {
        "float32": None,
        "float16": float16,
        "dynamic": dynamic,
        "int8": integer,
        "uint8_io": lambda c: integer(c, io=tf.uint8),
        "int8_float_io": lambda c: integer(c, io=None),
        "int16": lambda c: integer(c, sixteen, tf.int16),
    }
    arrays = {}
    for kind, prepare in kinds.items():
        content = convert(body, specs, prepare)
        feeds = dict(samples[0])
        detail = tf.lite.Interpreter(model_content=content).get_input_details()[0]
        if detail["dtype"] != np.float32:
            scale, point = detail["quantization"]
            info = np.iinfo(detail["dtype"])
            feeds["x"] = np.clip(np.round(feeds["x"] / scale) + point, info.min, info.max).astype(detail["dtype"])
        store(arrays, kind, content, feeds)
        if kind in ("float32", "int8"):
            (HERE / f"network_{kind}.tflite").write_bytes(content)
    # the converter leaves weights below 1024 elements in float
    dense, specs = kernel(64, 32), [spec([2, 64])]
    for kind in ("float16", "dynamic"):
        store(arrays, f"dense_{kind}", convert(lambda x: tf.nn.relu(x @ dense), specs, kinds[kind]), inputs(specs))
    save("network", arrays)


def signatures():
    """Two entry points in one file."""
    module = tf.Module()
    module.double = tf.function(lambda x: {"twice": x * 2}, input_signature=[tf.TensorSpec([2, 3], F, name="x")])
    module.half = tf.function(lambda v: {"part": v / 2 + 1}, input_signature=[tf.TensorSpec([None, 3], F, name="v")])
    concrete = [module.double.get_concrete_function(), module.half.get_concrete_function()]
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, {"double": concrete[0], "half": concrete[1]})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["double", "half"])
        (HERE / "two_signatures.tflite").write_bytes(converter.convert())


def refused():
    """Control flow, a custom operator and a dynamic one, to be listed all at once."""

    def body(x):
        y = tf.cond(tf.reduce_sum(x) > 0, lambda: x * 2, lambda: x - 1)
        return tf.raw_ops.Betainc(a=y, b=tf.abs(y), x=y), tf.where(x > 0)

    def allow(converter):
        converter.allow_custom_ops = True

    (HERE / "refused.tflite").write_bytes(convert(body, [spec([2, 3])], allow))


def integer_ops():
    """Single operators quantized to int8, per channel where there are weights."""
    arrays = {}
    chosen = {
        n: SPATIAL[n]
        for n in (
            "conv_same",
            "conv_same_stride",
            "depthwise",
            "max_pool",
            "average_pool",
            "bilinear_half",
            "nearest_half",
            "pad_conv",
            "transpose_conv_same",
            "conv_dilated",
        )
    }
    chosen |= {
        n: UNARY[n]
        for n in (
            "relu",
            "relu6",
            "tanh",
            "logistic",
            "softmax",
            "leaky_relu",
            "hard_swish",
            "abs",
            "prelu",
            "elu",
            "gelu",
            "exp",
            "l2_norm",
            "rsqrt",
            "log_softmax",
        )
    }
    chosen |= {
        n: BINARY[n]
        for n in (
            "add",
            "sub_relu",
            "mul_constant",
            "maximum",
            "minimum",
            "greater",
            "div",
            "squared_difference",
            "select",
        )
    }
    chosen |= {
        n: MOVES[n]
        for n in (
            "reshape",
            "transpose",
            "concat",
            "split",
            "slice",
            "strided",
            "pad",
            "pad_value",
            "mirror",
            "gather",
            "pack",
            "unpack",
            "tile",
        )
    }
    chosen |= {n: REDUCE[n] for n in ("mean", "sum", "reduce_max", "arg_max", "dense", "dense_3d", "matmul", "top_k")}
    for case, (function, specs, *positive) in chosen.items():
        samples = [inputs(specs, bool(positive)) for _ in range(16)]

        def prepare(c, samples=samples):
            c.optimizations = [tf.lite.Optimize.DEFAULT]
            c.representative_dataset = lambda: (dict(s) for s in samples)
            c.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
            c.inference_input_type = c.inference_output_type = tf.int8

        try:
            content = convert(function, specs, prepare)
        except Exception as error:
            log(f"int8 {case}: {str(error)[:200]}")
            continue
        feeds = {}
        for detail in tf.lite.Interpreter(model_content=content).get_signature_runner().get_input_details().items():
            name, detail = detail
            value = samples[0][name]
            if detail["dtype"] == np.int8:
                scale, point = detail["quantization"]
                value = np.clip(np.round(value / scale) + point, -128, 127).astype(np.int8)
            feeds[name] = value
        store(arrays, case, content, feeds)
    save("ops_int8", arrays)


if __name__ == "__main__":
    wanted = set(sys.argv[1:])
    families = {"spatial": SPATIAL, "unary": UNARY, "binary": BINARY, "moves": MOVES, "reduce": REDUCE}
    for name, cases in families.items():
        if not wanted or name in wanted:
            family(f"ops_{name}", cases)
    if not wanted or "int8" in wanted:
        integer_ops()
    if not wanted or "network" in wanted:
        network_kinds()
    if not wanted or "files" in wanted:
        signatures()
        refused()
