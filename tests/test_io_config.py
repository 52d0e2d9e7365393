# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""I/O configs: the SDK's files are read, and the artifact takes and gives what they say, as numpy computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

import npukit
from npukit.analysis.preprocess import yuv_to_rgb
from npukit.errors import NpukitError, UsageError
from npukit.frontends.onnx.io_config import IoConfig

pytestmark = pytest.mark.native
DIMS = {"N": 1, "C": 3, "D": 2, "H": 4, "W": 6, "F": 5, "T": 7}
RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def affine(shape: tuple[int, ...], dtype: str = "float") -> None:
    """m.onnx: y = 2 x + 1, of any shape."""
    dims = ", ".join(map(str, shape))
    body = "{ a = Mul (x, two) y = Add (a, one) }"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g ({dtype}[{dims}] x) => ({dtype}[{dims}] y) {body}'
    )
    kind = np.float16 if dtype == "float16" else np.float32
    for name, number in (("two", 2), ("one", 1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(number, kind), name))
    onnx.save(model, "m.onnx")


def entry(name: str = "x", source: Any = None, **desired: Any) -> dict[str, Any]:
    kinds = {"layout": "Layout", "dtype": "DataType", "color": "Color Conversion", "range": "Color Range"}
    wanted = {kinds.get(key, key): value for key, value in desired.items()}
    return {"Name": name, "Src Model Parameters": source or {}, "Desired Model Parameters": wanted}


def config(inputs: Any = (), outputs: Any = ()) -> dict[str, Any]:
    return {"Input Tensor Configuration": list(inputs), "Output Tensor Configuration": list(outputs)}


def convert(data: Any, **options: Any) -> Any:
    Path("io.yaml").write_text(yaml.safe_dump(data))
    options = {"target": "qnn-cpu", "random": 1, "in_process": True, **options}
    return npukit.convert("m.onnx", output="m.dlc", io_config="io.yaml", **options)


def run(**feeds: Any) -> np.ndarray[Any, Any]:
    with npukit.Session("m.dlc", in_process=True) as session:
        return session.run(feeds)["y"]  # type: ignore[no-any-return]


PAIRS = [("NCDHW", "NDHWC"), ("NCHW", "NHWC"), ("NFC", "NCF"), ("NTF", "TNF")]


@pytest.mark.parametrize(("have", "want"), [*PAIRS, *((b, a) for a, b in PAIRS)])
def test_layouts_are_turned_on_both_sides(have: str, want: str) -> None:
    affine(tuple(DIMS[axis] for axis in have))
    turned = entry(source={"Layout": have}, layout=want)
    result = convert(config([turned], [{**turned, "Name": "y"}]))
    assert result.exit_code == 0
    x = RNG.normal(size=[DIMS[axis] for axis in want]).astype(np.float32)
    np.testing.assert_allclose(run(x=x), 2 * x + 1, rtol=1e-6)
    with npukit.Session("m.dlc") as session:
        assert [io.native.shape for io in (session.inputs[0], session.outputs[0])] == [x.shape, x.shape]


@pytest.mark.parametrize("layout", ["NF", "NC", "F", "NONTRIVIAL", "NCHW", "TNF"])
def test_a_layout_that_stays_changes_nothing(layout: str) -> None:
    affine(tuple(DIMS[axis] for axis in ("NCHW" if layout == "NONTRIVIAL" else layout)))
    assert "Transpose" not in convert(config([entry(source={"Layout": layout}, layout=layout)])).converted.ops


def test_a_convolution_that_is_fed_channels_last_needs_no_transpose() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)'
        " { y = Conv <pads = [1, 1, 1, 1]> (x, w) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(RNG.normal(size=(4, 3, 3, 3)).astype("f4"), "w"))
    onnx.save(model, "m.onnx")
    turned = entry(source={"Layout": "NCHW"}, layout="NHWC")
    result = convert(config([turned], [{**turned, "Name": "y"}]))
    assert result.converted.ops == {"Conv2d": 1}


