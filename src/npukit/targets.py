# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What an artifact can be made for: a table of chips and backends, each row with its source.

A lowering asks a `Target` for facts (Hexagon architecture, float16, quirks) and never for its name. A chip that
is not in the table can be given as its numbers: `htp(soc_id=..., arch=...)`.

Sources, by the letter in the rows:
    G  Qualcomm AI Engine Direct reference guide 2.22, overview, table of supported devices (SoC model and arch).
    E  pytorch/executorch backends/qualcomm/serialization/qc_schema.py (SoC model, arch, VTCM).
    L  google-ai-edge/LiteRT vendors/qualcomm soc_table.cc (arch, VTCM).
    R  read from a context binary that libQnnHtp 2.47 made for this SoC id (arch).
    A  Ascend documents as collected for the toolkit (soc_version, precision).
    V  libQnnHtp 2.47 for this SoC id: whether it validates Conv2d in float32 and with 4-bit weights. Float goes by
       the chip, not by the architecture: SM8350 and SA8295 (V68) have it, SM7475 (V69) and SM8635 (V73) do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from npukit.errors import UsageError, nearest


@dataclass(frozen=True)
class Quirk:
    """A way in which a backend differs from the op definitions without its validation saying so.

    Attributes:
        name: what lowerings ask for.
        what: what the backend does.
        backends: where it does it.
        source: how it is known.
        ops: source ops that it still shows in, because no lowering goes around it; `lint` names their nodes.
    """

    name: str
    what: str
    backends: frozenset[str]
    source: str
    ops: frozenset[str] = frozenset()


_RUN = "tried on wheel onnxruntime-qnn 2.3.0 (QAIRT 2.47), x86-64"
_CPU, _HTP = frozenset({"qnn-cpu"}), frozenset({"qnn-htp"})

