"""A model package says everything itself: what was written is read, an older one opens, a newer or broken one is refused."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.datasets import a_version
from fixtures.errors import refuses
from fixtures.packages import a_card, a_package, as_before
from huggingface_hub import ModelCard, metadata_load
from PIL import Image

from clipft_tasks.data import shards
from clipft_tasks.data.images import BadImageError, open_image, square
from clipft_tasks.data.versioning import Dataset
from clipft_tasks.domains import get_domain
from clipft_tasks.evaluate import zero_shot
from clipft_tasks.model import build, package, pyfunc, recorded_answers
from clipft_tasks.model.hub_card import Score, readme

# What a card may say, by the hub's documentation (huggingface.co/docs/hub/model-cards).
HUB_FIELDS = {
    "base_model", "datasets", "language", "library_name", "license", "license_link", "license_name", "metrics", "model-index",
    "pipeline_tag", "tags",
}  # fmt: skip

# A domain file of one's own that reads and words otherwise than the shipped one of that name.
EDITED = """
from clipft_tasks.domains import Domain
DOMAIN = Domain("general", "General", prompts=("a drawing of {}.",), caption="a {}.", gray_bits=0)
"""


@pytest.fixture
def packed(home, tiny, tmp_path) -> Path:
    return a_package(tmp_path / "package", build.load(str(tiny), domain="general"))


def edit_domain(tmp_path: Path, own_domains) -> None:
    (tmp_path / "edited.py").write_text(EDITED)
    own_domains(tmp_path / "edited.py")
    assert get_domain("general").gray_bits == 0


def deep_gray(top: int = 4095) -> bytes:
    """A 16-bit PNG of a detector that fills 12 bits."""
    out = io.BytesIO()
    Image.fromarray(np.linspace(0, top, 64 * 64).astype(np.uint16).reshape(64, 64)).save(out, "PNG")
    return out.getvalue()


# What was written is read ---------------------------------------------------------------------------------------------


def test_a_package_gives_back_its_card_its_preprocessing_and_its_answers(packed):
    assert package.read_card(packed) == a_card()
    domain = get_domain("general")
    assert package.read_preprocessing(packed).to_json() == {
        "format": 1,
        "gray_bits": domain.gray_bits,
        "prompts": list(domain.prompts),
    }
    recorded, clip = package.read_recorded_answers(packed), build.from_folder(packed, source="package")
    given = recorded_answers.answers(clip, recorded_answers.images_of(recorded), recorded.texts)
    assert len(recorded.images) == 2 and recorded_answers.disagreement(recorded, given) < 1e-4


@pytest.mark.parametrize("name", ["card.json", "preprocessing.json", "recorded_answers.json"])
def test_what_a_newer_release_wrote_is_refused_by_its_number(packed, name):
    newer = json.loads((packed / name).read_text()) | {"format": 99, "unheard": "of"}
    (packed / name).write_text(json.dumps(newer))
    with refuses("record.newer_format", name, "format 99"):
        build.from_folder(packed, source="package")
        package.read_recorded_answers(packed)


@pytest.mark.parametrize("name", ["card.json", "preprocessing.json", "recorded_answers.json"])
@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", "package.invalid"),
        ("[]", "record.unreadable"),
        ('{"format": 1}', "record.invalid"),
        ('{"format": "new"}', "record.unreadable"),
        ("null", "record.unreadable"),
    ],
)
def test_a_file_that_says_nothing_is_refused_by_its_name(packed, name, content, code):
    (packed / name).write_text(content)
    with refuses(code, name):
        build.from_folder(packed, source="package")
        package.read_recorded_answers(packed)


def test_a_package_that_lost_its_preprocessing_is_not_taken_for_an_old_one(packed):
    (packed / "preprocessing.json").unlink()
    with refuses("package.invalid", "preprocessing.json"):
        build.from_folder(packed, source="package")


def test_a_model_of_no_domain_makes_no_package_and_opens_no_image(home, tiny, tmp_path):
    clip = build.load(str(tiny))
    for needs_a_domain in (
        lambda: a_package(tmp_path / "package", clip),
        lambda: clip.open_image(deep_gray()),
        lambda: clip.class_embeddings(["red", "blue"]),
    ):
        with refuses("model.no_domain", tiny):
            needs_a_domain()
    assert not list(tmp_path.glob("package*"))


def test_weights_that_may_not_be_read_are_said_to_be_so_with_the_way_out(tiny, monkeypatch):
    package.open_folder(tiny)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything, so the answer is given
    with refuses("package.not_readable", "chmod a+r", "open_clip_model.safetensors"):
        package.open_folder(tiny)
    package.open_folder(tiny, weights=False)


# A domain's file changes ----------------------------------------------------------------------------------------------


def test_an_edited_domain_changes_no_packaged_model(packed, tiny, tmp_path, own_domains):
    def answers(clip) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            return clip.class_embeddings(["red", "blue"]).numpy(), np.asarray(clip.open_image(deep_gray()).rgb)

    before = answers(build.from_folder(packed, source="package"))
    fresh = answers(build.load(str(tiny), domain="general"))
    edit_domain(tmp_path, own_domains)
    for clip in (build.from_folder(packed, source="package"), build.load(str(packed), domain="general")):
        assert all(np.array_equal(a, b) for a, b in zip(answers(clip), before, strict=True))
    edited = answers(build.load(str(tiny), domain="general"))  # what no package describes is as the domain says today
    assert not any(np.allclose(a, b) for a, b in zip(edited, fresh, strict=True))


def test_an_edited_domain_changes_no_evaluation_of_deep_gray(packed, tiny, tmp_path, own_domains):
    entries = [shards.Entry(f"{n:064x}", "png", deep_gray(1 << (8 + n))) for n in range(8)]
    places = shards.pack(entries, tmp_path / "shards")
    rows = [
        {"key": key, "caption": f"{n}", "label": "ab"[n % 2], "group": "", "split": "test", "sha256": key} | vars(place)
        for n, (key, place) in enumerate(places)
    ]
    dataset = Dataset(a_version(), pd.DataFrame(rows), tmp_path / "shards")

    def embeddings(clip) -> np.ndarray:
        return zero_shot.predict(clip, zero_shot.Task(dataset, 32, 8)).image

    before = embeddings(build.from_folder(packed, source="package"))
    edit_domain(tmp_path, own_domains)
    assert np.array_equal(embeddings(build.from_folder(packed, source="package")), before)
    assert not np.allclose(embeddings(build.load(str(tiny), domain="general")), before)


def test_a_package_of_another_domain_is_asked_in_the_words_of_this_one(packed):
    clip = build.load(str(packed), domain="medical")
    assert clip.prepared() == package.preprocessing_of(get_domain("medical"))


# The release before ---------------------------------------------------------------------------------------------------


def test_a_package_of_the_release_before_opens_with_its_domains_preprocessing_and_says_so(packed, capsys):
    card, recorded = package.read_card(packed), package.read_recorded_answers(packed)
    assert "Warning" not in capsys.readouterr().out
    as_before(packed)
    clip = build.from_folder(packed, source="package")
    assert clip.prepared() == package.preprocessing_of(get_domain("general"))
    said = capsys.readouterr().out
    assert said.count("Warning") == 1 and "did not pack its preprocessing" in said and "general" in said
    assert package.read_card(packed) == card and package.read_recorded_answers(packed) == recorded
    seen = np.asarray(pyfunc.decoder(packed)(deep_gray()))
    assert np.array_equal(seen, np.asarray(open_image(deep_gray(), gray_bits=get_domain("general").gray_bits).rgb))


def test_what_the_release_before_called_license_and_what_nobody_knows_any_more(packed):
    card = json.loads((as_before(packed) / "card.json").read_text())
    (packed / "card.json").write_text(json.dumps(card | {"licence": "MIT", "dimensions": None, "forgotten": 1}))
    read = package.read_card(packed)
    assert (read.license, read.dimensions) == ("MIT", [])


def test_a_package_of_the_release_before_and_of_an_unknown_domain_names_that_domain(packed):
    card = json.loads((as_before(packed) / "card.json").read_text())
    (packed / "card.json").write_text(json.dumps(card | {"domain": "weaves"}))
    with refuses("domain.not_found", "weaves"):
        build.from_folder(packed, source="package")


# Decoding without clipft ----------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def colors() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8))


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    return encoded(colors().convert("RGB"), "JPEG", exif=exif)


EIGHT_BITS = {
    "1": lambda: encoded(colors().convert("1")),
    "L": lambda: encoded(colors().convert("L")),
    "LA": lambda: encoded(colors().convert("LA")),
    "P": lambda: encoded(colors().convert("RGB").quantize(9)),
    "P, one color clear": lambda: encoded(colors().convert("RGB").quantize(9), transparency=3),
    "P, GIF": lambda: encoded(colors().convert("RGB").quantize(9), "GIF", transparency=3),
    "RGB": lambda: encoded(colors().convert("RGB")),
    "RGB, one color clear": lambda: encoded(colors().convert("RGB"), transparency=(1, 2, 3)),
    "RGBA": lambda: encoded(colors()),
    "CMYK": lambda: encoded(colors().convert("RGB").convert("CMYK"), "JPEG"),
    "YCbCr": lambda: encoded(colors().convert("YCbCr"), "JPEG"),
    "rotated": rotated,
}


@pytest.mark.parametrize("kind", EIGHT_BITS)
def test_pyfunc_without_clipft_sees_what_the_library_sees(kind):
    data = EIGHT_BITS[kind]()
    ours = open_image(data, gray_bits=16).rgb
    assert np.array_equal(np.asarray(pyfunc.decode_without_clipft(data)), np.asarray(ours))
    assert kind != "rotated" or ours.size == (24, 40)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pyfunc_without_clipft_refuses_what_only_the_library_can_read(dtype):
    data = encoded(Image.fromarray(np.arange(1024).reshape(32, 32).astype(dtype)), "TIFF")
    with pytest.raises(ValueError, match=r"gray deeper than 8 bits is read by clipft alone, install clipft\[model\]"):
        pyfunc.decode_without_clipft(data)


def test_pyfunc_with_clipft_reads_deep_gray_as_the_package_says(packed, home, tiny, tmp_path):
    medical = a_package(tmp_path / "medical", build.load(str(tiny), domain="medical"), domain="medical")
    for folder, bits in ((packed, 16), (medical, 0)):
        seen = np.asarray(pyfunc.decoder(folder)(deep_gray()))
        assert np.array_equal(seen, np.asarray(open_image(deep_gray(), gray_bits=bits).rgb))
    with pytest.raises(BadImageError, match="cut short"):
        pyfunc.decoder(packed)(deep_gray()[:60])


WITHOUT = """
import base64, json, sys
from pathlib import Path
from types import SimpleNamespace
sys.modules["clipft_tasks"] = None  # as where it is not installed
import mlflow.models
import pandas as pd
made = []
mlflow.models.set_model = made.append
exec(compile(Path(sys.argv[2]).read_text(), "pyfunc.py", "exec"))
[model] = made
model.load_context(SimpleNamespace(artifacts={"package": sys.argv[1]}))
good, deep = ([Path(name).read_bytes()] for name in sys.argv[3:])
print(json.dumps(model.predict(None, pd.DataFrame({"image": good}))["image_embedding"].tolist()))
try:
    model.predict(None, pd.DataFrame({"image": deep}))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_script_works_alone_where_clipft_is_not_installed(packed, tmp_path):
    (tmp_path / "good.jpg").write_bytes(rotated())
    (tmp_path / "deep.png").write_bytes(deep_gray())
    arguments = [packed, pyfunc.__file__, tmp_path / "good.jpg", tmp_path / "deep.png"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    embedded, refused = done.stdout.splitlines()[-2:]
    assert "install clipft[model]" in refused
    clip = build.from_folder(packed, source="package")
    with torch.inference_mode():
        expected = clip.encode_images(torch.from_numpy(square(clip.open_image(rotated()).rgb, 32)[None])).numpy()
    assert np.abs(np.array(json.loads(embedded)) - expected).max() < 1e-4


# The card for people --------------------------------------------------------------------------------------------------


def test_the_hubs_library_reads_what_the_card_says(packed):
    shown = ModelCard.load(packed / "README.md")
    assert shown.data.pipeline_tag == "zero-shot-image-classification" and shown.data.tags == ["clip", "clipft", "general"]
    assert shown.data.license == "unknown" and shown.data.base_model is None
    assert metadata_load(packed / "README.md").keys() <= HUB_FIELDS
    text = readme(
        a_card(license="CC-BY-4.0", start="hf-hub:someone/CLIP-ViT-B-32", classes=[f"class {i}" for i in range(30)]),
        "clipft-general",
        [Score("balanced_accuracy", 0.81234, 96), Score("balanced_accuracy", 0.9, 128)],
        "https://clip.example.org",
    )
    card = ModelCard(text)
    assert card.data.base_model == "someone/CLIP-ViT-B-32" and card.data.license == "other"
    assert [(r.metric_name, r.metric_value) for r in card.data.eval_results] == [
        ("balanced accuracy at 96 px", 0.8123),
        ("balanced accuracy at 128 px", 0.9),
    ]
    assert "class 19 and 10 more" in card.text and "its license: CC-BY-4.0" in card.text
    assert "curl -sf https://clip.example.org/v1/classify -F domain=general" in card.text
