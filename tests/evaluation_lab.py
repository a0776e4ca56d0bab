"""A data set of made pictures without DVC, and a small random model: what tests of the evaluation look at."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from clipft_tasks.data import shards
from clipft_tasks.data.versioning import Dataset, Version


def picture(number: int, side: int = 40) -> bytes:
    """A PNG of coloured blocks, another one for each number."""
    blocks = np.random.default_rng(number).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


def a_dataset(folder: Path, rows: Sequence[dict[str, Any]], domain: str = "general", **card: Any) -> Dataset:
    """Rows as dictionaries of `picture` (its number), `caption`, and if wanted `label`, `group`, `split` (test), `side`, `mode`."""
    filled = []
    entries = []
    for i, row in enumerate(rows):
        side = row.get("side", 40)
        data = picture(row["picture"], side)
        key = f"{i:04d}" + hashlib.sha256(data + row["caption"].encode()).hexdigest()[:28]
        entries.append(shards.Entry(key, "png", data, {}))
        filled.append(
            {"key": key, "name": f"{row['picture']}.png", "caption": row["caption"], "label": row.get("label", ""),
             "group": row.get("group", ""), "split": row.get("split", "test"), "width": side, "height": side,
             "mode": row.get("mode", "RGB"), "format": "PNG", "sha256": hashlib.sha256(data).hexdigest(), "phash": ""}
        )  # fmt: skip
    places = dict(shards.pack(entries, folder))
    frame = pd.DataFrame(filled)
    for name in ("shard", "offset", "length"):
        frame[name] = [getattr(places[key], name) for key in frame["key"]]
    revision = hashlib.sha256(repr(filled).encode()).hexdigest()[:40]  # what the cache of decoded pictures knows it by
    return Dataset(Version(domain, 1, revision, {"source": "made", **card}), frame, folder)
