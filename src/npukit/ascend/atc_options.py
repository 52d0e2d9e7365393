# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""atc's options as a table, and the rules between them, so that a bad command line is refused before atc starts.

atc stops at the first fault and takes a while to get there; here all are listed at once. Only what is given is put on
a command line: an older atc stops at an option that it does not know. Facts: ascend_facts.md 1.1 and 1.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from npukit.errors import Fault, nearest

Shape = tuple[int | str, ...]
"""Extents of an input; -1 is open, "1~8" a range."""


@dataclass(frozen=True)
class Option:
    """One option of atc.

    Attributes:
        name: without dashes.
        kind: "choice", "number", "text", "file" (an existing file, which goes along in a bundle), "folder" (an
            existing one), or "refused".
        help: one line; for "refused" why.
        values: those allowed for a choice.
        since: first version of CANN that has it, "" for all that npukit knows.
    """

    name: str
    kind: str
    help: str
    values: tuple[str, ...] = ()
    since: str = ""


_01 = ("0", "1")
_BOOL = ("true", "false")
_OURS = "npukit sets it itself"


def _rows() -> Iterable[Option]:
    def choice(name: str, help: str, *values: str, since: str = "") -> Option:
        return Option(name, "choice", help, values, since)

    def refused(names: str, why: str) -> Iterable[Option]:
        return (Option(name, "refused", why) for name in names.split())

    # --- input and output
    yield Option("dynamic_batch_size", "text", 'gears of the batch, "1,2,4,8"; dimension 0 is -1 in --input-shape')
    yield Option("dynamic_image_size", "text", 'gears of height and width, "224,224;448,448"; both are -1')
    yield Option("dynamic_dims", "text", 'gears of every -1 of all inputs in order, "1;32"; 2 to 100 of them')
    yield choice("input_format", "layout of the inputs", "NCHW", "NCDHW", "ND")
    yield Option("input_fp16_nodes", "text", 'inputs that are float16 in the OM, "x;y"')
    yield Option("is_input_adjust_hw_layout", "text", 'with input_fp16_nodes: NC1HWC0 at the boundary, "true,false"')
    yield Option("is_output_adjust_hw_layout", "text", 'with out_nodes: NC1HWC0 at the boundary, "true,false"')
    yield Option("insert_op_conf", "file", "an AIPP configuration; --aipp writes one from a preprocessing spec")
    yield Option("out_nodes", "text", 'where the OM ends, "node:0;node:1" or output names "logits;kv"')
    yield Option("output_type", "text", 'dtype of all outputs (FP16, FP32, ...), or "node:0:FP16" with out_nodes')
    yield Option("op_name_map", "file", "names of custom operators")
    yield choice("external_weight", "weights beside the OM: 1 a file each, 2 one file", "0", "1", "2")
    # --- where it runs
    yield choice("core_type", "VectorCore leaves matrix units out", "AiCore", "VectorCore")
    yield Option("aicore_num", "text", 'use fewer cores, "n|m" on 310P')
    yield choice("virtual_type", "1: for a virtual NPU", *_01)
    yield choice("host_env_os", "operating system of the machine that runs it", "linux")
    yield choice("host_env_cpu", "processor of the machine that runs it", "x86_64", "aarch64")
    # --- precision
    yield choice(
        "precision_mode", "the older form of --precision-mode", "force_fp16", "force_fp32", "cube_fp16in_fp32out",
        "allow_mix_precision", "allow_mix_precision_fp16", "allow_fp32_to_fp16", "must_keep_origin_dtype",
    )  # fmt: skip
    yield Option("modify_mixlist", "file", "JSON with black-list and white-list, for mixed precision")
    yield Option("keep_dtype", "file", "operators that keep their precision, a name or OpType::TYPE a line")
    yield Option("customize_dtypes", "file", "dtypes of single operators; wins over keep_dtype")
    yield Option("op_precision_mode", "file", "ini file: high_precision, high_performance, ... by operator type")
    yield choice(
        "op_select_implmode", "kernels to prefer (older than op_precision_mode)",
        "high_precision", "high_performance", "high_precision_for_all", "high_performance_for_all",
    )  # fmt: skip
    yield Option("optypelist_for_implmode", "text", 'types that op_select_implmode is for, "Gelu,Sigmoid"')
    yield choice("is_weight_clip", "0: weights beyond 65504 become infinite instead of 65504", *_01)
    yield choice("deterministic", "1: the same numbers in every run", *_01)
    yield choice("deterministic_level", "with deterministic", "0", "1", "2", "3", since="8.5")
    yield Option("compression_optimize_conf", "file", "compression of weights")
    # --- effort
    yield choice("buffer_optimize", "off_optimize helps where accuracy is lost", "l2_optimize", "off_optimize",
                 "l1_optimize")  # fmt: skip
    yield Option("fusion_switch_file", "file", "switches fusion passes off")
    yield choice("enable_small_channel", "1: for a first convolution with at most 4 channels, with AIPP", *_01)
    yield choice("disable_reuse_memory", "1: no tensor shares memory (for dumps)", *_01)
    yield choice("enable_single_stream", "one stream", *_BOOL)
    yield choice("op_compiler_cache_mode", "keep compiled operators", "enable", "force", "disable")
    yield Option("op_compiler_cache_dir", "folder", "where they are kept [~/atc_data]")
    yield Option("mdl_bank_path", "folder", "knowledge of AOE about models")
    yield Option("op_bank_path", "folder", "knowledge of AOE about operators")
    yield choice("jit_compile", "0: ready kernels before compiling new ones", "0", "1", "2")
    yield choice("tiling_schedule_optimize", "1: on", *_01)
    yield choice("ac_parallel_enable", "1: AI CPU beside AI Core in dynamic graphs", *_01)
    yield choice("oo_level", "effort of the graph optimizer", "O1", "O3", since="8.5")
    yield choice("oo_constant_folding", "folding of constants", *_BOOL, since="8.5")
    yield choice("oo_dead_code_elimination", "removal of what nothing reads", *_BOOL, since="8.5")
    yield Option("optimization_switch", "text", '"PassA:on;PassB:off"', since="8.5")
    yield choice("topo_sorting_mode", "order of the operators", "0", "1", "2", "3")
    yield choice("atomic_clean_policy", "1: clear memory apart", *_01)
    # --- looking into it
    yield choice("log", "level of atc's log", "debug", "info", "warning", "error", "null")
    yield choice("op_debug_level", "what compiling operators leaves behind", "0", "1", "2", "3", "4")
    yield Option("op_debug_config", "file", "memory checks in kernels")
    yield Option("debug_dir", "folder", "where that goes")
    yield choice("status_check", "1: overflow checks in kernels", *_01)
    yield choice("display_model_info", "1: memory, weights and streams at the end", *_01)
    yield choice("export_compile_stat", "statistics of the passes", "0", "1", "2", since="8.5")
    yield choice("quant_dumpable", "1: quantized ends can be dumped", *_01)
    # --- not for npukit, or not for the chip
    yield from refused("model framework output soc_version mode", _OURS)
    yield from refused("precision_mode_v2", "give --precision-mode instead")
    yield from refused("input_shape input_shape_range input_hint_shape", "give --input-shape instead")
    yield from refused("allow_hf32 sparsity", "the 310P has no such thing")
    yield from refused("cluster_config hccl_sub_comm_config", "a 310P computes alone")
    yield from refused("weight", "it belongs to Caffe models")
    yield from refused("auto_tune_mode", "CANN has dropped it: tune with AOE")
    yield from refused("om json singleop check_report dump_mode cal_conf", "it belongs to another mode of atc")


