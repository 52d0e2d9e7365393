# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What npukit costs, side by side with bare C API calls and with ONNX Runtime's QNN provider."""
