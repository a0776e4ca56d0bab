"""validate: a good set passes; a bad one stops with the check and its rows named, on a page that reads offline."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import made_image, write_images
from fixtures.errors import refuses
from PIL import Image

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.data import expectations
from clipft_tasks.domains import get_domain
from clipft_tasks.model import outliers
from clipft_tasks.spec import DataSpec, RunSpec
from clipft_tasks.stages import ingest, validate

TITLES = [
    "Enough rows",
    "key of its own",
    "rejected",
    "Shorter side",
    "Color mode",
    "Captions are not empty",
    "Captions inside the tokenizer",
    "No image in two classes",
    "near-duplicate in two splits",
    "Splits are named",
    "rarest class",
]


@pytest.fixture
def home(shared_home: Path) -> Path:
    return shared_home


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_images(tmp_path / "source", 20)


def spec_of(table: Path, tiny: Path, **more: object) -> RunSpec:
    return RunSpec.from_flat({"domain": "general", "source": str(table), "model.start": str(tiny), **more})


def rows_of(table: Path) -> list[dict]:
    return [r | {"split": ""} for r in pd.read_csv(table, dtype=str, keep_default_na=False).to_dict("records")]


def write(table: Path, rows: list[dict]) -> Path:
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


def stopped(spec: RunSpec) -> tuple[str, str]:
    """The error and the report of a set that must not pass."""
    staging = ingest.run(spec).staging
    with pytest.raises(ClipftError) as caught:
        validate.run(spec, staging)
    page = Path(staging, "report.html").read_text("utf-8")
    assert ">Stopped<" in page and ">Passed<" not in page
    return str(caught.value), page


class Links(HTMLParser):
    """Everything a page would load or lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [
            v or "" for k, v in attributes if k in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
        ]


def links(page: str) -> Links:
    parser = Links()
    parser.feed(page)
    return parser


# A good set -----------------------------------------------------------------------------------------------------------


def test_a_good_set_passes_every_check_and_its_page_reads_offline(home, source, tiny):
    spec = spec_of(source, tiny)
    staging = ingest.run(spec).staging
    result = validate.run(spec, staging)
    assert result.passed == len(TITLES) and result.rows == 40
    page = Path(result.report).read_text("utf-8")
    assert ">Passed<" in page and "FAIL" not in page
    for title in TITLES:
        assert title in page
    found = links(page)
    assert found.found and all(link.startswith("data:image/") for link in found.found)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert not re.search(r"https?://|url\(|@import", page)
    json.dumps(result.to_json())


def test_the_report_is_kept_in_mlflow_once_however_often_it_is_written(home, source, tiny):
    from clipft_tasks import tracking

    spec = spec_of(source, tiny)
    staging = ingest.run(spec).staging
    link = validate.run(spec, staging).links["Data report"]
    assert validate.run(spec, staging).links["Data report"] == link
    content = json.loads(Path(staging, "datacard.json").read_text())["content"]
    experiment = tracking.get_or_create_experiment("clipft-general-data")
    runs = [r for r in tracking.client().search_runs([experiment]) if r.data.tags["clipft.key"] == content]
    assert len(runs) == 1 and runs[0].data.metrics["checks_failed"] == 0 and runs[0].info.status == "FINISHED"
    assert [f.path for f in tracking.client().list_artifacts(runs[0].info.run_id)] == ["report.html"]


def test_texts_of_a_source_cannot_put_code_on_the_page(home, source, tiny):
    evil = "<script>alert(1)</script><img src=http://evil.example/x.png> a red square"
    rows = [r | {"caption": evil, "label": '"><script src=//evil.example></script>'} for r in rows_of(source)[:20]] + rows_of(
        source
    )[20:]
    bad = [{"image": "<script>gone</script>.png", "caption": "x", "label": "red square", "group": "", "split": ""}]
    spec = spec_of(write(source, rows + bad), tiny)
    staging = ingest.run(spec).staging
    validate.run(spec, staging)
    found = links(Path(staging, "report.html").read_text("utf-8"))
    assert "script" not in found.tags and all(link.startswith("data:") for link in found.found)