QUIRKS: dict[str, Quirk] = {
    quirk.name: quirk
    for quirk in (
        Quirk("pool_max_pads_with_zero", "PoolMax lets padding win over negative values", _HTP, _RUN),
        Quirk("pool_avg_ceil_is_wrong", "PoolAvg2d CEIL gives garbage in overhanging windows", _HTP, _RUN),
        Quirk(
            "pad_of_codes_wrong",
            "Pad fills codes with pad_constant_value + 2 * offset, modulo 256",
            _CPU,
            _RUN,
        ),
        Quirk(
            "wide_convolution_with_relu_min_max_wrong",
            "a convolution of 16-bit codes with a ReluMinMax behind it gives wrong numbers (either alone is right)",
            _HTP,
            _RUN,
        ),
        Quirk("bilinear_resize_of_codes_coarse", "ResizeBilinear of codes is off by up to two steps", _CPU, _RUN),
        Quirk("pool_ceil_refused", "rounding_mode CEIL fails at composition", _CPU, _RUN),
        Quirk(
            "float32_computed_in_float16", "FLOAT_32 is computed and saturated like FLOAT_16 from V69 on", _HTP, _RUN
        ),
        Quirk("float32_not_bit_preserving", "even Reshape of FLOAT_32 moves values by 1e-7 relative", _HTP, _RUN),
        Quirk(
            "topk_ties_prefer_larger_index",
            "TopK puts the larger index first on ties",
            _CPU | _HTP,
            _RUN,
            frozenset({"TopK"}),
        ),
        Quirk("fc_axis_weights_first_scale", "FullyConnected with per-axis weights uses the first scale", _CPU, _RUN),
        Quirk("quantized_conv_needs_bias", "quantized Conv2d without bias fails at finalize (6000)", _CPU, _RUN),
        Quirk(
            "matmul_needs_both_transposes", "MatMul with per-axis weights and no params crashes validation", _HTP, _RUN
        ),
        Quirk("lpbq_only_1x1", "blockwise-expansion weights of a convolution above 1x1 give wrong numbers", _HTP, _RUN),
        Quirk("lpbq_block_below_8_is_wrong", "blockwise expansion with blocks of 4 gives wrong numbers", _HTP, _RUN),
        Quirk("lpbq_block_scale_bits_4", "blockwise-expansion block scales must have 4 bits", _HTP, _RUN),
        Quirk("block_encoding_has_no_kernel", "BLOCK encodings finalize with 1002", _HTP, _RUN),
        Quirk("one_byte_per_4bit_weight", "4-bit weights are one value a byte in an 8-bit dtype", _HTP, _RUN),
        Quirk(
            "per_tensor_bias_scale_requantizes",
            "a per-tensor bias scale with per-axis weights costs accuracy",
            _HTP,
            _RUN,
        ),
        Quirk("integer_mod_through_float", "ElementWiseMod of INT_32 is exact to 2^24 only", _CPU, _RUN),
        Quirk("fmod_has_divisors_sign", "ElementWiseFmod gives 1 for (-3, 2), where C's fmod gives -1", _CPU, _RUN),
        Quirk(
            "sigmoid_behind_product_is_coarse",
            "from V73 on, Sigmoid and Tanh of floats keep 49 and 46 dB where they are fused with the convolution or"
            " product before them (Tanh with sums too), and 67 and 75 behind a Maximum in between",
            _HTP,
            _RUN,
        ),
        Quirk("sigmoid_tails_are_coarse", "Sigmoid of floats is off by up to 8e-4, and is 0 below -9", _HTP, _RUN),
        Quirk(
            "large_divisors_give_nonsense",
            "ElementWiseDivide of floats is off by a tenth for divisors above 16384, and gives -131008 above 32768",
            _HTP,
            _RUN,
            frozenset({"Div"}),
        ),
        Quirk("exp_of_very_little_is_large", "ElementWiseExp of floats gives 131008 for x below -88", _HTP, _RUN),
        Quirk("softplus_is_coarse", "SOFTPLUS of floats is off by up to 0.012", _HTP, _RUN),
        Quirk("asin_beyond_one_fails", "graphExecute fails (6000) where an element of Asin is beyond 1", _CPU, _RUN),
        Quirk("cast_to_bool_takes_a_byte", "Cast to BOOL_8 gives the lowest bits, not x != 0", _HTP, _RUN),
        Quirk("gather_negative_indices", "gathers and scatters take no negative indices", _CPU | _HTP, _RUN),
        Quirk("float16_refused", "FLOAT_16 activations are refused but by Cast", _CPU, _RUN),
        Quirk("rms_norm_epsilon_outside_root", "RmsNorm divides by sqrt(mean) + epsilon", _CPU, _RUN),
        Quirk(
            "pad_mirror_and_edge_unreliable",
            "Pad MIRROR_REFLECT (CPU) and EDGE (HTP) are wrong for some inputs and runs",
            _CPU | _HTP,
            _RUN,
        ),
        Quirk("transpose_conv_output_padding_wrong", "TransposeConv2d leaves output_padding unset", _HTP, _RUN),
        Quirk("argmin_wrong", "Argmin gives wrong indices for small float tensors", _HTP, _RUN),
        Quirk("pool_avg_pads_wrong", "PoolAvg2d with pads (its own, or a Pad it is fused with) is wrong", _HTP, _RUN),
        Quirk("grid_sample_nearest_wrong", "GridSample NEAREST rounds ties and borders unlike ONNX", _HTP, _RUN),
        Quirk("grid_sample_nearest_3d_wrong", "GridSample NEAREST of rank 5 gives wrong values", _CPU, _RUN),
        Quirk("is_inf_fails", "IsInf validates, but finalize fails (1002)", _HTP, _RUN),
        Quirk("infinity_is_nan", "beyond 65504 a FLOAT_32 is taken for NaN by IsNan and comparisons", _HTP, _RUN),
        Quirk("division_by_power_of_two_floors", "INT_32 by one constant 2, 4, 8, ... rounds down", _HTP, _RUN),
        Quirk("integer_select_of_a_scalar_is_wrong", "INT_32 Select reads past an operand of one element", _HTP, _RUN),
        Quirk(
            "quantized_relu_ends_at_code_0", "8-bit Relu and Gelu clamp at code 0, not at the zero point", _CPU, _RUN
        ),
        Quirk(
            "quantized_neuron_fails", "8-bit Softplus and HARD_SIGMOID validate, but execute fails (6000)", _CPU, _RUN
        ),
        Quirk("integers_saturate", "INT_32 Add, Subtract and Multiply saturate instead of wrapping", _HTP, _RUN),
        Quirk("softplus_threshold_literal", "a negative Softplus threshold is not off: send a large one", _CPU, _RUN),
        Quirk("fmod_keeps_sign_of_divisor", "ElementWiseFmod of floats is a floor modulus", _CPU, _RUN),
        Quirk("prelu_slope_last_axis_only", "Prelu slopes that broadcast along other axes are wrong", _CPU, _RUN),
        Quirk("l2_pool_is_root_of_mean", "L2Pool2d divides by the number of elements in the window", _CPU, _RUN),
        Quirk("pad_symmetric_needs_rank_4", "Pad MIRROR_SYMMETRIC gives zeros below rank 4", _CPU, _RUN),
        Quirk(
            "gelu_neuron_is_tanh_form",
            "ElementWiseNeuron GELU, as DLCs have it, is the tanh form; Gelu is not",
            _CPU,
            _RUN,
        ),
        Quirk("scatter_narrow_indices_wrong", "ScatterElements misplaces indices narrower than the data", _CPU, _RUN),
        Quirk("one_hot_integers_are_float_bits", "OneHot writes float bits into an integer output", _CPU, _RUN),
        Quirk("shape_corrupts_heap", "the op Shape kills the process", _CPU, _RUN),
        Quirk("layer_norm_default_epsilon_1e-5", "LayerNorm without epsilon uses 1e-5: always send it", _CPU, _RUN),
        Quirk("instance_norm_drops_affine", "InstanceNorm normalize_variance 0 drops gamma and beta", _CPU, _RUN),
        Quirk("instance_norm_ignores_flag", "InstanceNorm ignores normalize_variance; RMS mode drops beta", _HTP, _RUN),
        Quirk("masked_softmax_masks_negative", "MaskedSoftmax hides all of mask < 0 instead of adding it", _CPU, _RUN),
        Quirk("reduce_sum_square_all_axes", "ReduceSumSquare over all axes squares twice", _CPU, _RUN),
        Quirk("extract_patches_channels_first", "ExtractPatches has channels before taps", _CPU, _RUN),
        Quirk("gru_batch_1_only", "Gru is wrong for larger batches, and dies without initial_h", _CPU, _RUN),
        Quirk("gru_y_h_is_initial", "the output Y_h of Gru is the initial h", _CPU, _RUN),
        Quirk("lstm_3d_needs_initial_state", "a 3-D Lstm without initial states fails at finalize", _CPU, _RUN),
        Quirk("lstm_reverse_refused", "a 3-D Lstm with direction REVERSE fails at finalize", _CPU, _RUN),
        Quirk("quantized_relu_clips_by_encoding", "8-bit Relu only clips where the output encoding does", _CPU, _RUN),
        Quirk("convert_copies_codes", "Convert between 8-bit encodings copies the codes", _CPU, _RUN),
        Quirk("axis_weights_need_axis_bias", "per-axis Conv2d weights with a per-tensor bias give garbage", _CPU, _RUN),
        Quirk("masked_softmax_compressed_batch_1", "MaskedSoftmax COMPRESSED zeroes all batches but one", _CPU, _RUN),
        Quirk("gather_nd_needs_batch_dims", "GatherNd without batch_dims fails in graphAddNode (6000)", _CPU, _RUN),
        Quirk("is_nan_counts_infinity", "IsNan is true for infinities", _HTP, _RUN, frozenset({"IsNaN"})),
        Quirk("gather_nd_constant_batches_wrong", "GatherNd with batch_dims and constant indices", _HTP, _RUN),
        Quirk(
            "integer_broadcast_beyond_four_axes_wrong",
            "INT_32 over five axes or more with broadcasting: Add ends the process, Subtract gives wrong numbers",
            _CPU,
            _RUN,
        ),
        Quirk(
            "roi_align_small_regions_unreliable",
            "RoiAlign with aligned 0 takes regions below one pixel as they are in some runs",
            _CPU,
            _RUN,
        ),
        Quirk("five_axes_at_most", "ops refuse more than five axes (CPU: some, at seven)", _CPU | _HTP, _RUN),
        Quirk(
            "scatter_elements_takes_indices_for_data",
            "ScatterElements steps through the data by the shape of the indices",
            _CPU,
            _RUN,
        ),
        Quirk(
            "fully_connected_between_reshapes_fails",
            "from V73 on finalize fails (1002) where FullyConnected of floats reads a Reshape from, and feeds one to,"
            " one shape of another width",
            _HTP,
            _RUN,
        ),
        Quirk("mixed_float_widths_refused", "FLOAT_16 and FLOAT_32 may not meet in one op without Cast", _HTP, _RUN),
    )
}