OPTIONS: dict[str, Option] = {row.name: row for row in _rows()}

GEARS = ("dynamic_batch_size", "dynamic_image_size", "dynamic_dims")
_MOST_GEARS, _LEAST_GEARS = 100, 2
_MIXED = {"mixed_float16", "allow_mix_precision", "allow_mix_precision_fp16"}


@dataclass(frozen=True)
class Rule:
    """A rule between options; `code` is what atc says where it is broken (without: said by its documents only)."""

    broken: Callable[[Mapping[str, str]], bool]
    what: str
    hint: str = ""
    code: str = ""


def _both(first: str, second: str, hint: str, code: str) -> Rule:
    what = f"{first} and {second} exclude one another"
    return Rule(lambda given: first in given and second in given, what, hint, code)


def _needs(first: str, second: str, hint: str = "", code: str = "") -> Rule:
    return Rule(lambda given: first in given and second not in given, f"{first} needs {second}", hint, code)


_IMAGES = "AIPP cannot make images of several sizes of this kind: use dynamic_image_size, or leave AIPP out"
RULES: tuple[Rule, ...] = (
    _both("dynamic_batch_size", "dynamic_image_size", "dynamic_dims can do what both do", "E10009"),
    _both("dynamic_batch_size", "dynamic_dims", "dynamic_dims can do what both do", "E10009"),
    _both("dynamic_image_size", "dynamic_dims", "dynamic_dims can do what both do", "E10009"),
    _both("precision_mode", "precision_mode_v2", "give --precision-mode alone", "E10056"),
    _both("dynamic_dims", "insert_op_conf", _IMAGES, "E10001"),
    Rule(
        lambda given: "dynamic_dims" in given and given.get("input_format") != "ND",
        "dynamic_dims needs input_format=ND",
    ),
    Rule(
        lambda given: "dynamic_image_size" in given and given.get("input_format", "NCHW") != "NCHW",
        "dynamic_image_size needs input_format=NCHW",
        code="E10003",
    ),
    Rule(
        lambda given: "insert_op_conf" in given and given.get("input_format", "NCHW") != "NCHW",
        "AIPP needs input_format=NCHW",
    ),
    _needs("optypelist_for_implmode", "op_select_implmode", code="E10001"),
    _needs("is_input_adjust_hw_layout", "input_fp16_nodes"),
    _needs("is_output_adjust_hw_layout", "out_nodes"),
    Rule(
        lambda given: (
            "modify_mixlist" in given
            and not _MIXED & {given.get("precision_mode", ""), given.get("precision_mode_v2", "")}
        ),
        "modify_mixlist is for mixed precision only",
        "add --precision-mode mixed_float16",
        "E10001",
    ),
    Rule(
        lambda given: given.get("deterministic_level", "0") != "0" and given.get("deterministic", "0") == "0",
        "deterministic_level needs deterministic=1",
        code="E10001",
    ),
)


