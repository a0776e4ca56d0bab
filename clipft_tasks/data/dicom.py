"""DICOM files as ordinary images: what a viewer would show, and nothing of who it shows.

Only pixels leave this module. The grayscale pipeline is that of DICOM PS3.3 C.11: modality transform, then the window or
table that the file, or the frame in it, asks for, then MONOCHROME1 turned over; 16-bit gray, so that `gray_bits` of the domain
decides the rest. With a window, black and white are its ends, the same for every image; without one they are the least and the
greatest value. Padding is black and takes no part in that. Display attributes that cannot be applied are left out: they never
refuse pixels.
"""

import io
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..core.errors import ClipftError
from . import deep_jpeg, pseudonyms
from .groups import same_group
from .images import BadImageError, Limits

if TYPE_CHECKING:
    from pydicom import Dataset

# PS3.3 C.7.3.1.1.1, as captions word them.
MODALITIES = {
    "CR": "a radiograph", "DX": "a radiograph", "CT": "a CT image", "MR": "an MR image", "US": "an ultrasound image",
    "MG": "a mammogram", "NM": "a scintigram", "PT": "a PET image", "XA": "an angiogram", "RF": "a fluoroscopy image",
    "SM": "a slide", "OP": "a photograph of the eye", "ES": "an endoscopy image", "XC": "a clinical photograph",
    "IO": "a dental radiograph", "PX": "a panoramic dental radiograph",
}  # fmt: skip
# How a frame is shown; in enhanced files each frame has its own.
DISPLAY = (
    "PhotometricInterpretation", "PresentationLUTShape", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    "BitsStored",
)  # fmt: skip
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its kinds with several frames
EXTENDED = "1.2.840.10008.1.2.4.51"  # JPEG of 8 or 12 bits
# What programs that remove names leave where the number was.
NOBODY = re.compile(
    r"[\W_0x]*|(de-?identified|anon\w*|pseudo\w*|dummy|demo|unknown|none|removed|redacted|n/?a|patient|no_?name|test)[\W_]*",
    re.I,
)
UNITS = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "frame of reference": "FrameOfReferenceUID"}


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins like this (132 bytes are enough) is DICOM (PS3.10)."""
    return head[128:132] == b"DICM"


def read_header(data: bytes) -> "Dataset":
    """Everything but the pixels. Raises BadImageError when it is no DICOM file, or a broken one."""
    try:
        import pydicom
    except ImportError:
        raise ClipftError(
            "DICOM file", "pydicom is not installed", "Install `clipft[data]`.", code="source.missing_package"
        ) from None
    try:
        return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=not is_dicom(data[:132]))
    except Exception as error:  # pydicom raises its own, struct's and Unicode errors for one thing: broken bytes
        raise BadImageError(f"its DICOM header cannot be read: {error}", "no DICOM header") from error


def frames_of(header: "Dataset") -> int:
    """How many images a file holds."""
    try:
        return max(1, int(header.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        return 1


def chosen(count: int, how: str) -> list[int]:
    """Which of several frames are taken: `first`, `all`, else the middle one."""
    return list(range(count)) if how == "all" else [0 if how == "first" else count // 2]


def check(header: "Dataset", limits: Limits = Limits()) -> None:
    """Raises BadImageError for a file without an image that may be taken."""
    if str(header.get("BurnedInAnnotation", "")).upper() == "YES":
        raise BadImageError(
            "the file says that patient data is burnt into its pixels (BurnedInAnnotation)", "names burnt into pixels"
        )
    rows, columns = header.get("Rows"), header.get("Columns")
    if not rows or not columns:
        raise BadImageError(f"there is no image in it (modality {header.get('Modality') or 'unknown'})", "no image")
    if rows * columns > limits.pixels:
        raise BadImageError(f"{columns}x{rows} pixels, more than the limit of {limits.pixels:,}", "too many pixels")
    if header.get("BitsAllocated") not in (8, 16):
        bits = header.get("BitsAllocated")
        raise BadImageError(f"{bits} bits a pixel: it is a mask or a map of doses, not an image", "mask or map of doses")


def may_show_names(header: "Dataset") -> bool:
    """Whether it is a screen, or paper that was scanned, and does not declare that no name is burnt into it."""
    declared = str(header.get("BurnedInAnnotation") or "").upper() == "NO"
    kinds = {str(kind).upper() for kind in _several(header.get("ImageType"))}
    return not declared and (
        str(header.get("SOPClassUID") or "").startswith(SECONDARY_CAPTURE)
        or "ConversionType" in header
        or "SCREEN SAVE" in kinds
    )


def as_png(data: bytes, limits: Limits = Limits(), frame: int | None = None) -> bytes:
    """A DICOM file's image as PNG: 16-bit gray, or RGB.

    Args:
        frame: of several, from 0; None for the middle one.
    Raises:
        BadImageError: no pixels, too many, names burnt into them, a coding that nothing here reads, or broken bytes.
    """
    header = read_header(data)
    check(header, limits)
    out = io.BytesIO()
    Image.fromarray(_pixels(data, frames_of(header) // 2 if frame is None else frame)).save(out, "PNG")
    return out.getvalue()


def _pixels(data: bytes, index: int) -> np.ndarray:
    """(height, width) uint16, or (height, width, 3) uint8."""
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut, pixel_array

    syntax = "an unknown syntax"
    try:
        full = dcmread(io.BytesIO(data), force=True)
        _complete(full)
        syntax = full.file_meta.TransferSyntaxUID.name
        with quiet():
            frame = pixel_array(full, index=index)
        if full.PhotometricInterpretation == "PALETTE COLOR":
            frame = apply_color_lut(frame, full)
    except (NotImplementedError, RuntimeError) as error:  # what pydicom raises where no plugin decodes the syntax
        if full.file_meta.TransferSyntaxUID == EXTENDED:
            return _displayed(_deep_jpeg(full, index), _display(full, index))
        raise BadImageError(
            f"its pixels are coded as {syntax}, which nothing installed reads ({error})", "unknown coding"
        ) from error
    except Exception as error:
        raise BadImageError(f"its pixels are cut short or broken: {error}", "cut short or broken") from error
    if frame.ndim == 3:
        return np.ascontiguousarray(frame if frame.dtype == np.uint8 else frame // 257).astype(np.uint8)
    return _displayed(frame, _display(full, index))


def _deep_jpeg(full: "Dataset", index: int) -> np.ndarray:
    """(height, width) of a frame in 12-bit JPEG, which pydicom's own packages read under the GPL only. Raises BadImageError."""
    from pydicom.encaps import get_frame

    try:
        data = get_frame(full.PixelData, index, number_of_frames=frames_of(full))
    except Exception as error:
        raise BadImageError(f"its pixels are cut short or broken: {error}", "cut short or broken") from error
    values = deep_jpeg.decode(data)
    if values.shape != (full.Rows, full.Columns):
        raise BadImageError(
            f"it promises {full.Columns}x{full.Rows} gray pixels and holds {values.shape}", "cut short or broken"
        )
    return values


