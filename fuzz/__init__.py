# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Mutated model files against every loader of npukit: `python -m fuzz`. Not installed.

A seed is a small sound file (`corpus`), a case is a seed with one to three mutations (`mutate_onnx`,
`mutate_artifacts`), a verdict is what the real verbs made of it in a reused worker (`execute`). A case is named by
(seed number, kind, index) and is made again from these alone.
"""
