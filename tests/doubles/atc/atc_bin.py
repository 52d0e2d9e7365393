# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The stand-in for atc.bin: see README.md beside it. What it says stands in the tables, none of it here."""

import collections
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
LARGEST = 2147483647  # [GE parser/common/acl_graph_parser_util.cc]
GEARS = (2, 100)  # [GE --dynamic_dims.md]


def table(name: str) -> list[list[str]]:
    lines = (HERE / f"{name}.tsv").read_text("utf-8").splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


OPTIONS = {row[0]: (row[1], row[2].split("|") if row[2] else []) for row in table("options")}
MESSAGES = {row[0]: row[1] for row in table("messages")}
LINES = {row[0]: (row[1], row[2]) for row in table("transcript")}


class Refused(Exception):
    """Carries a code and what is put into its text."""

    def __init__(self, code: str, *values: object) -> None:
        self.code, self.values = code, values


class BadFlag(Exception):
    """The command line cannot be parsed; the reason went to stderr."""


def say(line: str, *values: object) -> None:
    stream, text = LINES[line]
    file = sys.stdout if stream == "stdout" else sys.stderr
    file.write(text.format(*values) + "\n")
    file.flush()


def message(code: str, *values: object) -> None:
    sys.stdout.write(f"{code}: {MESSAGES[code].format(*values)}\n")


def reason(line: str, *values: object) -> str:
    return LINES[line][1].format(*values)


def parse(arguments: list[str]) -> dict[str, str]:
    """`--name=value` and `--name value`; "-" in a name stands for "_". [GE api/atc/cmd_flag_info.cc]"""
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            say("nonoption", word)
            raise BadFlag
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if name not in OPTIONS:
            say("flag", name)
            raise BadFlag
        kind, values = OPTIONS[name]
        if not equals and kind != "bool":
            if not rest:
                say("argument", word)
                raise BadFlag
            value = rest.pop(0)
        if values and value not in values:
            if name == "log":
                raise Refused("E10010", value)
            if name == "framework":
                raise Refused("E10007", name, reason("frameworks"))
            if values == ["0", "1"]:
                raise Refused("E10006", value, name)
            raise Refused("E10001", value, f"--{name}", reason("rangereason", " ".join(f"[{v}]" for v in values)))
        if kind == "int32" and not value.isdigit():
            raise Refused("E10003", value, name, reason("typereason", kind))
        given[name] = value
    return given


def check_path(value: str, name: str, real: bool) -> None:
    """[GE base/common/util.cc CheckInputPathValid, CheckOutputPathValid]"""
    path = os.path.realpath(value) if real else value
    if real and not os.path.isfile(path):
        raise Refused("E10001", value, f"--{name}", reason("notfound"))
    if not re.fullmatch(r"[A-Za-z0-9./_\-\u4e00-\u9fa5]*", path):
        raise Refused("E10001", value, f"--{name}", reason("pathreason"))


def check_flags(given: dict[str, str]) -> None:
    """In the order of [GE api/atc/main_impl.cc CheckFlags]."""
    for name in ("soc_version", "output", "model"):
        if not given.get(name):
            raise Refused("E10054", f"--{name}")
    check_path(given["model"], "model", real=True)
    check_path(given["output"] + ".om", "output", real=False)
    if given["output"].endswith("/"):
        raise Refused("E10022", given["output"], "output")
    if "framework" not in given:
        raise Refused("E10007", "framework", reason("frameworks"))
    if "optypelist_for_implmode" in given and "op_select_implmode" not in given:
        raise Refused("E10001", "", "--op_select_implmode", reason("implmode"))
    if "precision_mode" in given and "precision_mode_v2" in given:
        raise Refused("E10056", "--precision_mode", "--precision_mode_v2")
    mixed = {"mixed_float16", "allow_mix_precision", "allow_mix_precision_fp16"}
    modes = {given.get("precision_mode"), given.get("precision_mode_v2")}
    if "modify_mixlist" in given and not mixed & modes:
        raise Refused("E10001", given["modify_mixlist"], "--modify_mixlist", reason("mixlist"))
    gears = [name for name in ("dynamic_batch_size", "dynamic_image_size", "dynamic_dims") if name in given]
    if len(gears) > 1:
        raise Refused("E10009")
    if gears and "input_shape" not in given:
        raise Refused("E10004", "input_shape")
    if "insert_op_conf" in given and "dynamic_dims" in given:
        raise Refused("E10001", given["insert_op_conf"], "--insert_op_conf", reason("dimsaipp"))
    for name in ("insert_op_conf", "keep_dtype", "modify_mixlist", "op_precision_mode", "customize_dtypes"):
        if name in given:
            check_path(given[name], name, real=True)
    socs = next(row[1] for row in table("operators") if row[0] == "soc").split("|")
    if given["soc_version"] not in socs:
        raise Refused("E10001", given["soc_version"], "--soc_version", reason("rangereason", " ".join(socs)))


