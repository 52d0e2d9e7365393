# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Transformers and recurrent networks: ViT, BERT, a Llama block, a bidirectional LSTM.

Shapes are computed in the graph and masks are built there, as the exporter leaves them.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper

from networks.builder import Builder

_LOWEST = float(np.finfo(np.float32).min)


def vit(layers: int, width: int, heads: int, size: int, patch: int, classes: int) -> onnx.ModelProto:
    """A vision transformer with a class token; (12, 768, 12, 224, 16, 1000) is ViT-B/16."""
    b = Builder("vit", 16)
    x = b.input("pixel_values", ["batch", 3, size, size])
    batch = b.dim(x, 0)
    with b.scope("embeddings"):
        weight = b.normal("projection.weight", [width, 3, patch, patch], 1 / math.sqrt(3 * patch * patch))
        bias = b.normal("projection.bias", [width], 0.1)
        x = b.op("Conv", x, weight, bias, kernel_shape=[patch] * 2, strides=[patch] * 2, pads=[0] * 4, group=1)
        shape = b.op("Shape", x)
        start = b.op("Slice", shape, b.constant([0]), b.constant([2]), b.constant([0]))
        x = b.op("Reshape", x, b.op("Concat", start, b.constant([-1]), axis=0))
        x = b.op("Transpose", x, perm=[0, 2, 1])
        x = b.op("Concat", _expand(b, b.normal("cls_token", [1, 1, width], 0.3), batch), x, axis=1)
        x = b.op("Add", x, b.normal("position_embeddings", [1, (size // patch) ** 2 + 1, width], 0.3))
    for i in range(layers):
        with b.scope(f"layer.{i}"):
            y = b.layer_norm(x, width, "layernorm_before", 1e-12)
            x = b.op("Add", _attention(b, y, width, heads, gain=1.5), x)
            y = b.layer_norm(x, width, "layernorm_after", 1e-12)
            y = b.linear(b.gelu(b.linear(y, width, 4 * width, "intermediate")), 4 * width, width, "output")
            x = b.op("Add", y, x)
    x = b.layer_norm(x, width, "layernorm", 1e-12)
    x = b.op("Gather", x, b.constant(0), axis=1)
    b.output(b.gemm(x, width, classes, "classifier"), "logits", ["batch", classes])
    return b.model()


def _expand(b: Builder, value: str, batch: str) -> str:
    """`value.expand(batch, -1, -1)`: the exporter replaces -1 by 1 with Equal and Where."""
    shape = b.shape(batch, -1, -1)
    ones = b.op("ConstantOfShape", b.constant([3]), value=helper.make_tensor("value", TensorProto.INT64, [1], [1]))
    wanted = b.op("Where", b.op("Equal", shape, b.op("Mul", ones, b.constant(-1))), ones, shape)
    return b.op("Expand", value, wanted)


def _attention(
    b: Builder, x: str, width: int, heads: int, mask: str = "", *, gain: float = 1.0, share: float = 1.0
) -> str:
    """Attention of several heads; `mask` is added to the scores, `gain` sharpens them, `share` scales the result."""
    head = width // heads

    def split(y: str, perm: list[int]) -> str:
        return b.op("Transpose", b.view(y, b.dim(y, 0), b.dim(y, 1), heads, head), perm=perm)

    with b.scope("attention"):
        q = split(b.linear(x, width, width, "query", gain=gain), [0, 2, 1, 3])
        k = split(b.linear(x, width, width, "key", gain=gain), [0, 2, 3, 1])
        v = split(b.linear(x, width, width, "value"), [0, 2, 1, 3])
        scores = b.op("Div", b.op("MatMul", q, k), b.constant(math.sqrt(head), np.float32))
        scores = b.op("Add", scores, mask) if mask else scores
        y = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
        y = b.op("Transpose", y, perm=[0, 2, 1, 3])
        y = b.view(y, b.dim(y, 0), b.dim(y, 1), width)
        return b.linear(y, width, width, "output", gain=share)


def bert(layers: int, width: int, heads: int, vocabulary: int, positions: int) -> onnx.ModelProto:
    """A BERT encoder with pooler; (12, 768, 12, 30522, 512) is BERT-base. Inputs are int64, as exported."""
    b = Builder("bert", 12)
    ids, mask, types = (
        b.input(name, ["batch", "sequence"], TensorProto.INT64)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    wide = b.op("Unsqueeze", b.op("Unsqueeze", mask, b.constant([1])), b.constant([2]))
    inverted = b.op("Sub", b.constant(1.0, np.float32), b.op("Cast", wide, to=TensorProto.FLOAT))
    bias = b.op("Mul", inverted, b.constant(_LOWEST, np.float32))
    with b.scope("embeddings"):
        words = b.op("Gather", b.normal("word_embeddings.weight", [vocabulary, width], 1.0), ids)
        kinds = b.op("Gather", b.normal("token_type_embeddings.weight", [2, width], 0.5), types)
        length = b.op("Unsqueeze", b.dim(ids, 1), b.constant([0]))
        table = b.constant(np.arange(positions)[None])
        place = b.op("Slice", table, b.constant([0]), length, b.constant([1]), b.constant([1]))
        places = b.op("Gather", b.normal("position_embeddings.weight", [positions, width], 0.5), place)
        x = b.layer_norm(b.op("Add", b.op("Add", words, kinds), places), width, "LayerNorm", 1e-12)
    for i in range(layers):
        with b.scope(f"layer.{i}"):
            y = _attention(b, x, width, heads, bias, gain=1.5, share=0.5)
            x = b.layer_norm(b.op("Add", y, x), width, "LayerNorm0", 1e-12)
            y = b.linear(b.gelu(b.linear(x, width, 4 * width, "intermediate")), 4 * width, width, "output", gain=0.5)
            x = b.layer_norm(b.op("Add", y, x), width, "LayerNorm1", 1e-12)
    first = b.op("Gather", x, b.constant(0), axis=1)
    pooled = b.op("Tanh", b.gemm(first, width, width, "pooler"))
    b.output(x, "last_hidden_state", ["batch", "sequence", width])
    b.output(pooled, "pooler_output", ["batch", width])
    return b.model()


def llama(width: int, heads: int, groups: int, inner: int) -> onnx.ModelProto:
    """A Llama decoder block: RMSNorm spelled out, rotary embedding, grouped queries, causal mask, SwiGLU."""
    b = Builder("llama_block", 3)
    x = b.input("hidden_states", ["batch", "sequence", width])
    mask = b.input("attention_mask", ["batch", "sequence"], TensorProto.INT64)
    batch, length, head = b.dim(x, 0), b.dim(x, 1), width // heads
    cosine, sine = _rotary(b, length, head)
    bias = _causal(b, mask, batch, length)
    with b.scope("self_attn"):
        y = _rms_norm(b, x, width, "input_layernorm")

        def split(name: str, count: int, gain: float) -> str:
            made = b.linear(y, width, count * head, name, bias=False, gain=gain)
            return b.op("Transpose", b.view(made, batch, length, count, head), perm=[0, 2, 1, 3])

        q = _rotate(b, split("q_proj", heads, 1.5), head, cosine, sine)
        k = _repeat(b, _rotate(b, split("k_proj", groups, 1.5), head, cosine, sine), batch, length, groups, heads, head)
        v = _repeat(b, split("v_proj", groups, 1.0), batch, length, groups, heads, head)
        scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = b.op("Add", b.op("Mul", scores, b.constant(head**-0.5, np.float32)), bias)
        y = b.op("Transpose", b.op("MatMul", b.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        y = b.linear(b.view(y, batch, length, -1), width, width, "o_proj", bias=False)
    x = b.op("Add", x, y)
    with b.scope("mlp"):
        y = _rms_norm(b, x, width, "post_attention_layernorm")
        gate = b.linear(y, width, inner, "gate_proj", bias=False)
        gate = b.op("Mul", gate, b.op("Sigmoid", gate))
        y = b.op("Mul", gate, b.linear(y, width, inner, "up_proj", bias=False))
        y = b.linear(y, inner, width, "down_proj", bias=False)
    b.output(b.op("Add", x, y), "output", ["batch", "sequence", width])
    return b.model()


def _rms_norm(b: Builder, x: str, width: int, name: str) -> str:
    with b.scope(name):
        x = b.op("Cast", x, to=TensorProto.FLOAT)
        mean = b.op("ReduceMean", b.op("Pow", x, b.constant(2.0, np.float32)), axes=[-1])
        root = b.op("Sqrt", b.op("Add", mean, b.constant(1e-6, np.float32)))
        y = b.op("Mul", x, b.op("Div", b.constant(1.0, np.float32), root))
        gamma = b.weight("weight", b.random.uniform(0.5, 1.5, width))
        return b.op("Mul", gamma, b.op("Cast", y, to=TensorProto.FLOAT))


def _rotary(b: Builder, length: str, head: int) -> tuple[str, str]:
    """Cosine and sine of positions times inverse frequencies, [1, 1, sequence, head], from an arange in the graph."""
    with b.scope("rotary_emb"):
        inverse = 10000.0 ** (-np.arange(0, head, 2, dtype=np.float32) / head)
        frequencies = b.weight("inv_freq", inverse[None, :, None])
        place = b.op("Range", b.constant(0), length, b.constant(1))
        place = b.op("Unsqueeze", b.op("Unsqueeze", place, b.constant([0])), b.constant([1]))
        angles = b.op("MatMul", frequencies, b.op("Cast", place, to=TensorProto.FLOAT))
        angles = b.op("Transpose", angles, perm=[0, 2, 1])
        both = b.op("Concat", angles, angles, axis=-1)
        axes = b.constant([1])
        return b.op("Unsqueeze", b.op("Cos", both), axes), b.op("Unsqueeze", b.op("Sin", both), axes)


def _rotate(b: Builder, x: str, head: int, cosine: str, sine: str) -> str:
    """The rotary embedding: x * cos + rotate_half(x) * sin."""
    low, high = b.slice(x, 3, 0, head // 2), b.slice(x, 3, head // 2)
    turned = b.op("Concat", b.op("Neg", high), low, axis=-1)
    return b.op("Add", b.op("Mul", x, cosine), b.op("Mul", turned, sine))


def _repeat(b: Builder, x: str, batch: str, length: str, groups: int, heads: int, head: int) -> str:
    """`repeat_kv`: x[:, :, None].expand(...).reshape(...)."""
    times = heads // groups
    wide = b.op("Unsqueeze", x, b.constant([2]))
    wide = b.op("Expand", wide, b.shape(batch, groups, times, length, head))
    return b.view(wide, batch, heads, length, head)


def _causal(b: Builder, mask: str, batch: str, length: str) -> str:
    """The lowest float above the diagonal and where `mask` is 0, as [batch, 1, sequence, sequence]."""
    with b.scope("causal_mask"):
        low = helper.make_tensor("value", TensorProto.FLOAT, [1], [_LOWEST])
        full = b.op("ConstantOfShape", b.shape(length, length), value=low)
        upper = b.op("Trilu", full, b.constant(1), upper=1)
        place = b.op("Range", b.constant(0), length, b.constant(1))
        column = b.op("Reshape", place, b.constant([-1, 1]))
        later = b.op("Cast", b.op("Greater", place, column), to=TensorProto.FLOAT)
        upper = b.op("Mul", upper, later)
        causal = b.op("Unsqueeze", b.op("Unsqueeze", upper, b.constant([0])), b.constant([1]))
        causal = b.op("Expand", causal, b.shape(batch, 1, length, length))
        seen = b.op("Unsqueeze", b.op("Unsqueeze", mask, b.constant([1])), b.constant([2]))
        sums = b.op("Add", causal, b.op("Cast", seen, to=TensorProto.FLOAT))
        padded = b.op("Equal", sums, b.constant(0.0, np.float32))
        return b.op("Where", padded, b.constant(_LOWEST, np.float32), causal)


def lstm(features: int, hidden: int, layers: int, classes: int) -> onnx.ModelProto:
    """A bidirectional LSTM tagger, batch first, with states of zeros made in the graph, and a dense layer."""
    b = Builder("bilstm", 5)
    x = b.input("input", ["batch", "sequence", features])
    zeros = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    state = b.op("ConstantOfShape", b.shape(2 * layers, b.dim(x, 0), hidden), value=zeros)
    x = b.op("Transpose", x, perm=[1, 0, 2])
    width = features
    for i in range(layers):
        with b.scope(f"lstm.{i}"):
            w = b.normal("W", [2, 4 * hidden, width], 1.5 / math.sqrt(width))
            r = b.normal("R", [2, 4 * hidden, hidden], 1 / math.sqrt(hidden))
            bias = b.normal("B", [2, 8 * hidden], 0.3)
            own = b.slice(state, 0, 2 * i, 2 * i + 2)
            y, last, _ = b.ops("LSTM", 3, x, w, r, bias, "", own, own, direction="bidirectional", hidden_size=hidden)
            y = b.op("Transpose", y, perm=[0, 2, 1, 3])
            x = b.op("Reshape", y, b.constant([0, 0, -1]))
            width = 2 * hidden
    scores = b.linear(b.op("Transpose", x, perm=[1, 0, 2]), width, classes, "fc")
    b.output(scores, "output", ["batch", "sequence", classes])
    b.output(last, "hidden", [2, "batch", hidden])
    return b.model()
