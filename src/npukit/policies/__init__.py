# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Robot policies: from a checkpoint to a folder of checked artifacts, and its runtime without PyTorch."""
