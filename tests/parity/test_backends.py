"""Graph backends give torch's answers, or do not run."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fixtures.models import IMAGE, TEXTS, write_model
from onnx import numpy_helper
from PIL import Image

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.core.settings import settings
from clipft_tasks.data.images import square
from clipft_tasks.model import build
from clipft_tasks.model.backends import choice, export
from clipft_tasks.model.backends.base import TOWERS, Graph, Runner, SharedRunner
from clipft_tasks.model.clip import Clip
from clipft_tasks.model.folding import fold_batch_norms

KINDS = {
    "convolutional, transformers' text": ("convolutional, batch norm (starter)", "transformers' (RoBERTa)", 128),
    "transformer, CLIP's text": ("vision transformer", "of CLIP", 64),
}
WORDS = ["a", "a red square", "some blue square of some size and a long one of some size", "one"]


@pytest.fixture(scope="module", params=list(KINDS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, int, Path]:
    """A model, its side, and a folder with its two towers as ONNX."""
    image, text, side = KINDS[request.param]
    folder = tmp_path_factory.mktemp("backends")
    clip = build.from_folder(write_model(folder / "model", IMAGE[image][0], TEXTS[text]), source="test")
    for kind in TOWERS:
        export.export_tower(clip, kind, side, folder / f"{kind}.onnx")
    return clip, side, folder


def images(side: int) -> np.ndarray:
    """Photos' kinds: smooth, noisy, gray, white, dark, thin lines."""
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (200, 300, 3), dtype=np.uint8))
    smooth = noise.resize((6, 4)).resize((300, 200), Image.Resampling.BICUBIC)
    lines = Image.fromarray(np.tile(np.array([[0] * 5 + [255]], np.uint8), (200, 50))).convert("RGB")
    some = [
        noise,
        smooth,
        smooth.convert("L").convert("RGB"),
        lines,
        Image.new("RGB", (200, 200), "white"),
        smooth.point(lambda v: v // 9),
    ]
    return np.stack([square(image, side) for image in some])


@pytest.mark.parametrize("name", list(choice.BACKENDS.shipped))
def test_a_backend_gives_torchs_answers_in_batches_and_lengths_of_any_size(exported: tuple[Clip, int, Path], name: str) -> None:
    clip, side, folder = exported
    backend = choice.BACKENDS.load(name)()
    shown = torch.from_numpy(images(side))
    with torch.inference_mode():
        expected = [clip.encode_images(shown), clip.encode_texts(WORDS)]
        clip.image_runners = {side: backend.open(Graph(folder / "image.onnx", "image"), 1)}
        clip.text_runner = backend.open(Graph(folder / "text.onnx", "text"), 1)
        try:
            given = [clip.encode_images(shown), clip.encode_texts(WORDS)]
            for one, rows in ((clip.encode_images(shown[2:3]), given[0][2:3]), (clip.encode_texts(WORDS[1:2]), given[1][1:2])):
                assert torch.allclose(one, rows, atol=1e-5)
        finally:
            clip.image_runners, clip.text_runner = {}, None
    for here, there in zip(given, expected, strict=True):
        assert torch.cosine_similarity(here, there).min() >= choice.COSINE
        assert torch.allclose(here, there, atol=1e-4)


@pytest.mark.parametrize("name", list(choice.BACKENDS.shipped))
def test_forward_passes_side_by_side_give_torchs_answers(exported: tuple[Clip, int, Path], name: str) -> None:
    clip, side, folder = exported
    shown, backend, graph = images(side), choice.BACKENDS.load(name)(), Graph(folder / "image.onnx", "image")
    with torch.inference_mode():
        expected = clip.encode_images(torch.from_numpy(shown))
    runners = backend.open_lanes(graph, 2, 2)
    assert len(runners) == 2
    run = SharedRunner(backend.open(graph, 2), runners)
    with ThreadPoolExecutor(3) as threads:
        for row, given in zip(
            list(range(len(shown))) * 5, threads.map(run, [shown[n : n + 1] for n in range(len(shown))] * 5), strict=True
        ):
            embedded = clip.similarity.embed_image(torch.from_numpy(given))
            assert torch.allclose(embedded[0], expected[row], atol=1e-4)


def test_who_is_alone_has_all_cores_and_who_is_not_has_a_share() -> None:
    begun, free, used = threading.Semaphore(0), threading.Event(), []

    def runner(name: str) -> Runner:
        def run(inputs: np.ndarray) -> np.ndarray:
            used.append(name)
            begun.release()
            assert free.wait(10)
            return inputs

        return run

    run = SharedRunner(runner("alone"), [runner("share"), runner("share")])
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(run, np.zeros(1))
        begun.acquire()
        others = [threads.submit(run, np.zeros(1)) for _ in range(3)]
        for _ in range(2):
            begun.acquire()
        assert sorted(used) == ["alone", "share", "share"] and not first.done()
        free.set()
        for done in (first, *others):
            done.result(10)
        run(np.zeros(1))
    assert used[-1] == "alone" and len(used) == 5


def test_what_is_chosen_is_the_fastest_that_agrees(exported: tuple[Clip, int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    clip, side, folder = exported
    monkeypatch.setattr(export, "graph_of", lambda clip, kind, side: Graph(folder / f"{kind}.onnx", kind))
    for kind in TOWERS:
        samples = choice.samples_of(clip, kind, side, images(side), WORDS)
        chosen = choice.choose(clip, kind, side, samples)
        assert chosen.outcome in ("fastest", "slower")
        assert set(chosen.decision.measured) == {
            f"{n} batch {b} ms" for n in ("torch", *choice.BACKENDS.shipped) for b in (1, 8)
        }
        assert (chosen.runner is None) == (chosen.decision.value == "torch")
        for name in choice.BACKENDS.shipped:
            assert choice.choose(clip, kind, side, samples, name).decision.value == name
        shared = choice.choose(clip, kind, side, samples, "onnx", threads=2, lanes=2)
        assert isinstance(shared.runner, SharedRunner) == (kind == "image")
        assert not choice.disagreement(choice.torch.runner(clip, kind), shared.runner, samples)
        with monkeypatch.context() as patch:
            patch.setattr(choice, "TWICE", 1000)
            assert not isinstance(choice.choose(clip, kind, side, samples, "onnx", threads=2, lanes=2).runner, SharedRunner)
        assert choice.choose(clip, kind, side, samples, "torch").outcome == "set"


def test_a_backend_that_gives_other_answers_stays_out_and_says_so(
    exported: tuple[Clip, int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, side, folder = exported
    shutil.copytree(folder, tmp_path / "changed")
    graph = onnx.load(tmp_path / "changed" / "image.onnx")
    weight = max(graph.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(
        numpy_helper.from_array(
            values + np.random.default_rng(0).normal(0, values.std(), values.shape).astype(values.dtype), weight.name
        )
    )
    onnx.save(graph, tmp_path / "changed" / "image.onnx")
    monkeypatch.setattr(export, "graph_of", lambda clip, kind, side: Graph(tmp_path / "changed" / f"{kind}.onnx", kind))
    samples = choice.samples_of(clip, "image", side, images(side), WORDS)
    for wanted in ("auto", "openvino"):
        chosen = choice.choose(clip, "image", side, samples, wanted)
        assert (chosen.decision.value, chosen.outcome, chosen.runner) == ("torch", "other_answers", None)
        assert "openvino gives other answers than torch (cosine" in chosen.decision.reason


def test_libraries_that_are_not_there_are_no_error_unless_they_are_asked_for(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = build.from_folder(tiny, source="tiny")
    monkeypatch.setattr(choice.BACKENDS.load("openvino"), "module", "no_such_module")
    assert choice.available() == ["onnx"]
    monkeypatch.setattr(choice.BACKENDS.load("onnx"), "module", "no_such_module")
    assert choice.choose(clip, "text", 32, []).outcome == "not_installed"
    with pytest.raises(ClipftError) as caught:
        choice.choose(clip, "text", 32, [], "openvino")
    assert caught.value.code == "backend.not_installed"
    with pytest.raises(ClipftError) as caught:
        choice.available("tensorrt")
    assert caught.value.code == "plugin.not_found"


@pytest.mark.usefixtures("home")
def test_an_export_is_kept_and_made_anew_when_it_is_damaged(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = build.from_folder(tiny, source="tiny")
    asked = []

    def export_here(clip: Clip, side: int, folder: Path) -> None:  # as the process of its own does, without starting one
        asked.append(side)
        folder.mkdir(exist_ok=True)
        for kind in TOWERS:
            (folder / f"{kind}.onnx").write_bytes(kind.encode())
        files = {kind: export.ExportedTower(files={f"{kind}.onnx": export._digest(folder / f"{kind}.onnx")}) for kind in TOWERS}
        (folder / export.INDEX).write_text(export.ExportedTowers(towers=files).model_dump_json())

    monkeypatch.setattr(export, "_export_apart", export_here)
    image, text = (export.graph_of(clip, kind, 32).path for kind in TOWERS)
    assert asked == [32] and image.is_relative_to(settings().root)
    text.write_bytes(b"cut short")
    assert export.graph_of(clip, "text", 32).path.read_bytes() == b"text" and asked == [32, 32]
    (image.parent / export.INDEX).write_text("{")
    export.graph_of(clip, "image", 32)
    assert asked == [32, 32, 32]
    export.graph_of(clip, "image", 48)
    assert asked == [32, 32, 32, 48]


@pytest.mark.parametrize("name", [name for name in IMAGE if "convolutional" in name or "resnet" in name])
def test_folded_batch_norms_change_no_answer(name: str, tmp_path: Path) -> None:
    config, side = IMAGE[name]
    clip = build.from_folder(write_model(tmp_path / "model", config, TEXTS["of CLIP"]), source="test")
    for module in clip.model.visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # of no random weights, they would do nothing
            for values in (module.weight, module.bias, module.running_mean):
                values.data.uniform_(0.5, 1.5)
            module.running_var.data.uniform_(0.5, 1.5)
    shown = images(side)
    with torch.inference_mode():
        before = clip.encode_images(torch.from_numpy(shown))
        folded = fold_batch_norms(clip, shown)
        after = clip.encode_images(torch.from_numpy(shown))
    assert torch.allclose(before, after, atol=1e-4)
    has_norms = "batch norm" in name or "resnet" in name
    assert folded.value > 0 or not has_norms or "cannot be followed" in folded.reason, folded
    if name == "convolutional, batch norm (starter)":
        assert folded.value > 0 and not any(isinstance(m, torch.nn.BatchNorm2d) for m in clip.model.visual.modules())
