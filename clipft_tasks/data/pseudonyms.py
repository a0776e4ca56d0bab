"""Pseudonyms: what stands for a person's number, keyed with a secret of this installation.

Numbers of patients are short, and a plain hash of one is soon guessed. The key is made once and kept for ever: with another one
the same patient is somebody else, in another group and perhaps in another split.
"""

import hmac
import secrets
from pathlib import Path

from filelock import FileLock

from ..core.errors import ClipftError
from ..core.files import atomic_write
from ..core.settings import settings

KEY_FILE = "pseudonyms.key"
KEY_BYTES = 32


def pseudonym(number: str) -> str:
    """16 hexadecimal letters that stand for a number. Raises ClipftError as `key`."""
    return hmac.digest(key(), number.encode(), "sha256").hex()[:16]


def key() -> bytes:
    """The installation's key, made when there is none and one machine alone needs it.

    Raises: ClipftError when there is none to share, or when the file is not a whole key: another one in its place would part what belongs together.
    """
    path = key_path()
    if not path.exists() and (
        settings().pseudonyms_key or settings().staging
    ):  # a key of each machine's own would part patients
        fix = "Give all machines one key: 32 random bytes in a file that CLIPFT_PSEUDONYMS_KEY names."
        raise ClipftError(f"pseudonym key {path}", "there is no such file", fix, code="pseudonyms.no_key")
    if not path.exists():
        with FileLock(f"{path}.lock"):
            if not path.exists():
                atomic_write(path, secrets.token_bytes(KEY_BYTES), mode=0o600, durable=True)
    if damage := find_damage(path):
        fix = f"Put {KEY_FILE} back from a backup. Where nothing was ingested with it, delete it."
        raise ClipftError(f"pseudonym key {path}", damage, fix, code="pseudonyms.damaged_key")
    return path.read_bytes()


def key_path() -> Path:
    if named := settings().pseudonyms_key:
        return Path(named).expanduser()
    return settings().folder() / KEY_FILE


def find_damage(path: Path) -> str:
    """What is wrong with a key file; "" where it is whole or not there."""
    size = path.stat().st_size if path.exists() else KEY_BYTES
    return "" if size == KEY_BYTES else f"it holds {size} bytes instead of {KEY_BYTES}"
