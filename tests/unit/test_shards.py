"""Shards: what goes in comes out, other tools read them, and a manifest cannot point anywhere else."""

import os
import tarfile

import numpy as np
import pytest
from fixtures.errors import refuses
from hypothesis import given
from hypothesis import strategies as st

from clipft_tasks.data import shards


def entries(count: int = 12, seed: int = 0, most: int = 5000) -> list[shards.Entry]:
    rng = np.random.default_rng(seed)
    return [shards.Entry(f"{seed:04d}{i:028x}", "png", rng.bytes(int(rng.integers(1, most)))) for i in range(count)]


@pytest.fixture
def packed(tmp_path):
    """A folder with one shard of twelve entries, and where each lies."""
    return tmp_path, dict(shards.pack(entries(), tmp_path))


def test_every_image_comes_back_byte_for_byte(packed):
    folder, places = packed
    assert list(places) == [e.key for e in entries()]
    for entry in entries():
        assert shards.read(folder, places[entry.key]) == entry.data


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 10_240, 3 * 2**20 + 17])
def test_offsets_are_right_for_content_of_any_length(tmp_path, length):
    content = [shards.Entry(f"{i:032x}", "png", bytes([i]) * length) for i in range(1, 6)]
    places = dict(shards.pack(content, tmp_path, target_bytes=2**30))
    assert len({p.shard for p in places.values()}) == 1
    for entry in content:
        assert shards.read(tmp_path, places[entry.key]) == entry.data


def test_the_same_entries_make_the_same_shards_anywhere_and_anytime(tmp_path):
    one = list(shards.pack(entries(40), tmp_path / "one", 20_000))
    os.environ["TZ"] = "Asia/Tokyo"
    try:
        two = list(shards.pack(entries(40), tmp_path / "two", 20_000))
    finally:
        del os.environ["TZ"]
    assert one == two and len({p.shard for _, p in one}) > 2
    for name in {p.shard for _, p in one}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_one_changed_byte_changes_the_name(tmp_path):
    content = entries(3)
    one = {p.shard for _, p in shards.pack(content, tmp_path)}
    content[1] = shards.Entry(content[1].key, "png", content[1].data[:-1] + b"\0")
    assert one.isdisjoint({p.shard for _, p in shards.pack(content, tmp_path)})


def test_shards_are_about_as_large_as_wanted(tmp_path):
    list(shards.pack(entries(60), tmp_path, 30_000))
    sizes = sorted(p.stat().st_size for p in tmp_path.iterdir())
    assert len(sizes) > 3 and sizes[-1] < 30_000 + 2 * 10_240


def test_nothing_but_whole_shards_is_left_and_no_entry_makes_none(tmp_path):
    assert list(shards.pack([], tmp_path / "none")) == [] and list((tmp_path / "none").iterdir()) == []
    list(shards.pack(entries(), tmp_path / "some"))
    assert all(shards.NAME.match(p.name) for p in (tmp_path / "some").iterdir())


def test_a_source_that_breaks_off_leaves_no_shard_and_the_next_run_is_not_disturbed(tmp_path):
    def broken():
        yield from entries(3)
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        list(shards.pack(broken(), tmp_path))
    assert not list(tmp_path.glob("*.tar"))
    places = dict(shards.pack(entries(3), tmp_path))
    assert [shards.read(tmp_path, places[e.key]) for e in entries(3)] == [e.data for e in entries(3)]
    assert [p.suffix for p in tmp_path.iterdir()] == [".tar"]


def test_plain_tar_reads_a_shard(packed):
    folder, places = packed
    (name,) = {p.shard for p in places.values()}
    with tarfile.open(folder / name) as tar:
        assert [m.name for m in tar] == [f"{entry.key}.png" for entry in entries()]
        for entry in entries():
            assert tar.extractfile(f"{entry.key}.png").read() == entry.data
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar} == {(0, 0, 0, "")}


def test_the_webdataset_library_reads_a_shard(packed):
    webdataset = pytest.importorskip("webdataset")
    folder, places = packed
    (name,) = {p.shard for p in places.values()}
    rows = list(webdataset.WebDataset(str(folder / name), shardshuffle=False))
    assert [r["__key__"] for r in rows] == [e.key for e in entries()]
    for row, entry in zip(rows, entries(), strict=True):
        assert row["png"] == entry.data


# Refused --------------------------------------------------------------------------------------------------------------

STRANGE = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    "",
    "x.tar",
    f"../{'0' * 32}.tar",
    f"/{'0' * 32}.tar",
    f"a/{'0' * 32}.tar",
    "0" * 32,
    "0" * 32 + ".tar.gz",
    "0" * 32 + ".tar\n",
    "0" * 31 + "G.tar",
    "0" * 32 + ".tar/../../x",
]


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_that_is_not_a_shards_is_refused_even_when_the_file_is_there(tmp_path, name):
    folder = tmp_path / "shards"
    (folder / "a").mkdir(parents=True)
    for place in (tmp_path, folder / "a", folder):
        (place / f"{'0' * 32}.tar").write_bytes(b"x" * 2000)
    if name and not name.startswith("/") and ".." not in name and "/" not in name:
        (folder / name).write_bytes(b"x" * 2000)
    with refuses("dataset.invalid_shard_name", repr(name)):
        shards.read(folder, shards.Place(name, 0, 4))
    with refuses("dataset.invalid_shard_name", repr(name)):
        shards.path_of(folder, name)


