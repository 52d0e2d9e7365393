# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Small models with the names and inputs of those on the Neural Processing SDK's pages, for docs/guides/from-snpe.md.

`python make_models.py onnx pytorch tensorflow`: each kind needs its framework. The weights are random.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

RNG = np.random.default_rng(0)


def make_onnx() -> None:
    """bvlc_alexnet/model.onnx: five convolutions, three pools, dense layers; and pictures for it.

    Beside it the same network as symbolic.onnx (open dimensions), half.onnx (float16) and partly.onnx (the weights of
    its convolutions quantized, nothing else).
    """
    import onnx

    text = """<ir_version: 8, opset_import: ["": 17]>
    bvlc_alexnet (float[1, 3, 64, 64] data_0) => (float[1, 10] prob_1) {
      a = Conv <strides = [2, 2], pads = [2, 2, 2, 2]> (data_0, w1, b1) b = Relu (a)
      c = LRN <size = 5> (b) d = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (c)
      e = Conv <pads = [2, 2, 2, 2], group = 2> (d, w2, b2) f = Relu (e) g = LRN <size = 5> (f)
      h = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (g) i = Conv <pads = [1, 1, 1, 1]> (h, w3, b3) j = Relu (i)
      k = Conv <pads = [1, 1, 1, 1]> (j, w4, b4) l = Relu (k) m = Conv <pads = [1, 1, 1, 1]> (l, w5, b5) n = Relu (m)
      o = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (n) p = Flatten (o)
      q = Gemm <transB = 1> (p, w6, b6) r = Relu (q) s = Gemm <transB = 1> (r, w7, b7) prob_1 = Softmax (s) }"""
    shapes = [(16, 3, 5, 5), (32, 8, 5, 5), (48, 32, 3, 3), (48, 48, 3, 3), (32, 48, 3, 3), (64, 288), (10, 64)]
    model = onnx.parser.parse_model(text)
    for i, shape in enumerate(shapes, 1):
        weight = RNG.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, f"w{i}"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape[0], np.float32), f"b{i}"))
    Path("bvlc_alexnet").mkdir(exist_ok=True)
    onnx.save(model, "bvlc_alexnet/model.onnx")
    variants = {"symbolic": make_symbolic, "half": make_half, "partly": make_partly_quantized}
    for name, change in variants.items():
        variant = onnx.ModelProto.FromString(model.SerializeToString())
        change(variant)
        onnx.save(variant, f"bvlc_alexnet/{name}.onnx")
    names = []
    for i in range(8):
        names.append(f"pictures/{i}.raw")
        Path("pictures").mkdir(exist_ok=True)
        Path(names[-1]).write_bytes(RNG.normal(size=(1, 3, 64, 64)).astype(np.float32).tobytes())
    # the lines before the files choose the outputs of snpe-net-run
    Path("image_file_list.txt").write_text("\n".join(["#s", "%prob_1", *names]) + "\n")


def make_symbolic(model: Any) -> None:
    """Leave the batch, height and width of the input open."""
    opened = ((model.graph.input[0], {0: "batch", 2: "height", 3: "width"}), (model.graph.output[0], {0: "batch"}))
    for value, names in opened:
        for axis, name in names.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


def make_half(model: Any) -> None:
    """Everything float16."""
    import onnx

    for tensor in model.graph.initializer:
        half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def make_partly_quantized(model: Any) -> None:
    """The weights of the convolutions are int8 with a scale per output channel; the rest stays float."""
    import onnx

    kept, nodes = [], []
    for tensor in model.graph.initializer:
        weight = onnx.numpy_helper.to_array(tensor)
        if weight.ndim != 4:
            kept.append(tensor)
            continue
        name = tensor.name
        scale = (np.abs(weight).max((1, 2, 3)) / 100).astype(np.float32)  # wider than the weights need
        codes = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
        for part, value in (("codes", codes), ("scale", scale), ("zero", np.zeros(len(scale), np.int8))):
            kept.append(onnx.numpy_helper.from_array(value, f"{name}_{part}"))
        parts = [f"{name}_{part}" for part in ("codes", "scale", "zero")]
        nodes.append(onnx.helper.make_node("DequantizeLinear", parts, [name], axis=0))
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)


