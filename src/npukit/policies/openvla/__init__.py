# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA: a picture and an instruction to one action, token by token."""

from npukit.policies.kinds import Kind

KIND = Kind(
    "openvla",
    config_types=("openvla",),
    export="npukit.policies.openvla.export:export_components",
    runtime="npukit.policies.openvla.runtime:Runtime",
    read="npukit.policies.openvla.checkpoint:read",
    precisions=("float16", "float32"),
    reference="npukit.policies.openvla.reference:runs",
    options=("prompt_length", "unnorm_key", "prompt", "center_crop", "gripper"),
)
