# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""QNN: the graph IR, op definitions, names, and the C binding."""
