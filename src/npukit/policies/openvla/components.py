# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA's five components as graphs of plain ONNX ops (opset 14), and their weights as those take them.

What the network computes, in a form that compilers for NPUs take as it is:

- shapes are static, tokens are rows of a matrix [tokens, width], every linear layer is a product with a constant;
- positions are rows of constant rotary tables; the queries' tables hold the scale of the scores;
- the causal mask is a constant, and the prefill needs no other: padding stands on the right of every real token;
- the cache has a row a token, which holds that token's rotated keys and values of all layers (`row`): the prefill's
  result is the cache's beginning, and a step's result is one contiguous row. A step never copies the cache: scores of
  the cached tokens and of the new one are put side by side, not their keys;
- norms and softmax are computed in float32 (as the network does in half precision), all else in the weights' dtype.

Integers are int32, which every target's Gather takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from npukit.policies.onnx_writer import Array, Graph, WeightFile
from npukit.policies.openvla.config import (
    EMBEDDING,
    HEAD,
    LANGUAGE,
    VISION_EPSILON,
    OpenVLAConfig,
    Tower,
    expected_shapes,
    projector,
    rotary,
)
from npukit.policies.openvla.weights import Weights
from npukit.policies.package import Component, Port

VISION, PROJECTOR, EMBED, PREFILL, DECODER = "vision_backbone", "projector", "embedding", "prefill", "decoder"
OPSET = 14
"""The newest that the compilers of all targets read, Ascend's among them, whose layer norms are not of opset 17."""
MASKED = -1e4
"""What is added to scores that must not count: exp of it is 0, and half precision holds several of it."""
_ROOT = 2.0**0.5


def ports(c: OpenVLAConfig, dtype: str) -> tuple[Component, ...]:
    """The components, in the order they run, with what they take and give; no artifacts yet."""
    image, text, channels = c.image_tokens, c.text, 3 * len(c.towers)
    pixels = Port("pixel_values", dtype, (1, channels, c.image, c.image), "batch channel height width",
                  "three channels for each tower, normalized as that tower wants them")  # fmt: skip
    patches = Port("patch_features", dtype, (1, image, c.features), "batch token channel", "all towers' channels")
    embedded = Port("image_embeddings", dtype, (1, image, text.width), "batch token channel", "as the language model's")
    ids = Port("input_ids", "int32", (1, c.prompt), "batch token",
               "the prompt, its first token first, padded on the right with any id")  # fmt: skip
    words = Port("text_embeddings", dtype, (1, c.prompt, text.width), "batch token channel", "the prompt's")
    last = Port("last_position", "int32", (1,), "token",
                f"{image} + the prompt's real tokens - 1: where the first action token is predicted")  # fmt: skip
    logits = Port("logits", dtype, (1, text.vocab), "batch token", "of the next token")
    layout = "token channel"
    doc = (
        "a row a token, in order: keys of layer 0 (rotated), values of layer 0, keys of layer 1, ...; position-major, "
        "so that the prefill's rows are the cache's first and a new row is one contiguous piece"
    )
    return (
        Component(VISION, (pixels,), (patches,)),
        Component(PROJECTOR, (patches,), (embedded,)),
        Component(EMBED, (ids,), (words,)),
        Component(
            PREFILL, (words, embedded, last),
            (logits, Port("kv_prompt", dtype, (c.prefill, c.row), layout, doc + "; rows of padding hold anything")),
        ),
        Component(
            DECODER,
            (
                Port("input_ids", "int32", (1, 1), "batch token", "the last predicted token"),
                Port("position", "int32", (1,), "token", "of that token: how many tokens are before it"),
                Port("attention_mask", dtype, (1, c.cache), "batch token",
                     "1 for rows of the cache that are tokens before this one, else 0; its own is not in the cache"),
                Port("kv_cache", dtype, (c.cache, c.row), layout, doc + "; rows that do not count must be finite"),
            ),
            (logits, Port("kv_row", dtype, (1, c.row), layout, "this token's row of the cache")),
            runs=max(c.action - 1, 1),
        ),
    )  # fmt: skip


# ---------------------------------------------------------------- weights