def faults(given: Mapping[str, str], shapes: Mapping[str, Shape], version: str = "") -> list[Fault]:
    """Everything that is wrong with options and shapes.

    Args:
        given: options by name, without those that npukit sets, but with precision_mode_v2 and insert_op_conf.
        shapes: the shape of each input as atc will be told, or as the model has it.
        version: CANN's, "8.2"; empty for any.
    """
    found = [fault for name, value in given.items() for fault in _one(name, value, version)]
    for rule in RULES:
        if rule.broken(given):
            found.append(Fault(rule.what + (f" (atc: {rule.code})" if rule.code else ""), "--atc-option", rule.hint))
    found += [fault for name in shapes for fault in _name(name)]
    return found or [*_gears(given, shapes)]


def _one(name: str, value: str, version: str) -> Iterable[Fault]:
    where = f"--atc-option {name}"
    row = OPTIONS.get(name)
    if name in ("precision_mode_v2", "input_shape"):
        return
    if row is None:
        yield Fault("atc has no such option", where, nearest(name, OPTIONS))
    elif row.kind == "refused":
        yield Fault(f"it cannot be given: {row.help}", where)
    elif row.since and version and older(version, row.since):
        yield Fault(f"CANN {version} does not have it: it came with {row.since}", where, "leave it out")
    elif not value:
        yield Fault("it has no value", where, f"{name}={'|'.join(row.values) or '...'}")
    elif row.values and value not in row.values:
        yield Fault(f"{value!r} is not a value of it", where, nearest(value, row.values))
    elif row.kind == "file" and not Path(value).is_file():
        yield Fault(f"there is no file {value}", where)
    elif row.kind == "folder" and not Path(value).is_dir():
        yield Fault(f"there is no folder {value}", where, "make it first")
    elif row.kind == "folder" and (fault := path_fault(value)):
        yield Fault(fault, where)


def _name(name: str) -> Iterable[Fault]:
    if ";" in name or name != name.strip() or not name:
        yield Fault("atc cannot be told of an input of this name", f"input {name!r}", "rename it in the model")


