# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The verbs: one module each, an options dataclass and a function that composes the parts below."""
