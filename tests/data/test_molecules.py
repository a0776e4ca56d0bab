"""molecules: drawn structures with their names, the same each time, relatives together, a class that the image shows."""

import importlib.util
import re
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from fixtures.errors import refuses
from rdkit import Chem

from clipft_tasks.data import versioning
from clipft_tasks.data.images import open_image
from clipft_tasks.data.readers import molecules, open_source
from clipft_tasks.spec import DataSpec, RunSpec
from clipft_tasks.stages import ingest, validate, version
from data.conftest import rejected, taken

COUNT = 60


@pytest.fixture
def home(shared_home):
    return shared_home


@pytest.fixture(scope="module")
def rows() -> list:
    return list(open_source(f"molecules:{COUNT}", DataSpec()).rows())


def spec_of(source: str, **more: object) -> RunSpec:
    return RunSpec.from_flat({"domain": "scientific", "source": source, **more})


# Rows -----------------------------------------------------------------------------------------------------------------


def test_a_limit_takes_so_many_and_a_larger_one_takes_those_too(rows):
    more = open_source(f"molecules:{2 * COUNT}", DataSpec())
    assert more.total == 2 * COUNT and [r.key for r in islice(more.rows(), COUNT)] == [r.key for r in rows]
    assert len({r.key for r in rows}) == len(rows) == COUNT


def test_without_a_limit_there_are_thousands_to_take(rows):
    source = open_source("molecules", DataSpec())
    found = [r.key for r in islice(source.rows(), 3000)]
    assert source.total is None and len(set(found)) == 3000 and found[:COUNT] == [r.key for r in rows]


def test_the_license_and_where_the_data_come_from_are_said():
    license = open_source("molecules:3", DataSpec()).license
    assert all(word in license for word in ("MIT", "chemicals", "PubChem", "RDKit"))


def test_names_are_names_and_images_are_drawings(rows):
    for row in rows:
        assert molecules.is_name(row.caption) and not re.search(r"\d{3}", row.caption)
        image = open_image(row.image_bytes(), gray_bits=8)
        gray = np.asarray(image.rgb.convert("L"))
        assert (image.width, image.height, image.format) == (molecules.SIDE, molecules.SIDE, "PNG")
        assert (gray == 255).mean() > 0.7 and (gray < 200).sum() > 50


def test_a_structure_is_drawn_the_same_each_time_and_another_one_is_not(rows):
    assert [r.image_bytes() for r in rows[:10]] == [r.image_bytes() for r in rows[:10]]
    assert len({r.image_bytes() for r in rows}) == COUNT


@pytest.mark.parametrize(
    "name",
    ["67801-02-9", "nsc214552", "ac1l59d9", "t0400-4293", "brn 5580635", "bay 52553", "ag-g-83325", "unii-o34z1ltn62", "dncb", "", "ff124556-a828-490b-b324-9ae859b695fa"],
)  # fmt: skip
def test_what_only_a_register_knows_is_no_name(name):
    assert not molecules.is_name(name)


@pytest.mark.parametrize(
    "name",
    ["ethanol", "2-methylbutan-1-ol", "9h-purin-6-amine", "tris(2-ethylhexyl) 1,2,4-benzenetricarboxylate", "nikotin", "DDT, o,p'-isomer"],
)  # fmt: skip
def test_what_a_chemist_says_is_a_name(name):
    assert molecules.is_name(name)


# Classes and groups ---------------------------------------------------------------------------------------------------

KNOWN = {
    "carboxylic acid": ["CC(=O)O", "OC(=O)c1ccccc1O", "NCC(=O)O"],
    "ester": ["CC(=O)OCC", "O=C1OCCC1", "COC(=O)c1ccccc1O"],
    "amide": ["CC(N)=O", "CC(=O)Nc1ccc(O)cc1"],
    "sulfonamide": ["NS(=O)(=O)c1ccc(N)cc1"],
    "nitrile": ["CC#N", "OCCC#N"],
    "aldehyde": ["CC=O", "O=Cc1ccc(O)cc1"],
    "ketone": ["CC(C)=O", "CC(=O)CO"],
    "alcohol": ["CCO", "NCCO"],
    "phenol": ["Oc1ccccc1", "Nc1ccc(O)cc1"],
    "amine": ["CCN", "CN(C)C", "Nc1ccccc1", "C1CCNCC1"],
    "ether": ["CCOCC", "c1ccc2OCOc2c1", "COc1ccc(Cl)cc1"],
    "nitro compound": ["C[N+](=O)[O-]", "Clc1ccc(cc1)[N+](=O)[O-]"],
    "halide": ["CCCl", "Brc1ccccc1"],
    "hydrocarbon": ["CCCCCC", "c1ccccc1", "C=C", "C#C"],
    "": ["c1ccncc1", "CCS(C)=O", "C[Si](C)(C)C"],
}


@pytest.mark.parametrize(("label", "smiles"), [(k, s) for k, many in KNOWN.items() for s in many])
def test_the_class_is_the_senior_group(label, smiles):
    assert molecules.label_of(Chem.MolFromSmiles(smiles)) == label


def test_every_class_is_known_here():
    assert list(KNOWN) == [*molecules.CLASSES, molecules.HYDROCARBON, ""]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("c1ccccc1C", "c1ccccc1CCO", True),  # one ring system with other chains
        ("c1ccccc1C", "C1CCCCC1C", False),
        ("CCCO", "CCCN", True),  # no ring: one skeleton
        ("CC=CC", "CCCC", True),
        ("F/C=C/F", "F/C=C\\F", True),
        ("CCCC", "CC(C)C", False),
        ("FS(F)(F)(F)(F)C", "CS(C)(C)(C)(C)C", True),  # more bonds than a carbon could have
    ],
)
def test_near_relatives_share_a_group(one, other, same):
    groups = [molecules.group_of(Chem.MolFromSmiles(smiles)) for smiles in (one, other)]
    assert all(groups) and (groups[0] == groups[1]) == same


# The chain ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_molecules_become_a_dataset_version(home, tiny):
    spec = spec_of(f"molecules:{COUNT}", **{"model.start": str(tiny)})
    result = ingest.run(spec)
    frame = taken(result)
    assert result.rows + result.rejected == COUNT and result.rows > 0.9 * COUNT
    assert all("duplicate" in r["reason"] or "resembles" in r["reason"] for r in rejected(result).values())
    assert (frame.groupby("group")["split"].nunique() == 1).all() and frame["split"].nunique() == 3
    assert set(frame["label"]) <= {*molecules.CLASSES, molecules.HYDROCARBON, ""} and frame["label"].nunique() > 5
    checked = validate.run(spec, result.staging)
    made = version.run(spec, result.staging)
    assert checked.rows == made.rows == result.rows
    card = versioning.find("", "scientific").card
    assert "PubChem" in card.license and card.classes == {k: v for k, v in sorted(Counter(frame["label"]).items()) if k}


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["many", "0", "-3", "1.5", "10:20"])
def test_a_limit_that_is_no_number_is_refused(limit):
    with refuses("source.invalid_argument", f"molecules:{limit}", "molecules:2000"):
        open_source(f"molecules:{limit}", DataSpec())


@pytest.mark.parametrize("package", ["rdkit", "chemicals"])
def test_a_package_that_is_not_installed_is_named_with_what_to_install(monkeypatch, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else found(name, *a))
    with refuses("source.missing_package", package, "clipft[demo]"):
        open_source("molecules:5", DataSpec())
