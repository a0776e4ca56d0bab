"""A dataset version as Croissant (https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html): what other tools load it by.

`croissant.json` lies beside the card, in git; its addresses are relative, so that a clone in which `dvc pull` has run can be loaded.
Written by hand, as JSON-LD: the library that checks it (`mlcroissant`) is one of the tests alone.
"""

import json
import re
from collections.abc import Mapping
from typing import TypeAlias

from pydantic import JsonValue

from ..contracts.dataset import DatasetCard
from .manifest import COLUMNS
from .objects import StoredFile
from .tables import StoredTable

FILE = "croissant.json"
Node: TypeAlias = dict[str, JsonValue]
# The specification's own context: terms that JSON-LD readers resolve without asking anybody.
CONTEXT: Node = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
SPDX = re.compile(r"[A-Za-z0-9.+-]*[0-9-][A-Za-z0-9.+-]*|MIT|ISC|Zlib|Unlicense")
WHAT_IT_IS = {
    "key": "identity of the row across versions",
    "name": "what the source calls it",
    "caption": "text that belongs to the image",
    "label": "class; empty where there is none",
    "group": "rows that are not independent (patient, part) share it; empty where it is not known",
    "split": "train, val or test",
    "width": "pixels",
    "height": "pixels",
    "sha256": "of the image's bytes",
}


def describe(card: DatasetCard, number: int, manifest: StoredTable, shards: Mapping[str, StoredFile]) -> str:
    """The file's text.

    Args:
        card: of the version, with its tag. number: of the version.
        manifest, shards: as they are stored, the latter by name.
    """
    of_rows: Node = {"fileSet": {"@id": "manifest"}} if manifest.folder else {"fileObject": {"@id": manifest.path}}
    counts = ", ".join(f"{rows} {split}" for split, rows in card.counts.items())
    about: Node = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": card.version.replace("/", "-"),
        "description": f"{card.rows} images with captions, {len(card.classes)} classes, of the domain {card.domain}: {counts}.",
        "version": f"{card.major}.{number}.0",
        "isLiveDataset": False,
        "distribution": [
            _manifest(manifest),
            *(_file(name, f"shards/{name}", file, "application/x-tar") for name, file in sorted(shards.items())),
            {
                "@type": "cr:FileSet",
                "@id": "images",
                "name": "images",
                "containedIn": [{"@id": name} for name in sorted(shards)],
                "encodingFormat": "application/octet-stream",
                "includes": [f"*.{ending}" for ending in ("jpg", "png", "webp", "bmp", "tif", "gif", "avif", "heic")],
            },
        ],
        "recordSet": [_rows(of_rows), _images(of_rows)],
    }
    if card.license:
        about["license"] = _license(card.license)
    said = {"rai:dataCollection": card.origin, "usageInfo": card.consent}
    about |= {name: text for name, text in said.items() if text}
    if card.reviews:
        made = "; ".join(
            f"{r.relabeled} relabeled, {r.dropped} dropped, {r.kept} confirmed on {r.version}" for r in card.reviews
        )
        about["rai:dataAnnotationProtocol"] = f"Labels were reviewed by people: {made}."
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def _license(text: str) -> str:
    """The address of a license that SPDX lists; any other as it is."""
    return f"https://spdx.org/licenses/{text}" if SPDX.fullmatch(text) and not text.startswith("LicenseRef-") else text


def _file(name: str, address: str, file: StoredFile, kind: str) -> Node:
    found: Node = {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": address,
        "encodingFormat": kind,
        "md5": file.md5,
    }
    return found | ({"contentSize": f"{file.size} B"} if file.size else {})


def _manifest(table: StoredTable) -> Node:
    """All parts of the manifest as one set of files, or the file that it was in earlier releases."""
    kind = "application/x-parquet"
    if not table.folder:
        (file,) = table.parts.values()
        return _file(table.path, table.path, file, kind)
    files: list[JsonValue] = [f"{table.path}/*.parquet"]
    return {"@type": "cr:FileSet", "@id": "manifest", "name": "manifest", "encodingFormat": kind, "includes": files}


def _rows(of: Node) -> Node:
    """The manifest's columns that say something of a row."""
    fields: list[JsonValue] = [_column("rows", column, what, of) for column, what in WHAT_IT_IS.items()]
    return {"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "key": {"@id": "rows/key"}, "field": fields}


def _images(of: Node) -> Node:
    """Images with what is said of them. A shard may also hold images that the version has no more: nothing is said of these."""
    name: Node = {"fileSet": {"@id": "images"}, "extract": {"fileProperty": "filename"}}
    content: Node = {"fileSet": {"@id": "images"}, "extract": {"fileProperty": "content"}}
    identity: Node = {
        "@type": "cr:Field",
        "@id": "pairs/sha256",
        "name": "sha256",
        "description": "the image's file is called by it",
        "dataType": "sc:Text",
        "source": name | {"transform": {"regex": r"^(?:.*/)?([0-9a-f]+)"}},
        "references": of | {"extract": {"column": "sha256"}},
    }
    image: Node = {"@type": "cr:Field", "@id": "pairs/image", "name": "image", "dataType": "sc:ImageObject", "source": content}
    said: list[JsonValue] = [
        _column("pairs", column, WHAT_IT_IS[column], of) for column in ("key", "caption", "label", "split")
    ]
    return {"@type": "cr:RecordSet", "@id": "pairs", "name": "pairs", "field": [identity, image, *said]}


def _column(record_set: str, column: str, what: str, of: Node) -> Node:
    source: Node = of | {"extract": {"column": column}}
    kind = "sc:Integer" if COLUMNS[column] == "int64" else "sc:Text"
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/{column}",
        "name": column,
        "description": what,
        "dataType": kind,
        "source": source,
    }
