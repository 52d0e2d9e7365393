# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The PyTorch front end: torch.export archives (.pt2), TorchScript (.pt) and modules in memory become ONNX.

torch is an extra and takes seconds to import, so it lives in a process of its own (`export_file`); what a file is, and
whether reading it would run code, is decided before that, without torch (`kinds`, `archive`, `script`).
"""

from npukit.frontends.exported import Exported
from npukit.frontends.pytorch.convert import as_onnx, export_object
from npukit.frontends.pytorch.kinds import kind_of

__all__ = ["Exported", "as_onnx", "export_object", "kind_of"]