def vision_weights(c: OpenVLAConfig, weights: Weights, out: WeightFile) -> None:
    """Write the towers' weights as `vision` takes them."""
    for tower in c.towers:
        at = tower.prefix
        for part in ("cls_token", "reg_token", "pos_embed"):
            if f"{at}.{part}" in weights.shapes:
                out.add(f"{at}.{part}", weights.read(f"{at}.{part}")[0])
        for part in ("weight", "bias"):
            out.add(f"{at}.patch_embed.proj.{part}", weights.read(f"{at}.patch_embed.proj.{part}"))
        for i in range(tower.blocks):
            block = f"{at}.blocks.{i}"
            for norm in ("norm1", "norm2"):
                for part in ("weight", "bias"):
                    out.add(f"{block}.{norm}.{part}", weights.read(f"{block}.{norm}.{part}"))
            rows, bias = weights.read(f"{block}.attn.qkv.weight"), weights.read(f"{block}.attn.qkv.bias")
            for letter, part_rows, part_bias in zip("qkv", np.split(rows, 3), np.split(bias, 3), strict=True):
                out.add(f"{block}.attn.{letter}.weight", part_rows.T)
                out.add(f"{block}.attn.{letter}.bias", part_bias)
            for name in ("attn.proj", "mlp.fc1", "mlp.fc2"):
                _linear_weights(f"{block}.{name}", weights, out)
            if tower.scaled:
                for name in ("ls1", "ls2"):
                    out.add(f"{block}.{name}.scale_factor", weights.read(f"{block}.{name}.scale_factor"))


def projector_weights(c: OpenVLAConfig, weights: Weights, out: WeightFile) -> None:
    """Write the projector's weights."""
    for name, _, _ in projector(c):
        _linear_weights(f"projector.{name}", weights, out)


def text_weights(c: OpenVLAConfig, weights: Weights, out: WeightFile) -> None:
    """Write the language model's weights, which embedding, prefill and decoder share."""
    for key, shape in expected_shapes(c, weights.shapes).items():
        if key.startswith("language_model."):
            array = weights.read(key)
            out.add(key, array.T if len(shape) == 2 and key != EMBEDDING else array)


def _linear_weights(name: str, weights: Weights, out: WeightFile) -> None:
    out.add(f"{name}.weight", weights.read(f"{name}.weight").T)
    out.add(f"{name}.bias", weights.read(f"{name}.bias"))


# ---------------------------------------------------------------- parts


def _wide(g: Graph, x: str) -> str:
    """`x` in float32."""
    made: str = x if g.dtype == np.float32 else g.op("Cast", x, to=1)
    return made


def _narrow(g: Graph, x: str) -> str:
    """`x`, which is float32, in the weights' dtype."""
    made: str = x if g.dtype == np.float32 else g.op("Cast", x, to=10)
    return made


def _single(value: float) -> Array:
    return np.asarray(value, np.float32)


def _mean(g: Graph, x: str, width: int) -> str:
    """Mean of float32 rows, as sum and quotient: not every target has ReduceMean."""
    made: str = g.op("Div", g.op("ReduceSum", x, g.constant([-1]), keepdims=1), g.constant(_single(width)))
    return made


def _unit(g: Graph, x: str, width: int, epsilon: float) -> str:
    """float32 rows divided by their root mean square."""
    square = _mean(g, g.op("Mul", x, x), width)
    root = g.op("Sqrt", g.op("Add", square, g.constant(_single(epsilon))))
    made: str = g.op("Div", x, root)
    return made


def _layer_norm(g: Graph, x: str, name: str, width: int) -> str:
    x = _wide(g, x)
    x = g.op("Sub", x, _mean(g, x, width))
    x = _narrow(g, _unit(g, x, width, VISION_EPSILON))
    made: str = g.op("Add", g.op("Mul", x, g.weight(f"{name}.weight")), g.weight(f"{name}.bias"))
    return made


def _rms_norm(g: Graph, x: str, name: str, c: OpenVLAConfig) -> str:
    x = _narrow(g, _unit(g, _wide(g, x), c.text.width, c.text.epsilon))
    made: str = g.op("Mul", x, g.weight(f"{name}.weight"))
    return made


def _linear(g: Graph, x: str, name: str, *, bias: bool = True) -> str:
    made: str = g.op("MatMul", x, g.weight(f"{name}.weight"))
    if bias:
        made = g.op("Add", made, g.weight(f"{name}.bias"))
    return made


def _gelu(g: Graph, x: str) -> str:
    """Exact GELU: x / 2 * (1 + erf(x / sqrt 2))."""
    erf = g.op("Erf", g.op("Div", x, g.constant(_ROOT)))
    made: str = g.op("Mul", g.op("Mul", x, g.op("Add", erf, g.constant(1.0))), g.constant(0.5))
    return made


