"""What manifests of many rows take: to split, store, read, find rows, compare versions, split on and split anew.

    python -m bench.manifest                    # a million rows; some minutes on two cores
    python -m bench.manifest --rows 100000

Rows are made, with captions, 1,000 classes, groups of four for a quarter of them, and a near-duplicate for one in fifty; no image is
decoded, and one lies in the shard that all rows name. Each step is a process of its own, which calls what ingest, version, diff, erase
and resplit call. Peers: for the difference pandas' outer join of the two manifests on all columns, for the split of the first 50,000
scikit-learn's StratifiedGroupKFold on the same classes and groups, which knows no likeness and no earlier version. The last line is
JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from bench.step_cost import Cost, each_alone, measured, told

CLASSES = 1_000
PEER = 50_000  # rows that scikit-learn splits: it counts every class in every group, which at a million is more than memory


def taken(rows: int) -> pd.DataFrame:
    """Rows as an ingest takes them; the first of more are the same."""
    from clipft_tasks.data import shards

    number = np.arange(rows)
    hashes = np.concatenate(
        [np.random.default_rng(n // 10_000).integers(0, 256, (10_000, 32), np.uint8) for n in number[::10_000]]
    )
    hashes = hashes[:rows]
    hashes[49::50] = hashes[48::50][: len(hashes[49::50])]
    hashes[49::50, 3] ^= 1
    frame = pd.DataFrame(
        {"name": [f"images/{i // 1000:05d}/{i}.jpg" for i in number], "caption": [f"a photo of thing {i}" for i in number]}
    )
    frame["sha256"] = [f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}" * 4 for i in number.tolist()]
    frame["key"] = frame["sha256"].str[8:40]
    frame["label"] = [f"class {i % CLASSES:04d}" for i in number]
    frame["group"] = np.where(number % 4 == 0, [f"patient {i // 16}" for i in number], "")
    frame["phash"] = [row.tobytes().hex() for row in hashes]
    with tempfile.TemporaryDirectory() as place:
        [(_, where)] = shards.pack([shards.Entry("image", "png", b"image")], Path(place))
    shape = {"split": "", "kin": "", "width": 128, "height": 128, "mode": "RGB", "format": "JPEG"}
    return frame.assign(**shape, where=frame["name"], **vars(where))


def staged(rows: int, folder: Path) -> Path:
    """A staging folder whose rows were taken, and are to be split."""
    from clipft_tasks.contracts.dataset import SourceAccount
    from clipft_tasks.data import shards

    if not (folder / "account.json").exists():
        list(shards.pack([shards.Entry("image", "png", b"image")], folder / "shards"))
        taken(rows).to_parquet(folder / "taken.parquet")
        (folder / "refused.jsonl").touch()
        (folder / "account.json").write_text(SourceAccount(seen=rows).model_dump_json())
    return folder


def step(name: str, rows: int, work: Path) -> Cost:
    """One step, in this process."""
    from clipft_tasks.data import diff, ingest_pipeline, repository, versioning
    from clipft_tasks.domains import get_domain
    from clipft_tasks.spec import RunSpec

    spec = RunSpec.from_flat({"domain": "general", "source": "made"})
    about = {"source": "made", "license": "", "origin": "", "consent": ""}
    more = rows + rows // 100

    def split() -> None:
        earlier = ingest_pipeline.Earlier.of("general")
        if name == "split anew":
            earlier = earlier.forgotten()
        ingest_pipeline.split_rows(about, spec.data, get_domain("general"), earlier, where)

    def store() -> None:
        versioning.commit("general", where, ingest_pipeline.read_card(where))

    if name == "find rows":
        from clipft_tasks.ops.erase import choice  # with torch

    def find() -> None:
        key = versioning.read_manifest(versioning.find("general/v1", "general"))["key"].iloc[rows // 2]
        asked = choice.Choice(rows=(key,), groups=("patient 1",))
        choice.find(repository.latest(), asked, ["general"], work / "found")

    def joined() -> None:
        old, new = (versioning.read_manifest(versioning.find(f"general/v{n}", "general")) for n in (1, 2))
        old.merge(new, how="outer", indicator=True)["_merge"].value_counts()

    def dealt() -> None:
        from sklearn.model_selection import StratifiedGroupKFold

        frame = pd.read_parquet(where / "taken.parquet").head(PEER)
        groups = np.where(frame["group"] != "", frame["group"], frame["sha256"])
        next(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(frame, frame["label"], groups))

    every = {
        "split": split,
        "store": store,
        "split 1% more": split,
        "store 1% more": store,
        "read": lambda: versioning.read_manifest(versioning.find("general/v1", "general")),
        "find rows": find,
        "difference": lambda: diff.compare(*(versioning.find(f"general/v{n}", "general") for n in (1, 2))),
        "difference by pandas": joined,
        "split anew": split,
        "split 50,000 by sklearn": dealt,
    }
    first = name in ("split", "store", "split 50,000 by sklearn")
    where = staged(rows if first else more, work / ("first" if first else "more"))
    return measured(every[name])


STEPS = (
    "split", "store", "split 1% more", "store 1% more", "read", "find rows", "difference", "difference by pandas", "split anew",
    "split 50,000 by sklearn",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds a step may take")
    for hidden in ("--step", "--work"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        told(step(asked.step, asked.rows, Path(asked.work)))
        return
    with tempfile.TemporaryDirectory() as place:
        more, env = ["--rows", str(asked.rows), "--work", place], {"CLIPFT_HOME": str(Path(place, "home"))}
        found = each_alone("bench.manifest", STEPS, more, asked.timeout, env)
    print(json.dumps(found | {"rows": asked.rows}))


if __name__ == "__main__":
    main()