def shapes_of(text: str) -> dict[str, list[str]]:
    """[GE compiler/api/aclgrph/option_utils.cc ParseInputShape]"""
    found = {}
    for part in filter(None, text.split(";")):
        name, colon, value = part.rpartition(":")
        if not colon or not name:
            raise Refused("E10002", part, reason("twoparts"), reason("sample"))
        found[name] = value.split(",") if value else []
    return found


def check_gears(given: dict[str, str], shapes: dict[str, list[str]]) -> None:
    """[GE compiler/api/aclgrph/option_utils.cc CheckDynamicInputParamValid, multi_batch_options.cc]"""
    name = next((n for n in ("dynamic_batch_size", "dynamic_image_size", "dynamic_dims") if n in given), None)
    opened = {key: shape for key, shape in shapes.items() if "-1" in shape}
    if name is None:
        return
    if any("~" in extent for shape in shapes.values() for extent in shape):
        raise Refused("E10040")
    value = given[name].rstrip(";,")
    gears = [part.split(",") for part in value.split("," if name == "dynamic_batch_size" else ";")]
    if name == "dynamic_batch_size":
        for shape in opened.values():
            for i, extent in enumerate(shape[1:], 1):
                if extent == "-1" and shape[0] == "-1":
                    raise Refused("E10018", "-1", i)
        if not any(shape[0] == "-1" for shape in opened.values()):
            raise Refused("E10031")
    if name == "dynamic_image_size":
        places = [[i for i, extent in enumerate(shape) if extent == "-1"] for shape in opened.values()]
        if not places or any(place != [2, 3] for place in places):
            raise Refused("E10019")
        if any(len(gear) != 2 for gear in gears):
            raise Refused("E10020", given[name])
    count = sum(shape.count("-1") for shape in opened.values())
    if name == "dynamic_dims":
        if count == 0:
            raise Refused("E10001", "0", reason("dimnum"), reason("nodims"))
        if any(len(gear) != count for gear in gears):
            raise Refused("E10003", given[name], name, reason("eachgear"))
        if given.get("input_format") != "ND":
            raise Refused("E10001", given.get("input_format", "NCHW"), "--input_format", reason("needsnd"))
    if len(gears) < GEARS[0]:
        raise Refused("E10035", len(gears), GEARS[0])
    if len(gears) > GEARS[1]:
        raise Refused("E10036", len(gears), GEARS[1])
    if len(set(map(tuple, gears))) < len(gears):
        raise Refused("E10039")


