# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From LeRobot's SmolVLA checkpoint to three ONNX models; torch is imported where it is used.

One component at a time is in memory, in float32: its weights are loaded, the reference (`model.SmolVLA`) computes its
part of the probes' chunks, the component is exported and compared, and all of it is let go before the next.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from npukit.errors import ModelError
from npukit.policies.kinds import Array, Exported, ExportRequest, Probe
from npukit.policies.package import Camera, Component, Port
from npukit.policies.parity import difference
from npukit.policies.smolvla import weights as loading
from npukit.policies.smolvla.config import EMPTY, STATE, SmolVLAConfig, step_times, time_embeddings

log = logging.getLogger(__name__)

VISION, BACKBONE, HEAD = "vision_encoder", "llm_backbone", "action_head"
OPSET = 20
_PROBES = 2
_TEXT = "vlm_with_expert.vlm.model.text_model."
_EXPERT = "vlm_with_expert.lm_expert."


def ports(c: SmolVLAConfig) -> tuple[Component, ...]:
    """The components, in the order they run, with what they take and give; no artifacts yet."""
    width, prefix = c.text.width, c.prefix
    cache = (len(c.cached), c.text.kv_heads, prefix, c.text.head_dim)
    crossing = [i for i, layer in enumerate(c.cached) if c.layers[layer].cross]
    where = f"entries {crossing} (cross-attending) hold what the expert projects them to" if crossing else ""
    keys = Port("kv_keys", "float32", cache, "layer head token channel",
                "keys of the prefix, rotated; positions are counted from the prefix's end; " + where)  # fmt: skip
    values = Port("kv_values", "float32", cache, "layer head token channel", "values of the prefix; " + where)
    pad = Port(
        "prefix_pad_masks", "float32", (1, prefix), "batch token", "1 where a token of the prefix is real, else 0"
    )
    pixels = Port("pixel_values", "float32", (1, 3, c.image, c.image), "batch channel height width",
                  "one camera's image in -1..1, padded at the left and top with -1")  # fmt: skip
    embedded = Port("image_embeddings", "float32", (1, c.image_tokens, width), "batch token channel",
                    "before the scale sqrt(channels), which the backbone applies")  # fmt: skip
    images = [
        Port(f"image_embs_{i}", "float32", embedded.shape, embedded.layout,
             f"image_embeddings of {name}" + ("; anything where the mask is 0" if c.empty else ""))
        for i, name in enumerate(c.cameras, 1)
    ]  # fmt: skip
    words = [
        Port("lang_tokens", "int64", (1, c.tokens), "batch token", "the instruction's tokens, padded on the right"),
        Port("lang_masks", "int64", (1, c.tokens), "batch token", "1 where a token is real, else 0"),
    ]
    seen = [Port("image_masks", "int64", (1, len(c.cameras)), "batch camera", "1 for a camera with an image, else 0")]
    state = Port("state", "float32", (1, c.max_state), "batch number", "normalized, padded with zeros on the right")
    actions = (1, c.chunk_size, c.max_action)
    return (
        Component(VISION, (pixels,), (embedded,), runs=len(c.cameras)),
        Component(BACKBONE, (*images, *words, *(seen if c.empty else ()), state), (keys, values, pad)),
        Component(
            HEAD,
            (
                Port("noisy_actions", "float32", actions, "batch step action", "the chunk so far; noise at first"),
                Port("time_embedding", "float32", (1, c.expert_width), "batch channel",
                     "sines and cosines of the step's time, computed in float64 (config.time_embeddings)"),
                pad, keys, values,
            ),
            (Port("velocity", "float32", actions, "batch step action", "add -1 / num_steps of it to noisy_actions"),),
            runs=c.num_steps,
        ),
    )  # fmt: skip


