"""Files that hold several images: pages of a TIFF, slices of a NIfTI volume. Which are taken, `data.frames` says."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from .. import dicom, tiff
from ..account import Account
from ..images import BadImageError, FewReads, Limits, check_size
from .base import ImageFile, read_inside
from .links import Root

NIFTI = (".nii", ".nii.gz")
MOST_BYTES = 2**29
MOST_VOXELS = 2**28
ANIMATED = 2  # flag in the header of a WebP


def is_volume(path: PurePath) -> bool:
    return path.name.lower().endswith(NIFTI)


def images_of(root: Path | Root, name: str, frames: str, account: Account) -> list[tuple[str, Callable[[], bytes]]]:
    """(what is added to the name, how the bytes are read) of each image of a file below `root` that is taken."""
    read = ImageFile(root, name)
    ending = name.lower()
    if ending.endswith(NIFTI):
        page, count, auto = partial(_slice, root, name), _slices(root, name), "middle"
    elif ending.endswith((".tif", ".tiff")):
        page, count, auto = partial(_page, root, name), _pages(root, name), "first"
        if count == 1:
            return [("", read)]
    else:
        if ending.endswith((".gif", ".webp")):
            account.pass_over("frames of animations after the first", _frames(root, name) - 1)
        return [("", read)]
    taken = dicom.chosen(count, auto if frames == "auto" else frames)
    account.pass_over("pages and slices of files with several", count - len(taken))
    return [(f"#{index + 1}" if count > 1 else "", partial(page, index)) for index in taken]


def _pages(root: Path | Root, name: str) -> int:
    try:
        return tiff.count(read_inside(root, name))
    except (BadImageError, OSError):
        return 1  # reading it fails the same way, and is where the reason is kept


def _frames(root: Path | Root, name: str) -> int:
    try:
        data = read_inside(root, name)
        if data[:4] == b"RIFF" and not (data[12:16] == b"VP8X" and data[20] & ANIMATED):
            return 1
        with Image.open(FewReads(data), formats=["GIF", "WEBP"]) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # reading it fails the same way, and is where the reason is kept
        return 1


def _page(root: Path | Root, name: str, index: int) -> bytes:
    return tiff.page_bytes(read_inside(root, name), index, check_size)


def _volume(root: Path | Root, name: str) -> np.ndarray:
    """(columns, rows, slices) of a volume, the first of a series, with the patient's right, back and feet at 0. Raises BadImageError."""
    data = read_inside(root, name, as_it_is=True, limit=MOST_BYTES)
    try:
        import gzip

        import nibabel

        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise BadImageError("it unpacks to more than the limit of bytes", "too large")
        image = nibabel.Nifti1Image.from_bytes(data)
        if np.prod(image.shape[:3]) > MOST_VOXELS or len(image.shape) < 2:
            raise BadImageError(f"a volume of {image.shape} voxels", "too many pixels")
        image = nibabel.as_closest_canonical(image)  # type: ignore[no-untyped-call]  # nibabel does not type it
        values = np.asarray(image.dataobj[(..., *[0] * (len(image.shape) - 3))] if len(image.shape) > 3 else image.dataobj)
    except BadImageError:
        raise
    except Exception as error:  # nibabel raises its own, zlib's and numpy's errors for broken bytes
        raise BadImageError(f"its volume cannot be read: {error}", "cut short or broken") from error
    return np.atleast_3d(values)


def _slices(root: Path | Root, name: str) -> int:
    try:
        return int(_volume(root, name).shape[2])
    except (BadImageError, OSError):
        return 1


def _slice(root: Path | Root, name: str, index: int) -> bytes:
    """A slice as 16-bit gray, black and white at the least and the greatest value of its volume."""
    volume = _volume(root, name)
    values = np.rot90(volume[:, :, index]).astype(np.float64)
    low, high = float(np.min(volume)), float(np.max(volume))
    if not np.isfinite([low, high]).all():
        raise BadImageError("it has voxels that are no numbers", "pixels that are no numbers")
    check_size(values.shape[1], values.shape[0], Limits())
    gray = ((values - low) / max(high - low, 1e-9) * 65535).round().astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(gray)).save(out, "PNG")
    return out.getvalue()