@contextmanager
def quiet() -> Iterator[None]:
    """Without what pydicom logs of each plugin that failed: the reason says it."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _complete(full: "Dataset") -> None:
    """Give a file without a preamble the transfer syntax that it was read with."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not getattr(full, "file_meta", None):
        full.file_meta = FileMetaDataset()
    if not full.file_meta.get("TransferSyntaxUID"):
        implicit, little = full.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        full.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit or implicit is None else explicit


def _display(full: "Dataset", index: int) -> "Dataset":
    """How a frame asks to be shown: what the file says, then what all frames share, then what the frame says itself."""
    from pydicom import Dataset

    out = Dataset()
    for name in DISPLAY:
        if name in full:
            out[name] = full[name]
    shared = full.get("SharedFunctionalGroupsSequence") or []
    own = full.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*shared[:1], *own[index : index + 1]):
        for sequence in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in (group.get(sequence) or [])[:1]:
                for element in item:
                    if element.keyword in DISPLAY:
                        out[element.tag] = element
    return out


def _displayed(stored: np.ndarray, display: "Dataset") -> np.ndarray:
    """Gray as a viewer shows it, uint16. Raises BadImageError for pixels that are no numbers."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    padding = _padding(stored, display)
    values = stored.astype(np.float64)
    if slope := _number(display, "RescaleSlope"):
        values = values * slope + (_number(display, "RescaleIntercept") or 0.0)
    elif "ModalityLUTSequence" in display:
        with suppress(Exception):
            values = apply_modality_lut(stored, display).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadImageError("it has pixels that are no numbers", "pixels that are no numbers")
    shown = _windowed(values, display)
    if shown is None and display.get("VOILUTSequence"):
        with suppress(Exception):
            table = display.VOILUTSequence[0].LUTDescriptor
            white = 2.0 ** int(table[2]) - 1
            shown = apply_voi(np.rint(values).astype(np.int64), display).astype(np.float64) / white
    if shown is None:
        seen = values[~padding] if padding.any() and not padding.all() else values
        shown = (values - seen.min()) / max(seen.max() - seen.min(), 1e-9)
    gray: np.ndarray = (shown.clip(0, 1) * 65535).round().astype(np.uint16)
    inverted = (
        str(display.get("PhotometricInterpretation")) == "MONOCHROME1" or display.get("PresentationLUTShape") == "INVERSE"
    )
    gray = 65535 - gray if inverted else gray
    gray[padding] = 0
    return gray


def _windowed(values: np.ndarray, display: "Dataset") -> np.ndarray | None:
    """0 to 1 (and beyond) between the ends of the first window, PS3.3 C.11.2.1; None where there is none that can be applied."""
    center, width = _number(display, "WindowCenter"), _number(display, "WindowWidth")
    if center is None or width is None or width <= 0:
        return None
    function = str(display.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp((-4 * (values - center) / width).clip(-700, 700))))
    if function == "LINEAR_EXACT":
        return np.asarray((values - center) / width + 0.5)
    return np.asarray((values - (center - 0.5)) / max(width - 1, 1e-9) + 0.5)


def _padding(stored: np.ndarray, display: "Dataset") -> np.ndarray:
    """Which pixels only fill the frame; none where that cannot be told."""
    value = _number(display, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    other = _number(display, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if other is None else other))
    if stored.dtype.kind == "u" and low < 0:  # written as signed beside unsigned pixels
        low, high = (x % 2 ** (8 * stored.dtype.itemsize) for x in (low, high))
    elif stored.dtype.kind == "i" and high > np.iinfo(stored.dtype).max:
        low, high = (x - 2 ** (8 * stored.dtype.itemsize) for x in (low, high))
    return np.asarray((stored >= low) & (stored <= high))


def _number(display: "Dataset", name: str) -> float | None:
    """The first value of an attribute; None where it has none that is a number, as devices leave them."""
    try:
        value = display.get(name)
        found = float(value[0] if hasattr(value, "__getitem__") and not isinstance(value, (str, bytes)) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return found if np.isfinite(found) else None


CODE = re.compile(r"[A-Za-z][A-Za-z0-9_ -]{0,15}")  # a value of VR CS, in any case


def caption_of(header: "Dataset") -> str:
    """What can be said from the header alone: modality, part of the body, view; "" when it says no modality."""
    what = MODALITIES.get(str(header.get("Modality", "")).strip().upper())
    if not what:
        return ""
    named = set(re.findall(r"[^\W\d_]{2,}", f"{header.get('PatientName') or ''} {header.get('PatientID') or ''}".lower()))
    part, view = (str(header.get(name) or "").strip() for name in ("BodyPartExamined", "ViewPosition"))
    part, view = (  # free text might name anybody
        said if CODE.fullmatch(said) and said.count(" ") < 2 and not named & set(re.split(r"[ _-]", said.lower())) else ""
        for said in (part.lower(), view)
    )
    return what + (f" of the {part}" if part else "") + (f", {view} view" if view else "") + "."


def pseudonym(header: "Dataset") -> str:
    """What stands for the patient, so that one patient's images share a split; "" when the file names none."""
    said = [str(header.get(name) or "").strip() for name in ("IssuerOfPatientID", "PatientID")]
    return pseudonyms.pseudonym("\n".join(said)) if said[1] and not NOBODY.fullmatch(said[1]) else ""


def kin_of(header: "Dataset") -> tuple[str, ...]:
    """Pseudonyms of what ties a file to others of its patient: a number that is spelled otherwise, or has an issuer in some files
    alone; other numbers of the patient; the study."""
    said = [header.get("PatientID"), *_several(header.get("OtherPatientIDs"))]
    numbers = {same_group(str(number or "").strip()) for number in said if not NOBODY.fullmatch(str(number or "").strip())}
    study = str(header.get(UNITS["study"]) or "").strip()
    return tuple(pseudonyms.pseudonym(name) for name in (*sorted(f"patient {number}" for number in numbers), study) if name)


def _several(value: object) -> list[object]:
    """The values of an attribute that may have one or many."""
    return [] if value is None else [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else []


def group_of(header: "Dataset") -> tuple[str, str]:
    """(pseudonym, of what) of the largest thing that a file belongs to: patient, study, series or frame of reference."""
    if patient := pseudonym(header):
        return patient, "patient"
    for what, name in UNITS.items():
        if number := str(header.get(name) or "").strip():
            return pseudonyms.pseudonym(number), what
    return "", ""