@pytest.mark.parametrize(("dtype", "offset"), [("uint8", -128), ("uint8", 0), ("int8", 0), ("int8", 5)])
def test_codes_go_into_a_float_model_and_come_out(dtype: str, offset: int) -> None:
    affine((2, 9))
    quant = {"Scale": 0.05, "Offset": offset}
    source = {"DataType": "float32"}
    coded = entry(source=source, dtype=dtype, QuantParams=quant)
    result = convert(config([coded]))
    assert result.exit_code == 0
    assert result.converted.precision == "float32"  # the model computes in float: judged as such
    codes = RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (2, 9), dtype=dtype, endpoint=True)
    real = 0.05 * (codes.astype(np.float64) + offset)
    np.testing.assert_allclose(run(x=codes), 2 * real + 1, rtol=1e-5, atol=1e-6)
    assert convert(config([], [{**coded, "Name": "y"}])).exit_code == 0
    x = RNG.normal(size=(2, 9)).astype(np.float32)
    limits = np.iinfo(dtype)
    expected = np.clip(np.rint((2 * x + 1) / np.float32(0.05)) - offset, limits.min, limits.max)
    given = run(x=x)
    assert given.dtype == dtype
    assert np.abs(given.astype(int) - expected).max() <= 1  # ties of float32 division


def test_pixels_with_scale_one_are_the_numbers_that_they_are_on_htp_too() -> None:
    affine((2, 9))
    pixels = entry(source={"DataType": "float32"}, dtype="uint8", QuantParams={"Scale": 1.0, "Offset": 0})
    assert convert(config([pixels]), target="portable", verify_backend="qnn-htp").exit_code == 0
    assert convert(config([pixels]), target="portable", verify_backend="qnn-cpu").exit_code == 0


def test_float16_is_held_where_a_target_has_it_and_refused_where_not() -> None:
    affine((2, 9))
    half = entry(source={"DataType": "float32"}, dtype="float16")
    with pytest.raises(UsageError, match="'x' cannot be float16: a target does not hold it"):
        convert(config([half]))
    assert convert(config([half]), target="sm8650").exit_code == 0
    with npukit.Session("m.dlc", backend="ort") as session:
        assert session.inputs[0].dtype == "float16"
        assert session.inputs[0].native.qnn_dtype == "FLOAT_16"
        assert session.outputs[0].dtype == "float32"


def _order(rgb: np.ndarray[Any, Any], color: str) -> np.ndarray[Any, Any]:
    alpha = RNG.integers(0, 255, (*rgb.shape[:3], 1), dtype=np.uint8)
    r, g, b = (rgb[..., i : i + 1] for i in range(3))
    return np.concatenate(
        {"RGB": (r, g, b), "BGR": (b, g, r), "RGBA": (r, g, b, alpha), "ARGB32": (b, g, r, alpha)}[color], -1
    )


@pytest.mark.parametrize("color", ["RGB", "BGR", "RGBA", "ARGB32"])
@pytest.mark.parametrize("model_color", ["RGB", "BGR"])
def test_colour_orders(color: str, model_color: str) -> None:
    affine((1, 3, 4, 6))
    source = {"DataType": "float32", "Layout": "NCHW", "Color": model_color}
    wanted = entry(source=source, layout="NHWC", dtype="uint8", color=color, QuantParams={"Scale": 0.5, "Offset": -10})
    assert convert(config([wanted])).exit_code == 0
    rgb = RNG.integers(0, 255, (1, 4, 6, 3), dtype=np.uint8)
    pixels = rgb if model_color == "RGB" else rgb[..., ::-1]
    expected = 2 * 0.5 * (pixels.astype(float) - 10) + 1
    np.testing.assert_allclose(run(x=_order(rgb, color)), expected.transpose(0, 3, 1, 2), rtol=1e-5)


