# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From LeRobot's ACT checkpoint to `policy.onnx`; torch is imported where it is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npukit.errors import Fault, MissingDependency, ModelError
from npukit.policies.act.config import STATE, ActConfig, read_config
from npukit.policies.act.runtime import COMPONENT
from npukit.policies.kinds import Array, Exported, ExportRequest, Probe
from npukit.policies.package import Camera, Component, Port
from npukit.policies.parity import difference

if TYPE_CHECKING:
    from npukit.policies.act.model import Act

WEIGHTS = "model.safetensors"
_PREFIX = "model."
# Of training (the variational encoder), or statistics that checkpoints before September 2025 hold among the weights.
_UNUSED = ("model.vae_encoder", "normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
_OPSET = 20
_PROBES = 3


def export_components(checkpoint: Path, folder: Path, options: ExportRequest) -> Exported:
    """Write `policy.onnx`: normalized images and states to a chunk of normalized actions, all in one graph.

    Raises:
        MissingDependency: torch is not installed.
        ModelError: the config asks for what is not supported, or the weights are not those of the config; all faults
            are listed.
    """
    try:
        import torch
    except ImportError:
        raise MissingDependency("exporting a policy needs PyTorch", hint="pip install 'npukit[torch]'") from None
    config = read_config(options.config)
    if options.threads:
        torch.set_num_threads(options.threads)
    with options.stage("weights"):
        model = load(checkpoint, config)
    ports = input_ports(config)
    features = dict(zip((port.name for port in ports), _features(config), strict=True))
    probes = options.probes(_PROBES, None)
    feeds = [{name: np.asarray(probe.inputs[feature], np.float32) for name, feature in features.items()}
             for probe in probes] or [_random(ports)]  # fmt: skip
    with options.stage("reference"), torch.inference_mode():
        wanted = [model(*(torch.from_numpy(array) for array in feed.values())).numpy() for feed in feeds]
    with options.stage("onnx"):
        path = folder / f"{COMPONENT}.onnx"
        export_onnx(model, ports, path)
    with options.stage("parity"):
        got = _run(path, feeds, options.threads)
    output = Port(
        "actions", "float32", (1, config.chunk_size, config.action), "batch step action", "normalized actions"
    )
    return Exported(
        components=(Component(COMPONENT, ports, (output,), artifacts={"onnx": path.name}),),
        config={
            "inputs": features,
            "temporal_ensemble_coeff": config.temporal_ensemble_coeff,
            "network": {k: v for k, v in asdict(config).items() if k not in ("images", "state", "env_state", "action")},
        },
        chunk_size=config.chunk_size,
        n_action_steps=config.n_action_steps,
        cameras=tuple(Camera(name, slot) for slot, name in enumerate(config.images)),
        parity=tuple(
            {"component": COMPONENT, "output": "actions", **difference(want, have)}
            for want, have in zip(wanted, got, strict=True)
        ),
        chunks=tuple(want[0] for want in wanted) if probes else (),
        probes=tuple(Probe(probe.inputs, None) for probe in probes),
    )


def input_ports(config: ActConfig) -> tuple[Port, ...]:
    """The component's inputs, in the network's order."""
    ports = [
        Port(f"image_{i}", "float32", (1, *shape), "batch channel height width", f"{name}, normalized")
        for i, (name, shape) in enumerate(config.images.items(), 1)
    ]
    if config.state is not None:
        ports.append(Port("state", "float32", (1, config.state), "batch number", f"{STATE}, normalized"))
    if config.env_state is not None:
        name, length = config.env_state
        ports.append(Port("env_state", "float32", (1, length), "batch number", f"{name}, normalized"))
    return tuple(ports)


def _features(config: ActConfig) -> Iterator[str]:
    yield from config.images
    if config.state is not None:
        yield STATE
    if config.env_state is not None:
        yield config.env_state[0]


def load(checkpoint: Path, config: ActConfig) -> Act:
    """The network with the checkpoint's weights, float32, as it was trained (nothing folded).

    Raises:
        ModelError: the file cannot be read, or tensors are missing, left over, or of another shape.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    from npukit.policies.act.model import Act

    path = checkpoint / WEIGHTS
    if not path.is_file():
        raise ModelError("there is no such file", where=str(path))
    with torch.device("meta"):
        model = Act(config)
    expected = {f"{_PREFIX}{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    faults, state = [], {}
    try:
        with safe_open(path, framework="pt") as file:
            held = {name: name.replace("._orig_mod.", ".") for name in file.keys()}  # noqa: SIM118
            for name, plain in held.items():
                if plain in expected:
                    shape = tuple(file.get_slice(name).get_shape())
                    if shape != expected[plain]:
                        faults.append(Fault(f"shape {list(shape)}, {list(expected[plain])} expected", name))
                        continue
                    state[plain.removeprefix(_PREFIX)] = file.get_tensor(name).float()
                elif not plain.startswith(_UNUSED):
                    faults.append(Fault("no part of the network that config.json describes", name))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"the weights cannot be read: {error}", where=str(path), hint="copy the file again") from None
    faults += [Fault("missing", name) for name in expected if name not in held.values()]
    if faults:
        raise ModelError("the weights are not those of config.json", where=str(path), faults=faults)
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            faults.append(Fault("holds NaN or infinite values", f"{_PREFIX}{name}"))
    if faults:
        raise ModelError("the weights are not all numbers", where=str(path), faults=faults)
    model.load_state_dict(state, assign=True)
    model.pixels = model.positions()
    model.eval().requires_grad_(False)
    return model


def export_onnx(model: Act, ports: tuple[Port, ...], path: Path) -> None:
    """Fold the network and write it as ONNX, the weights beside it (`path` + ".data")."""
    import torch

    model.freeze()
    examples = tuple(torch.from_numpy(array) for array in _random(ports).values())
    names = [port.name for port in ports]
    with torch.no_grad():
        program = torch.onnx.export(
            model,
            examples,
            dynamo=True,
            input_names=names,
            output_names=["actions"],
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=True)


def _random(ports: tuple[Port, ...]) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {port.name: rng.standard_normal(port.shape).astype(np.float32) for port in ports}


def _run(path: Path, feeds: list[dict[str, Array]], threads: int | None) -> list[Any]:
    """The exported model on the feeds, by ONNX Runtime."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if threads:
        settings.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return [session.run(["actions"], feed)[0] for feed in feeds]