# Sets that must stop --------------------------------------------------------------------------------------------------


def test_too_many_rejected_rows_stop_and_each_is_on_the_page(home, source, tiny):
    for number in (1, 2, 3):
        (source.parent / f"red-00{number}.png").write_bytes(b"")
    said, page = stopped(spec_of(source, tiny))
    assert "Share of rows that were rejected: 0.075" in said and "1 of 11 checks" in said
    assert all(f"red-00{n}.png" in page for n in (1, 2, 3)) and "0 bytes" in page


def test_a_few_rejected_rows_do_not_stop(home, source, tiny):
    (source.parent / "red-001.png").write_bytes(b"")
    spec = spec_of(source, tiny)
    assert validate.run(spec, ingest.run(spec).staging).rows == 39


def with_splits(table: Path) -> list[dict]:
    """The rows with the source's own splits: of each class 12 train, 4 val, 4 test."""
    names = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    return [r | {"split": names[i % 20]} for i, r in enumerate(rows_of(table))]


def test_a_near_duplicate_across_the_sources_own_splits_costs_the_training_row_which_is_named(home, source, tiny):
    rows = with_splits(source)
    made_image("red", 0).resize((60, 60)).save(source.parent / "twin.png")
    spec = spec_of(write(source, [*rows, rows[0] | {"image": "twin.png", "split": "test"}]), tiny)
    staging = ingest.run(spec).staging
    assert validate.run(spec, staging).rows == 40
    page = Path(staging, "report.html").read_text("utf-8")
    assert "red-000.png" in page and "its split is train; what it resembles" in page


def test_many_groups_across_the_sources_own_splits_stop_and_say_how_to_go_on(home, source, tiny):
    rows = with_splits(source)
    for number in range(4):
        rows[number]["group"] = rows[19 - number]["group"] = f"patient {number}"
    said, page = stopped(spec_of(write(source, rows), tiny))
    assert "Share of rows that were rejected: 0.1" in said and "clipft resplit general" in said
    assert page.count("its split is train; what it resembles") == 4


def test_a_source_that_splits_itself_cleanly_passes(home, source, tiny):
    spec = spec_of(write(source, with_splits(source)), tiny)
    assert validate.run(spec, ingest.run(spec).staging).passed == len(TITLES)


def test_a_source_without_test_rows_stops(home, source, tiny):
    rows = [r | {"split": "val" if r["split"] == "test" else r["split"]} for r in with_splits(source)]
    said, _ = stopped(spec_of(write(source, rows), tiny))
    assert "Splits are named as they should be" in said and "test" in said


def test_a_class_that_is_too_rare_stops_and_is_named(home, tmp_path, tiny):
    table = write_images(tmp_path / "source", 55)
    rows = rows_of(table)
    rows[3]["label"] = "purple square"
    said, page = stopped(spec_of(write(table, rows), tiny))
    assert "Share of the rarest class: 0.009" in said
    assert "purple square" in page
    assert "purple square" in said


def test_captions_beyond_the_context_stop_and_are_named(home, source, tiny):
    rows = rows_of(source)
    for row in rows[:3]:
        row["caption"] = "a red square, " + "very " * 40 + "red"
    said, page = stopped(spec_of(write(source, rows), tiny))
    assert "Captions inside the tokenizer's context of 32" in said and "3 rows outside" in said
    assert all(r["image"] in said and r["image"] in page for r in rows[:3])


def test_two_captions_of_forty_beyond_the_context_are_taken(home, source, tiny):
    rows = rows_of(source)
    for row in rows[:2]:
        row["caption"] = "a red square, " + "very " * 40 + "red"
    spec = spec_of(write(source, rows), tiny)
    assert validate.run(spec, ingest.run(spec).staging).passed == len(TITLES)


def test_one_tiny_image_stops_and_is_named(home, source, tiny):
    made_image("red", 5).resize((48, 31)).save(source.parent / "red-005.png")
    said, page = stopped(spec_of(source, tiny))
    assert "Shorter side of the images, pixels: 1 rows" in said and "red-005.png" in said and "red-005.png" in page


