# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The peer AIMET-ONNX: min-max, with its better techniques on request. Imports no npukit.

    python quantization_peer_aimet.py JOB.json

As documented: onnxsim, batch-norms folded, QuantizationSimModel with the HTP configuration that has per-channel
weights for convolutions and linear layers, min-max ("default" recipe), compute_encodings on the samples. The recipe
"cle-seqmse" equalizes first (cross-layer equalization) and chooses weights by sequential MSE, "seqmse" does so without
equalizing; "adaround" rounds adaptively, with 500 iterations a layer unless the job says how many. What is evaluated is
the QDQ model that AIMET exports.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

CONFIG = "htp_v73_per_channel_linear"
CANDIDATES = 20  # of SeqMSE, its default
ITERATIONS = 500  # of AdaRound


def quantize(job: dict[str, Any]) -> dict[str, Any]:
    """Write the QDQ model of `job`; gives the seconds without imports, and the settings."""
    import aimet_onnx
    import numpy as np
    import onnx
    import onnxsim
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
    from aimet_onnx.common import quantsim_config
    from aimet_onnx.cross_layer_equalization import equalize_model

    start = time.perf_counter()
    recipe, weights, iterations = job["recipe"], job.get("weights", 8), job.get("iterations", ITERATIONS)
    # Equalization wants to see the batch-norms: it takes the ranges of biases from them.
    model, _ = onnxsim.simplify(onnx.load(job["model"]), skip_fuse_bn=True)
    shapes = {v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in model.graph.input}
    with np.load(job["calibration"]) as data:
        arrays = {name: data[name] for name in data.files}
    samples = [
        {name: array[i].reshape(shapes[name]) for name, array in arrays.items()}
        for i in range(len(next(iter(arrays.values()))))
    ]
    if recipe == "cle-seqmse":
        equalize_model(model)
    else:
        fold_all_batch_norms_to_weight(model)
    config = Path(quantsim_config.__file__).with_name(f"htp_quantsim_config_{CONFIG.removeprefix('htp_')}.json")
    sim = aimet_onnx.QuantizationSimModel(
        model,
        param_type={4: aimet_onnx.int4, 8: aimet_onnx.int8}[weights],
        activation_type={8: aimet_onnx.int8, 16: aimet_onnx.int16}[job["activations"]],
        quant_scheme="min_max",
        config_file=str(config),
    )
    what = f"config {CONFIG}, min_max, int{weights} weights, int{job['activations']} activations"
    if recipe in ("seqmse", "cle-seqmse"):
        # So that all weights have encodings: it would run the model on made-up numbers, no indices of an embedding.
        sim.compute_encodings(samples[:1])
        aimet_onnx.apply_seq_mse(sim, samples, num_candidates=CANDIDATES)
        first = "equalize_model, " if recipe == "cle-seqmse" else ""
        what = f"{first}{what}, apply_seq_mse(num_candidates={CANDIDATES})"
    elif recipe == "adaround":
        aimet_onnx.apply_adaround(sim, samples, num_iterations=iterations)
        what = f"{what}, apply_adaround(num_iterations={iterations})"
    sim.compute_encodings(samples)
    onnx.save(sim.to_onnx_qdq(), job["output"])
    return {"seconds": time.perf_counter() - start, "settings": f"onnxsim, {what}, to_onnx_qdq"}


def main(path: str) -> None:
    """Do the job in the file at `path`."""
    job = json.loads(Path(path).read_text())
    Path(job["result"]).write_text(json.dumps(quantize(job)))


if __name__ == "__main__":
    main(sys.argv[1])
