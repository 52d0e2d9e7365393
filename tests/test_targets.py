# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The table of targets."""

import re
from pathlib import Path

import pytest

from npukit import targets
from npukit.errors import UsageError
from npukit.targets import QUIRKS, TARGETS, by_soc_id, htp, portable, resolve, target

# Hexagon architectures read from the metadata of context binaries that libQnnHtp made for each SoC id.
ARCH_OF_SOC = {
    68: (30, 32, 34, 35, 37, 38, 39, 62, 63, 93),
    69: (36, 41, 42, 53, 54),
    73: (43, 45, 46, 50, 52, 58, 60, 61, 64, 66, 68, 70, 73, 74, 76, 77, 78, 85, 86, 89, 91, 100, 101, 102),
    75: (57, 67, 82, 90),
    79: (69, 75, 104, 105),
    81: (72, 87, 88, 92, 94, 95, 96, 97, 99, 109, 110),
}


@pytest.mark.parametrize("row", TARGETS.values(), ids=TARGETS)
def test_every_row_is_sound(row):
    assert row.name == row.name.lower()
    assert row.quirks <= set(QUIRKS)
    assert row.supported or row.notes
    if row.backend == "qnn-htp":
        assert row.soc_id in ARCH_OF_SOC[row.arch]
        assert row.source
        assert row.int4


def test_look_ups():
    assert target("SM8650").arch == 75
    assert target(" qcs6490 ").vtcm_mb == 2
    assert [t.name for t in portable()] == ["qnn-cpu", "htp-v73"]
    assert resolve([]) == portable()
    assert [t.name for t in resolve(["portable", "sm8650", "qnn-cpu"])] == ["qnn-cpu", "htp-v73", "sm8650"]
    assert set(by_soc_id(35)) == {"sm7325", "qcm6490", "qcs6490"}
    assert htp(200, 90).name == "soc200-v90"
    assert target("sm8350").float16
    assert not target("qcs6490").float16
    assert not target("sm8635").float16


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: target("sm8651"), "did you mean"),
        (lambda: target("sm8651"), "npukit targets"),
        (lambda: resolve(["sm8250"]), "nothing can be made for sm8250"),
        (lambda: resolve(["gpu"]), "GPU"),
        (lambda: htp(21, 66), "no HTP"),
    ],
)
def test_errors_say_what_to_do(call, text):
    with pytest.raises(UsageError, match=text):
        call()


def test_quirks_follow_the_backend():
    assert "pool_max_pads_with_zero" in target("sm8650").quirks
    assert "pool_max_pads_with_zero" not in target("qnn-cpu").quirks
    assert "fc_axis_weights_first_scale" in target("qnn-cpu").quirks


def test_quirk_names_are_unique():
    source = Path(targets.__file__).read_text(encoding="utf-8")
    names = re.findall(r'Quirk\(\s*"(\w+)"', source)
    assert len(names) == len(set(names))
