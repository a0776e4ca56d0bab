"""DICOM trees: each file with pixels is a row, whatever it is called. Patients become pseudonyms that hold splits together.

Archives name folders and files after patients, so no name of a path goes any further: rows are known by a pseudonym of their path,
folders give no class unless `data.levels` asks for one, and then none that is a patient's name or number. A folder called train,
val or test is the split; a text of the same name (`x.dcm`, `x.txt`) is the caption. Where neither says anything, the caption is
what the header says without naming anyone.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import ClipftError
from ...spec import DataSpec
from .. import dicom, pseudonyms
from ..account import Account, ending
from ..images import BadImageError
from .base import ImageFile, Reader, Row, Source, read_inside, refuse
from .beside import text_of, texts_of
from .links import Root, root_of
from .tree import files, levels_of

if TYPE_CHECKING:
    from pydicom import Dataset

MOST_BYTES = 2**29  # of a file: many frames in it, of which one is decoded at a time
PACKED = (".gz", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar")
SURE = (".dcm", ".dicom", ".ima")  # endings of files that are DICOM with or without a preamble


class Dicom(Reader):
    """A folder tree with DICOM files."""

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open the folder at a path, or that of a DICOMDIR. Raises ClipftError when there is none, or no DICOM file in it."""
        root = Path(argument).expanduser()
        root = root.parent if _is_directory(root) and root.is_file() else root
        if not root.is_dir():
            raise ClipftError(
                f"source dicom:{root}",
                "it is a file" if root.exists() else "there is no such folder",
                "Name the folder that it lies in." if root.exists() else "Check the path; it is read on the worker.",
                code="source.not_found",
            )
        account = Account()
        inside = root_of(root, options.links_root)
        every = files(inside, account)
        account.seen = len(every)
        lists = [path for path in every if _is_directory(path)]
        account.pass_over("DICOMDIR files", len(lists))
        every = sorted(set(every) - set(lists))
        found = [path for path in every if _is_dicom(root / path)]
        if not found:
            raise ClipftError(
                f"source dicom:{root}",
                "there is no DICOM file in it",
                "Files need the preamble of PS3.10, or the ending .dcm.",
                code="source.no_images",
            )
        texts = texts_of(every, found)
        for path in set(every) - set(found) - set(texts.values()):
            account.pass_over(ending(path))
        if packed := sum(account.passed_over[f"{suffix} files"] for suffix in PACKED):
            account.warn(f"{packed} packed files were passed over; unpack them, or name an archive as the source.")
        levels = levels_of(found, options.levels, captioned=False, account=account if options.levels else Account())
        if not options.levels:
            account.understand("Folders give no class, for they may be named after patients (data.levels asks for one).")
        groups: Counter[str] = Counter()
        tied = _Tied()

        def rows() -> Iterator[Row]:
            for number, path in enumerate(found, 1):
                yield from _rows(inside, path, f"DICOM file {number} of {len(found)}, by path", groups)
            if screens := tied.screens:
                account.warn(
                    f"{screens} files are secondary captures (screens, scans of paper), which often show names, and do not declare that "
                    "theirs do not (BurnedInAnnotation). Look at them."
                )
            said = [f"{count} rows by {what}" for what, count in groups.items() if what]
            account.understand(f"Groups: {', '.join(said) or 'none'}.")
            if groups["patient"] and (others := groups.total() - groups["patient"]):
                account.warn(f"{others} rows name no patient; two studies of one may lie in train and test.")
            if tied.count:
                account.understand(
                    f"{tied.count} groups share a study or a patient's number with another one, and so its split."
                )

        def _rows(root: Root, path: Path, where: str, groups: Counter[str]) -> Iterator[Row]:
            key = f"dicom/{pseudonyms.pseudonym(str(path))}"
            meaning = levels.of(path)
            label = meaning.label if options.levels else ""
            try:
                header = dicom.read_header(_read(root, path))
                dicom.check(header)
                if label and _names_patient(label, header):
                    raise BadImageError(
                        "its class would be the patient's name or number; see data.levels", "class names a patient"
                    )
                caption = text_of(root, texts.get(path)) or ("" if label else dicom.caption_of(header))
            except (BadImageError, OSError) as error:
                reason = _unnamed(str(error), root, path)
                yield Row(where, partial(refuse, reason, getattr(error, "kind", "cannot be read")), key, caption=where)
                return
            group, what = dicom.group_of(header)
            if meaning.group and options.levels:
                group, what = pseudonyms.pseudonym(meaning.group), "folder"
            groups[what] += 1
            kin = dicom.kin_of(header)
            tied.add(group, kin)
            tied.screens += dicom.may_show_names(header)
            count = dicom.frames_of(header)
            chosen = dicom.chosen(count, options.frames)
            if len(chosen) < count:
                account.pass_over("frames of files with several", count - len(chosen))
            for frame in chosen:
                yield Row(
                    where=where if count == 1 else f"{where}, frame {frame + 1}",
                    image_bytes=_Frame(root, str(path), f"frame {frame}", MOST_BYTES, frame),
                    key=key if count == 1 else f"{key}#{frame + 1}",
                    caption=caption,
                    label=label,
                    group=group or (key if len(chosen) > 1 else ""),
                    split=meaning.split,
                    kin=kin,
                )

        return Source(rows, name="dicom", total=len(found), account=account)


class _Tied:
    """How many groups share a name with one that came before. screens: files whose pixels may show names."""

    def __init__(self) -> None:
        self.screens = 0
        self.first: dict[str, str] = {}
        self.later: set[str] = set()

    def add(self, group: str, kin: Iterable[str]) -> None:
        self.later |= {group for name in kin if self.first.setdefault(name, group) != group}

    @property
    def count(self) -> int:
        return len(self.later)


@dataclass(frozen=True)
class _Frame(ImageFile):
    """A frame of a file, as PNG."""

    frame: int = 0

    def __call__(self) -> bytes:
        try:
            return dicom.as_png(_read(self.root, Path(self.name)), frame=self.frame)
        except BadImageError as error:
            raise BadImageError(_unnamed(str(error), self.root, Path(self.name)), error.kind) from None


def _read(root: Path | Root, path: Path) -> bytes:
    return read_inside(root, str(path), as_it_is=True, limit=MOST_BYTES)


def _unnamed(reason: str, root: Path | Root, path: Path) -> str:
    """A reason without the names of its path."""
    for name in (str(root / path), repr(str(path)), str(path), str(root)):
        reason = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "the file", reason)
    return reason


def _is_directory(path: Path) -> bool:
    """Whether it is what a disk of DICOM files lists them in; copies of it are numbered."""
    return path.name.upper().partition(".")[0] == "DICOMDIR"


def _names_patient(label: str, header: "Dataset") -> bool:
    def letters(text: object) -> str:
        return re.sub(r"[\W_]+", " ", str(text or "")).strip().lower()

    names = {letters(header.get(field)) for field in ("PatientID", "PatientName", "OtherPatientIDs", "AccessionNumber")} - {""}
    parts = {letters(part) for part in (label, *label.split("/"))}
    return any(name == part or (len(name) > 3 and name in part) for name in names for part in parts)


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return dicom.is_dicom(file.read(132)) or path.suffix.lower() in SURE
    except OSError:
        return True  # it stays a row, and is refused with the reason
