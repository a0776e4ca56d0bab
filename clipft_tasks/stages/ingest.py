"""ingest: a source becomes staged shards and a manifest; rows that cannot be taken are listed with their reason."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.console import progress, say
from ..core.errors import ClipftError
from ..core.settings import settings
from ..data import manifest, shards, splits, versioning
from ..data.images import BadImage, open_image, perceptual_hash
from ..data.readers import SPLITS, Row, open_source
from ..domains import Domain, get_domain
from ..spec import RunSpec

MAX_WORDS = 1000
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "GIF": "gif"}


def run(spec: RunSpec) -> dict[str, Any]:
    """Read the source into a staging folder.

    Returns: staging (path), rows, rejected, counts by split, content (digest that names the set), license.
    Raises: ClipftError when the source cannot be opened or holds nothing usable.
    """
    source = open_source(spec.source, spec.data)
    domain = get_domain(spec.domain)
    if source.license:
        say(f"License of {source.name}: {source.license}")
    known = versioning.versions(domain.name)
    earlier = versioning.read_manifest(known[-1]) if known else pd.DataFrame(columns=list(manifest.COLUMNS))
    ledger = versioning.splits_ledger(domain.name) if known else {}

    staging = settings().folder("staging") / spec.identity("ingest", "domain", "source", "data")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        taken, rejected = _take(progress(source.rows(), "images", source.total), spec, domain, earlier, staging)
    except OSError as error:  # reading a row's image is caught there; this is the writing
        raise ClipftError(
            f"staging folder {staging}", f"it cannot be written: {error.strerror}", "Make space, then run again."
        ) from error
    _write_jsonl(staging / "rejected.jsonl", rejected)
    if not taken:
        reasons = "; ".join(f"{r['where']}: {r['reason']}" for r in rejected[:3])
        raise ClipftError(f"source {spec.source}", f"not one row could be taken ({reasons})", "Correct the rows named.")

    frame = pd.DataFrame(taken)
    frame, straddling = _split(frame, spec, domain, ledger)
    rejected += straddling
    _write_jsonl(staging / "rejected.jsonl", rejected)
    manifest.write(frame, staging / "manifest.parquet")
    new = dict(zip(frame["sha256"], frame["split"], strict=True))
    pd.DataFrame(sorted((ledger | new).items()), columns=["sha256", "split"]).to_parquet(staging / "splits.parquet")

    counts = {s: int((frame["split"] == s).sum()) for s in SPLITS}
    identity = sorted(zip(frame["key"], frame["split"], strict=True))
    card = {
        "domain": domain.name,
        "source": spec.source,
        "license": source.license,
        "rows": len(frame),
        "rejected": len(rejected),
        "counts": counts,
        "classes": {k: int(v) for k, v in frame["label"].value_counts().sort_index().items() if k},
        "content": hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        "parents": [known[-1].tag] if known else [],
    }
    (staging / "datacard.json").write_text(json.dumps(card, indent=1, sort_keys=True))
    say(f"Took {len(frame)} rows ({', '.join(f'{s} {n}' for s, n in counts.items())}), rejected {len(rejected)}.")
    for row in rejected[:10]:
        say(f"  rejected {row['where']}: {row['reason']}")
    if len(rejected) > 10:
        say(f"  … and {len(rejected) - 10} more, all in {staging / 'rejected.jsonl'}")
    return {
        "staging": str(staging),
        "rows": len(frame),
        "rejected": len(rejected),
        "counts": counts,
        "content": card["content"],
        "license": source.license,
    }


def _take(
    rows: Iterator[Row], spec: RunSpec, domain: Domain, earlier: pd.DataFrame, staging: Path
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Every row is decoded and described; bytes that the last version already holds are not packed again."""
    taken: dict[str, dict[str, Any]] = {}
    rejected: list[dict[str, str]] = []
    places = {r.key: shards.Place(r.shard, int(r.offset), int(r.length)) for r in earlier.itertuples()}
    template = spec.data.caption_template or domain.caption
    names: dict[str, int] = {}

    def entries() -> Iterator[shards.Entry]:
        for row in rows:
            try:
                caption = _caption(row, template)
                if row.split and row.split not in SPLITS:
                    raise BadImage(f"split {row.split!r} is none of {', '.join(SPLITS)}")
                data = row.image_bytes()
                image = open_image(data, gray_bits=domain.gray_bits)
            except (BadImage, OSError) as error:
                rejected.append({"where": row.where, "name": row.key, "reason": str(error)})
                continue
            meta = {"caption": caption, "label": row.label, "group": row.group}
            digest = hashlib.sha256(data)
            sha256 = digest.hexdigest()
            digest.update(json.dumps(meta, sort_keys=True).encode())
            key = digest.hexdigest()[:32]
            if key in taken:
                reason = f"exact duplicate of {taken[key]['name']} (same image, caption and label)"
                rejected.append({"where": row.where, "name": row.key, "reason": reason})
                continue
            names[row.key] = names.get(row.key, 0) + 1
            taken[key] = {
                "key": key,
                "name": row.key if names[row.key] == 1 else f"{row.key}#{names[row.key]}",
                **meta,
                "split": row.split,
                "width": image.width,
                "height": image.height,
                "mode": image.mode,
                "format": image.format,
                "sha256": sha256,
                "phash": perceptual_hash(image.rgb).hex(),
                "where": row.where,
            }
            if key not in places:
                yield shards.Entry(key, EXTENSIONS[image.format], data, meta)

    for key, place in shards.pack(entries(), staging / "shards"):
        places[key] = place
    for key, row in taken.items():
        row |= {"shard": places[key].shard, "offset": places[key].offset, "length": places[key].length}
    return list(taken.values()), rejected


def _caption(row: Row, template: str) -> str:
    caption = " ".join(row.caption.split())
    if not caption and row.label:
        caption = template.replace("{}", row.label)
    if not caption:
        raise BadImage("it has neither a caption nor a label")
    words = caption.count(" ") + 1
    if words > MAX_WORDS:
        raise BadImage(f"its caption has {words:,} words, more than the limit of {MAX_WORDS:,}")
    return caption


def _split(
    frame: pd.DataFrame, spec: RunSpec, domain: Domain, ledger: dict[str, str]
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    fixed = [ledger.get(sha, own) for sha, own in zip(frame["sha256"], frame["split"], strict=True)]
    duplicates = splits.near_duplicates(frame["phash"].tolist(), domain.near_duplicate_bits)
    component = splits.components(len(frame), duplicates, frame["group"].tolist())
    shares = {"val": spec.data.val_share, "test": spec.data.test_share}
    shares["train"] = 1 - sum(shares.values())
    assigned = splits.assign(component, frame["label"].tolist(), fixed, shares, spec.data.split_seed)
    frame = frame.assign(split=assigned.splits)
    rejected = [
        {
            "where": frame.at[i, "where"],
            "name": frame.at[i, "name"],
            "reason": "it resembles, or shares a group with, rows of two different splits",
        }
        for i in assigned.straddling
    ]
    return frame.drop(index=assigned.straddling).reset_index(drop=True), rejected


def _write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8", errors="backslashreplace")