def _softmax(g: Graph, scores: str, mask: str | None = None) -> str:
    """Over the last axis, in float32; `mask` is float32."""
    scores = _wide(g, scores)
    if mask is not None:
        scores = g.op("Add", scores, mask)
    return _narrow(g, g.op("Softmax", scores, axis=-1))


def _heads(g: Graph, x: str, heads: int, size: int, order: tuple[int, ...] = (1, 0, 2)) -> str:
    """Rows [tokens, heads * size] as [heads, tokens, size], or in another `order` of [tokens, heads, size]."""
    made: str = g.op("Transpose", g.op("Reshape", x, g.constant([-1, heads, size])), perm=list(order))
    return made


def _rows(g: Graph, x: str, width: int) -> str:
    """[heads, tokens, size] as rows [tokens, heads * size]."""
    made: str = g.op("Reshape", g.op("Transpose", x, perm=[1, 0, 2]), g.constant([-1, width]))
    return made


# ---------------------------------------------------------------- vision and projector


def vision(c: OpenVLAConfig, out: WeightFile) -> Graph:
    """pixel_values to patch_features."""
    g = Graph(VISION, out, OPSET)
    parts = g.input("pixel_values", g.dtype, (1, 3 * len(c.towers), c.image, c.image))
    split = [parts] if len(c.towers) == 1 else g.op("Split", parts, axis=1, outputs=len(c.towers))
    found = []
    for tower, pixels in zip(c.towers, split, strict=True):
        with g.scope(tower.prefix.rpartition(".")[2]):
            found.append(_tower(g, tower, pixels))
    x = found[0] if len(found) == 1 else g.op("Concat", *found, axis=1)
    shape = (1, c.image_tokens, c.features)
    g.output(g.op("Reshape", x, g.constant(shape)), "patch_features", shape)
    return g


def _tower(g: Graph, tower: Tower, pixels: str) -> str:
    """Rows [patches, width]."""
    side = [tower.patch, tower.patch]
    with g.scope("patch_embed"):
        proj = [g.weight(f"{tower.prefix}.patch_embed.proj.{part}") for part in ("weight", "bias")]
        x = g.op("Conv", pixels, *proj, kernel_shape=side, strides=side, pads=[0, 0, 0, 0], dilations=[1, 1], group=1)
        x = g.op("Transpose", g.op("Reshape", x, g.constant([tower.width, -1])), perm=[1, 0])
        x = g.op("Add", x, g.weight(f"{tower.prefix}.pos_embed"))
        before = [name for part in ("cls_token", "reg_token") if (name := f"{tower.prefix}.{part}") in g.weights.stored]
        if before:
            x = g.op("Concat", *(g.weight(name) for name in before), x, axis=0)
    for i in range(tower.blocks):
        with g.scope(f"blocks.{i}"):
            x = _block(g, tower, f"{tower.prefix}.blocks.{i}", x)
    if tower.extra:
        ends = [g.constant([value]) for value in (tower.extra, tower.extra + tower.grid**2, 0)]
        x = g.op("Slice", x, *ends)
    made: str = x
    return made


def _block(g: Graph, tower: Tower, name: str, x: str) -> str:
    heads, size = tower.heads, tower.width // tower.heads

    def scaled(branch: str, part: str) -> str:
        made: str = g.op("Mul", branch, g.weight(f"{name}.{part}.scale_factor")) if tower.scaled else branch
        return made

    with g.scope("attn"):
        h = _layer_norm(g, x, f"{name}.norm1", tower.width)
        query, key, value = (_linear(g, h, f"{name}.attn.{letter}") for letter in "qkv")
        query = _heads(g, g.op("Mul", query, g.constant(size**-0.5)), heads, size)
        weights = _softmax(g, g.op("MatMul", query, _heads(g, key, heads, size, (1, 2, 0))))
        h = _rows(g, g.op("MatMul", weights, _heads(g, value, heads, size)), tower.width)
        x = g.op("Add", x, scaled(_linear(g, h, f"{name}.attn.proj"), "ls1"))
    with g.scope("mlp"):
        h = _gelu(g, _linear(g, _layer_norm(g, x, f"{name}.norm2", tower.width), f"{name}.mlp.fc1"))
        made: str = g.op("Add", x, scaled(_linear(g, h, f"{name}.mlp.fc2"), "ls2"))
    return made