def test_a_color_mode_that_the_domain_does_not_take_stops(home, source, tiny):
    rows = rows_of(source)
    rows[5]["image"] = "red-005.png.jpg"
    for name in source.parent.glob("*.png"):  # the medical domain wants 64 pixels and no CMYK
        label, number = name.stem.split("-")
        made_image(label, int(number), 64).save(name)
    made_image("red", 5, 64).convert("CMYK").save(source.parent / "red-005.png.jpg", "JPEG")
    said, _ = stopped(spec_of(write(source, rows), tiny, domain="medical"))
    assert "Color mode of the images: 1 rows" in said and "red-005.png.jpg" in said


def test_too_few_rows_stop(home, tmp_path, tiny):
    said, _ = stopped(spec_of(write_images(tmp_path / "few", 9), tiny))
    assert "Enough rows: 18" in said


def test_captions_without_a_letter_stop_and_are_named(home, source, tiny):
    rows = rows_of(source)
    rows[4]["caption"] = "?!"
    said, _ = stopped(spec_of(write(source, rows), tiny))
    assert "Captions are not empty: 1 rows" in said and rows[4]["image"] in said


def test_every_failed_check_is_named_at_once(home, source, tiny):
    rows = rows_of(source)
    rows[4]["caption"] = "?!"
    made_image("red", 5).resize((48, 20)).save(source.parent / "red-005.png")
    said, page = stopped(spec_of(write(source, rows), tiny))
    assert "2 of 11 checks failed" in said and "Captions are not empty" in said and "Shorter side" in said
    assert page.count(">FAIL<") == 2


def test_a_start_model_that_does_not_exist_is_named(home, source, tiny):
    spec = spec_of(source, tiny, **{"model.start": "ViT-Z-99:nobody"})
    staging = ingest.run(spec).staging
    with refuses("model.unknown_start", "ViT-Z-99"):
        validate.run(spec, staging)


# Limits that follow from the data, and checks of what rows say --------------------------------------------------------


def checked(rows: list[dict], domain: str = "general", **options: object) -> dict[str, expectations.Check]:
    """The checks of rows that are plain but for what is given, by title."""
    plain = {
        "caption": "a thing", "label": "", "group": "", "split": "train", "width": 64, "height": 64, "mode": "RGB", "format": "PNG",
    }  # fmt: skip
    unlike = np.random.default_rng(0).integers(0, 256, (len(rows), 32), np.uint8)
    frame = pd.DataFrame(
        [
            {**plain, "key": i, "name": f"row {i}", "sha256": str(i), "phash": unlike[i].tobytes().hex(), **row}
            for i, row in enumerate(rows)
        ]
    )
    looked = expectations.look(frame, get_domain(domain), DataSpec(**options))
    described, _ = expectations.describe(frame, [looked.model_copy(update={"tokens": [3] * len(rows), "context": 77})])
    found = expectations.check(described, get_domain(domain), 77, 0.0, DataSpec(**options))
    return {check.title.partition(",")[0]: check for check in found}


def test_balanced_classes_may_be_many_and_a_rare_one_among_them_is_still_named():
    many = [{"label": f"class {i % 120}"} for i in range(600)]
    assert checked(many, "industrial")["Share of the rarest class"].passed
    rare = checked([*many * 3, {"label": "rare"}], "industrial")["Share of the rarest class"]
    assert not rare.passed and rare.rows == ["rare"] and "data.min_class_share" in rare.limit
    assert checked([*many * 3, {"label": "rare"}], "industrial", min_class_share=0)["Share of the rarest class"].passed


def test_small_images_of_one_size_are_taken_and_one_small_among_others_is_not():
    small = {"width": 28, "height": 28}
    title = "Shorter side of the images"
    assert checked([small] * 30, "medical")[title].passed
    assert not checked([small, *[{}] * 30], "medical")[title].passed
    assert checked([small, *[{}] * 30], "medical", min_side=28)[title].passed
    assert not checked([{"width": 8, "height": 8}] * 30)[title].passed