@pytest.mark.parametrize("color", ["RGBA", "ARGB32"])
@pytest.mark.parametrize("model_color", ["RGBA", "ARGB32"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_colour_orders_of_a_model_that_takes_alpha(color: str, model_color: str, layout: str) -> None:
    affine(tuple({**DIMS, "C": 4}[axis] for axis in layout))
    source = {"DataType": "float32", "Layout": layout, "Color": model_color}
    quant = {"Scale": 0.5, "Offset": -10}
    wanted = entry(source=source, layout="NHWC", dtype="uint8", color=color, QuantParams=quant)
    result = convert(config([wanted]))
    assert result.exit_code == 0
    assert result.converted.stamp.inputs[0].shape == (1, 4, 6, 4)
    red, green, blue, alpha = RNG.integers(0, 255, (4, 1, 4, 6), dtype=np.uint8)
    bytes_of = {"RGBA": (red, green, blue, alpha), "ARGB32": (blue, green, red, alpha)}
    expected = 2 * 0.5 * (np.stack(bytes_of[model_color], layout.index("C")).astype(float) - 10) + 1
    np.testing.assert_allclose(run(x=np.stack(bytes_of[color], -1)), expected, rtol=1e-5)


def test_a_model_that_takes_alpha_needs_pixels_that_have_it() -> None:
    affine((1, 4, 4, 6))
    with pytest.raises(UsageError, match="RGB has no alpha, which the model takes"):
        convert(config([entry(source={**IMAGE, "Color": "RGBA"}, layout="NHWC", color="RGB")]))


def _saved(array: np.ndarray[Any, Any]) -> str:
    np.save("given.npy", array)
    return "given.npy"


@pytest.mark.parametrize("color", ["NV12", "NV21"])
@pytest.mark.parametrize("scope", ["full", "limited"])
@pytest.mark.parametrize("target", ["qnn-cpu", "htp-v73"])
def test_frames_become_rgb(color: str, scope: str, target: str) -> None:
    affine((1, 3, 4, 6))
    source = {"DataType": "float32", "Layout": "NCHW", "Color": "RGB"}
    wanted = entry(source=source, dtype="uint8", color=color, range=scope, QuantParams={"Scale": 1.0, "Offset": 0})
    assert convert(config([wanted]), target=target, verify=target == "qnn-cpu").exit_code == 0
    frame = RNG.integers(0, 255, (6, 6), dtype=np.uint8)
    rgb = yuv_to_rgb(frame, color, scope == "full").transpose(2, 0, 1)[None].astype(float)
    given = {
        backend: npukit.run(
            "m.dlc", inputs=[_saved(frame.reshape(1, 36))], backend=backend, target=chip, in_process=True
        ).outputs[0]["y"]
        for backend, chip in (("ort", None), ("qnn-htp", "sm8650"))
    }
    # the oracle is rounded to whole pixel values; HTP computes in float16, whose steps are 0.125 at 255
    assert np.abs((given["ort"] - 1) / 2 - rgb).max() <= 0.501
    assert np.abs((given["qnn-htp"] - 1) / 2 - rgb).max() <= 1.0


def test_custom_io_files_of_the_qnn_converters() -> None:
    affine((1, 3, 4, 6))
    data = [
        {
            "IOName": "x",
            "Layout": {"Model": "NCHW", "Custom": "NHWC"},
            "Datatype": "uint8",
            "QuantParam": {"Type": "QNN_DEFINITION_DEFINED", "Scale": 0.12, "Offset": -2},
        },
        {"IOName": "y", "Layout": {"Model": "NCHW", "Custom": "NHWC"}},
    ]
    assert convert(data).exit_code == 0
    codes = RNG.integers(0, 255, (1, 4, 6, 3), dtype=np.uint8)
    np.testing.assert_allclose(run(x=codes), 2 * 0.12 * (codes.astype(float) - 2) + 1, rtol=1e-5)


def test_shape_and_outputs_of_the_file_and_the_command_line_before_them() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1, 3, h, w] x) => (float[1, 3, h, w] z)'
        " { y = Relu (x) z = Exp (y) }"
    )
    onnx.save(model, "m.onnx")
    data = config([entry(source={"Layout": "NCHW"}, layout="NHWC", Shape="(1,4,6,3)")])
    data["Converted Graph"] = [{"Output Tensors": ["y"]}]
    stamp = convert(data).converted.stamp
    assert [(io.name, io.shape) for io in (*stamp.inputs, *stamp.outputs)] == [("x", (1, 4, 6, 3)), ("y", (1, 3, 4, 6))]
    stamp = convert(data, input_shapes={"x": (1, 3, 2, 2)}, outputs=("z",)).converted.stamp
    assert [(io.name, io.shape) for io in (*stamp.inputs, *stamp.outputs)] == [("x", (1, 2, 2, 3)), ("z", (1, 3, 2, 2))]


