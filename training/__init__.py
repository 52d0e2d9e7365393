# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of the small policy that closed-loop figures are measured with; see README.md."""