def make_pytorch() -> None:
    """resnet18.pt: TorchScript of a residual network for 1, 3, 224, 224."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inner: int, outer: int, stride: int) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())
            self.b = nn.Sequential(nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer))
            self.short = nn.Conv2d(inner, outer, 1, stride)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.b(self.a(x)) + self.short(x))

    torch.manual_seed(0)
    first = [nn.Conv2d(3, 8, 7, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [Block(8, 8, 1), Block(8, 16, 2), Block(16, 32, 2)]
    network = nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
    torch.jit.trace(network, torch.randn(1, 3, 224, 224)).save("resnet18.pt")


def make_tensorflow() -> None:
    """Frozen graphs: Inception's head, MobileNet-SSD's outputs, DeepLabv3's map; and inception_v3.tflite."""
    import tensorflow as tf

    v1 = tf.compat.v1
    v1.disable_eager_execution()

    def conv(x: tf.Tensor, outer: int, stride: int, name: str) -> tf.Tensor:
        inner = int(x.shape[-1])
        weight = tf.constant(RNG.normal(0, np.sqrt(2 / (9 * inner)), (3, 3, inner, outer)).astype(np.float32))
        return tf.nn.relu(tf.nn.conv2d(x, weight, stride, "SAME"), name=name)

    def save(graph: tf.Graph, path: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(graph.as_graph_def().SerializeToString())

    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, (None, 299, 299, 3), name="input")
        y = conv(conv(x, 8, 4, "InceptionV3/a"), 12, 4, "InceptionV3/b")
        y = tf.concat([conv(y, 8, 1, "InceptionV3/c"), tf.nn.avg_pool2d(y, 3, 1, "SAME")], 3)
        logits = tf.reduce_mean(y, [1, 2]) @ tf.constant(RNG.normal(size=(20, 10)).astype(np.float32))
        tf.reshape(tf.nn.softmax(logits), (-1, 10), name="InceptionV3/Predictions/Reshape_1")
        save(graph, "inception_v3_2016_08_28_frozen.pb")
        with v1.Session(graph=graph) as session:
            converter = v1.lite.TFLiteConverter.from_session(
                session, [x], [graph.get_tensor_by_name("InceptionV3/Predictions/Reshape_1:0")]
            )
            Path("inception_v3.tflite").write_bytes(converter.convert())
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, (1, 300, 300, 3), name="image_tensor")
        x = tf.subtract(x * np.float32(0.00784313771874), 1.0, name="Preprocessor/sub")
        y = tf.reduce_mean(conv(conv(x, 8, 8, "FeatureExtractor/a"), 8, 8, "FeatureExtractor/b"), [1, 2])
        pre = "Postprocessor/BatchMultiClassNonMaxSuppression"
        dense = tf.constant(RNG.normal(size=(8, 16)).astype(np.float32))
        sides = tf.reshape(tf.sigmoid(y @ dense), (1, 4, 4)) * 0.5
        boxes = tf.concat([sides[:, :, :2], sides[:, :, :2] + sides[:, :, 2:]], 2, name=f"{pre}_boxes")
        scores = tf.sigmoid(y @ tf.constant(RNG.normal(size=(8, 4)).astype(np.float32)), name=f"{pre}_scores")
        classes = tf.add(tf.round(scores * 3), 0.0, name=f"{pre}_classes")
        tf.identity(boxes, name="detection_boxes")
        tf.identity(scores, name="detection_scores")
        tf.add(classes, 1.0, name="detection_classes")
        save(graph, "exported/frozen_inference_graph.pb")
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, (1, 513, 513, 3), name="image")
        x = tf.subtract(x * np.float32(0.00784313771874), 1.0, name="sub_7")
        y = conv(conv(x, 8, 8, "MobilenetV2/a"), 21, 1, "MobilenetV2/b")
        y = v1.image.resize_bilinear(y, (513, 513), align_corners=True)
        tf.argmax(y, 3, name="ArgMax")
        save(graph, "deeplabv3_mnv2_pascal_train_aug/frozen_inference_graph.pb")


if __name__ == "__main__":
    for kind in sys.argv[1:]:
        {"onnx": make_onnx, "pytorch": make_pytorch, "tensorflow": make_tensorflow}[kind]()
