# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Change the stamp of a DLC that was just written: what a verification found out comes after the file."""

from __future__ import annotations

import zipfile
from pathlib import Path

from npukit.artifacts.dlc import STAMP_MEMBER, source_date
from npukit.artifacts.stamp import Stamp
from npukit.errors import ArtifactError
from npukit.files import os_errors


def restamp(path: Path, stamp: Stamp) -> None:
    """Replace the stamp of a DLC in place; the bytes are those that writing it with `stamp` would have given.

    Not atomic: for a file that still has its temporary name.

    Raises:
        ArtifactError: the stamp is missing, or not the last member (then another tool wrote after npukit).
        NpukitError: the file cannot be written.
    """
    date = source_date()
    with os_errors(path, "write"), zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        old = archive.NameToInfo.pop(STAMP_MEMBER, None)
        if old is None or any(info.header_offset > old.header_offset for info in archive.filelist):
            raise ArtifactError("the DLC does not end with npukit's stamp", where=str(path))
        # The next member goes where the old stamp was; closing writes the directory behind it and cuts the rest off.
        archive.filelist.remove(old)
        archive.start_dir = old.header_offset
        member = zipfile.ZipInfo(STAMP_MEMBER, (date.year, date.month, date.day, date.hour, date.minute, date.second))
        member.create_system = 0
        archive.writestr(member, stamp.to_json().encode())
