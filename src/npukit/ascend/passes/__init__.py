# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Rewrites that bring a model to what atc and the Ascend 310P take, each under the name that the lint gives it.

A pass works on a normalized model (every node in the newest opset, constants as initializers), changes it in place and
returns how many nodes it changed. It leaves alone what it does not fit, and what the table has nothing against.
"""
