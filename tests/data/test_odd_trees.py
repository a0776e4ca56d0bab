"""Folders as factories, archives and other tools name them: what each level means, or what is worth a look."""

import unicodedata
import zipfile
from pathlib import Path

import pytest
from fixtures.errors import refuses

from clipft_tasks.data.account import Account
from clipft_tasks.data.readers import open_source
from clipft_tasks.data.readers.tree import levels_of
from clipft_tasks.spec import DataSpec
from data.test_identity import photo

PAIR = ("a", "b")


def read(paths: list[str], captioned: bool = False) -> tuple[list[tuple[str, str, str]], str]:
    """(split, class, group) of each path, and what is worth a look."""
    account = Account()
    levels = levels_of([Path(path) for path in paths], "", captioned, account)
    found = [levels.of(Path(path)) for path in paths]
    return [(one.split, one.label, one.group) for one in found], " ".join(account.warnings)


def test_classes_below_cameras_dates_and_lots_are_the_classes():
    places = [f"cam{c}/2024-03-{d:02}/L{c}{d}" for c in (1, 2) for d in range(1, 7)]
    found, said = read([f"{place}/{name}/{i}.png" for place in places for name in ("ok", "nok") for i in range(3)])
    assert {label for _, label, _ in found} == {"ok", "nok"}
    assert len({group for *_, group in found}) == 6 and "repeat below" in said  # dates: the first with groups enough


@pytest.mark.parametrize("above", ["fold{}", "2024-03-0{}", "shift_{}", "Linie {}"])
def test_classes_below_folds_and_dates_are_the_classes(above):
    found, _ = read([f"{above.format(n)}/{name}/{i}.png" for n in range(1, 6) for name in PAIR for i in range(3)])
    assert {label for _, label, _ in found} == {"a", "b"} and len({group for *_, group in found}) == 5


def test_grades_with_parts_below_stay_the_classes_and_that_is_worth_a_look():
    found, said = read([f"grade{n}/{side}/{i}.png" for n in range(5) for side in ("left", "right") for i in range(3)])
    assert {label for _, label, _ in found} == {f"grade{n}" for n in range(5)} and "Say data.levels" in said


@pytest.mark.parametrize(
    "names",
    [
        {"chest_train": "train", "chest_val": "val", "chest_test": "test"},
        {"train": "train", "test_normal": "test", "test_hard": "test"},
        {"01-training": "train", "02-validation": "val", "03-testing": "test"},
    ],
    ids=["chest_train", "test_hard", "numbered"],
)
def test_words_beside_a_splits_name_do_not_hide_it(names):
    found, _ = read([f"{name}/{label}/{i}.png" for name in names for label in PAIR for i in range(4)])
    assert {split for split, *_ in found} == set(names.values()) and {label for _, label, _ in found} == {"a", "b"}


def test_splits_and_classes_in_one_word_are_worth_a_look():
    _, said = read([f"{name}/{i}.png" for name in ("train_cat", "train_dog", "test_cat", "test_dog") for i in range(4)])
    assert "4 of 4 folders of level 1 are called like a split" in said


def test_what_all_images_are_about_is_no_class_above_their_splits():
    found, _ = read([f"bottle/{where}/{i}.png" for where in ("train/good", "test/good", "test/broken") for i in range(4)])
    assert set(found) == {("train", "good", ""), ("test", "good", ""), ("test", "broken", "")}


@pytest.mark.parametrize("name", ["unlabeled", "tmp", "New folder (2)", "Neuer Ordner", "cat - Kopie", "backup"])
def test_folders_that_are_hardly_classes_are_worth_a_look(name):
    _, said = read([f"{folder}/{i}.png" for folder in ("cat", "dog", name) for i in range(12)])
    assert "1 of 3 classes of level 1" in said


def packed(path: Path, folder: str, encoding: str, utf8: bool) -> Path:
    """An archive with a class folder whose name is written in an encoding, as programs of other systems do."""
    stand_in = "X" * len(folder.encode(encoding))
    with zipfile.ZipFile(path, "w") as archive:
        for name in (stand_in, "sound"):
            for number in range(3):
                archive.writestr(f"{name}/{number}.png", b"x")
    path.write_bytes(path.read_bytes().replace(stand_in.encode(), folder.encode(encoding)))
    return path


@pytest.mark.parametrize(
    ("folder", "encoding", "known"),
    [("Überhitzt", "utf-8", True), ("不良品", "cp932", False), ("Überhitzt", "cp1252", False), ("Überhitzt", "cp850", False)],
)
def test_folders_of_an_archive_are_utf_8_or_stay_in_it(home, tmp_path, folder, encoding, known):
    source = open_source(str(packed(tmp_path / "a.zip", folder, encoding, known)), DataSpec())
    labels = {unicodedata.normalize("NFC", row.label) for row in source.rows()}
    assert labels == ({folder, "sound"} if known else {"sound"})
    assert ("3 files were left in the archive" in " ".join(source.account.warnings)) != known


def test_an_archive_of_archives_says_what_it_holds(home, tmp_path):
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("one.zip", b"PK")
        archive.writestr("two.zip", b"PK")
    with refuses("source.no_images", "2 .zip files"):
        open_source(str(tmp_path / "outer.zip"), DataSpec())


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_frames_of_animations_are_counted(home, tmp_path, ending):
    (tmp_path / "cat").mkdir()
    frames = [photo(number) for number in range(3)]
    frames[0].save(tmp_path / "cat" / f"moving.{ending}", save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path / "cat" / f"still.{ending}")
    (tmp_path / "cat" / f"broken.{ending}").write_bytes(b"GIF89a")
    source = open_source(str(tmp_path), DataSpec())
    assert len(list(source.rows())) == 3 and source.account.passed_over["frames of animations after the first"] == 2