@pytest.mark.parametrize(("caption", "passes"), [("🐱🐶", True), ("猫", True), ("☀", True), ("?!", False), ("…", False)])
def test_captions_of_emoji_say_something(caption, passes):
    assert checked([{"caption": caption}] * 30)["Captions are not empty"].passed == passes


def test_one_image_in_two_classes_is_named():
    rows = [{"label": "benign"}] * 28 + [{"label": "benign", "sha256": "x"}, {"label": "malignant", "sha256": "x"}]
    found = checked(rows)["No image in two classes"]
    assert not found.passed and found.rows == ["row 28", "row 29"]
    assert checked([{"label": "benign", "sha256": "x"}] * 30)["No image in two classes"].passed


@pytest.mark.parametrize(
    "caption",
    [
        "CT of the chest, 1970-01-02", "seen on 02.01.1970", "born 3 May 1970", "May 3, 1970: a fracture", "study 19700102",
        "patient John Doe with effusion", "Dr. Smith saw an effusion", "MRN 12345, effusion", "accession no. A-4711",
        "DOE^JOHN effusion", "call 555 123 4567", "write to j.doe@clinic.org", "id 123456789", "seen by okonkwo", "Anna Maria Okafor",
    ],
)  # fmt: skip
def test_captions_that_name_somebody_stop_medical_data_and_only_their_rows_are_named(caption, tmp_path):
    (tmp_path / "names.txt").write_text("Okonkwo\nanna maria okafor\n", "utf-8")
    found = checked([{}] * 29 + [{"caption": caption}], "medical", names_file=str(tmp_path / "names.txt"))
    check = found["Captions and labels name nobody"]
    assert not check.passed and check.rows == ["row 29"] and caption not in str(check)
    assert "Captions and labels name nobody" not in checked([{"caption": caption}] * 30)


@pytest.mark.parametrize(
    "caption",
    [
        "a radiograph of the chest, PA view.", "T1 and T2 weighted MR image at L4/5", "a 65 year old man with a mass of 3.5 x 2 cm",
        "Patient has effusion", "grade 3/4, 12 mm", "findings since 2019", "CT image 5 of 120", "5-10 nodules of 1.5-2.5 mm",
    ],
)  # fmt: skip
def test_captions_that_name_nobody_pass(caption):
    assert checked([{"caption": caption}] * 30, "medical")["Captions and labels name nobody"].passed


@pytest.mark.slow
def test_images_unlike_all_others_to_the_start_model_are_on_the_report_when_asked(home, tiny, tmp_path):
    table = write_images(tmp_path / "source", 20)
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    Image.fromarray(noise).save(table.parent / "noise.png")
    rows = rows_of(table)
    write(table, [*rows, rows[0] | {"image": "noise.png", "caption": "unlike the rest", "split": "train"}])
    spec = spec_of(table, tiny, **{"data.outliers": 30})
    staging = ingest.run(spec).staging
    validate.run(spec, staging)
    page = Path(staging, "report.html").read_text("utf-8")
    assert "Far from all others" in page and "of 30 that it looked at" in page
    every = spec_of(table, tiny, **{"data.outliers": 1000})
    validate.run(every, ingest.run(every).staging)
    shown = Path(ingest.run(every).staging, "report.html").read_text("utf-8").partition("Far from all others")[2]
    assert "of 41 that it looked at" in shown and "unlike the rest" in shown.partition("Left out")[0]


def test_the_distance_is_that_of_the_nearest_and_a_few_images_are_no_trouble():
    points = np.eye(8, dtype=np.float32)[[0, 0, 0, 0, 0, 0, 0, 1]]
    assert outliers.from_nearest(points).tolist() == [0.0] * 7 + [1.0]
    assert outliers.from_nearest(points[:1]).tolist() == [0.0] and outliers.from_nearest(points[[0, 7]]).tolist() == [1.0, 1.0]
