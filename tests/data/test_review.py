"""What people decide of rows whose labels look wrong becomes a version, and stays, whatever is ingested later."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import small, write_images
from fixtures.errors import refuses

from clipft_tasks.cli import main
from clipft_tasks.contracts.review import DecisionsFile
from clipft_tasks.data import versioning
from clipft_tasks.data.decisions import Decisions
from clipft_tasks.evaluate import label_errors
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import ingest, review, version

WRONG = {"red-003.png": "blue square", "blue-007.png": "red square"}  # what the source says of them
HOSTILE = "</script><img src=x onerror=alert(1)> شعاعي"


def page_data(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', Path(page).read_text("utf-8"), re.S)[1])


def decided(by: str, tag: str, **of: tuple[str, str]) -> DecisionsFile:
    """Decisions by the start of a row's name (`red_003`): action and label."""
    frame = versioning.read_manifest(versioning.find(tag, "")).set_index("name")
    rows = [
        {
            "key": frame.loc[f"{name.replace('_', '-')}.png", "key"],
            "action": action,
            "label": label,
            "at": "2026-01-02T03:04:05Z",
        }
        for name, (action, label) in of.items()
    ]
    return DecisionsFile.from_json({"format": 1, "version": tag, "by": by, "decisions": rows})


@pytest.fixture
def spec(home, tmp_path, tiny) -> RunSpec:
    """Two classes, of which two rows have the other's label, and one a hostile caption."""
    table = write_images(tmp_path / "source", 16)
    frame = pd.read_csv(table, keep_default_na=False)
    for name, label in WRONG.items():
        frame.loc[frame["image"] == name, "label"] = label
    frame.loc[frame["image"] == "red-003.png", "caption"] = HOSTILE
    frame.to_csv(table, index=False)
    return RunSpec.from_flat(small(table, tiny))


@pytest.mark.slow
def test_a_review_from_the_page_to_the_next_version_and_the_next_ingest(spec, tmp_path):
    version.run(spec, ingest.run(spec).staging)
    found = review.run(spec, most=10)
    shown = page_data(found.page)
    assert {row["name"] for row in shown["rows"][:2]} == WRONG.keys() and found.wrong >= 2 and found.shown == 10
    assert all(shown["classes"][row["likely"]] != WRONG[row["name"]] for row in shown["rows"][:2])
    text = Path(found.page).read_text("utf-8")
    assert (
        "<img src=x" not in text
        and shown["rows"][[r["name"] for r in shown["rows"]].index("red-003.png")]["caption"] == HOSTILE
    )
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:|//)", text) and "default-src 'none'" in text

    anna = decided("Anna", "general/v1", red_003=("relabel", "red square"), blue_007=("drop", ""), blue_001=("keep", ""))
    file = tmp_path / "decisions.json"
    file.write_text(json.dumps(anna.to_json()))
    done = CliRunner().invoke(main, ["review", "apply", str(file), "--model.start", spec.model.start])
    assert done.exit_code == 0, done.output
    new = versioning.find("", "general")
    frame = versioning.fetch(new).frame.set_index("name")
    assert new.tag == "general/v2" and "blue-007.png" not in frame.index and len(frame) == 31
    assert (frame.loc["red-003.png", "label"], frame.loc["red-003.png", "caption"]) == ("red square", HOSTILE)
    assert frame["key"].is_unique and new.card.parents == ["general/v1"]
    assert [(r.by, r.version, r.relabeled, r.dropped, r.kept) for r in new.card.reviews] == [("Anna", "general/v1", 1, 1, 1)]
    assert any("1 relabeled, 1 dropped, 1 confirmed" in line for line in new.card.account.understood)
    before = versioning.read_manifest(versioning.find("general/v1", "")).set_index("name")
    both = before.index.intersection(frame.index)
    assert (before.loc[both, "split"] == frame.loc[both, "split"]).all()
    assert (before.loc[both, "shard"] == frame.loc[both, "shard"]).all()  # no image was packed again

    # The same source again, and the same decisions again: nothing new. Rows that are settled are shown no more.
    assert not version.run(spec, ingest.run(spec).staging).new
    assert not review.apply(spec, [anna]).new
    again = {row["name"] for row in page_data(review.run(spec, most=99).page)["rows"]}
    assert len(again) == 29 and not again & {"red-003.png", "blue-001.png"}

    # Two people on one version: what agrees is taken together, what does not is refused in words, or left as it was.
    boris = decided("Boris", "general/v1", red_003=("keep", ""), red_005=("drop", ""))
    with refuses("review.contradiction") as refused:
        review.apply(spec, [boris])
    assert "red-003.png (blue square)" in str(refused.value)
    assert "Anna: relabel to 'red square'" in str(refused.value) and "Boris: keep" in str(refused.value)
    assert review.apply(spec, [boris], skip_conflicts=True).new
    third = versioning.find("", "general")
    kept = versioning.read_manifest(third).set_index("name")
    assert kept.loc["red-003.png", "label"] == "red square" and "red-005.png" not in kept.index
    assert [r.by for r in third.card.reviews] == ["Anna", "Boris"]
    back = decided("Clara", "general/v3", red_003=("relabel", "blue square"))  # who saw a decision may take it back
    review.apply(spec, [back])
    assert (
        versioning.read_manifest(versioning.find("", "general")).set_index("name").loc["red-003.png", "label"] == "blue square"
    )