def runtime_config(c: SmolVLAConfig) -> dict[str, Any]:
    """The numbers that the runtime needs, plain JSON; the network's own under "network"."""
    return {
        "action_dim": c.action, "max_action_dim": c.max_action, "state_dim": c.state, "max_state_dim": c.max_state,
        "num_steps": c.num_steps, "expert_width": c.expert_width, "min_period": c.min_period,
        "max_period": c.max_period, "tokens": c.tokens, "image_size": c.image, "image_tokens": c.image_tokens,
        "prefix_length": c.prefix, "empty_cameras": c.empty,
        "network": {"vision": asdict(c.vision), "text": asdict(c.text), "expert_hidden": c.expert_hidden,
                    "layers": [asdict(layer) for layer in c.layers], "shuffle": c.shuffle},
    }  # fmt: skip


@dataclass
class _Run:
    """What the stages of one export hand on: the reference's and the components' results for each sample."""

    config: SmolVLAConfig
    weights: loading.Weights
    folder: Path
    request: ExportRequest
    samples: list[dict[str, Any]]
    records: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[Array] = field(default_factory=list)


def export_components(checkpoint: Path, folder: Path, options: ExportRequest) -> Exported:
    """Write `vision_encoder.onnx`, `llm_backbone.onnx` and `action_head.onnx`, float32, weights in files beside them.

    Raises:
        MissingDependency: torch is not installed.
        ModelError: the config cannot be honoured, or the weights are not those of the config; all faults are listed.
    """
    loading.need_torch()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    with options.stage("read"):
        config, weights = loading.read(checkpoint, options.config)
    probes = options.probes(_PROBES, (config.chunk_size, config.max_action))
    run = _Run(config, weights, folder, options, [sample(config, probe) for probe in probes] or [random_sample(config)])
    with torch.inference_mode():
        for part in (_vision, _backbone, _head):
            part(run)
            gc.collect()
    made = [
        Component(item.name, item.inputs, item.outputs, item.runs, {"onnx": f"{item.name}.onnx"})
        for item in ports(config)
    ]
    return Exported(
        components=tuple(made),
        config=runtime_config(config),
        chunk_size=config.chunk_size,
        n_action_steps=config.n_action_steps,
        cameras=tuple(
            Camera(name, slot, required=not (config.empty and name.startswith(EMPTY)))
            for slot, name in enumerate(config.cameras)
        ),
        parity=tuple(run.records),
        chunks=tuple(run.chunks) if probes else (),
        probes=tuple(probes),
        notes=config.notes,
    )


def sample(c: SmolVLAConfig, probe: Probe) -> dict[str, Any]:
    """A probe as the components take it: image_N, image_masks, lang_tokens, lang_masks, state, noise."""
    inputs, found = probe.inputs, dict[str, Any]()
    seen = []
    for i, name in enumerate(c.cameras, 1):
        image = inputs.get(name)
        mask = inputs.get(f"{name}_padding_mask")
        seen.append(int(image is not None and (mask is None or bool(np.all(mask)))))
        blank = np.full((1, 3, c.image, c.image), -1.0, np.float32)
        found[f"image_{i}"] = blank if image is None else np.asarray(image, np.float32)
    found["image_masks"] = np.asarray([seen], np.int64)
    for name, key in (
        ("lang_tokens", "observation.language.tokens"),
        ("lang_masks", "observation.language.attention_mask"),
    ):
        row = np.asarray(inputs[key], np.int64)[:, : c.tokens]
        found[name] = np.pad(row, ((0, 0), (0, c.tokens - row.shape[1])))
    state = np.asarray(inputs[STATE], np.float32)
    found["state"] = np.pad(state, ((0, 0), (0, c.max_state - state.shape[1])))
    noise = probe.noise
    found["noise"] = np.asarray(noise, np.float32)[None] if noise is not None else _noise(c, np.random.default_rng(0))
    return found


