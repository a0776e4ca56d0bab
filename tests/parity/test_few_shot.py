"""Few images a class, whole: fitted on a dataset version, packed, and the same in clipft, `mlflow.pyfunc` and plain arithmetic."""

import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from conftest import a_plan, made_image
from fixtures.errors import refuses
from fixtures.packages import a_card
from PIL import Image
from safetensors.torch import save_file

from clipft_tasks.model import build, package, recorded_answers
from clipft_tasks.model.pyfunc import ClipModel
from clipft_tasks.spec import RunSpec
from clipft_tasks.train import few_shot, few_shot_choice
from clipft_tasks.train.launch import Job


def fitted(spec: RunSpec, dataset, folder):
    job = Job(spec=spec, plan=a_plan(), start=spec.model.start, dataset=dataset.version.tag, key="k", folder=folder)
    clip = build.prepare(build.load(spec.model.start, domain="general"), spec)
    metrics, chosen = few_shot.fit(job, clip, dataset)
    return clip, metrics, chosen


def quick(spec: RunSpec) -> RunSpec:
    return RunSpec.from_flat(spec.flat() | {"train.method": "few_shot", "train.epochs": 1})


def test_classes_are_fitted_and_the_towers_stay(dataset, small_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(few_shot, "MOST_PAIRS", 0)
    clip, metrics, chosen = fitted(quick(small_spec), dataset, tmp_path)
    start = build.prepare(build.load(small_spec.model.start, domain="general"), small_spec)
    assert all(torch.equal(clip.state()[name], value) for name, value in start.state().items())
    assert chosen.method in ("means", "linear", "whitened") and chosen.folds == 5 and metrics["steps"] == 0
    assert {tried.method for tried in chosen.tried} == set(few_shot_choice.HEADS)

    rows = few_shot.labeled_rows(dataset)
    shots = few_shot.embedded(start, dataset, rows, 32, dataset.classes)
    expected = few_shot_choice.HEADS[chosen.method][0](shots, chosen.strength).float()
    assert torch.equal(clip.class_embeddings(dataset.classes), expected)
    right = [
        float(((shots.features.float() @ e.T).argmax(1) == shots.labels).float().mean())
        for e in (shots.texts.float(), expected)
    ]
    assert right[1] > max(0.8, right[0])

    # Of other classes, and in other words, the prompts speak; among the fitted ones, too.
    mixed = clip.class_embeddings([dataset.classes[1], "a purple star", dataset.classes[0]])
    assert torch.equal(mixed[[0, 2]], expected[[1, 0]])
    torch.testing.assert_close(mixed[1], start.class_embeddings(["a purple star"])[0])
    torch.testing.assert_close(
        clip.class_embeddings(dataset.classes, ["{}!"]), start.class_embeddings(dataset.classes, ["{}!"])
    )
    assert torch.equal(clip.class_embeddings(dataset.classes, clip.prepared().prompts), expected)
    assert not build.prepare(clip, small_spec).learned


def test_the_package_carries_them_to_clipft_and_to_pyfunc(dataset, small_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(few_shot, "MOST_PAIRS", 0)
    clip, _, chosen = fitted(quick(small_spec), dataset, tmp_path)
    card = a_card(classes=dataset.classes, few_shot=chosen)
    images = np.stack([np.asarray(made_image("red", n).resize((32, 32))).transpose(2, 0, 1) for n in range(2)])
    folder = package.write_package(tmp_path / "package", clip, card, recorded_answers.record(clip, images, ["a red square"]))
    again = build.load(str(folder), domain="general")
    assert torch.equal(again.class_embeddings(dataset.classes), clip.class_embeddings(dataset.classes))
    assert package.read_card(folder).few_shot == chosen

    model, file = ClipModel(), io.BytesIO()
    model.load_context(SimpleNamespace(artifacts={"package": str(folder)}))
    Image.fromarray(images[0].transpose(1, 2, 0)).save(file, "PNG")
    table = model.predict(None, pd.DataFrame({"image": [file.getvalue()]}))
    scores = (clip.encode_images(torch.from_numpy(images[:1])) @ clip.class_embeddings(dataset.classes).T)[0]
    torch.testing.assert_close(torch.tensor(table["class_similarity"][0]), scores, rtol=1e-3, atol=1e-4)
    assert table["label"][0] == dataset.classes[int(scores.argmax())]

    save_file({"embeddings": torch.zeros(1, 32)}, folder / package.CLASSES)
    with refuses("package.invalid", package.CLASSES):
        build.load(str(folder), domain="general")


def test_short_trainings_are_tried_on_rows_of_their_own_and_the_best_is_kept(dataset, small_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(few_shot_choice, "HEADS", {"text": few_shot_choice.HEADS["text"]})
    monkeypatch.setattr(few_shot, "RECIPES", {"lora": {"train.lora_rank": 2}})
    seen = []
    whole = few_shot.launch.train_rows
    monkeypatch.setattr(
        few_shot.launch, "train_rows", lambda job, clip, rows: (seen.append(set(rows.frame["key"])), whole(job, clip, rows))[1]
    )
    spec = RunSpec.from_flat(quick(small_spec).flat() | {"train.epochs": 6})
    clip, metrics, chosen = fitted(spec, dataset, tmp_path)
    every = set(few_shot.labeled_rows(dataset)["key"])
    assert len(seen) >= 2 and seen[0] | seen[1] == every and seen[0] != every
    assert chosen.method == "lora" and chosen.tried[-1].score > chosen.tried[0].score
    assert seen[-1] == every and metrics["steps"] > 0 and clip.adapter and not clip.learned
    start = build.prepare(build.load(small_spec.model.start, domain="general"), small_spec)
    assert any(not torch.equal(clip.state()[name], value) for name, value in start.state().items())
    # Tried again after a kill, each part is found where it ended.
    again, _, same = fitted(spec, dataset, tmp_path)
    assert same.method == "lora" and all(torch.equal(again.state()[name], value) for name, value in clip.state().items())


def test_rows_that_have_no_two_classes_are_refused(dataset, small_spec, tmp_path):
    object.__setattr__(dataset, "frame", dataset.frame.assign(label=dataset.classes[0]))
    with refuses("shots.too_few_classes", dataset.version.tag):
        fitted(quick(small_spec), dataset, tmp_path)


def test_a_model_that_does_not_compare_by_cosines_is_refused(dataset, small_spec, tmp_path):
    spec = RunSpec.from_flat(quick(small_spec).flat() | {"objective.similarity": "euclidean"})
    with refuses("shots.not_cosine", "euclidean"):
        fitted(spec, dataset, tmp_path)
