# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Conformance: the ONNX project's own backend tests over lower -> QNN CPU, lower -> HTP, lower -> raise -> ORT.

Run with `python -m conformance` (or `make conformance`); not part of the installed package.
"""
