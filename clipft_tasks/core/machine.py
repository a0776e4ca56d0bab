"""What a machine refuses (a full disk, a file of another user) as an error that a person can mend."""

import errno
import os

from .errors import ClipftError


def refusal(error: OSError) -> ClipftError | None:
    """The error that says what to do about it; None for any other OSError, which is a fault of the program."""
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ClipftError(
            f"the disk of {where}" if where else "a disk", "it is full",
            "Free some space: `clipft gc` shows what may go. What was cut resumes.", code="machine.disk_full",
        )  # fmt: skip
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ClipftError(
            where or "a file", f"this user may not do that ({error.strerror})",
            "Go on as the user whom it belongs to, or set CLIPFT_HOME to a folder of your own.", code="machine.not_permitted",
        )  # fmt: skip
    return None