@dataclass(frozen=True)
class Target:
    """One chip or backend an artifact is made for.

    Attributes:
        name: as given with --target, lower case.
        backend: "qnn-cpu", "qnn-htp", "ascend", or "" where npukit can make nothing for the chip.
        soc_id: the QNN SoC model; None without one.
        arch: Hexagon architecture (68, 69, 73, ...); None without HTP.
        vtcm_mb: tightly coupled memory of the NPU in MB; None where no source gives it.
        float16: whether float graphs run on it.
        int4: whether 4-bit weights run on it.
        source: letters of the sources above.
        notes: what one should know; for a chip without HTP what can be made instead.
        soc_version: what atc calls the chip; empty for others than Ascend's.
    """

    name: str
    backend: str
    soc_id: int | None = None
    arch: int | None = None
    vtcm_mb: int | None = None
    float16: bool = False
    int4: bool = False
    source: str = ""
    notes: str = ""
    soc_version: str = ""

    @property
    def quirks(self) -> frozenset[str]:
        """Names in QUIRKS that hold for this target's backend."""
        return frozenset(quirk.name for quirk in QUIRKS.values() if self.backend in quirk.backends)

    @property
    def supported(self) -> bool:
        """Whether npukit can make an artifact for it."""
        return bool(self.backend)


