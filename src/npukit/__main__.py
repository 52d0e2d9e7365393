# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m npukit`: the same as the `npukit` command."""

import sys

from npukit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
