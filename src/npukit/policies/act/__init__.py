# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""ACT (Action Chunking Transformer) as LeRobot trains it: one component, deterministic, no text."""

from npukit.policies.kinds import Kind

KIND = Kind(
    "act",
    config_types=("act",),
    export="npukit.policies.act.export:export_components",
    runtime="npukit.policies.act.runtime:Runtime",
)
