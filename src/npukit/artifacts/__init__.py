# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Artifact files: DLC, HTP context binary, and the stamp that says what one was made from."""
