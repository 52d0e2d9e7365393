# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Quantization after training: ranges and weights become encodings, and what they cost is measured."""
