# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""SmolVLA as LeRobot trains it: a vision encoder, a language backbone, and an action head that runs once a step."""

from npukit.policies.kinds import Kind

KIND = Kind(
    "smolvla",
    config_types=("smolvla",),
    export="npukit.policies.smolvla.export:export_components",
    runtime="npukit.policies.smolvla.runtime:Runtime",
    steps="npukit.policies.smolvla.steps:steps",
)
