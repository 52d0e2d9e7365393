# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What test_docs.py does not run of docs/guides/from-snpe.md and from-qairt.md: the TensorFlow commands on models that
TensorFlow makes, what becomes of a model's encodings, and that no option of the tables is left out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from test_docs import ROOT, blocks
from test_postprocess import detector

import npukit
from npukit.artifacts import dlc
from npukit.errors import UsageError

_PLACE = Path(os.environ.get("NPUKIT_TENSORFLOW_PYTHON", ROOT / ".venv-tensorflow" / "bin" / "python"))
PYTHON = _PLACE if _PLACE.exists() else None
GUIDE = ROOT / "docs" / "guides" / "from-snpe.md"


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="no TensorFlow environment here (make env-tensorflow)")
def test_tensorflow_commands_of_the_pages(tmp_path: Path) -> None:
    for name in ("from_snpe", "recipes"):
        shutil.copytree(ROOT / "examples" / name, tmp_path / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "NPUKIT_TENSORFLOW_PYTHON": str(PYTHON), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(
        [str(PYTHON), "from_snpe/make_models.py", "tensorflow"], cwd=tmp_path, env=env, check=True, timeout=300
    )
    picture = np.random.default_rng(3).integers(0, 255, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "street.png")
    golden = subprocess.run(
        [str(PYTHON), "-c", FROZEN], cwd=tmp_path, env=env, check=True, timeout=300, capture_output=True, text=True
    )
    commands = [block for block in blocks() if block.page == GUIDE and block.kind == "double"]
    assert len(commands) == 4
    for block in commands:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text], cwd=tmp_path, env=env, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"line {block.line}:\n{done.stdout}\n{done.stderr}"
        assert "PASSED" in done.stdout
    assert Image.open(tmp_path / "segmented" / "map.png").size == (200, 120)
    shares = json.loads((tmp_path / "segmented" / "results.json").read_text())["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    found = json.loads((tmp_path / "detected" / "results.json").read_text())["boxes"]
    expected = [one for one in json.loads(golden.stdout.splitlines()[-1]) if one[0] >= 0.5]
    assert expected
    assert [one["class"] for one in found] == [kind for _, kind, _ in expected]
    np.testing.assert_allclose([one["score"] for one in found], [score for score, _, _ in expected], rtol=1e-4)
    corners = [[left * 200, top * 120, right * 200, bottom * 120] for _, _, (top, left, bottom, right) in expected]
    np.testing.assert_allclose([one["box"] for one in found], corners, atol=0.05)


FROZEN = """
import json
import numpy as np
import tensorflow as tf
from PIL import Image
graph = tf.compat.v1.GraphDef.FromString(open("exported/frozen_inference_graph.pb", "rb").read())
picture = Image.open("street.png").resize((300, 300), Image.Resampling.BILINEAR)
pixels = np.asarray(picture, np.float32)[None] * np.float32(0.00784313771874) - 1
with tf.Graph().as_default() as used, tf.compat.v1.Session(graph=used) as session:
    tf.import_graph_def(graph, name="")
    wanted = [f"detection_{name}:0" for name in ("scores", "classes", "boxes")]
    scores, classes, boxes = session.run(wanted, {"Preprocessor/sub:0": pixels})
rows = [[float(s), int(c), b.tolist()] for s, c, b in zip(scores[0], classes[0], boxes[0])]
print(json.dumps(sorted(rows, reverse=True)))
"""
"""The frozen graph of the SSD section in TensorFlow itself: score, class and box (top, left, bottom, right) of each."""


@pytest.mark.native
def test_the_ssd_commands_fit_the_recipe(tmp_path: Path) -> None:
    (block,) = [b for b in blocks() if b.page == GUIDE and "mobilenet_ssd.yaml" in b.text]
    shutil.copytree(ROOT / "examples" / "recipes", tmp_path / "recipes")
    (tmp_path / "exported").mkdir()
    detector(tmp_path / "exported" / "ssd.onnx")
    Image.fromarray(np.full((120, 200, 3), 255, np.uint8)).save(tmp_path / "street.png")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    text = block.text.replace("frozen_inference_graph.pb", "ssd.onnx")
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        check=True,
        timeout=300,
    )
    (box,) = json.loads((tmp_path / "detected" / "results.json").read_text())["boxes"]
    assert box["class"] == 2
    assert box["score"] == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-4)
    np.testing.assert_allclose(box["box"], [0, 0, 50, 60], atol=1e-3)


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make_models.py onnx` fills."""
    folder = tmp_path_factory.mktemp("alexnet")
    subprocess.run(
        [sys.executable, str(ROOT / "examples" / "from_snpe" / "make_models.py"), "onnx"], cwd=folder, check=True
    )
    return folder


def _scales(path: Path) -> dict[str, np.ndarray]:
    """The scales of the weights of a DLC's convolutions, in order."""
    (graph,) = dlc.read(path)[0].graphs.values()
    weights = [op.inputs[1] for op in graph.ops if op.type == "Conv2d"]
    return [
        np.asarray(tensor.encoding.scales) for tensor in weights if tensor is not None and tensor.encoding is not None
    ]


@pytest.mark.native
@pytest.mark.parametrize("ignore", [False, True])
def test_gaps_are_filled_and_encodings_ignored(
    ignore: bool, alexnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(alexnet)
    made = npukit.quantize(
        "bvlc_alexnet/partly.onnx", calibration="image_file_list.txt", ignore_encodings=ignore, target="sm8750",
        output=tmp_path / "made.dlc",
    )  # fmt: skip
    source = onnx.load("bvlc_alexnet/partly.onnx")
    given = [onnx.numpy_helper.to_array(t) for t in source.graph.initializer if t.name.endswith("_scale")]
    found = _scales(made.path)
    assert len(found) == len(given) == 5
    kept = [np.allclose(ours, theirs, rtol=1e-6) for ours, theirs in zip(found, given, strict=True)]
    assert kept == [not ignore] * 5


@pytest.mark.native
def test_htp_refuses_float_biases_of_another_width(
    alexnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(alexnet)
    none = tmp_path / "none.json"
    none.write_text('{"activation_encodings": {}, "param_encodings": {}}')
    with pytest.raises(UsageError, match="cannot be held so") as caught:
        npukit.quantize(
            "bvlc_alexnet/model.onnx", encodings=none, float_fallback=True, float_bitwidth=16, float_bias_bitwidth=32,
            target="sm8750", output=tmp_path / "made.dlc",
        )  # fmt: skip
    assert len(caught.value.faults) == 7  # each with weights
    assert list(tmp_path.iterdir()) == [none]


ELSEWHERE = {
    "--block-size": "needs a library that is downloaded: test_quantize_forms.py",
    "--float-bias-bitwidth": "is refused: above, and test_quantize_forms.py",
    "--plugin": "docs/guides/custom-ops.md",
    "--saved-model-tag": "test_frontend_tensorflow.py",
    "--saved-model-signature-key": "test_frontend_tensorflow.py",
    "--tflite-signature-name": "test_frontend_tflite.py",
}
"""Options of the tables that no block of the page runs, and what runs them."""


@pytest.mark.parametrize("page", ["from-qairt.md", "from-snpe.md"])
def test_the_blocks_run_every_option_of_the_tables(page: str) -> None:
    text = (ROOT / "docs" / "guides" / page).read_text()
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    option = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
    asked = {flag for ours in rows for flag in option.findall(ours)}
    lines = [
        line
        for block in blocks()
        if block.page.name == page and block.kind in ("run", "slow", "double")
        for line in block.text.splitlines()
        if not line.startswith("#")
    ]
    run = {flag for line in lines for flag in option.findall(line)}
    assert sorted(asked - run - set(ELSEWHERE)) == []
