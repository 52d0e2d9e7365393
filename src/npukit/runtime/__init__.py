# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Floor 4: one interface to everything that executes a model (`session.Session`), a module a backend."""