def htp(
    soc_id: int,
    arch: int,
    *,
    name: str = "",
    vtcm_mb: int | None = None,
    float16: bool | None = None,
    source: str = "",
    notes: str = "",
) -> Target:
    """A Hexagon NPU by its numbers; without `float16` float graphs are taken to run from V69 on.

    Raises UsageError below V68, the first HTP.
    """
    if arch < 68:
        raise UsageError(f"Hexagon V{arch} has no HTP", hint="HTP begins with V68; use the CPU of such a chip")
    label = name or f"soc{soc_id}-v{arch}"
    floats = arch >= 69 if float16 is None else float16
    return Target(label, "qnn-htp", soc_id, arch, vtcm_mb, floats, True, source, notes)


# name, SoC model, Hexagon arch, VTCM in MB, float graphs, sources
_HTP_ROWS: tuple[tuple[str, int, int, int | None, bool, str], ...] = (
    ("sm8350", 30, 68, 4, True, "G E L R V"),
    ("sm7350", 32, 68, None, False, "G R V"),
    ("sm8325", 34, 68, None, False, "G R V"),
    ("sm7325", 35, 68, None, False, "G R V"),
    ("qcm6490", 35, 68, 2, False, "G E R V"),
    ("qcs6490", 35, 68, 2, False, "G E R V"),
    ("sc8280x", 37, 68, None, False, "G R V"),
    ("sm7315", 38, 68, None, False, "G R V"),
    ("sa8295", 39, 68, 8, True, "E L R V"),
    ("sa8540", 62, 68, 8, True, "E R V"),
    ("sm8450", 36, 69, 8, True, "G E L R V"),
    ("sm7450", 41, 69, None, True, "G R V"),
    ("sm8475", 42, 69, 8, True, "G E L R V"),
    ("sm7475", 54, 69, None, False, "G R V"),
    ("sxr2230p", 53, 69, 8, True, "E L R V"),
    ("sm8550", 43, 73, 8, True, "G E L R V"),
    ("sm6450", 50, 73, None, False, "G R V"),
    ("sm8635", 68, 73, None, False, "G R V"),
    ("sc8380xp", 60, 73, 8, True, "G L R V"),
    ("sa8255", 52, 73, 8, True, "E L R V"),
    ("qcs9100", 77, 73, 8, True, "E R V"),
    ("ssg2115p", 46, 73, 2, False, "E R V"),
    ("ssg2125p", 58, 73, 2, False, "E L R V"),
    ("sxr1230p", 45, 73, 2, False, "E R V"),
    ("sm8650", 57, 75, 8, True, "G E L R V"),
    ("sm8750", 69, 79, 8, True, "E L R V"),
    ("sxr2330p", 75, 79, 8, True, "E R V"),
    ("sm8850", 87, 81, 8, True, "E L R V"),
    ("sm8845", 97, 81, 8, True, "E R V"),
    ("sa8797", 72, 81, 16, True, "E R V"),
    ("sar2230p", 95, 81, 4, False, "E L R V"),
    ("sw6100", 96, 81, 4, False, "E R V"),
)
_NOTES = {
    "qcm6490": "executorch lists SoC model 93 for it, also V68",
    "qcs6490": "the same chip as qcm6490 without modem; executorch lists SoC model 93, also V68",
}

