"""The section of a spec that says how a source becomes a dataset version."""

from typing import Literal

from pydantic import Field, field_validator

from .licenses import canonical_license
from .section import Section


class DataSpec(Section):
    """How a source becomes a dataset version."""

    image_column: str = Field("image", description="column of a table that holds the image's path")
    caption_column: str = Field("caption", description="column that holds the caption; may be absent if labels are there")
    label_column: str = Field("label", description="column that holds the class, when there is one")
    group_column: str = Field("group", description="rows of one group (patient, part, module) stay in one split")
    split_column: str = Field("split", description="column with train, val or test, when the source splits itself")
    caption_template: str = Field("", description="caption for rows without one, `{}` is the class; empty: the domain's")
    val_share: float = Field(
        0.15, ge=0.02, le=0.5, title="Validation share", description="share of groups kept for model selection"
    )
    test_share: float = Field(0.25, ge=0.02, le=0.5, description="share of groups never seen before the final report")
    split_seed: int = Field(0, ge=0, description="seed of the split; rows of an older version never change their split")
    levels: str = Field(
        "",
        pattern=r"^((split|class|group|-)(/(split|class|group|-))*)?$",
        description=(
            "what each level of folders is, from the top: `class/group`, `split/class/group`, `-` for nothing; empty: as plain from "
            "the names, and for DICOM nothing but the split"
        ),
        examples=["class/group", "split/class/group", "group/class"],
    )
    frames: Literal["auto", "first", "middle", "all"] = Field(
        "auto",
        description=(
            "which images of a file with several (DICOM, NIfTI, TIFF) are taken; `all` makes each a row, in one group; `auto`: the "
            "first page of a TIFF, the middle frame or slice of the others"
        ),
    )
    images_root: str = Field("", description="folder that the paths of a table are relative to; empty: the table's own")
    links_root: str = Field(
        "",
        description="folder that links of the source may lead to; empty: the source itself, and the hub's or DVC's cache around it",
    )
    tile_pixels: int = Field(256, ge=32, le=4096, description="side of the tiles that whole slides are cut into")
    tile_microns: float = Field(0.5, gt=0, le=100, description="microns that a pixel of those tiles spans; 0.5 is about 20x")
    tile_tissue: float = Field(0.1, ge=0, le=1, description="least share of tissue in a tile; others are left out and counted")
    separator: str = Field(
        "", max_length=1, description="what separates the columns of a text table; empty: as its first line has it"
    )
    min_side: int | None = Field(
        None,
        ge=8,
        le=20_000,
        description="least pixels of the shorter side; empty: the domain's, or the one size that all images have",
    )
    min_class_share: float | None = Field(
        None,
        ge=0,
        le=0.5,
        description="least share of the rarest class; empty: the domain's, less where there are many classes",
    )
    names_file: str = Field(
        "",
        description="a text file with a name a line that no caption may hold; for domains that check captions for identifiers",
    )
    outliers: int = Field(
        0,
        ge=0,
        le=100_000,
        description="images that the start model embeds, for the data report to show those far from all others; 0: none",
    )
    license: str = Field(
        "",
        max_length=500,
        description="license of the images and texts: an SPDX identifier (CC-BY-4.0) or a sentence; empty: what the source states",
        examples=["CC-BY-4.0", "CC0-1.0", "LicenseRef-hospital"],
    )
    origin: str = Field("", max_length=500, description="where they come from: an archive, a device, an address")
    consent: str = Field(
        "", max_length=500, description="what allows their use: a consent, a contract, a vote of an ethics board"
    )

    @field_validator("license")
    @classmethod
    def _license(cls, text: str) -> str:
        return canonical_license(text)

    @field_validator("caption_template")
    @classmethod
    def _template(cls, template: str) -> str:
        if template and template.count("{}") != 1:
            raise ValueError(f"template {template!r} needs exactly one {{}}, where the class goes")
        return template
