# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Double: LIBERO's imports torch here."""

raise ImportError("the adapter must not need this module")
