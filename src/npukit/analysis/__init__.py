# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What is learned about models: comparison, verification, description, differences, reports."""

DEFAULT_SEED = 20260101  # of generated samples
