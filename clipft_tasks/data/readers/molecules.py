"""Molecules: structural formulas drawn by RDKit, with the names that the PyPI package chemicals lists.

chemicals (MIT, Caleb Bell) holds names and structures of some 70,000 compounds which, its documentation says, come from
PubChem. Nothing is downloaded; each image is drawn when it is read, and is the same bytes with the same RDKit.

Taken are single neutral organic molecules of 3 to 32 heavy atoms whose name is a name: what only a register knows (`nsc214552`,
`67801-02-9`) says nothing about an image. Caption: the name. Group: the Bemis-Murcko scaffold
(https://doi.org/10.1021/jm9602928), or, for a molecule without rings, its skeleton with all atoms and bonds alike, so that
near relatives never straddle a split. Label: the first class of `CLASSES` whose pattern matches; none, where none does.
"""

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING

from ...core.errors import ClipftError
from ...spec import DataSpec
from .base import Reader, Row, Source

if TYPE_CHECKING:
    from rdkit.Chem import Mol

LICENSE = "MIT (chemicals, Caleb Bell; names and structures from PubChem, as its documentation states); drawn by RDKit"
SIDE = 256  # pixels
ATOMS = range(3, 33)  # heavy ones: fewer are no image, more are unreadable at a model's size

# SMARTS by class, the senior characteristic group first (IUPAC 2013 recommendations, P-41); then what only a prefix names.
CLASSES = {
    "carboxylic acid": "[CX3](=O)[OX2H1]",
    "ester": "[CX3](=O)[OX2][#6;!$([CX3]=[OX1])]",
    "amide": "[CX3](=O)[NX3]",
    "sulfonamide": "[SX4](=O)(=O)[NX3]",
    "nitrile": "[CX2]#[NX1]",
    "aldehyde": "[CX3H1](=O)[#6]",
    "ketone": "[#6][CX3](=O)[#6]",
    "alcohol": "[OX2H][CX4]",
    "phenol": "[OX2H]c",
    "amine": "[NX3;!$(NC=[O,S,N]);!$(N~[!#6;!#1])]",
    "ether": "[OX2]([#6;!$([CX3]=[OX1])])[#6;!$([CX3]=[OX1])]",
    "nitro compound": "[NX3+](=O)[O-]",
    "halide": "[#6][F,Cl,Br,I]",
}
HYDROCARBON = "hydrocarbon"  # nothing but carbon and hydrogen


class Molecules(Reader):
    """Structural formulas, drawn when they are read."""

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open the first `argument` molecules in the order of a hash of their structure; "" for all of them.

        Raises: ClipftError when the argument is no number or a package is not installed.
        """
        limit = argument
        if limit and not (limit.isdecimal() and int(limit)):
            raise ClipftError(
                f"source molecules:{limit}",
                "the limit is not a positive number",
                "Use molecules or molecules:2000.",
                code="source.invalid_argument",
            )
        missing = [name for name in ("rdkit", "chemicals") if importlib.util.find_spec(name) is None]
        if missing:
            raise ClipftError(
                "source molecules",
                f"not installed: {', '.join(missing)}",
                "Install `clipft[demo]`.",
                code="source.missing_package",
            )
        wanted = int(limit) if limit else None
        return Source(
            lambda: islice(_rows(), wanted), license=LICENSE, name=f"molecules:{limit}" if limit else "molecules", total=wanted
        )


def _rows() -> Iterator[Row]:
    from chemicals.identifiers import get_pubchem_db

    listed = {c.InChI_key: c for c in get_pubchem_db() if is_name(c.common_name) and "." not in c.smiles}
    for key in sorted(listed, key=lambda k: hashlib.sha256(k.encode()).digest()):
        compound = listed[key]
        molecule = _molecule(compound.smiles)
        if molecule is not None:
            yield Row(
                where=f"molecules {compound.CASs}",
                image_bytes=partial(draw, compound.smiles),
                key=f"molecules/{compound.CASs}",
                caption=compound.common_name,
                label=label_of(molecule),
                group=group_of(molecule),
            )


def is_name(text: str) -> bool:
    """Whether a name is more than a register's number: it has a word with a vowel, and no three digits in a row."""
    words = re.findall(r"[a-z]{4,}", text.lower())
    return not re.search(r"\d{3}|^unii-", text.lower()) and any(re.search("[aeiouy]", word) for word in words)


def _molecule(smiles: str) -> "Mol | None":
    """The structure, or None where RDKit does not accept it or it is not what this source offers."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():  # a structure that breaks valence rules is passed over, not news
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or molecule.GetNumHeavyAtoms() not in ATOMS or Chem.GetFormalCharge(molecule):
        return None
    return molecule if any(a.GetAtomicNum() == 6 for a in molecule.GetAtoms()) else None


@cache
def _patterns() -> "dict[str, Mol]":
    from rdkit import Chem

    return {name: Chem.MolFromSmarts(smarts) for name, smarts in CLASSES.items()}


def label_of(molecule: "Mol") -> str:
    """The first of `CLASSES` that the molecule has, else hydrocarbon, else ""."""
    for name, pattern in _patterns().items():
        if molecule.HasSubstructMatch(pattern):
            return name
    return HYDROCARBON if all(a.GetAtomicNum() in (1, 6) for a in molecule.GetAtoms()) else ""


def group_of(molecule: "Mol") -> str:
    """The scaffold as SMILES; of a molecule without rings, its skeleton."""
    from rdkit import Chem
    from rdkit.Chem.Scaffolds import MurckoScaffold

    scaffold = Chem.RWMol(MurckoScaffold.GetScaffoldForMol(molecule))
    if not scaffold.GetNumAtoms():
        scaffold = Chem.RWMol(molecule)
        for atom in scaffold.GetAtoms():
            scaffold.ReplaceAtom(atom.GetIdx(), Chem.Atom(0))
        for bond in scaffold.GetBonds():
            bond.SetBondType(Chem.BondType.SINGLE)
    return str(Chem.MolToSmiles(scaffold, isomericSmiles=False))


def draw(smiles: str) -> bytes:
    """The structural formula as a PNG, SIDE pixels square, on white."""
    from rdkit import Chem
    from rdkit.Chem.Draw import rdMolDraw2D

    canvas = rdMolDraw2D.MolDraw2DCairo(SIDE, SIDE)
    canvas.drawOptions().includeMetadata = False  # type: ignore[assignment]  # its stubs take a property for its class
    rdMolDraw2D.PrepareAndDrawMolecule(canvas, Chem.MolFromSmiles(smiles))
    canvas.FinishDrawing()
    return bytes(canvas.GetDrawingText())