def test_the_template_changes_nothing_and_lists_every_tensor() -> None:
    affine((1, 3, 4, 6))
    result = npukit.convert("m.onnx", dump_io_config="t.yaml", in_process=True)
    assert result.path is None
    data = yaml.safe_load(Path("t.yaml").read_text())
    assert [e["Name"] for part in data.values() for e in part] == ["x", "y"]
    assert data["Input Tensor Configuration"][0]["Src Model Parameters"]["Shape"] == "1,3,4,6"
    plain = npukit.convert("m.onnx", output="plain.dlc", random=1, in_process=True)
    filled = npukit.convert("m.onnx", output="m.dlc", io_config="t.yaml", random=1, in_process=True)
    assert filled.converted.ops == plain.converted.ops
    assert filled.converted.stamp.inputs == plain.converted.stamp.inputs


def test_a_tensorflow_lite_file_is_changed_and_compared_too() -> None:
    pytest.importorskip("tflite")
    source = Path(__file__).parent / "data" / "tflite" / "network_float32.tflite"
    npukit.convert(source, dump_io_config="t.yaml", in_process=True)
    (image,) = yaml.safe_load(Path("t.yaml").read_text())["Input Tensor Configuration"]
    assert image["Src Model Parameters"]["Layout"] == "NHWC"
    wanted = entry(image["Name"], source={"Layout": "NHWC"}, layout="NCHW")
    result = npukit.convert(source, output="m.dlc", io_config=config([wanted]), random=1, in_process=True)
    assert result.exit_code == 0
    assert result.converted.stamp.inputs[0].shape == (1, 3, 16, 16)


def test_quantize_takes_layout_and_encoding_of_a_config() -> None:
    affine((1, 3, 4, 6))
    Path("io.yaml").write_text(
        yaml.safe_dump(
            config(
                [entry(source={"DataType": "float32", "Layout": "NCHW"}, layout="NHWC", dtype="uint8",
                       QuantParams={"Scale": 0.05, "Offset": -128})],
                [entry("y", source={"DataType": "float32"}, dtype="uint8", QuantParams={"Scale": 0.1, "Offset": -120})],
            )
        )
    )  # fmt: skip
    np.save("cal.npy", RNG.normal(size=(8, 4, 6, 3)).astype(np.float32))
    result = npukit.quantize(
        "m.onnx", output="q.dlc", calibration="cal.npy", io_config="io.yaml", verify_backend="ort", in_process=True
    )
    assert result.exit_code == 0
    with npukit.Session("q.dlc", backend="ort") as session:
        x, y = session.inputs[0], session.outputs[0]
    assert (x.shape, x.native.qnn_dtype) == ((1, 4, 6, 3), "UFIXED_POINT_8")
    assert x.native.encoding is not None
    assert y.native.encoding is not None
    assert [(e.scale, e.offset) for e in (x.native.encoding, y.native.encoding)] == [
        (pytest.approx(0.05), -128),
        (pytest.approx(0.1), -120),
    ]


def test_a_quantized_model_gets_other_encodings_at_its_border() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1, 8] x) => (float[1, 8] y)'
        " { xc = QuantizeLinear (x, sx, zx) xd = DequantizeLinear (xc, sx, zx) r = Relu (xd)"
        " yc = QuantizeLinear (r, sy, zy) y = DequantizeLinear (yc, sy, zy) }"
    )
    for name, value in {"sx": 0.1, "sy": 0.1}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    for name, value in {"zx": 128, "zy": 0}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.uint8(value), name))
    onnx.save(model, "m.onnx")
    source = {"DataType": "float32"}
    own = entry(source=source, dtype="uint8")
    given = entry("y", source=source, dtype="uint8", QuantParams={"Scale": 0.05, "Offset": 0})
    assert convert(config([own], [given])).exit_code == 0
    codes = RNG.integers(0, 255, (1, 8), dtype=np.uint8)
    expected = np.clip(np.rint(np.maximum(0.1 * (codes.astype(float) - 128), 0) / 0.05), 0, 255)
    assert np.abs(run(x=codes).astype(int) - expected).max() <= 1


