# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks of realistic topology with live random weights, spelled as PyTorch's exporter spells them.

`NETWORKS` lists them; `build` writes one to a file. Each has a full size and a small variant (the same topology with
fewer and narrower layers) that converts and runs in about a second.
"""

from networks.catalogue import NETWORKS, Network, build

__all__ = ["NETWORKS", "Network", "build"]