def check_model(given: dict[str, str], path: str) -> "tuple[object, bool]":
    """The model, and whether its shapes stay open. [GE parser/parser/onnx/onnx_parser.cc]"""
    import onnx

    size = os.path.getsize(path)
    if not 0 < size <= LARGEST:
        raise Refused("E13015", path, size, LARGEST)
    try:
        model = onnx.load(path)
    except Exception:
        raise Refused("E10041", given["model"]) from None
    rows = collections.defaultdict(set)
    for kind, values, _ in table("operators"):
        rows[kind] |= set(values.split("|"))
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    names: set[str] = set()
    for i, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{i}"
        if name in names:
            raise Refused("E13009", name)
        names.add(name)
        key = f"{node.domain or 'ai.onnx'}::{opset}::{node.op_type}"
        if node.op_type != "Constant" and (str(opset) not in rows["opset"] or node.op_type in rows["absent"]):
            raise Refused("E19010", name, key)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in weights}
    shapes = shapes_of(given.get("input_shape", ""))
    check_gears(given, shapes)
    for name, shape in shapes.items():
        if name not in inputs:
            raise Refused("E10016", name, "input_shape")
        held = len(inputs[name].type.tensor_type.shape.dim)
        if held != len(shape):
            raise Refused("E10049", len(shape), held)
    for name in filter(None, given.get("input_fp16_nodes", "").split(";")):
        if name not in inputs:
            raise Refused("E10016", name, "input_fp16_nodes")
    for name in filter(None, given.get("out_nodes", "").split(";")):
        if name.partition(":")[0] not in names and name not in {value.name for value in model.graph.output}:
            raise Refused("E11017", name)
    gears = any(n in given for n in ("dynamic_batch_size", "dynamic_image_size", "dynamic_dims"))
    is_open = False
    for name, value in inputs.items():
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
        asked = shapes.get(name, [str(d) for d in dims])
        if name not in shapes and -1 in dims:
            raise Refused("E10011", dims, -1)
        is_open = is_open or (not gears and any("~" in extent or extent == "-1" for extent in asked))
        for dim, extent in zip(value.type.tensor_type.shape.dim, asked, strict=False):
            if extent.isdigit():  # what the OM's input is then
                dim.dim_value = int(extent)
            elif extent == "-1":
                dim.dim_param = "open"
    if "insert_op_conf" in given:
        check_aipp(given, list(inputs))
    return model, is_open


def check_aipp(given: dict[str, str], inputs: list[str]) -> None:
    """[GE compiler/graph/preprocess/insert_op/aipp_op.cc, AIPP/config_file_template.md]"""
    text = re.sub(r"#.*", "", Path(given["insert_op_conf"]).read_text("utf-8"))
    blocks = re.findall(r"aipp_op\s*\{([^{}]*)\}", text)
    if not blocks or re.sub(r"aipp_op\s*\{[^{}]*\}", "", text).strip():
        raise Refused("E13018", given["insert_op_conf"])
    known = {row[0]: row[1:4] for row in table("aipp")}
    seen = []
    for block in blocks:
        pairs = re.findall(r"(\w+)\s*:\s*(\S+)", block)
        values = dict(pairs)
        if len(values) < len(pairs) or not set(values) <= set(known):
            raise Refused("E13018", given["insert_op_conf"])
        for key, value in pairs:
            kind, low, high = known[key]
            if kind in ("int", "float"):
                number = float(value)
                if (kind == "int" and not number.is_integer()) or not float(low) <= number <= float(high):
                    raise Refused("E10052", reason("aipprange", key, value))
            elif value not in kind.split("|"):
                raise Refused("E13018", given["insert_op_conf"])
        if "aipp_mode" not in values:
            raise Refused("E10052", reason("aippmode"))
        if values["aipp_mode"] == "static" and "input_format" not in values:
            raise Refused("E10052", reason("aippformat"))
        rank = int(values.get("related_input_rank", "0"))
        if rank >= len(inputs):
            raise Refused("E10052", reason("aipprank", rank))
        if rank in seen:
            raise Refused("E10052", reason("aipptwice"))
        seen.append(rank)
        if inputs[rank] in given.get("input_fp16_nodes", "").split(";"):
            raise Refused("E10034", inputs[rank])
        moved = values.get("crop") == "true" or values.get("padding") == "true"
        if "dynamic_image_size" in given and moved:
            raise Refused("E10052", reason("aippgears"))


