# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The `npukit` command, also as `python -m npukit`."""

import signal
import sys


def main() -> int:
    """Run the command line and return its exit code.

    While modules are imported Ctrl-C ends the process at once: there is nothing to clean up yet, and an import that
    is interrupted would answer with a traceback (numpy's with a false one).
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from npukit.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
