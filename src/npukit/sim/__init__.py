# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Closed loop: simulated environments, a scripted expert, and the evaluation of policies in them.

Needs the extra `sim` (MuJoCo, gymnasium, PyAV); nothing here is imported before it is used.
"""
