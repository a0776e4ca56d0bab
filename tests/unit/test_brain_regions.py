"""The medical data set of the benches: each image shows the part that its caption names, and neighboring slices stay together."""

import io

import nibabel
import numpy as np
import pytest
from fixtures.errors import refuses
from PIL import Image

from bench import brain_regions as brain
from clipft_tasks.spec import DataSpec

BRIGHT, DARK = 200, 40


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A head of two parts: a bright thalamus above a dark cerebellum."""
    parts = np.zeros((48, 48, 48), np.uint8)
    parts[12:36, 12:36, 4:16], parts[12:36, 12:36, 28:44] = 91, 77
    head = np.select([parts == 77, parts == 91], [BRIGHT, DARK]).astype(np.uint8)
    head[0, 0, 0] = 255
    for name, values in (("ch2", head), ("aal", parts)):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")
    (tmp_path / "aal.nii.txt").write_text("77 Thalamus_L 7101\n91 Cerebelum_Crus1_L 9001\n \n")
    monkeypatch.setattr(brain, "FOLDER", tmp_path)
    monkeypatch.setattr(brain, "REGIONS", {name: brain.REGIONS[name] for name in ("cerebellum", "thalamus")})
    brain.volumes.cache_clear()
    yield
    brain.volumes.cache_clear()


def test_each_image_has_its_part_at_the_center(package):
    source = brain.BrainRegions.open("30", DataSpec())
    rows = list(source.rows())
    assert len(rows) == source.total == 30 and len({row.key for row in rows}) == 30
    for row in rows:
        image = np.asarray(Image.open(io.BytesIO(row.image_bytes())))
        center = image[brain.SIDE // 2 - 1, brain.SIDE // 2]  # half a voxel off, since the field is even
        assert image.shape == (brain.SIDE, brain.SIDE) and row.label in row.caption
        assert abs(int(center) - {"thalamus": BRIGHT, "cerebellum": DARK}[row.label]) < 80, row.key
    assert {row.group.split()[0] for row in rows} == set(brain.PLANES)
    # The thalamus lies at z of 28 to 43: two slabs; an axial image's slab is that of its slice.
    assert {row.group for row in rows if row.key.startswith("axial/thalamus")} == {"axial 2", "axial 3"}


def test_the_top_of_the_head_is_up(package):
    image = Image.open(io.BytesIO(brain.square(brain.volumes()[0], 0, np.array([24, 24, 24]))))
    pixels = np.asarray(image, float)
    assert pixels[: brain.SIDE // 2].mean() > 2 * pixels[brain.SIDE // 2 :].mean()


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(brain, "FOLDER", tmp_path)
    with refuses("source.missing_package", "mricron-data", "apt-get install"):
        brain.BrainRegions.open("30", DataSpec())
