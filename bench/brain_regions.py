"""MR images of parts of a head, with the part at their center as label: a medical data set that needs no account and no download page.

The Debian package `mricron-data` (BSD-3-Clause) holds Colin27, the mean of 27 scans of one man (Holmes et al. 1998,
https://doi.org/10.1097/00004728-199803000-00032), and on the same grid AAL, the names of its parts (Tzourio-Mazoyer et al. 2002,
https://doi.org/10.1006/nimg.2001.0978). Images are squares of 72 mm in the three planes around points of each part. They are of one
head: what a model learns of them says nothing about patients, but it is learned and forgotten as other medical images are.
Group: a slab of 12 mm of a plane, so that neighboring slices stay together.

Source: `bench.brain_regions:BrainRegions:900`, the number of images.
"""

import io
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.data.readers.base import Reader, Row, Source
from clipft_tasks.spec import DataSpec

FOLDER = Path("/usr/share/mricron/templates")
LICENSE = "BSD-3-Clause (mricron-data, Chris Rorden); the head is Colin27, the parts are AAL's"
REGIONS = {
    "cerebellum": ("Cerebelum", "Vermis"),
    "hippocampus": ("Hippocampus",),
    "thalamus": ("Thalamus",),
    "putamen": ("Putamen",),
    "caudate nucleus": ("Caudate",),
    "insula": ("Insula",),
    "cingulate gyrus": ("Cingulum",),
    "occipital lobe": ("Calcarine", "Cuneus", "Lingual", "Occipital"),
    "temporal lobe": ("Temporal", "Heschl"),
    "parietal lobe": ("Parietal", "SupraMarginal", "Angular", "Precuneus"),
    "frontal lobe": ("Frontal",),
}
PLANES = ("sagittal", "coronal", "axial")  # by the axis that they are across
FIELD, SIDE, SLAB = 72, 144, 12  # mm, pixels, mm; a voxel is 1 mm


class BrainRegions(Reader):
    """Squares of one head, cut when they are read."""

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open `argument` images, as many of each part and plane. Raises ClipftError where the package is not installed."""
        if not (FOLDER / "ch2.nii.gz").exists():
            why = "the Debian package mricron-data is not installed"
            raise ClipftError("source brain regions", why, "apt-get install mricron-data", code="source.missing_package")
        each = max(1, int(argument) // (len(REGIONS) * len(PLANES)))
        return Source(
            lambda: _rows(each), license=LICENSE, name=f"brain regions:{argument}", total=each * len(REGIONS) * len(PLANES)
        )


@cache
def volumes() -> tuple[np.ndarray, np.ndarray]:
    """The head, uint8 (x, y, z), and the number of the part at each voxel, in the order of `REGIONS`; -1 for none."""
    import nibabel

    files = (FOLDER / f"{name}.nii.gz" for name in ("ch2", "aal"))
    image, atlas = (np.asarray(nibabel.Nifti1Image.from_filename(file).dataobj) for file in files)
    parts = np.full(atlas.shape, -1)
    for line in (FOLDER / "aal.nii.txt").read_text().strip().splitlines():
        number, name, *_ = line.split()
        for index, stems in enumerate(REGIONS.values()):
            if name.startswith(stems):
                parts[atlas == int(number)] = index
    return (image / image.max() * 255).astype(np.uint8), parts


def square(image: np.ndarray, axis: int, point: np.ndarray) -> bytes:
    """PNG of the field around a voxel, across an axis; the top of the head, or the face, is up."""
    plane = np.pad(np.take(image, point[axis], axis), FIELD // 2)
    row, column = np.delete(point, axis)
    cut = np.flipud(plane[row : row + FIELD, column : column + FIELD].T)
    out = io.BytesIO()
    Image.fromarray(cut).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def _rows(each: int) -> Iterator[Row]:
    image, parts = volumes()
    rng = np.random.default_rng(0)
    for (index, name), (axis, plane) in product(enumerate(REGIONS), enumerate(PLANES)):
        points = np.argwhere(parts == index)
        for number, point in enumerate(rng.choice(points, each, replace=False)):
            yield Row(
                where=f"{plane} image {number} of the {name}",
                image_bytes=lambda axis=axis, point=point: square(image, axis, point),  # type: ignore[misc]  # as of now
                key=f"{plane}/{name}/{number}",
                caption=f"{plane} T1-weighted MR image of the head, centered on the {name}.",
                label=name,
                group=f"{plane} {point[axis] // SLAB}",
            )
