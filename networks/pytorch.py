# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m networks.pytorch`: networks of PyTorch, saved as .pt2, converted, and compared with PyTorch on QNN CPU.

Those of `networks.pytorch_zoo` need torch; those of transformers are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import npukit
from benchmarks.pages import machine, table
from networks import pytorch_zoo as zoo
from networks.statistics import nearest_pair
from npukit.errors import NpukitError

COSINE = 0.9999
ALIVE = 0.9
HEAD = (
    "network",
    "layers",
    "parameters",
    "QNN ops",
    "export s",
    "convert s",
    "nearest pair",
    "cosine",
    "largest error",
)
PAGE = """# PyTorch's networks

Networks written in PyTorch (`networks/pytorch_zoo.py`; three of transformers {transformers}), with random weights and
statistics taken from data, saved with `torch.export.save`, converted with `npukit convert NAME.pt2 --target qnn-cpu`,
run on QNN CPU, and compared with what PyTorch itself computes: {count} inputs each, the worst output counts.

- *layers*: modules with weights; *convert* has torch's import and export to ONNX in it.
- *nearest pair*: the largest cosine between what two of the inputs give, for the output where it is smallest (alive:
  below {alive:g}; boxes are alike for all inputs, but never the same).
- *cosine*: the smallest between PyTorch's result and QNN CPU's (the goal is {cosine:g}); *largest error*: of an
  output's range.

{table}
{failed}
`digits` was trained on 240 of the 360 handwritten digits of `examples/digits` ({epochs} epochs, shifted by up to a
pixel): top-1 on the other 120 is {top1} with PyTorch and {npu} on QNN CPU.

{machine}.
Written by `make networks-pytorch`, in one run.

What a large model costs in memory and time: [pytorch-memory.md](pytorch-memory.md).
"""
EPOCHS = 30


@dataclass(frozen=True)
class Network:
    """A network, how it is built, and how inputs are drawn.

    Attributes:
        name: file name without suffix.
        build: makes the module.
        feeds: the inputs of a number, by argument name.
        norms: whether batch norms take their statistics from data.
        head: attribute with the last layer of a classifier, whose bias takes the mean off; empty for none.
        stem: attributes with convolutions that no norm follows: their channels get zero mean and unit variance.
    """

    name: str
    build: Callable[[], nn.Module]
    feeds: Callable[[int], dict[str, Tensor]]
    norms: bool = True
    head: str = ""
    stem: tuple[str, ...] = ()