def _gears(given: Mapping[str, str], shapes: Mapping[str, Shape]) -> Iterable[Fault]:
    """What is wrong with gears, or with open dimensions without any."""
    name = next((name for name in GEARS if name in given), None)
    opened = {key: shape for key, shape in shapes.items() if -1 in shape}
    ranges = {key: shape for key, shape in shapes.items() if any(isinstance(extent, str) for extent in shape)}
    if name is None:
        return
    where = f"--atc-option {name}"
    for key in ranges:
        yield Fault("a range cannot go with gears (atc: E10040)", f"--input-shape {key}", "write -1")
    if not opened:
        yield Fault("no input has a dimension of -1", where, "write it in --input-shape, as in x=1,-1")
        return
    text = given[name].rstrip(";,")
    gears = [part.split(",") for part in text.split("," if name == "dynamic_batch_size" else ";")]
    if not all(re.fullmatch(r"[1-9]\d*", extent) for gear in gears for extent in gear):
        yield Fault(f"{given[name]!r} is no list of gears of positive whole numbers", where, OPTIONS[name].help)
        return
    counted = len(gears)
    if not _LEAST_GEARS <= counted <= _MOST_GEARS:
        limits = f"at least {_LEAST_GEARS} and at most {_MOST_GEARS}"
        yield Fault(f"{counted} gears, there must be {limits} (atc: E10035, E10036)", where)
    if len({tuple(map(int, gear)) for gear in gears}) < counted:
        yield Fault("a gear is given twice (atc: E10039)", where)
    yield from _dimensions(name, gears, opened, where)


def _dimensions(name: str, gears: list[list[str]], opened: Mapping[str, Shape], where: str) -> Iterable[Fault]:
    open_count = sum(shape.count(-1) for shape in opened.values())
    if name == "dynamic_dims" and any(len(gear) != open_count for gear in gears):
        yield Fault(f"each gear needs {open_count} numbers, one for each -1 of the inputs (atc: E10003)", where)
    if name == "dynamic_image_size" and any(len(gear) != 2 for gear in gears):
        yield Fault("each gear needs a height and a width (atc: E10020)", where)
    allowed = {"dynamic_batch_size": {0}, "dynamic_image_size": {2, 3}}.get(name)
    for key, shape in opened.items():
        places = {i for i, extent in enumerate(shape) if extent == -1}
        if name == "dynamic_batch_size" and places != allowed:
            yield Fault("only dimension 0 may be -1 with dynamic_batch_size (atc: E10018)", f"--input-shape {key}")
        if name == "dynamic_image_size" and (places != allowed or len(shape) != 4):
            what = "only height and width of [N, C, H, W] may be -1, and both must, with dynamic_image_size"
            yield Fault(f"{what} (atc: E10019)", f"--input-shape {key}")


def older(version: str, other: str) -> bool:
    """Whether CANN `version` ("8.2.RC1") came before `other` ("8.5")."""

    def key(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", text)[:2])

    return key(version) < key(other)


# --- what atc takes in paths ---

_PLAIN = re.compile(r"[A-Za-z0-9._/\-\u4e00-\u9fa5]*")


def path_fault(path: Path | str) -> str:
    """What atc has against a path; empty if nothing.

    atc looks at the real path of an input (links followed): ASCII letters, digits, "_", "-", ".", and the Chinese
    characters U+4E00 to U+9FA5.
    """
    text = str(path)
    if _PLAIN.fullmatch(text):
        return ""
    bad = sorted({c for c in text if not _PLAIN.fullmatch(c)})
    named = ", ".join("a blank" if c == " " else repr(c) for c in bad)
    return f"atc takes no {named} in a path: letters, digits, '_', '-', '.' and Chinese characters only"


def shape_text(shapes: Mapping[str, Shape]) -> str:
    """The value of --input_shape: "x:1,3,224,224;y:1,-1"; a scalar has nothing behind the colon."""
    return ";".join(f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items())


def arguments(model: str, output: str, soc_version: str, options: Mapping[str, str]) -> list[str]:
    """The arguments of atc for an ONNX model: what must be given, then `options` in their order."""
    fixed = {"model": model, "framework": "5", "output": output, "soc_version": soc_version}
    return [f"--{name}={value}" for name, value in {**fixed, **options}.items()]


def table() -> Sequence[Option]:
    """The options that `--atc-option` takes, in the order of the documents."""
    return [row for row in OPTIONS.values() if row.kind != "refused"]
