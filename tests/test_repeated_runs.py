# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A graph gives the same result in every run: QNN CPU's Dequantize does so in the first only."""

from pathlib import Path

import numpy as np
import pytest

import npukit

DIGITS = Path(__file__).parents[1] / "examples" / "digits"


@pytest.mark.native
def test_a_quantized_graph_with_a_float_part_on_qnn_cpu(tmp_path: Path) -> None:
    made = npukit.convert(DIGITS / "digits_qdq.onnx", output=tmp_path / "portable.dlc", verify=False)
    assert "Dequantize" not in made.converted.ops
    with np.load(DIGITS / "digits.npz") as data:
        images = data["images"][:3, None, None].astype(np.float32) / 16
    with npukit.Session(made.path) as session, npukit.Session(DIGITS / "digits_qdq.onnx") as reference:
        for image in (*images, images[0]):
            got, expected = session.run({"image": image})["scores"], reference.run({"image": image})["scores"]
            assert np.abs(got - expected).max() < 0.2  # two steps of the output's encoding
