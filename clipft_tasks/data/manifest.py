"""The manifest: one row an image, as Parquet. The only table that training, evaluation and drift read."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ..core.errors import ClipftError, TransientError

COLUMNS: dict[str, str] = {
    "key": "str",  # sha256 of image and texts: the row's identity across versions
    "name": "str",  # what the source calls it
    "shard": "str",
    "offset": "int64",
    "length": "int64",
    "caption": "str",
    "label": "str",
    "group": "str",
    "split": "str",
    "width": "int64",
    "height": "int64",
    "mode": "str",
    "format": "str",
    "sha256": "str",  # of the image's bytes
    "phash": "str",  # 256-bit perceptual hash, hexadecimal
}


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write rows in the manifest's columns and types, sorted by key."""
    frame = frame[list(COLUMNS)].astype(COLUMNS).sort_values("key", ignore_index=True)
    frame.to_parquet(path, index=False, compression="zstd")  # hashes as text take half of what they do otherwise


def content_of(frame: pd.DataFrame, decisions: str = "") -> str:
    """The digest of rows and their splits, and of what people decided of them: what has the same is the same version."""
    rows = (frame[name].to_numpy(object) for name in ("key", "split"))
    identity = sorted(zip(*rows, strict=True)) + ([("decisions", decisions)] if decisions else [])
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def read(path: Path) -> pd.DataFrame:
    """Read and check a manifest that is one file. Raises ClipftError when it is not one."""
    return checked(lambda: pd.read_parquet(path), str(path))


def checked(reading: Callable[[], pd.DataFrame], where: str) -> pd.DataFrame:
    """The rows that `reading` gives, in the manifest's columns and types, sorted by key. Raises ClipftError where they are none."""
    try:
        frame = reading()
    except (ClipftError, TransientError):
        raise
    except Exception as error:  # pyarrow raises its own tree of errors
        raise ClipftError(
            f"manifest {where}", f"it cannot be read: {error}", "Fetch the data set again.", code="dataset.unreadable_manifest"
        ) from error
    if missing := [c for c in COLUMNS if c not in frame.columns]:
        why = f"columns are missing: {', '.join(missing)}"
        raise ClipftError(f"manifest {where}", why, "Ingest the source again.", code="dataset.invalid_manifest")
    if (twice := frame["key"].duplicated()).any():
        why = f"key {frame.loc[twice, 'key'].iloc[0]} stands in it twice"
        raise ClipftError(f"manifest {where}", why, "Ingest the source again.", code="dataset.invalid_manifest")
    return frame[list(COLUMNS)].astype(COLUMNS).sort_values("key", ignore_index=True)