def projection(c: OpenVLAConfig, out: WeightFile) -> Graph:
    """patch_features to image_embeddings."""
    g = Graph(PROJECTOR, out, OPSET)
    x = g.input("patch_features", g.dtype, (1, c.image_tokens, c.features))
    names = [name for name, _, _ in projector(c)]
    x = g.op("Reshape", x, g.constant([c.image_tokens, c.features]))
    for name in names:
        with g.scope(name):
            x = _linear(g, x, f"projector.{name}")
            if name != names[-1]:
                x = _gelu(g, x)
    shape = (1, c.image_tokens, c.text.width)
    g.output(g.op("Reshape", x, g.constant(shape)), "image_embeddings", shape)
    return g


# ---------------------------------------------------------------- the language model


def embedding(c: OpenVLAConfig, out: WeightFile) -> Graph:
    """input_ids to text_embeddings."""
    g = Graph(EMBED, out, OPSET)
    ids = g.input("input_ids", np.int32, (1, c.prompt))
    g.output(g.op("Gather", g.weight(EMBEDDING), ids, axis=0), "text_embeddings", (1, c.prompt, c.text.width))
    return g


Attend = Callable[[str, str, str], str]
"""Queries, keys (both rotated) and values as rows [tokens, width] to what attention makes of them, of that shape."""


def _rotate(g: Graph, x: str, c: OpenVLAConfig, cos: str, sin: str) -> str:
    """Rows [tokens, width], each head turned by tables [tokens, 1, head_dim / 2]; the result is of the same shape."""
    shape = g.constant([-1, c.text.heads, c.text.head_dim])
    first, second = g.op("Split", g.op("Reshape", x, shape), axis=2, outputs=2)
    made = g.op(
        "Concat",
        g.op("Sub", g.op("Mul", first, cos), g.op("Mul", second, sin)),
        g.op("Add", g.op("Mul", second, cos), g.op("Mul", first, sin)),
        axis=2,
    )
    rows: str = g.op("Reshape", made, g.constant([-1, c.text.width]))
    return rows


def _tables(c: OpenVLAConfig, count: int) -> list[Array]:
    """Cosines and sines [count, 1, head_dim / 2] for keys, and both times the scores' scale for queries."""
    cos, sin = rotary(np.arange(count), c.text.head_dim, c.text.theta)
    scale = np.float32(c.text.head_dim**-0.5)
    return [table[:, None].astype(np.float32) for table in (cos, sin, cos * scale, sin * scale)]


def _layers(g: Graph, c: OpenVLAConfig, x: str, tables: list[str], attends: Iterator[Attend]) -> tuple[str, list[str]]:
    """Rows through all layers: the rows, and each layer's keys and values."""
    kept = []
    for i, attend in zip(range(c.text.layers), attends, strict=False):
        name = f"{LANGUAGE}.layers.{i}"
        with g.scope(f"layers.{i}"):
            with g.scope("self_attn"):
                h = _rms_norm(g, x, f"{name}.input_layernorm", c)
                q, k, v = (_linear(g, h, f"{name}.self_attn.{letter}_proj", bias=False) for letter in "qkv")
                k, q = _rotate(g, k, c, *tables[:2]), _rotate(g, q, c, *tables[2:])
                x = g.op("Add", x, _linear(g, attend(q, k, v), f"{name}.self_attn.o_proj", bias=False))
            with g.scope("mlp"):
                h = _rms_norm(g, x, f"{name}.post_attention_layernorm", c)
                gate, up = (_linear(g, h, f"{name}.mlp.{part}_proj", bias=False) for part in ("gate", "up"))
                h = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
                x = g.op("Add", x, _linear(g, h, f"{name}.mlp.down_proj", bias=False))
        kept += [k, v]
    return x, kept


def _predict(g: Graph, c: OpenVLAConfig, x: str) -> None:
    """One row [1, width] to the output logits."""
    with g.scope("head"):
        x = g.op("MatMul", _rms_norm(g, x, f"{LANGUAGE}.norm", c), g.weight(HEAD))
    g.output(x, "logits", (1, c.text.vocab))