def images(size: int, channels: int = 3) -> Callable[[int], dict[str, Tensor]]:
    """Images with patches of several sizes and a colour cast."""

    def draw(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(1, channels, 1, 1, generator=generator)
        for cells in (2, 4, 8, 16):
            noise = torch.randn(1, channels, cells, cells, generator=generator)
            image = image + nn.functional.interpolate(noise, (size, size), mode="nearest") * (2.0 / cells**0.5)
        return {"image": (image - image.mean()) / image.std()}

    return draw


def floats(**shapes: tuple[int, ...]) -> Callable[[int], dict[str, Tensor]]:
    """Normal values; sequences drift, so that they are not alike."""

    def draw(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        found = {}
        for name, shape in shapes.items():
            level = torch.randn(*shape[:-1], 1, generator=generator)
            found[name] = torch.randn(shape, generator=generator) + level
        return found

    return draw


def speech(seed: int) -> np.ndarray[Any, Any]:
    """Three seconds at 16 kHz like speech: syllables with a gliding pitch and three formants, pauses, soft noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(48_000) / 16_000
    wave = 0.003 * generator.standard_normal(time.size)
    start = generator.uniform(0, 0.3)
    while start < 2.9:
        length, pitch, glide = (generator.uniform(*span) for span in ((0.1, 0.4), (90, 280), (-60, 60)))
        formants = generator.uniform((250, 800, 2000), (900, 2300, 3500))
        since = time - start
        swell = np.sin(np.pi * np.clip(since / length, 0, 1))
        phase = 2 * np.pi * (pitch * time + glide * since**2)
        for harmonic in range(1, 24):
            level = 0.02 + np.exp(-(((harmonic * pitch - formants) / 120) ** 2)).sum()
            wave += 0.2 * level * swell * np.sin(harmonic * phase)
        start += length + generator.uniform(0.02, 0.25)
    return wave.astype(np.float32)


def tokens(seed: int) -> dict[str, Tensor]:
    """A text of 64 tokens and its mask, whose length differs."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 8000, (1, 64), generator=generator)
    mask = (torch.arange(64) < 30 + 7 * (seed % 5)).long()[None]
    return {"ids": ids, "mask": mask}


def step(seed: int) -> dict[str, Tensor]:
    """A token at a position with a filled cache."""
    generator = torch.Generator().manual_seed(seed)
    cache = {name: torch.randn(6, 1, 4, 128, 64, generator=generator) for name in ("keys", "values")}
    token = torch.randint(0, 4000, (1, 1), generator=generator)
    return {"token": token, "position": torch.tensor([40 + 5 * (seed % 8)]), **cache}


NETWORKS = (
    Network("resnet18", lambda: zoo.ResNet((2, 2, 2, 2), False), images(128), head="head"),
    Network("resnet50", lambda: zoo.ResNet((3, 4, 6, 3), True), images(128), head="head"),
    Network("mobilenet_v3", zoo.MobileNetV3, images(128), head="head.3"),
    Network("efficientnet_b0", zoo.EfficientNet, images(128), head="head"),
    Network("vit_tiny", zoo.ViT, images(160), head="head"),
    Network("convnext", zoo.ConvNeXt, images(128), head="head"),
    Network("unet", zoo.UNet, images(128)),
    Network("deeplab_v3", zoo.DeepLab, images(128)),
    Network("yolo", zoo.Yolo, images(160)),
    Network("ssd_lite", zoo.Ssd, images(160)),
    Network("edsr", zoo.Edsr, images(48)),
    Network("lstm_speech", zoo.Lstm, floats(features=(1, 50, 40)), head="head"),
    Network("gru_forecast", zoo.Gru, floats(series=(1, 48, 8), state=(2, 1, 384)), head="head"),
    Network("tcn", zoo.Tcn, floats(series=(1, 16, 600)), head="head"),
    Network("bert", zoo.Bert, tokens),
    Network("gpt_step", zoo.Decoder, step),
    Network("audio_m18", zoo.Audio, floats(waveform=(1, 1, 16000)), head="head"),
)


def of_transformers() -> list[Network]:
    """Architectures of transformers from configurations, where it is installed."""
    if importlib.util.find_spec("transformers") is None:
        return []
    import transformers as t

    def bert() -> nn.Module:
        config = t.BertConfig(hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024)
        return t.BertModel(config)

    def whisper() -> nn.Module:
        config = t.WhisperConfig(
            d_model=256, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=1024, max_source_positions=150
        )
        return t.models.whisper.modeling_whisper.WhisperEncoder(config)

    def spectrum(seed: int) -> dict[str, Tensor]:
        extractor = t.WhisperFeatureExtractor(feature_size=80, chunk_length=3)
        return {"input_features": extractor(speech(seed), sampling_rate=16_000, return_tensors="pt")["input_features"]}

    def segformer() -> nn.Module:
        return t.SegformerForSemanticSegmentation(t.SegformerConfig(num_labels=21))

    def ids(seed: int) -> dict[str, Tensor]:
        drawn = tokens(seed)
        return {"input_ids": drawn["ids"], "attention_mask": drawn["mask"]}

    def pixels(seed: int) -> dict[str, Tensor]:
        return {"pixel_values": images(128)(seed)["image"]}

    return [
        Network("transformers_bert", bert, ids),
        Network("transformers_whisper_encoder", whisper, spectrum, stem=("conv1", "conv2")),
        Network("transformers_segformer", segformer, pixels),
    ]


def build(network: Network) -> nn.Module:
    """The module with the scale of its activations taken from data, and a head that tells inputs apart."""
    torch.manual_seed(3)
    module = network.build()
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    draws = [network.feeds(seed) for seed in range(100, 108)]
    with torch.no_grad():
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0.2, 0.3)
        if norms:
            batch = {name: torch.cat([draw[name] for draw in draws]) for name in draws[0]}
            _settle(module, norms, batch)
        module.eval()
        for name in network.stem:
            _normalize(module, module.get_submodule(name), draws)
        if network.head:
            _centre(module, module.get_submodule(network.head), draws)
    return module


def _settle(module: nn.Module, norms: list[Any], batch: dict[str, Tensor]) -> None:
    """Statistics of one batch, which every norm sees as it will be after the norms before it are settled."""
    module.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    module(**batch)
    module.eval()


def _normalize(module: nn.Module, layer: Any, draws: list[dict[str, Tensor]]) -> None:
    """Scale and shift the channels of a convolution as a batch norm behind it would."""
    given = _given(module, layer, draws).transpose(0, 1).flatten(1)
    scale = given.std(1)
    layer.weight /= scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    layer.bias.copy_((layer.bias - given.mean(1)) / scale)


def _centre(module: nn.Module, head: Any, draws: list[dict[str, Tensor]]) -> None:
    """Take the mean over the draws off what `head` gives, by its bias."""
    head.bias -= _given(module, head, draws).reshape(-1, head.bias.shape[0]).mean(0)


def _given(module: nn.Module, layer: nn.Module, draws: list[dict[str, Tensor]]) -> Tensor:
    """What `layer` gives for the draws, one batch."""
    given: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _m, _i, output: given.append(output))
    for draw in draws:
        module(**draw)
    hook.remove()
    return torch.cat(given)


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained on 240 digits, and the 120 others with their labels."""
    with np.load("examples/digits/digits.npz") as data:
        pictures = torch.from_numpy(data["images"]).float().div(16)[:, None]
        labels = torch.from_numpy(data["labels"]).long()
    torch.manual_seed(0)
    module = zoo.Digits()
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        module.train()
        order = torch.randperm(240)
        for some in order.split(32):
            down, right = (int(v) for v in torch.randint(-1, 2, (2,)))
            moved = torch.roll(pictures[some], (down, right), (2, 3))
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(moved), labels[some]).backward()
            optimizer.step()
        plan.step()
    return module.eval(), pictures[240:], labels[240:]


def flat(values: Any) -> list[np.ndarray[Any, Any]]:
    """The tensors of a result, in order."""
    return [leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def measure(network: Network, folder: Path, count: int) -> tuple[dict[str, str], list[str]]:
    """A row of the table, and what does not hold."""
    module = build(network)
    row = {
        "network": network.name,
        "layers": str(sum(1 for m in module.modules() if next(m.parameters(recurse=False), None) is not None)),
        "parameters": f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M",
    }
    draws = [network.feeds(seed) for seed in range(count)]
    with torch.no_grad():
        expected = [flat(module(**draw)) for draw in draws]
    rows = np.stack([np.concatenate([part.ravel().astype(np.float64) for part in one]) for one in expected])
    pairs = [
        nearest_pair(np.stack([one[i].ravel().astype(np.float64) for one in expected])) for i in range(len(expected[0]))
    ]
    row["nearest pair"] = f"{min(pairs):.3f}"
    alive = min(pairs) < ALIVE and max(pairs) < COSINE and np.isfinite(rows).all()
    failed = [] if alive else [f"it is not alive: {', '.join(f'{pair:.4f}' for pair in pairs)}"]
    source, artifact = folder / f"{network.name}.pt2", folder / f"{network.name}.dlc"
    start = time.perf_counter()
    torch.export.save(torch.export.export(module, (), draws[0]), source)
    row["export s"] = f"{time.perf_counter() - start:.1f}"
    start = time.perf_counter()
    try:
        result = npukit.convert(source, artifact, target="qnn-cpu", verify=False)
        row["convert s"] = f"{time.perf_counter() - start:.1f}"
        row["QNN ops"] = str(sum(result.converted.ops.values()))
        cosine, worst = compare(artifact, draws, expected)
    except NpukitError as error:
        return row, [*failed, " ".join(str(error).split())[:300]]
    finally:
        source.unlink(missing_ok=True)
        artifact.unlink(missing_ok=True)
    row |= {"cosine": f"{cosine:.7f}", "largest error": f"{worst:.1e}"}
    return row, failed if cosine >= COSINE else [*failed, f"the cosine is {cosine:.5f}"]


def compare(artifact: Path, draws: list[dict[str, Tensor]], expected: list[list[Any]]) -> tuple[float, float]:
    """The smallest cosine and the largest error as a share of the range, over inputs and outputs."""
    cosine, worst = 1.0, 0.0
    with npukit.Session(artifact, backend="qnn-cpu") as session:
        wanted = [info.name for info in session.inputs]
        for draw, theirs in zip(draws, expected, strict=True):
            got = list(session.run({name: draw[name].numpy() for name in wanted}).values())
            for a, b in zip(theirs, got, strict=True):
                x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
                assert a.shape == b.shape
                cosine = min(cosine, float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))))
                worst = max(worst, float(np.abs(x - y).max() / np.ptp(x)))
    return cosine, worst


def digits(folder: Path) -> tuple[dict[str, str], list[str], str, str]:
    """The trained network: its row, and top-1 of PyTorch and of QNN CPU."""
    module, pictures, labels = trained()
    network = Network("digits", lambda: module, lambda seed: {"image": pictures[seed : seed + 1]}, norms=False)
    artifact = folder / "digits.dlc"
    draws = [network.feeds(seed) for seed in range(len(pictures))]
    with torch.no_grad():
        expected = [flat(module(**draw)) for draw in draws]
    source = folder / "digits.pt2"
    torch.export.save(torch.export.export(module, (), draws[0]), source)
    start = time.perf_counter()
    result = npukit.convert(source, artifact, target="qnn-cpu", verify=False)
    seconds = time.perf_counter() - start
    cosine, worst = compare(artifact, draws, expected)
    with npukit.Session(artifact, backend="qnn-cpu") as session:
        ours = [int(np.argmax(next(iter(session.run({"image": d["image"].numpy()}).values())))) for d in draws]
    theirs = [int(np.argmax(one[0])) for one in expected]
    truth = labels.tolist()
    row = {
        "network": "digits (trained)",
        "layers": str(sum(1 for m in module.modules() if next(m.parameters(recurse=False), None) is not None)),
        "parameters": f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M",
        "QNN ops": str(sum(result.converted.ops.values())),
        "convert s": f"{seconds:.1f}",
        "cosine": f"{cosine:.7f}",
        "largest error": f"{worst:.1e}",
    }
    top = [sum(a == b for a, b in zip(found, truth, strict=True)) / len(truth) for found in (theirs, ours)]
    failed = [] if cosine >= COSINE and top[0] > 0.9 else [f"cosine {cosine:.5f}, top-1 {top[0]:.1%}"]
    return row, failed, f"{top[0]:.1%}", f"{top[1]:.1%}"


def main() -> int:
    """Measure; 1 where a network does not hold."""
    parser = argparse.ArgumentParser(prog="python -m networks.pytorch", description=__doc__)
    parser.add_argument("names", nargs="*", help="networks [all]")
    parser.add_argument("--inputs", type=int, default=3)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--rows", type=Path, help="rows measured earlier (JSON): read, added to, not measured again")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    here = machine()
    rows: dict[str, Any] = json.loads(options.rows.read_text()) if options.rows and options.rows.exists() else {}
    known = {network.name: network for network in (*NETWORKS, *of_transformers())}
    for name in options.names or [*known, "digits"]:
        if name in rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            if name == "digits":
                row, failed, *top1 = digits(Path(folder))
                rows[name] = {"row": row, "failed": failed, "top1": top1}
            else:
                row, failed = measure(known[name], Path(folder), options.inputs)
                rows[name] = {"row": row, "failed": failed}
        sys.stdout.write(f"{rows[name]}\n")
        sys.stdout.flush()
        if options.rows is not None:
            options.rows.write_text(json.dumps(rows))
    failed = [f"{name}: {fault}" for name, one in rows.items() for fault in one["failed"]]
    if options.markdown is not None:
        top1 = rows.get("digits", {}).get("top1", ["not measured"] * 2)
        text = PAGE.format(
            transformers=_version("transformers"), count=options.inputs, alive=ALIVE, cosine=COSINE, epochs=EPOCHS,
            table="\n".join(table(HEAD, [[one["row"].get(key, "-") for key in HEAD] for one in rows.values()])),
            failed="".join(f"\nDoes not hold: {fault}\n" for fault in failed), top1=top1[0], npu=top1[1],
            machine=f"torch {torch.__version__}, {here['cpu']}, {here['cores']} cores, {here['date']}; load average "
            f"{here['load_before']:.1f} when it began, {os.getloadavg()[0]:.1f} when it ended",
        )  # fmt: skip
        options.markdown.write_text(text)
    return 1 if failed else 0


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
