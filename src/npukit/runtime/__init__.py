# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Floor 4: one interface to everything that executes a model (`session.Session`), a module a backend."""

BACKEND_NAMES = ("qnn-cpu", "qnn-htp", "qnn-gpu", "ort", "ort-qnn", "litert", "acl")
"""Everything that may be asked for with --backend; which of them a machine has is what `npukit doctor` shows."""