@pytest.mark.parametrize("outside", [True, False], ids=["absolute link", "relative link"])
def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(tmp_path, outside):
    folder = tmp_path / "shards"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"the password is swordfish")
    name = "0" * 32 + ".tar"
    (folder / name).symlink_to(tmp_path / "secret" if outside else "../secret")
    with refuses("dataset.shard_is_link", name):
        shards.read(folder, shards.Place(name, 0, 10))


def test_a_missing_shard_is_named(tmp_path):
    with refuses("dataset.missing_shard", "0" * 32 + ".tar"):
        shards.read(tmp_path, shards.Place("0" * 32 + ".tar", 0, 4))


@pytest.mark.parametrize(("offset", "length"), [(-1, 4), (0, -1), (0, 10**9), (10**9, 1), (10_230, 20)])
def test_a_place_outside_its_shard_is_refused(tmp_path, offset, length):
    place = dict(shards.pack(entries(1, most=100), tmp_path))[entries(1)[0].key]
    assert (tmp_path / place.shard).stat().st_size == 2048
    with refuses("dataset.damaged_shard", place.shard, f"{offset}+{length}"):
        shards.read(tmp_path, shards.Place(place.shard, offset, length))


@pytest.mark.parametrize(
    "tamper", [lambda b: b[:-512], lambda b: b + b"x", lambda b: b[:600] + b"\xff" + b[601:], lambda b: b""]
)
def test_tampered_bytes_are_noticed(packed, tamper):
    folder, places = packed
    name = next(iter(places.values())).shard
    shards.check(folder / name, name)
    (folder / name).write_bytes(tamper((folder / name).read_bytes()))
    with refuses("dataset.damaged_shard", name):
        shards.check(folder / name, name)


def test_a_shard_cut_short_is_noticed_on_reading(packed):
    folder, places = packed
    last = places[entries()[-1].key]
    os.truncate(folder / last.shard, last.offset + last.length - 1)
    with refuses("dataset.damaged_shard", last.shard):
        shards.read(folder, last)


# in general -----------------------------------------------------------------------------------------------------------

PACKED = st.builds(
    shards.Entry,
    key=st.binary(min_size=16, max_size=16).map(bytes.hex),
    extension=st.sampled_from(["png", "jpg", "tiff", "dcm"]),
    data=st.binary(max_size=3000),
)


@given(st.lists(PACKED, max_size=8, unique_by=lambda entry: entry.key), st.integers(1, 20_000))
def test_what_is_packed_is_read_whatever_it_is_and_however_it_is_cut(tmp_path_factory, content, target):
    folder, again = (tmp_path_factory.mktemp("shards") for _ in range(2))
    places = dict(shards.pack(content, folder, target))
    assert list(places) == [entry.key for entry in content]
    assert [shards.read(folder, places[entry.key]) for entry in content] == [entry.data for entry in content]
    assert places == dict(shards.pack(content, again, target))
    for name in {place.shard for place in places.values()}:
        shards.check(folder / name, name)
        with tarfile.open(folder / name) as tar:
            assert tar.getnames() == [f"{e.key}.{e.extension}" for e in content if places[e.key].shard == name]


# Nowhere to hide ------------------------------------------------------------------------------------------------------


def beside_images(path) -> bytes:
    """What a shard holds that is neither an image nor what is said of one."""
    rest, at, data = b"", 0, path.read_bytes()
    with path.open("rb") as file:
        for member in shards.members(file):
            rest += data[at : member.offset]
            at = member.offset_data + member.size
    return rest + data[at:]


@given(lengths=st.lists(st.integers(0, 1500), min_size=1, max_size=5))
def test_a_shard_has_no_place_for_bytes_of_no_image(tmp_path_factory, lengths):
    folder = tmp_path_factory.mktemp("packed")
    entries = [shards.Entry(f"{n:064x}", "png", b"\xff" * length) for n, length in enumerate(lengths)]
    [name] = {place.shard for _, place in shards.pack(entries, folder)}
    assert not any(beside_images(folder / name))
    assert (folder / name).stat().st_size == shards.packed_bytes(lengths)


def test_what_was_hidden_between_images_or_after_them_is_not_copied(tmp_path):
    entries = [shards.Entry(f"{n:064x}", "png", b"\xff" * 700) for n in range(3)]
    [name] = {place.shard for _, place in shards.pack(entries, tmp_path)}
    path, secret = tmp_path / name, b"a hidden image"
    data = bytearray(path.read_bytes())
    data[512 + 700 : 512 + 700 + len(secret)] = secret  # in what the first image leaves of its block
    path.write_bytes(data + secret)
    with refuses("dataset.damaged_shard", "do not match its name"):
        shards.check(path, name)
    copied, moved = shards.without(path, {f"{1:064x}"}, tmp_path)
    assert len(moved) == 2 and secret not in (tmp_path / copied).read_bytes()
