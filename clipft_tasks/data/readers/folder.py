"""Folders: images, each with its caption beside it (`x.jpg`, `x.txt`); folders are the split, the class and the group.

A folder with a table of its images (`metadata.csv`, `.jsonl` or `.parquet` as Hugging Face has it, `captions.txt` as flickr8k)
is read by that table.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ...core.errors import ClipftError
from ...spec import DataSpec
from ..account import NO_ENDING, Account, ending
from ..images import ENDINGS, BadImageError, begins_like_an_image
from .base import Reader, Row, Source, refuse
from .beside import stem, text_of, texts_of
from .links import root_of
from .stacks import images_of, is_volume
from .tree import files, levels_of

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# Images of a kind that other readers or programs read: passing them over is worth a look.
OTHER_IMAGES = {
    **dict.fromkeys((".dcm", ".dicom", ".ima"), "dicom:<folder>"), ".icloud": "download from iCloud first", ".tar": "webdataset:<folder>", ".parquet": "the table itself", ".npz": "the file itself",
    ".heic": "pillow-heif", ".heif": "pillow-heif", ".avif": "a Pillow with AVIF", ".jp2": "a Pillow with JPEG 2000",
    **dict.fromkeys((".svs", ".ndpi", ".mrxs", ".scn", ".czi", ".vms", ".bif"), "slides:<folder>"),
    **dict.fromkeys((".zip", ".tgz"), "the archive itself as the source"), **dict.fromkeys((".7z", ".rar"), "unpacking first"),
    **dict.fromkeys((".nd2", ".lif", ".dng", ".cr2", ".nef", ".arw",
                     ".psd", ".jxl", ".svg", ".pdf", ".mp4", ".avi", ".mov", ".mkv", ".h5", ".hdf5", ".zarr", ".mha",
                     ".nrrd", ".exr", ".hdr", ".ppm", ".pgm", ".tga", ".ico", ".pcx", ".eps", ".fits", ".fit", ".mhd", ".mrc", ".webm",
                     ".orf", ".rw2", ".raf", ".raw", ".xcf", ".vsi"), "conversion to PNG or TIFF first"),
}  # fmt: skip


class Folder(Reader):
    """A folder tree of images."""

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open the folder at a path. Raises ClipftError when it holds no image."""
        from .table import Table

        root = Path(argument).expanduser()
        if table := next((root / name for name in TABLES if (root / name).is_file()), None):
            return Table.of_files([table], options, root.name, root)
        if _is_table(captions := root / "captions.txt"):
            inside = next((root / name for name in ("Images", "images") if (root / name).is_dir()), root)
            return Table.of_files([captions], options, root.name, inside)
        account, linked = Account(), root_of(root, options.links_root)
        every = files(linked, account)
        account.seen = len(every)
        found = [path for path in every if path.suffix.lower() in ENDINGS or is_volume(path)]
        if not found and (tables := [root / path for path in every if path.suffix.lower() == ".parquet"]):
            return Table.of_files(tables, options, root.name)
        if not found:
            raise ClipftError(
                f"folder {root}",
                "there are no images in it",
                f"It holds: {_held(every)}. Known: {', '.join(sorted(ENDINGS))}; shards are webdataset:<folder>, DICOM is dicom:<folder>.",
                code="source.no_images",
            )
        stems = {stem(path) for path in found}
        texts = texts_of(every, found)
        pass_over(set(every) - set(found) - set(texts.values()), stems, account, root)
        levels = levels_of(found, options.levels, len(texts) == len(found), account)
        account.understand(f"Captions: {len(texts)} texts beside {len(found)} images.")

        def rows() -> Iterator[Row]:
            for path in found:
                meaning = levels.of(path)
                where, key = f"{root.name}/{path}", str(path)
                try:
                    caption = text_of(linked, texts.get(path))
                except (BadImageError, OSError) as error:
                    yield Row(where, partial(refuse, str(error), getattr(error, "kind", "cannot be read")), key, caption=key)
                    continue
                images = images_of(linked, str(path), options.frames, account)
                for place, read in images:
                    group = meaning.group or (key if len(images) > 1 else "")
                    yield Row(where + place, read, key + place, caption, meaning.label, group, meaning.split)

        return Source(rows, name=root.name, total=len(found), account=account)


def pass_over(others: set[Path], stems: set[Path], account: Account, root: Path) -> None:
    """Count files that are no rows; those that may be images, or say what images show, are worth a look."""
    ways: dict[str, str] = {}
    beside = {".json": 0, ".xml": 0, ".caption": 0}
    unnamed = 0
    for path in others:
        suffix = path.suffix.lower()
        if suffix in beside and path.with_suffix("") in stems:
            beside[suffix] += 1
            account.pass_over(f"{suffix} files beside images")
            continue
        account.pass_over(ending(path))
        unnamed += ending(path) == NO_ENDING and begins_like_an_image(root / path)
        if suffix in OTHER_IMAGES:
            ways[suffix] = OTHER_IMAGES[suffix]
    for suffix, count in beside.items():
        if count:
            account.warn(f"{count} {suffix} files beside images were not read; captions are read from .txt, or from a table.")
    if unnamed:
        account.warn(f"{unnamed} files without a known ending begin like images and were passed over; give them their ending.")
    for suffix, way in sorted(ways.items()):
        account.warn(f"{account.passed_over[f'{suffix} files']} {suffix} files were passed over; they need {way}.")


def _held(every: Sequence[Path]) -> str:
    kinds = Counter(map(ending, every))
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"


def _is_table(path: Path) -> bool:
    """Whether a text begins as flickr8k's list of captions does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline(100).strip().lower() == b"image,caption"