FLOAT = {"DataType": "float32"}
IMAGE = {"DataType": "float32", "Layout": "NCHW"}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (config([entry(source=FLOAT, dtype="uint8")]), "uint8 needs Scale and Offset, because the model is float"),
        ([{"IOName": "x", "Datatype": "int8"}], "int8 needs Scale and Offset"),
        (config([entry(source=FLOAT, dtype="uint8", QuantParams={"Scale": 0.1})]), "needs both Scale and Offset"),
        (config([entry(source=FLOAT, dtype="float16", QuantParams={"Scale": 1, "Offset": 0})]), "without DataType"),
        (config([entry(source=FLOAT, dtype="uint8", QuantParams={"Scale": 1, "Offset": 9})]), "Offset is 9"),
        (config([entry(layout="NHWC")]), "has a desired layout, but not the source's"),
        (config([entry(dtype="float16")]), "has a desired data type, but not the source's"),
        (config([entry(source={"Layout": "NCHW"}, layout="NFC")]), "NCHW cannot become NFC"),
        (config([entry(source={"Layout": "NFC"}, layout="NCF")]), "has 4 dimensions in the model, the layout NFC"),
        (config([entry(source={"Layout": "NCWH"}, layout="NHWC")]), "Layout is 'NCWH', it must be one of NCDHW"),
        (config([entry(source={"DataType": "float16"}, dtype="float32")]), "is float32 in the model, not float16"),
        (config([entry(source=FLOAT, dtype="int32")]), "DataType is 'int32', it must be one of float32"),
        (config([entry("z", source=FLOAT)]), "the model has no such input"),
        (config([], [entry("x", source=FLOAT)]), "the model has no such output"),
        (config([entry(), entry()]), "is there twice"),
        (config([{"Src Model Parameters": {}}]), "entry 1: has no name"),
        (config([{**entry(), "Lay out": 1}]), "there is no key 'Lay out'"),
        ({"Inputs": []}, "there is no such key"),
        ("text", "is neither a list"),
        (config(["x"]), "needs keys and values"),
        (config([entry(Optional=True)]), "Optional is 'True', it must be False"),
        (config([entry(source=IMAGE, color="BGR")]), "the colour order of the model is not said"),
        (config([entry(source={**IMAGE, "Color": "RGB"}, color="NV12")]), "Color Range goes with NV12"),
        (config([entry(source={**IMAGE, "Color": "RGBA"}, color="BGR")]), "has no 4 channels in the layout NCHW"),
        (config([entry(source={"Color": "RGB"}, color="BGR")]), "needs an input of four dimensions"),
        ([{"IOName": "x", "QuantParam": {"Type": "QNN_DEFINITION_UNDEFINED", "Scale": 1.0, "Offset": 0}}], "UNDEFINED"),
        (config([entry(source=IMAGE, layout="NHWC", Shape="1,2,3")]), "a shape of 3 dimensions in a layout of 4"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(data: Any, sentence: str) -> None:
    affine((1, 3, 4, 6))
    with pytest.raises(NpukitError) as caught:
        convert(data)
    assert sentence in str(caught.value)
    assert not Path("m.dlc").exists()


def test_all_faults_are_listed_and_layouts_are_named_once() -> None:
    affine((1, 3, 4, 6))
    wrong = config([entry(layout="NHWC"), entry("z", source={"Layout": "NCHW"}, layout="NF")])
    with pytest.raises(UsageError) as caught:
        convert(wrong)
    assert len(caught.value.faults) == 2
    with pytest.raises(UsageError, match="names layouts, and so does this option"):
        convert(config([entry(source=IMAGE, layout="NHWC")]), io_layout="nhwc")


BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{inner}'] * 9)}]\n"
    for inner, name in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BOMB, "stand for too much"),
        ("a: &a [*a]\n", "not a sound YAML file"),
        ("- &a [*a]\n", "within itself"),
        ("- [", "not a sound YAML file"),
        ("- !!python/object/apply:os.system [ls]\n", "not a sound YAML file"),
        ("x" * (2 << 20), "larger than"),
        ("[" * 5000, "not a sound YAML file"),
    ],
)  # fmt: skip
def test_hostile_files(text: str, sentence: str) -> None:
    affine((2, 9))
    Path("bad.yaml").write_text(text)
    with pytest.raises(NpukitError, match=sentence):
        npukit.convert("m.onnx", io_config="bad.yaml")


def test_plain_data_and_back() -> None:
    data = config([entry(source={**IMAGE, "Color": "RGB"}, color="NV12", range="full", Shape=[1, 36])])
    data["Input Tensor Configuration"][0]["Desired Model Parameters"].pop("Shape")
    loaded = IoConfig.load(data)
    assert IoConfig.load(loaded.to_dict()) == loaded
