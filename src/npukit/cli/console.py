# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What the command shows besides its result: log lines, and a progress bar when stderr is a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from npukit import log
from npukit.cli.options import Common


@contextlib.contextmanager
def session(common: Common) -> Iterator[None]:
    """Set up logging, the library folder and the progress bar for one verb."""
    if common.qnn_lib_dir is not None:
        os.environ["NPUKIT_QNN_LIB_DIR"] = str(common.qnn_lib_dir.absolute())
    if common.plugin:
        from npukit import plugins

        plugins.use(*common.plugin)
    log.configure(-1 if common.quiet else common.verbose, common.log_file)
    with _bar(common) as sink, log.progress_to(sink):
        yield


@contextlib.contextmanager
def _bar(common: Common) -> Iterator[log.ProgressSink | None]:
    """A rich progress bar; nothing off a terminal, with --quiet, or on a terminal that cannot draw one."""
    if common.quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, visible=False)

        def progress(what: str, share: float) -> None:
            bar.update(task, description=what, completed=min(max(share, 0.0), 1.0), visible=True)

        yield progress
