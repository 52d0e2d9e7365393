# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Huawei Ascend: what its compiler and its chip take, and what is needed to get there."""