def write_om(given: dict[str, str], model: object, is_open: bool, behave: str) -> None:
    """[facts 2.1]: header, partition table, partitions. MODEL_DEF says that this is a stand-in."""
    note: dict[str, object] = {"stand_in": 1, "dynamic_dims": None, "input_names": None}
    if "dynamic_dims" in given:  # a gear has all dimensions of all inputs: facts 3.1
        weights = {tensor.name for tensor in model.graph.initializer}  # type: ignore[attr-defined]
        inputs = [value for value in model.graph.input if value.name not in weights]  # type: ignore[attr-defined]
        dims = [d.dim_value or -1 for value in inputs for d in value.type.tensor_type.shape.dim]
        rows = []
        for gear in given["dynamic_dims"].rstrip(";").split(";"):
            fill = iter(gear.split(","))
            rows.append([int(next(fill)) if d < 0 else d for d in dims])
        note["dynamic_dims"] = rows
    if "dynamic_batch_size" in given:
        note["dynamic_batch"] = [int(n) for n in given["dynamic_batch_size"].rstrip(",").split(",")]
    if "dynamic_image_size" in given:
        pairs = given["dynamic_image_size"].rstrip(";").split(";")
        note["dynamic_hw"] = [[int(n) for n in pair.split(",")] for pair in pairs]
    parts = [(0, json.dumps(note).encode()), (1, model.SerializeToString()), (2, b"\0" * 8), (3, b"\0" * 16)]  # type: ignore[attr-defined]
    lines, at = b"", 0
    for kind, data in parts:
        lines += struct.pack("<IIQQ", kind, 0, at, len(data))
        at += len(data)
    body = struct.pack("<II", len(parts), 0) + lines + b"".join(data for _, data in parts)
    name = Path(given["output"]).name.encode()[:31]
    values = {
        "magic": 0x444F4D49,
        "header_size": 256,
        "version": 0x20000000,
        "modeltype": 0,
        "name": name,
        "model_num": 1,
        "model_length": len(body),
        "is_unknow_model": int(is_open),
    }
    header = bytearray(256)
    for offset, form, field, _ in table("header"):
        struct.pack_into("<" + form, header, int(offset), values[field])
    data = bytes(header) + body
    suffix = f"_linux_{os.uname().machine}" if behave == "named" else ""
    path = Path(given["output"] + suffix + ".om")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(data[: len(data) // 2] if behave == "truncate" else data)
    except OSError as error:
        raise Refused("E13004", path, f"[Errno {error.errno}] {error.strerror}") from None
    if behave == "weights" or given.get("external_weight", "0") != "0":
        folder = path.parent / "weight"
        folder.mkdir(exist_ok=True)
        (folder / "weight_0123abcd").write_bytes(b"\1" * 1000)
    Path("kernel_meta").mkdir(exist_ok=True)  # what the real one leaves in its working folder
    Path("fusion_result.json").write_text("[]")


def misbehave(behave: str) -> None:
    word, _, value = behave.partition(":")
    if word == "hang":
        helper = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
        subprocess.Popen(helper)  # as the pool that compiles operators
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    elif word == "slow":
        time.sleep(float(value))
    elif word == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif word == "eat":
        held = [bytearray(os.urandom(1 << 20) * 32) for _ in range(10)]
        time.sleep(60)
        del held
    elif word == "error":
        raise Refused(value, *["conv_1"] * MESSAGES[value].count("{}"))


def main() -> int:
    if record := os.environ.get("ATC_DOUBLE_RECORD"):
        names = ("ASCEND_OPP_PATH", "ASCEND_TOOLKIT_HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "PATH")
        held = {"arguments": sys.argv[1:], "cwd": os.getcwd(), **{name: os.environ.get(name) for name in names}}
        Path(record).write_text(json.dumps(held))
    behave = os.environ.get("ATC_DOUBLE", "")
    say("start")
    try:
        given = parse(sys.argv[1:])
        if "help" in given:
            return 0
        if not os.path.isdir(os.environ.get("ASCEND_OPP_PATH", "")):
            raise Refused("E10501", "data", "Data")
        check_flags(given)
        model, is_open = check_model(given, os.path.realpath(given["model"]))
        misbehave(behave)
        if behave != "lost":
            write_om(given, model, is_open, behave)
    except BadFlag:
        say("failure")
        say("inner")
        say("unknown")
        return 255
    except Refused as error:
        say("dots")
        say("failure")
        message(error.code, *error.values)
        say("solution")
        say("traceback")
        say("trace")
        return 255
    say("dots")
    if behave != "silent":
        say("success")
    if behave == "warn":
        message("W11001", "Conv_0")
    return 0


sys.exit(main())