_NO_HTP = "no HTP: its DSP needs the QNN DSP backend, which no wheel holds. A .dlc made for qnn-cpu runs on its CPU"
_WITHOUT_HTP: tuple[tuple[str, int, int | None], ...] = (
    ("sm8250", 21, 66),
    ("qrb5165", 21, 66),
    ("sm7250", 25, 66),
    ("sm7225", 29, 66),
    ("sm6350", 29, 66),
    ("qcs7230", 51, 66),
    ("sm6225", 40, 66),
    ("sm4350", 31, 66),
    ("sm6375", 31, 66),
    ("sm4250", 28, 66),
    ("sm6115", 28, 66),
    ("qcm4290", 28, 66),
    ("qcs610", 16, 66),
    ("qcs410", 33, 66),
    ("qcm6125", 19, 66),
    ("qrb4210", 49, 66),
    ("qcm4490", 59, None),
    ("sm4450", 59, None),
)

_OTHERS = (
    Target("qnn-cpu", "qnn-cpu", source="R", notes="float32 and plain 8-bit reference, runs where the wheel does"),
    Target("gpu", "", notes="Adreno: npukit makes no GPU artifact; a .dlc runs there with Qualcomm's own tools"),
    Target("lpai", "", notes="low-power AI island: needs tools that no wheel holds"),
)

# The four soc_versions that Ascend's runtime knows of this chip: `npu-smi info` names the one of a board.
_ASCEND = tuple(
    Target(soc.lower(), "ascend", float16=True, source="A", notes="matrix products in float16 only", soc_version=soc)
    for soc in ("Ascend310P1", "Ascend310P3", "Ascend310P5", "Ascend310P7")
)

_PORTABLE_HTP = htp(
    43, 73, name="htp-v73", vtcm_mb=8, source="G E L R V", notes="the HTP half of the target `portable`"
)

TARGETS: dict[str, Target] = {
    row.name: row
    for row in (
        *(
            htp(soc, arch, name=n, vtcm_mb=mb, float16=f, source=s, notes=_NOTES.get(n, ""))
            for n, soc, arch, mb, f, s in _HTP_ROWS
        ),
        *(Target(name, "", soc, arch, source="G", notes=_NO_HTP) for name, soc, arch in _WITHOUT_HTP),
        *_OTHERS,
        *_ASCEND,
        _PORTABLE_HTP,
    )
}

PORTABLE = "portable"


def portable() -> tuple[Target, ...]:
    """What a conversion without --target must hold on: QNN CPU and HTP V73."""
    return TARGETS["qnn-cpu"], _PORTABLE_HTP


def target(name: str) -> Target:
    """The row called `name` (any case). Raises UsageError with the nearest name; see `resolve` for "portable"."""
    found = TARGETS.get(name.strip().lower())
    if found is None:
        near = nearest(name.strip().lower(), [*TARGETS, PORTABLE])
        raise UsageError(f"no target {name!r}", where="--target", hint=f"{near}; `npukit targets` lists all")
    return found


def resolve(names: tuple[str, ...] | list[str]) -> tuple[Target, ...]:
    """Targets of all `names` without repeats; none or "portable" give `portable()`.

    Raises UsageError for an unknown name and for a chip that npukit can make nothing for.
    """
    found: dict[str, Target] = {}
    for name in names or [PORTABLE]:
        rows = portable() if name.strip().lower() == PORTABLE else (target(name),)
        for row in rows:
            if not row.supported:
                raise UsageError(f"nothing can be made for {row.name}", where="--target", hint=row.notes)
            found[row.name] = row
    return tuple(found.values())


def htp_arch(names: tuple[str, ...]) -> int:
    """The oldest Hexagon architecture of targets by name (none known: of `portable()`); 0 where none is HTP."""
    chips = {chip.name: chip for chip in (*TARGETS.values(), *portable())}
    found = [chips[name] for name in names if name in chips] or portable()
    return min((chip.arch or 0 for chip in found if chip.backend == "qnn-htp"), default=0)


def by_soc_id(soc_id: int) -> Mapping[str, Target]:
    """Rows with this SoC model, by name: several chips may share one."""
    return {name: row for name, row in TARGETS.items() if row.soc_id == soc_id}