ROWS = pd.DataFrame(
    [
        ("k1", "i1", "cat", "a photo of a cat."), ("k2", "i2", "cat", "a photo of a cat."), ("k3", "i3", "big_dog", "Rex, a big dog"),
        ("k4", "i4", "big_dog", "a photo of a big dog."), ("k5", "i5", "big_dog", "a photo of a big dog."), ("k6", "i6", "cat", "my Catalina"),
    ],
    columns=["key", "sha256", "label", "caption"],
).assign(name=lambda f: f["key"])  # fmt: skip


def decisions(*made: tuple[str, str, str], by: str = "Anna", rows: pd.DataFrame = ROWS) -> Decisions:
    read = [{"key": key, "action": action, "label": label} for key, action, label in made]
    return Decisions.of(
        DecisionsFile.from_json({"format": 1, "version": "general/v1", "by": by, "decisions": read}), rows, "a photo of a {}."
    )


def applied(of: Decisions, rows: pd.DataFrame = ROWS) -> tuple[pd.DataFrame, dict[str, int]]:
    found = of.applied(rows, lambda row: f"{row['sha256']} {row['label']} {row['caption']}")
    return found.rows.set_index("sha256"), {k: n for k, n in found.counts.items() if n}


def test_a_caption_does_not_go_on_to_say_the_old_class():
    rows, counts = applied(decisions(("k1", "relabel", "big_dog"), ("k3", "relabel", "cat"), ("k6", "relabel", "big_dog")))
    assert rows.loc[["i1", "i3", "i6"], "caption"].tolist() == ["a photo of a big dog.", "Rex, a cat", "my Catalina"]
    assert rows.loc["i1", "key"] == "i1 big_dog a photo of a big dog." and counts == {"relabel": 3}


def test_a_decision_gives_way_to_a_source_that_was_corrected():
    of = decisions(("k1", "relabel", "big_dog"), ("k2", "drop", ""), ("k3", "keep", ""))
    corrected = ROWS.assign(label=["big_dog", "lynx", "big_dog", "big_dog", "big_dog", "cat"])
    rows, counts = applied(of, corrected)
    assert rows["label"].tolist() == corrected["label"].tolist() and counts == {"keep": 2, "outdated": 1}
    assert of.settled(corrected) == [True, False, True, False, False, False]


@pytest.mark.parametrize(
    ("made", "code"),
    [
        ([("k9", "keep", "")], "review.unknown_rows"),
        ([("k1", "keep", ""), ("k1", "drop", "")], "review.contradiction"),
        ([("k1", "relabel", " ")], "record.invalid"),
        ([("k1", "burn", "")], "record.invalid"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(made, code):
    with refuses(code):
        decisions(*made)


def test_wrong_labels_come_first_and_useless_evidence_weighs_nothing():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    seen = rng.normal(size=(300, 16)) + 4.0 * np.eye(3, 16)[truth]
    labels, wrong = truth.copy(), rng.choice(300, 15, replace=False)
    labels[wrong] = (labels[wrong] + 1) % 3
    groups = np.arange(300).astype(str)
    noise = rng.dirichlet(np.ones(3), 300)
    found = label_errors.assess(labels, groups, {"image": seen}, {"prompts": noise})
    assert np.isin(found.order[:15], wrong).mean() >= 0.7 and found.weights["prompts"] < 0.1
    assert (found.likely[wrong] == truth[wrong]).mean() > 0.7 and 5 <= found.wrong <= 45


def test_a_class_of_one_group_cannot_be_judged():
    labels = np.array([0] * 10 + [1] * 10 + [2] * 3)
    groups = np.array([f"g{i}" for i in range(20)] + ["same"] * 3)
    found = label_errors.assess(labels, groups, {"image": np.random.default_rng(0).normal(size=(23, 8))}, {})
    assert np.isnan(found.own[20:]).all() and not set(found.order) & {20, 21, 22}
    with refuses("review.nothing_to_compare"):
        label_errors.assess(labels, np.repeat("one", 23), {"image": np.zeros((23, 8))}, {})
