# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A double of the package `libero`, for tests of npukit's adapter: nothing in it is LIBERO's."""
