"""elpv-dataset: 2,624 electroluminescence photos of solar cells, as the PyPI package ships them.

License: CC-BY-NC-SA-4.0, Deitsch et al., https://doi.org/10.1016/j.solener.2019.02.067. Not for commercial use.

The set gives each cell a probability of being defective (0, 1/3, 2/3, 1); at one half and above we call it defective, as
its authors do. It does not say which cells come from the same module, but it lists them module by module, so runs of 60
neighbors (the usual number of cells in a module) form a group and never straddle a split.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from ...core.errors import ClipftError
from ...spec import DataSpec
from .base import Reader, Row, Source

LICENSE = "CC-BY-NC-SA-4.0 (Deitsch et al., elpv-dataset): free for non-commercial use, share alike, name the authors"
TYPES = {"mono": "monocrystalline", "poly": "polycrystalline"}
MODULE = 60


class Elpv(Reader):
    """The photos of one type of solar cells."""

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open one crystal type (`mono`, `poly`) or `all`. Raises ClipftError when the package is not installed."""
        if argument not in (*TYPES, "all"):
            raise ClipftError(
                f"source elpv:{argument}",
                "there is no such cell type",
                "Use elpv:mono, elpv:poly or elpv:all.",
                code="source.invalid_argument",
            )
        found = importlib.util.find_spec("elpv_dataset")
        if found is None or not found.submodule_search_locations:
            raise ClipftError(
                "source elpv",
                "the package elpv-dataset is not installed",
                "Install `clipft[demo]`.",
                code="source.missing_package",
            )
        root = Path(next(iter(found.submodule_search_locations)), "data")
        listed = [line.split() for line in (root / "labels.csv").read_text().splitlines() if line.strip()]
        total = sum(argument in ("all", crystal) for *_, crystal in listed)

        def rows() -> Iterator[Row]:
            run, previous = -1, -1
            members = 0
            for number, (name, probability, crystal) in enumerate(listed):
                if argument not in ("all", crystal):
                    continue
                if number != previous + 1 or members == MODULE:
                    run, members = number, 0
                previous, members = number, members + 1
                label = "defective" if float(probability) >= 0.5 else "functional"
                yield Row(
                    where=f"elpv {name}",
                    image_bytes=(root / name).read_bytes,
                    key=f"elpv/{Path(name).stem}",
                    caption=f"an electroluminescence image of a {label} {TYPES[crystal]} solar cell.",
                    label=f"{label} solar cell",
                    group=f"elpv-{run:04d}",
                )

        return Source(rows, license=LICENSE, name=f"elpv:{argument}", total=total)
