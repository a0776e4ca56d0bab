"""DICOM files as ordinary images: what a viewer would show, and nothing of who it shows.

Only pixels leave this module. The grayscale pipeline is that of DICOM PS3.3 C.11: modality transform, then the window or
table that the file asks for, then MONOCHROME1 turned over; 16-bit gray, so that `gray_bits` of the domain decides the rest.
"""

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..core.errors import ClipftError
from . import pseudonyms
from .images import BadImage, Limits

if TYPE_CHECKING:
    from pydicom import Dataset

# PS3.3 C.7.3.1.1.1, as captions word them.
MODALITIES = {
    "CR": "a radiograph", "DX": "a radiograph", "CT": "a CT image", "MR": "an MR image", "US": "an ultrasound image",
    "MG": "a mammogram", "NM": "a scintigram", "PT": "a PET image", "XA": "an angiogram", "RF": "a fluoroscopy image",
    "SM": "a slide", "OP": "a photograph of the eye", "ES": "an endoscopy image", "XC": "a clinical photograph",
    "IO": "a dental radiograph", "PX": "a panoramic dental radiograph",
}  # fmt: skip


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins like this (132 bytes are enough) is DICOM (PS3.10)."""
    return head[128:132] == b"DICM"


def read_header(data: bytes) -> "Dataset":
    """Everything but the pixels. Raises BadImage when it is no DICOM file, or a broken one."""
    try:
        import pydicom
    except ImportError:
        raise ClipftError(
            "DICOM file", "pydicom is not installed", "Install `clipft[data]`.", code="source.missing_package"
        ) from None
    try:
        return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    except Exception as error:  # pydicom raises its own, struct's and Unicode errors for one thing: broken bytes
        raise BadImage(f"its DICOM header cannot be read: {error}") from error


def as_png(data: bytes, limits: Limits = Limits()) -> bytes:
    """A DICOM file's image as PNG: 16-bit gray, or RGB. Of several frames it is the middle one.

    Raises:
        BadImage: no pixels, too many, names burnt into them, a coding that nothing here reads, or broken bytes.
    """
    header = read_header(data)
    if str(header.get("BurnedInAnnotation", "")).upper() == "YES":
        raise BadImage("the file says that patient data is burnt into its pixels (BurnedInAnnotation)")
    rows, columns = header.get("Rows"), header.get("Columns")
    if not rows or not columns:
        raise BadImage(f"there is no image in it (modality {header.get('Modality') or 'unknown'})")
    if rows * columns > limits.pixels:
        raise BadImage(f"{columns}x{rows} pixels, more than the limit of {limits.pixels:,}")
    if header.get("BitsAllocated") not in (8, 16):
        raise BadImage(f"{header.get('BitsAllocated')} bits a pixel: it is a mask or a map of doses, not an image")
    out = io.BytesIO()
    Image.fromarray(_pixels(data, header)).save(out, "PNG")
    return out.getvalue()


def _pixels(data: bytes, header: "Dataset") -> np.ndarray:
    """(height, width) uint16, or (height, width, 3) uint8."""
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    frames = int(header.get("NumberOfFrames") or 1)
    try:
        full = dcmread(io.BytesIO(data))
        frame = pixel_array(full, index=frames // 2)
        if header.PhotometricInterpretation == "PALETTE COLOR":
            frame = apply_color_lut(frame, full)
        if frame.ndim == 3:
            return np.ascontiguousarray(frame if frame.dtype == np.uint8 else frame // 257).astype(np.uint8)
        shown = apply_voi_lut(apply_modality_lut(frame, full), full).astype(np.float64)
    except (NotImplementedError, RuntimeError) as error:
        name = header.file_meta.TransferSyntaxUID.name
        raise BadImage(f"its pixels are coded as {name}, which nothing installed reads ({error})") from error
    except Exception as error:
        raise BadImage(f"its pixels are cut short or broken: {error}") from error
    low, high = shown.min(), shown.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadImage("it has pixels that are no numbers")
    gray: np.ndarray = ((shown - low) / max(high - low, 1e-9) * 65535).round().astype(np.uint16)
    return 65535 - gray if header.PhotometricInterpretation == "MONOCHROME1" else gray


def caption_of(header: "Dataset") -> str:
    """What can be said from the header alone: modality, part of the body, view; "" when it says no modality."""
    what = MODALITIES.get(str(header.get("Modality", "")))
    if not what:
        return ""
    part = str(header.get("BodyPartExamined") or "").strip().lower()
    view = str(header.get("ViewPosition") or "").strip()
    return what + (f" of the {part}" if part else "") + (f", {view} view" if view else "") + "."


def pseudonym(header: "Dataset") -> str:
    """What stands for the patient, so that one patient's images share a split; "" when the file names none."""
    patient = "\n".join(str(header.get(name) or "").strip() for name in ("IssuerOfPatientID", "PatientID"))
    return pseudonyms.pseudonym(patient) if patient.strip() else ""