def random_sample(c: SmolVLAConfig, seed: int = 0, words: int | None = None) -> dict[str, Any]:
    """A sample of random numbers, the instruction `words` tokens long (a third of what there is room for)."""
    rng = np.random.default_rng(seed)
    words = max(c.tokens // 3, 1) if words is None else words
    real = np.arange(c.tokens) < words
    found: dict[str, Any] = {
        f"image_{i}": rng.uniform(-1, 1, (1, 3, c.image, c.image)).astype(np.float32)
        for i in range(1, len(c.cameras) + 1)
    }
    found["image_masks"] = np.asarray([[i < len(c.cameras) - c.empty for i in range(len(c.cameras))]], np.int64)
    found["lang_tokens"] = np.where(real, rng.integers(0, c.text.vocab, c.tokens), 0)[None].astype(np.int64)
    found["lang_masks"] = real[None].astype(np.int64)
    found["state"] = np.zeros((1, c.max_state), np.float32)
    found["state"][:, : c.state] = rng.standard_normal(c.state)
    found["noise"] = _noise(c, rng)
    return found


def _noise(c: SmolVLAConfig, rng: np.random.Generator) -> Array:
    return rng.standard_normal((1, c.chunk_size, c.max_action)).astype(np.float32)


# ---------------------------------------------------------------- the stages


def _vision(run: _Run) -> None:
    from npukit.policies.smolvla.components import VisionEncoder

    model = loading.skeleton(run.config)
    parts = model.vlm_with_expert.vlm.model
    with run.request.stage(f"{VISION}: weights"):
        _load(run, parts.vision_model, "vlm_with_expert.vlm.model.vision_model.")
        _load(run, parts.connector, "vlm_with_expert.vlm.model.connector.")
    names = [f"image_{i}" for i in range(1, len(run.config.cameras) + 1)]
    with run.request.stage(f"{VISION}: reference"):
        for item in run.samples:
            item["reference_images"] = [model.embed_image(_tensor(item[name])) for name in names]
    module = VisionEncoder(run.config, model)
    del model, parts
    feeds = [{"pixel_values": item[name]} for item in run.samples for name in names]
    wanted = [[image.numpy()] for item in run.samples for image in item["reference_images"]]
    got = iter(_component(run, 0, module, feeds, wanted))
    for item in run.samples:
        item["images"] = [next(got)[0] for _ in names]


def _backbone(run: _Run) -> None:
    from npukit.policies.smolvla.components import Backbone

    c, model = run.config, loading.skeleton(run.config)
    with run.request.stage(f"{BACKBONE}: weights"):
        _load(run, model.vlm_with_expert.vlm.model.text_model, _TEXT)
        _load(run, model.state_proj, "state_proj.")
        for i in c.cached:
            if c.layers[i].cross:
                number = c.layers[i].expert
                attention = model.vlm_with_expert.lm_expert.layers[number].self_attn
                _load(run, attention, f"{_EXPERT}layers.{number}.self_attn.")
    with run.request.stage(f"{BACKBONE}: reference"):
        for item in run.samples:
            seen = list(_tensor(item["image_masks"][0]).bool().reshape(-1, 1))
            words = _tensor(item["lang_tokens"]), _tensor(item["lang_masks"]).bool()
            x, pad, place = model.embed_prefix(item.pop("reference_images"), seen, *words, _tensor(item["state"]))
            item["pad"], item["cache"] = pad, model.prefix(x, pad, place)
    module = Backbone(c, model)
    del model
    feeds = []
    for item in run.samples:
        feed = {f"image_embs_{i}": image for i, image in enumerate(item.pop("images"), 1)}
        feeds.append(feed | {port.name: item[port.name] for port in ports(c)[1].inputs if port.name in item})
    got = _component(run, 1, module, feeds, None)
    for item, result in zip(run.samples, got, strict=True):
        item["kept"] = result


def _head(run: _Run) -> None:
    from npukit.policies.smolvla.components import Head

    c, model = run.config, loading.skeleton(run.config)
    with run.request.stage(f"{HEAD}: weights"):
        _load(run, model.vlm_with_expert.lm_expert, _EXPERT)
        for name in ("action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out"):
            _load(run, getattr(model, name), f"{name}.")
    wanted = []
    with run.request.stage(f"{HEAD}: reference"):
        for item in run.samples:
            wanted.append(model.sample(item["pad"], item.pop("cache"), _tensor(item["noise"])).numpy())
    module = Head(c, model)
    del model
    times = time_embeddings(step_times(c.num_steps), c.expert_width, c.min_period, c.max_period)
    feeds = []
    for item in run.samples:
        keys, values, pad = item["kept"]
        feeds.append({"noisy_actions": item["noise"], "time_embedding": times[:1], "prefix_pad_masks": pad,
                      "kv_keys": keys, "kv_values": values})  # fmt: skip
    _component(run, 2, module, feeds, None)
    del module
    gc.collect()
    with run.request.stage("chunk: parity"):
        session = _session(run, HEAD)
        for feed, reference in zip(feeds, wanted, strict=True):
            x = feed["noisy_actions"]
            for row in range(c.num_steps):
                (velocity,) = session.run(None, {**feed, "noisy_actions": x, "time_embedding": times[row : row + 1]})
                x = x + np.float32(-1.0 / c.num_steps) * velocity
            used = np.s_[0, :, : c.action]
            run.records.append({"component": "chunk", "output": "actions", "against": "the whole network in PyTorch",
                                **difference(reference[used], x[used])})  # fmt: skip
            run.chunks.append(np.ascontiguousarray(reference[used]))


def _load(run: _Run, part: Any, prefix: str) -> None:
    import torch

    run.weights.load(part, prefix, torch.float32)


def _tensor(array: Array) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def _component(
    run: _Run, number: int, module: Any, feeds: list[dict[str, Array]], wanted: list[list[Array]] | None
) -> list[list[Array]]:
    """Export a component, compare ONNX Runtime with PyTorch on `feeds`, and give what ONNX Runtime made of them.

    `wanted` is what to compare with besides the component's own results: those of the reference.
    """
    component = ports(run.config)[number]
    path = run.folder / f"{component.name}.onnx"
    module = module.eval()
    with run.request.stage(f"{component.name}: onnx"):
        export_onnx(module, component, feeds[0], path)
    with run.request.stage(f"{component.name}: parity"):
        expected = []
        for feed in feeds:
            made = module(*(_tensor(feed[port.name]) for port in component.inputs))
            expected.append([item.numpy() for item in (made if isinstance(made, tuple) else (made,))])
        for parameters in (module.parameters(), module.buffers()):
            for tensor in parameters:
                tensor.data = tensor.data.new_empty(0)  # the weights are not needed any more
        gc.collect()
        session = _session(run, component.name)
        got = [session.run([port.name for port in component.outputs], feed) for feed in feeds]
        for against, rows in (("the component in PyTorch", expected), ("the whole network in PyTorch", wanted or [])):
            for theirs, ours in zip(rows, got, strict=bool(rows)):
                for port, a, b in zip(component.outputs, theirs, ours, strict=True):
                    run.records.append({"component": component.name, "output": port.name, "against": against,
                                        **difference(a, b)})  # fmt: skip
    return got


def _session(run: _Run, name: str) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if run.request.threads:
        settings.intra_op_num_threads = run.request.threads
    return ort.InferenceSession(str(run.folder / f"{name}.onnx"), settings, providers=["CPUExecutionProvider"])


def export_onnx(module: Any, component: Component, feed: Mapping[str, Array], path: Path) -> None:
    """Write a component as ONNX (opset 20), its weights in `path` + ".data", and check the file.

    Raises:
        ModelError: torch cannot export it, or the result is no sound model: a fault of npukit or of torch's version.
    """
    import onnx
    import onnx_ir as ir
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    arrays = [_tensor(feed[port.name]) for port in component.inputs]
    try:
        with torch.inference_mode(False), torch.no_grad():
            program = torch.export.export(module, tuple(array.clone() for array in arrays))
            model = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=True, verbose=False).model  # type: ignore[union-attr,unused-ignore]
    except Exception as error:
        log.debug("torch failed", exc_info=True)
        raise ModelError(f"torch {torch.__version__} cannot export it: {str(error).splitlines()[0][:400]}",
                         where=component.name) from error  # fmt: skip
    _name(model, component)
    ir.save(model, path, external_data=f"{path.name}.data")
    onnx.checker.check_model(str(path))


def _name(model: Any, component: Component) -> None:
    """Give a graph the component's names, and take out what only the exporter can use (paths of source files)."""
    graph = model.graph
    for value, port in zip((*graph.inputs, *graph.outputs), (*component.inputs, *component.outputs), strict=True):
        value.name = port.name
    graph.name, model.producer_name, model.producer_version = component.name, "npukit", None
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
