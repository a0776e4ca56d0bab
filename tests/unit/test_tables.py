"""Tables in parts: what stays, what is stored anew, and that nothing is lost on the way."""

import pandas as pd
import pytest

from clipft_tasks.data import compaction, manifest, shards, tables
from clipft_tasks.data.ledger import Ledger


def rows(*numbers: int, **said: object) -> pd.DataFrame:
    """Rows of a manifest, told apart by their numbers."""
    frame = pd.DataFrame({column: [""] * len(numbers) for column in manifest.COLUMNS})
    frame["key"], frame["sha256"] = [f"{n:032x}" for n in numbers], [f"{n:064x}" for n in numbers]
    frame["name"], frame["offset"] = [f"{n}.png" for n in numbers], [n * 1024 for n in numbers]
    return frame.assign(shard="0" * 32 + ".tar", length=700, width=8, height=8, split="train", **said).astype(manifest.COLUMNS)


class Versions:
    """Tables of versions that follow each other, each a union of parts."""

    def __init__(self, folder) -> None:
        self.folder, self.names, self.written = folder, [], []

    def add(self, frame: pd.DataFrame) -> None:
        known = {name: tables.read([self.folder / name]) for name in self.names}
        kept, new = tables.arranged(frame, ["key"], known)
        self.written = [tables.write(some, self.folder) for some in new]
        self.names = [*kept, *(path.name for path in self.written)]
        pd.testing.assert_frame_equal(self.read(), frame.sort_values("key", ignore_index=True))

    def read(self) -> pd.DataFrame:
        return manifest.checked(lambda: tables.read([self.folder / name for name in self.names]), "here")


@pytest.fixture
def versions(tmp_path, monkeypatch) -> Versions:
    monkeypatch.setattr(tables, "FULL", 40)
    monkeypatch.setattr(tables, "MOST_SMALL", 4)
    return Versions(tmp_path)


def test_rows_that_come_are_all_that_is_stored(versions):
    versions.add(rows(*range(400)))
    before = versions.names
    assert len(before) == 10
    versions.add(rows(*range(404)))
    (new,) = versions.written
    assert set(before) < set(versions.names) and len(pd.read_parquet(new)) == 4
    versions.add(rows(*range(404)))
    assert not versions.written


def test_a_part_is_stored_anew_where_a_row_of_it_goes_or_is_another(versions):
    versions.add(rows(*range(400)))
    before = set(versions.names)
    frame = rows(*range(400))
    frame.loc[45, "name"] = "called otherwise.png"  # the key is the same
    versions.add(frame.drop(index=[46]))
    assert len(before - set(versions.names)) == 1 and len(versions.written) == 1
    assert versions.read().set_index("key").loc[f"{45:032x}", "name"] == "called otherwise.png"


def test_small_parts_are_put_together_when_there_are_many(versions):
    versions.add(rows(*range(80)))
    written = 0
    for more in range(1, 60):
        versions.add(rows(*range(80 + more)))
        written += sum(len(pd.read_parquet(path)) for path in versions.written)
        assert len(versions.names) <= (80 + more) / (tables.FULL / 2) + tables.MOST_SMALL
    assert len(versions.read()) == 139 and written < 59 * 10  # each row a few times, and not once for each that came later


def test_everything_may_go_and_come_back(versions):
    versions.add(rows(1, 2, 3))
    versions.add(rows(7))
    versions.add(rows(3, 2, 1))
    assert list(versions.read()["name"]) == ["1.png", "2.png", "3.png"]


def test_a_table_of_other_columns_is_stored_whole(versions):
    versions.add(rows(*range(8)))
    known = {name: tables.read([versions.folder / name]).drop(columns="mode") for name in versions.names}
    kept, (new,) = tables.arranged(rows(*range(8)), ["key"], known)
    assert not kept and len(new) == 8


def test_the_same_rows_make_the_same_file(tmp_path):
    assert tables.write(rows(*range(9)), tmp_path / "a").name == tables.write(rows(*range(9)), tmp_path / "b").name


def test_the_ledger_is_what_stands_beside_the_manifest_and_the_manifest(tmp_path):
    old, now = rows(*range(6), group="a"), rows(2, 3, 4, 9, group="a")
    now.loc[0, "group"] = "b"  # the image is in another group now
    ledger = Ledger.empty().joined(old).joined(now)
    former = ledger.beside(now)
    assert set(former["sha256"]) == {f"{n:064x}" for n in (0, 1, 2, 5)} and set(former["group"]) == {"a"}
    pd.testing.assert_frame_equal(Ledger(former).joined(now).frame, ledger.frame)


def test_many_small_shards_become_one_and_each_image_is_what_it_was(tmp_path):
    places, frames = {}, []
    for n in range(compaction.MOST_SMALL + 1):
        entries = [shards.Entry(f"{n * 3 + i:064x}", "png", bytes([n, i]) * 50) for i in range(3)]
        places |= dict(shards.pack(entries, tmp_path / "old"))
        frames.append(rows(*range(n * 3, n * 3 + 3), format="PNG"))
    frame = pd.concat(frames, ignore_index=True)
    for column in ("shard", "offset", "length"):
        frame[column] = [getattr(places[sha256], column) for sha256 in frame["sha256"]]
    frame = pd.concat([frame, frame.tail(1).assign(key="f" * 32, caption="of the same image")], ignore_index=True)
    assert not compaction.small(frame[frame["shard"] != frame["shard"].iloc[0]])
    small = compaction.small(frame)
    assert len(small) == compaction.MOST_SMALL + 1

    after = compaction.packed(frame, small, [tmp_path / "elsewhere", tmp_path / "old"], tmp_path / "new")
    (name,) = set(after["shard"])
    shards.check(tmp_path / "new" / name, name)
    assert (tmp_path / "new" / name).stat().st_size == shards.packed_bytes([100] * 3 * (compaction.MOST_SMALL + 1))
    for was, now in zip(frame.itertuples(), after.itertuples(), strict=True):
        place = [shards.Place(row.shard, row.offset, row.length) for row in (was, now)]
        assert shards.read(tmp_path / "old", place[0]) == shards.read(tmp_path / "new", place[1])
    assert list(after.columns) == list(frame.columns) and after["key"].equals(frame["key"])