def prefill(c: OpenVLAConfig, out: WeightFile) -> Graph:
    """text_embeddings, image_embeddings and last_position to logits and kv_prompt."""
    g, text = Graph(PREFILL, out, OPSET), c.text
    words = g.input("text_embeddings", g.dtype, (1, c.prompt, text.width))
    image = g.input("image_embeddings", g.dtype, (1, c.image_tokens, text.width))
    last = g.input("last_position", np.int32, (1,))
    with g.scope("sequence"):
        first, rest = g.op("Split", words, g.constant([1, c.prompt - 1]), axis=1, outputs=2)
        x = g.op("Reshape", g.op("Concat", first, image, rest, axis=1), g.constant([c.prefill, text.width]))
    tables = [g.constant(table.astype(g.dtype)) for table in _tables(c, c.prefill)]
    later = np.triu(np.full((1, c.prefill, c.prefill), MASKED, np.float32), 1)

    def attend(q: str, k: str, v: str) -> str:
        query, value = (_heads(g, item, text.heads, text.head_dim) for item in (q, v))
        scores = g.op("MatMul", query, _heads(g, k, text.heads, text.head_dim, (1, 2, 0)))
        return _rows(g, g.op("MatMul", _softmax(g, scores, g.constant(later)), value), text.width)

    x, kept = _layers(g, c, x, tables, iter([attend] * text.layers))
    with g.scope("cache"):
        cache = g.op("Concat", *kept, axis=1)
    with g.scope("head"):
        x = g.op("Gather", x, last, axis=0)
    _predict(g, c, x)
    g.output(cache, "kv_prompt", (c.prefill, c.row))
    return g


def decoder(c: OpenVLAConfig, out: WeightFile) -> Graph:
    """input_ids, position, attention_mask and kv_cache to logits and kv_row."""
    g, text = Graph(DECODER, out, OPSET), c.text
    ids = g.input("input_ids", np.int32, (1, 1))
    position = g.input("position", np.int32, (1,))
    seen = g.input("attention_mask", g.dtype, (1, c.cache))
    cache = g.input("kv_cache", g.dtype, (c.cache, c.row))
    with g.scope("sequence"):
        x = g.op("Reshape", g.op("Gather", g.weight(EMBEDDING), ids, axis=0), g.constant([1, text.width]))
    with g.scope("positions"):
        tables = [g.op("Gather", g.constant(table.astype(g.dtype)), position, axis=0) for table in _tables(c, c.cache)]
    with g.scope("mask"):
        mask = g.op("Mul", g.op("Sub", _wide(g, seen), g.constant(_single(1.0))), g.constant(_single(-MASKED)))
        mask = g.op("Reshape", mask, g.constant([1, 1, c.cache]))
        mask = g.op("Concat", mask, g.constant(np.zeros((1, 1, 1), np.float32)), axis=2)
    with g.scope("cache"):
        parts = g.op("Split", cache, axis=1, outputs=2 * text.layers)

    def attends() -> Iterator[Attend]:
        for keys, values in zip(parts[::2], parts[1::2], strict=True):
            yield lambda q, k, v, keys=keys, values=values: _attend_cached(g, c, (q, k, v), (keys, values), mask)  # type: ignore[misc]

    x, kept = _layers(g, c, x, tables, attends())
    with g.scope("cache"):
        row = g.op("Concat", *kept, axis=1)
    _predict(g, c, x)
    g.output(row, "kv_row", (1, c.row))
    return g


def _attend_cached(g: Graph, c: OpenVLAConfig, new: tuple[str, str, str], past: tuple[str, str], mask: str) -> str:
    """One token over the cached ones and itself; neither keys nor values are put together with the cache."""
    heads, size = c.text.heads, c.text.head_dim
    q, k, v = new
    query = g.op("Reshape", q, g.constant([heads, 1, size]))
    scores = g.op(
        "Concat",
        g.op("MatMul", query, _heads(g, past[0], heads, size, (1, 2, 0))),
        g.op("MatMul", query, g.op("Reshape", k, g.constant([heads, size, 1]))),
        axis=2,
    )
    before, own = g.op("Split", _softmax(g, scores, mask), g.constant([c.cache, 1]), axis=2, outputs=2)
    made = g.op(
        "Add",
        g.op("MatMul", before, _heads(g, past[1], heads, size)),
        g.op("Mul", own, g.op("Reshape", v, g.constant([heads, 1, size]))),
    )
    rows: str = g.op("Reshape", made, g.constant([1, c.text.width]))
    return rows
