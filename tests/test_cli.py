# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import npukit
from npukit.cli import main as cli
from npukit.errors import NpukitError, UsageError
from npukit.verbs import options as o
from npukit.verbs.options import arg, opt, verb

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits"
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def npukit_process(*args, **kwargs):
    command = [sys.executable, "-m", "npukit", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=120, **kwargs)


def run(capsys, *args):
    """Exit code, stdout and stderr of the command in this process."""
    code = cli.main([str(a) for a in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- start ---


def test_help_is_fast_and_light():
    script = (
        "import sys\nfrom npukit.cli.main import main\ncode = main(['--help'])\n"
        "heavy = {'onnx', 'onnxruntime', 'numpy', 'rich', 'onnx_ir', 'jinja2'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENV, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in cli.VERBS:
        assert name in done.stdout
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    npukit_process("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


@pytest.mark.native
@pytest.mark.parametrize("verb", ["convert", "quantize"])
def test_what_the_worker_imports_is_not_imported_twice(verb, tmp_path):
    np.save(tmp_path / "data.npy", np.zeros((2, 1, 8, 8), np.float32))
    argv = [verb, str(DIGITS / "digits.onnx"), "-o", str(tmp_path / "m.dlc"), "--no-verify", "-q"]
    argv += ["--calibration", str(tmp_path / "data.npy")] if verb == "quantize" else []
    script = (
        f"import sys\nfrom npukit.cli.main import main\ncode = main({argv!r})\n"
        "heavy = {'onnx', 'onnxruntime', 'onnx_ir', 'torch'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode == 0, done.stderr


def test_import_is_light_and_exports_lazily():
    script = (
        "import sys, npukit\nassert not {'numpy', 'onnx', 'typer'} & set(sys.modules)\n"
        "assert npukit.convert.__name__ == 'convert' and npukit.inspect.__name__ == 'inspect'\n"
        "assert npukit.NpukitError.code == 'error' and 'Session' in dir(npukit)\n"
        "assert issubclass(npukit.errors.ModelError, npukit.NpukitError)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENV, timeout=60)
    assert done.returncode == 0, done.stderr
    # the table of chips bears the name of the verb `targets`
    others = {"NpukitError", "Policy", "Session", "errors", "__version__"}
    assert set(npukit.__all__) == {*cli.VERBS, *others} - {"targets"}
    with pytest.raises(AttributeError, match="nothing"):
        npukit.nothing  # noqa: B018


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_has_help_and_its_options_are_declared(capsys, name):
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert "--json" in out
    module, options, function, text = cli.VERBS[name]
    loaded = importlib.import_module(module)
    assert callable(getattr(loaded, function))
    kind = getattr(loaded, options)
    assert kind.__dataclass_params__.frozen
    assert set(o.specs(kind)) == {f.name for f in dataclasses.fields(kind)}
    assert text.endswith(".")


def test_a_group_shows_its_verbs(capsys):
    for args in (["policy"], ["policy", "--help"]):
        code, out, _ = run(capsys, *args)
        assert code == 0
        for name, row in cli.POLICY.items():
            assert f"{name} " in out
            assert row[3] in " ".join(out.split())
    assert run(capsys, "policy", "exprot")[2] == (
        "npukit: error: there is no verb 'exprot'\n  hint: did you mean 'export'?\n"
    )


def test_version_names_its_libraries(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith(f"npukit {npukit.__version__}, ")
    assert "QAIRT" in out


def test_shell_completion_offers_the_verbs():
    env = {**ENV, "_NPUKIT_COMPLETE": "complete_bash", "COMP_WORDS": "npukit co", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "from npukit.cli.main import main; main()"],
        capture_output=True, text=True, env=env, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["convert", "compile"]


# --- errors and exit codes ---


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["tagets"], 2, "did you mean 'targets'?"),
        (["targets", "--jsno"], 2, "did you mean '--json'?"),
        (["targets", "sm865"], 2, "did you mean 'sm8650'?"),
        (["--versoin"], 2, "did you mean '--version'?"),
        (["targets", "a", "b"], 2, "npukit targets --help"),
        (["convert"], 2, "MODEL"),
        (["convert", "x.onnx", "--batch", "many"], 2, "batch"),
        (["convert", "x.onnx", "--input-shape", "x=1,a"], 2, "--input-shape: 'x=1,a' is not a shape"),
        (["convert", "x.onnx", "--float-bitwidth", "8"], 2, "--float-bitwidth"),
        (["convert", "x.onnx", "--target", "sm8651"], 2, "did you mean 'sm8650'?"),
        (["convert", "nowhere.onnx"], 2, "nowhere.onnx"),
        (["verify", "x.dlc"], 2, "--against"),
        (["convert", "x.onnx", "--random", "0"], 2, "--random: at least one sample"),
        (["run", "nowhere.onnx", "--random", "1"], 2, "no such file"),
        (["libs", "remove"], 2, "add, list"),
        (["inspect", "nowhere.dlc"], 2, "no such file"),
    ],
)
def test_bad_use(capsys, tmp_path, monkeypatch, args, code, words):
    monkeypatch.chdir(tmp_path)
    got, out, err = run(capsys, *args)
    assert (got, out) == (code, "")
    assert err.startswith("npukit: error: ")
    assert words in err
    assert "Traceback" not in err
    got, out, _ = run(capsys, *args, "--json")
    assert json.loads(out)["error"]["exit_code"] == code
    assert not list(tmp_path.iterdir())


def test_a_fault_of_ours_exits_4_and_leaves_a_report(capsys, monkeypatch):
    monkeypatch.setattr("npukit.targets.TARGETS", None)
    code, out, err = run(capsys, "targets", "--json")
    assert code == 4
    report = Path(json.loads(out)["error"]["report"])
    text = report.read_text()
    report.unlink()
    assert str(report) in err
    assert err.count("\n") == 2
    for words in ("Traceback", f"npukit {npukit.__version__}", '["targets", "--json"]', "onnxruntime"):
        assert words in text


def test_interrupt_exits_130(capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("npukit.verbs.targets.targets", interrupted)
    assert run(capsys, "targets")[0] == 130


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m npukit targets | head -1", shell=True, capture_output=True, text=True, env=ENV, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.startswith("target")


def test_quiet_prints_nothing_and_the_log_file_everything(capsys, tmp_path):
    assert run(capsys, "targets", "--quiet")[1:] == ("", "")
    code, _, _ = run(capsys, "targets", "--log-file", tmp_path / "log.txt", "-vv")
    assert code == 0
    assert (tmp_path / "log.txt").exists()


def test_output_off_a_terminal_is_plain(capsys):
    _, out, _ = run(capsys, "targets")
    assert "\x1b" not in out
    assert "sm8650" in out


# --- options ---


@dataclasses.dataclass(frozen=True)
class Demo:
    """Try options."""

    path: Path = arg("a file")
    shapes: dict[str, tuple[int, ...]] = opt({}, "Shapes.", "--shape", many=True, parse=o.shapes)
    names: tuple[str, ...] = opt((), "Names.", "--name", many=True, parse=o.strings)
    count: int = opt(3, "A count.", hidden=True)
    mode: str = opt("a", "A mode.", choices=("a", "b"))
    fast: bool = opt(True, "Fast.", "--fast/--slow")


@verb(Demo)
def demo(options):
    """Give the options back."""
    return options


def test_options_in_python_are_those_of_the_command_line():
    plain = demo("x.bin", {"x": (1, 2)}, names="p,q", mode="b")
    assert plain == Demo(Path("x.bin"), {"x": (1, 2)}, ("p", "q"), 3, "b")
    assert demo(plain) is plain
    assert demo(plain, count=4).count == 4
    assert demo("x", shapes=["y=3x4"]).shapes == {"y": (3, 4)}
    assert o.echo(plain) == {"shapes": {"x": [1, 2]}, "names": ["p", "q"], "mode": "b"}
    for call, words in (
        (lambda: demo("x", coutn=1), "did you mean 'count'?"),
        (lambda: demo(), "needs path"),
        (lambda: demo("x", path="y"), "twice"),
        (lambda: demo("x", mode="c"), "not one of a, b"),
    ):
        with pytest.raises(UsageError, match=None) as caught:
            call()
        assert words in str(caught.value)


def test_the_adapter_builds_the_command():
    import typer.main

    from npukit.cli.options import build

    seen = []
    command = typer.main.get_command(build("demo", Demo, lambda options, common: seen.append((options, common))))
    args = ["f", "--shape", "a=1,2", "--shape", "b=3", "--name", "p,q", "--count", "5", "--slow", "-vv", "--json"]
    command.main(args, standalone_mode=False)
    options, common = seen[0]
    assert options == Demo(Path("f"), {"a": (1, 2), "b": (3,)}, ("p", "q"), 5, "a", False)
    assert (common.verbose, common.json, common.quiet) == (2, True, False)
    command.main(["f"], standalone_mode=False)
    assert seen[1][0] == Demo(Path("f"))


def test_parsers():
    assert o.symbols(["h=224"]) == {"h": 224}
    assert o.ranges(["ids=0:30521", "x=-1:1.5"]) == {"ids": (0, 30521), "x": (-1, 1.5)}
    assert o.files(["x=a.npy", "b.npz"]) == (("x", Path("a.npy")), ("", Path("b.npz")))
    assert [o.size(t) for t in ("2GB", "500M", "1KiB", "17")] == [2_000_000_000, 500_000_000, 1024, 17]
    for function, texts in ((o.symbols, ["h"]), (o.symbols, ["h=x"]), (o.ranges, ["a=3"]), (o.ranges, ["a=2:1"])):
        with pytest.raises(UsageError):
            function(texts)
    with pytest.raises(UsageError):
        o.size("much")


def test_inputs_of_convert_are_data_or_cuts(tmp_path):
    from npukit.verbs.convert import input_specs, limit

    specs = ["x=1,3,8,8", "y", "z=data.npy", "w.npy"]
    assert input_specs(specs) == (
        ("x", (1, 3, 8, 8)), ("y", None), ("z", Path("data.npy")), ("", Path("w.npy")),
    )  # fmt: skip
    assert limit("2GB,100") == (2_000_000_000, 100.0)
    assert limit("1MB") == (1_000_000, 200.0)


# --- every verb, for real ---


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """A float DLC, a quantized one and a context binary of the digits networks."""
    folder = tmp_path_factory.mktemp("artifacts")
    npukit.convert(DIGITS / "digits.onnx", folder / "digits.dlc")
    npukit.convert(DIGITS / "digits_qdq.onnx", folder / "qdq.dlc", target="sm8650")
    npukit.compile(folder / "qdq.dlc", folder / "qdq.bin")
    np.save(folder / "image.npy", np.zeros((1, 1, 8, 8), np.float32))
    return folder


@pytest.mark.native
@pytest.mark.parametrize(
    "args",
    [
        ["convert", "{d}/digits.onnx", "-o", "{w}/new.dlc"],
        ["convert", "{d}/digits.onnx", "--dry-run"],
        ["compile", "{a}/qdq.dlc", "-o", "{w}/new.bin", "--target", "sm8650"],
        ["run", "{a}/digits.dlc", "--input", "image={a}/image.npy", "-o", "{w}/out"],
        ["run", "{d}/digits.onnx", "--random", "2"],
        ["run", "{a}/qdq.bin", "--input", "{a}/image.npy"],
        ["run", "{a}/digits.dlc", "--backend", "qnn-htp", "--random", "1"],
        ["verify", "{a}/digits.dlc", "--against", "{d}/digits.onnx"],
        ["verify", "{a}/digits.dlc", "--against", "{d}/digits.onnx", "--backend", "ort"],
        ["verify", "{a}/qdq.bin", "--against", "{d}/digits_qdq.onnx"],
        ["inspect", "{d}/digits.onnx"],
        ["inspect", "{a}/qdq.dlc", "--ops", "--tensors"],
        ["inspect", "{a}/qdq.bin"],
        ["diff", "{a}/digits.dlc", "{a}/qdq.dlc"],
        ["diff", "{d}/digits.onnx", "{a}/digits.dlc"],
        ["export", "{a}/qdq.dlc", "-o", "{w}/q.onnx"],
        ["compile", "{a}/qdq.dlc", "-o", "{w}/new.bin", "--in-process"],
        ["run", "{a}/digits.dlc", "--backend", "ort", "--random", "1"],
        ["run", "{d}/digits.onnx", "--backend", "qnn-cpu", "--random", "1"],
        ["run", "{d}/digits.onnx", "--backend", "qnn-htp", "--random", "1", "--in-process"],
        ["verify", "{a}/digits.dlc", "--against", "{d}/digits.onnx", "--backend", "qnn-htp", "--in-process"],
        ["bench", "{a}/digits.dlc", "--backend", "qnn-cpu,qnn-htp,ort", "--runs", "2"],
        ["doctor"],
        ["targets"],
        ["libs"],
    ],
    ids=lambda args: "-".join(a for a in args if "{" not in a),
)
def test_json_is_one_value_and_nothing_else(artifacts, tmp_path, args):
    places = {"d": DIGITS, "a": artifacts, "w": tmp_path}
    done = npukit_process(*[a.format(**places) for a in args], "--json", "-v")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    assert "LIBNATIVE" not in done.stderr  # what the emulator prints by itself
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.native
def test_convert_rejects_what_does_not_verify(tmp_path):
    output = tmp_path / "d.dlc"
    result = npukit.convert(DIGITS / "digits.onnx", output, min_sqnr=500)
    assert result.exit_code == 1
    assert [p.name for p in tmp_path.iterdir()] == ["d.dlc.rejected"]
    assert result.converted.stamp.verified == "failed"
    assert npukit.inspect(result.path).to_json()["stamp"]["verified"] == "failed"


@pytest.mark.native
def test_convert_is_reproducible_and_says_what_it_left_out(tmp_path):
    first = npukit.convert(DIGITS / "digits.onnx", tmp_path / "a.dlc")
    second = npukit.convert(DIGITS / "digits.onnx", tmp_path / "b.dlc")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.verification.backend == "qnn-cpu"
    skipped = npukit.convert(DIGITS / "digits.onnx", tmp_path / "c.dlc", verify_limit="1kB")
    assert skipped.exit_code == 0
    assert "--verify-limit" in skipped.to_text()
    assert npukit.inspect(skipped.path).to_json()["stamp"]["verified"] == "no"


@pytest.mark.native
def test_cut_models_verify_against_the_inner_tensor(tmp_path):
    result = npukit.convert(DIGITS / "digits.onnx", tmp_path / "cut.dlc", outputs="conv1.relu")
    assert result.exit_code == 0
    assert [output.name for output in result.verification.outputs] == ["conv1.relu"]
    assert result.converted.cut


@pytest.mark.native
def test_convert_says_what_float64_loses(tmp_path):
    helper = onnx.helper
    info = [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, [1, 2]) for name in ("x", "y")]
    weight = onnx.numpy_helper.from_array(np.array([0.5, 1 + 2**-30]), "w")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", info[:1], info[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    notes = npukit.convert(tmp_path / "m.onnx", dry_run=True).converted.notes
    assert "float64 is held as float32: constants change by at most 9.3e-10 of their value (in 'w')" in notes
    assert not any("float64" in note for note in npukit.convert(DIGITS / "digits.onnx", dry_run=True).converted.notes)


def test_errors_of_verbs_are_npukit_errors(tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"\x08\x07garbage")
    for call in (lambda: npukit.convert(bad), lambda: npukit.inspect(bad)):
        with pytest.raises(NpukitError) as caught:
            call()
        assert caught.value.exit_code == 2


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.native
def test_ctrl_c_leaves_neither_worker_nor_file(tmp_path):
    command = [sys.executable, "-m", "npukit", "convert", str(DIGITS / "digits.onnx"), "-o", str(tmp_path / "x.dlc")]
    process = subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    while not (workers := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # inside a call
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not [w for w in workers if Path(f"/proc/{w}").exists()]
    assert list(tmp_path.iterdir()) == []
