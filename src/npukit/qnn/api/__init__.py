# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The binding of the QNN C API. Importing it loads no native library."""
