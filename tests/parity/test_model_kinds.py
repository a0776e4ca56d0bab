"""Every kind of image and text tower: trained and asked at other sides, adapted, packed, and opened again with equal features.

`pytest -m models tests/parity/test_model_kinds.py` does the same with every model of open_clip whole, as far as memory and the
tokenizers that are at hand go: hours.
"""

import io
import warnings
from types import SimpleNamespace

import numpy as np
import open_clip
import pandas as pd
import psutil
import pytest
import torch
from fixtures.models import IMAGE, OF_ONE_SIDE, TEXT, TEXTS, VIT, write_model
from fixtures.packages import a_card
from PIL import Image
from torch.nn.functional import normalize

from clipft_tasks.contracts.low_rank import LowRankForm
from clipft_tasks.contracts.model_card import Resolutions
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.domains import get_domain
from clipft_tasks.model import adapters, build, package, recorded_answers, reopening, similarity
from clipft_tasks.model.clip import Clip, token_counts
from clipft_tasks.model.heatmap import heatmaps
from clipft_tasks.model.pyfunc import ClipModel
from clipft_tasks.model.resolution import set_patch, set_side
from clipft_tasks.spec import RunSpec
from clipft_tasks.train import microbenchmarks, param_groups, plan, step

SHORT, LONG = "a red square", "a blue square of some size and one long red square and a long blue one"


def opened(folder) -> Clip:
    clip = build.from_folder(folder, source="made")
    clip.preprocessing = package.preprocessing_of(get_domain("general"))
    return clip


def taught(clip: Clip, form: LowRankForm | None = None) -> None:
    """One step along the gradient of both towers, of the weights or of low-rank updates that are then merged."""
    clip.model.train()
    step.freeze_statistics(clip.model)
    if form:
        made = adapters.add_low_rank(clip.model, form, 0)
        assert made.image + made.text == sum(name.endswith(".up") for name, _ in clip.model.named_parameters())
    images, tokens = torch.randn(2, 3, clip.side, clip.side), clip.tokenize([SHORT, LONG])
    spec = RunSpec.from_flat({"domain": "general"}).train
    groups = [dict(group) for group in param_groups.groups(clip.model, spec)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    loss = (clip.image_features(images) * clip.text_features(tokens)).sum()
    loss.backward()
    # An update that its tower passes by would have no gradient.
    assert all(p.grad is not None for name, p in clip.model.named_parameters() if name.endswith((".up", "down.weight")))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if form:
        updated = [p.norm() > 0 for name, p in clip.model.named_parameters() if name.endswith(".up")]
        assert sum(updated) > len(updated) / 2
    adapters.merge_low_rank(clip.model)
    clip.model.requires_grad_(True).eval()


def explained(clip: Clip, side: int) -> None:
    """A heatmap of finer or coarser places at each side, which is about the text that was asked for."""
    clip.model.eval()
    for each in (clip.side, side):
        images = torch.randint(0, 256, (2, 3, each, each), dtype=torch.uint8)
        found = heatmaps(clip, images, torch.eye(3, clip.embed_dim), [[0], [1, 2]])
        assert [len(maps) for maps in found] == [1, 2]
        for heat in (heat for maps in found for heat in maps):
            assert heat.shape == found[0][0].shape and heat.shape[0] == heat.shape[1] <= each // 4
            assert np.isfinite(heat).all() and np.abs(heat).max() == 1.0
        assert not np.array_equal(*found[1])


def compared_packed(clip: Clip, folder, side: int) -> None:
    """A package of it gives its features in clipft, in plain open_clip and in pyfunc, without a network."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, side, side), dtype=np.uint8)
    card = a_card(similarity=clip.similarity.name, embed_dim=clip.embed_dim,
                  resolutions=Resolutions(train=[side], serve=side, evaluated=[side]))  # fmt: skip
    package.write_package(folder, clip, card, recorded_answers.record(clip, pixels, [SHORT]))
    images, texts = clip.normalize(torch.from_numpy(pixels)), [SHORT, LONG]
    with torch.no_grad():
        expected = clip.image_features(images), clip.text_features(clip.tokenizer(texts))
        again = build.from_folder(folder, source="package")
        assert again.side == side and again.context_length == clip.context_length
        torch.testing.assert_close(again.image_features(images), expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again.text_features(again.tokenizer(texts)), expected[1], rtol=1e-4, atol=1e-5)

        model = ClipModel()
        model.load_context(SimpleNamespace(artifacts={"package": str(folder)}))
        torch.testing.assert_close(model.model.encode_image(images, normalize=False), expected[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            model.model.encode_text(model.tokenizer(texts), normalize=False), expected[1], rtol=1e-4, atol=1e-5
        )
        file = io.BytesIO()
        Image.fromarray(pixels[0].transpose(1, 2, 0)).save(file, "PNG")
        table = model.predict(None, pd.DataFrame({"image": [file.getvalue()], "text": [SHORT]}))
        own = clip.similarity.embed_image(clip.image_features(images[:1]))
        torch.testing.assert_close(torch.tensor(table["image_embedding"][0]), own[0], rtol=1e-3, atol=1e-4)

        plain = open_clip.create_model(f"local-dir:{folder}", **_local(folder)).eval()
        size = open_clip.get_model_preprocess_cfg(plain)["size"]  # what plain open_clip resizes images to
        plain.encode_image(torch.zeros(1, 3, *(size if isinstance(size, tuple) else (size, size))))


def _local(folder) -> dict:
    text = package.read_config(folder)["model_cfg"]["text_cfg"]
    return {"text_cfg": text | {"hf_model_name": str(folder)}} if text.get("hf_model_name") == "." else {}


def went_through(clip: Clip, folder, side: int) -> None:
    """All that a run does with a start model."""
    multiple = clip.tower.multiple
    native = clip.side
    set_side(clip, side)
    reopening.check_reopens(clip, [side, side + multiple, native])
    taught(clip)
    taught(clip, LowRankForm(image_rank=2, text_rank=2, variant="dora"))
    compared_packed(clip, folder, side)


@pytest.mark.parametrize("kind", IMAGE)
def test_every_kind_of_image_tower_is_trained_at_another_side_and_opened_again(kind, home, tmp_path):
    vision, side = IMAGE[kind]
    clip = opened(write_model(tmp_path / "made", vision, TEXTS["custom, causal"]))
    images = torch.randn(2, 3, clip.side, clip.side)
    with torch.no_grad():
        torch.testing.assert_close(clip.image_features(images), clip.model.encode_image(images))
    explained(clip, side)
    went_through(clip, tmp_path / "package", side)


@pytest.mark.parametrize("kind", OF_ONE_SIDE)
def test_a_tower_whose_positions_cannot_be_resized_is_refused_at_once_at_any_other_side(kind, home, tmp_path):
    vision, side = OF_ONE_SIDE[kind]
    clip = opened(write_model(tmp_path / "made", vision, TEXTS["custom, causal"]))
    with pytest.raises(ClipftError, match="positions of 160 pixels that cannot be resized. Use 160"):
        set_side(clip, side)
    with pytest.raises(ClipftError, match="images of 128 pixels"):
        reopening.check_reopens(clip, [160, side])
    set_side(clip, 160)
    taught(clip)
    compared_packed(clip, tmp_path / "package", 160)


@pytest.mark.parametrize("kind", TEXTS)
def test_every_kind_of_text_tower_is_trained_and_opened_again(kind, home, tmp_path):
    clip = opened(write_model(tmp_path / "made", VIT, TEXTS[kind]))
    went_through(clip, tmp_path / "package", 96)


@pytest.mark.parametrize("compared_by", ["cosine", "dot", "euclidean", "hyperbolic"])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_texts_embedding_does_not_depend_on_its_batch(kind, compared_by, home, tmp_path):
    clip = opened(write_model(tmp_path / "made", VIT, TEXTS[kind]))
    clip.similarity = similarity.make(compared_by, clip.embed_dim)
    with torch.no_grad():
        alone, among = clip.encode_texts([SHORT]), clip.encode_texts([LONG, SHORT, "a"])[1:2]
        whole = clip.similarity.embed_text(clip.text_features(clip.tokenizer([SHORT])))
        torch.testing.assert_close(alone, among, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)


def test_padding_is_the_tokenizers_own(home, tmp_path):
    clip = opened(write_model(tmp_path / "made", VIT, TEXTS["transformers' (RoBERTa)"]))
    assert clip.pad == 1 and token_counts(clip.tokenizer, [SHORT, "a"]) == [5, 3]
    assert clip.tokenize([SHORT]).shape == (1, 8)


def test_a_patch_that_open_clip_could_not_build_again_is_refused(home, tmp_path):
    clip = opened(write_model(tmp_path / "made", IMAGE["timm transformer, class token"][0], TEXTS["custom, causal"]))
    with pytest.raises(ClipftError, match=r"a patch of 32: .*a grid of its own.*model\.patch"):
        set_patch(clip, 32)


# Measurements change nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["convolutional, batch norm (starter)", "resnet with attention pool"])
def test_a_plan_changes_neither_weights_nor_statistics_nor_random_numbers(kind, home, tmp_path):
    vision, side = IMAGE[kind]
    spec = RunSpec.from_flat({"domain": "general", "resolution.train": side, "train.batch": 4, "memory.precision": "fp32"})
    clip = build.prepare(opened(write_model(tmp_path / "made", vision, TEXTS["of CLIP"])), spec)
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    modes = [module.training for module in clip.model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    plan.make(spec, clip, 64)
    microbenchmarks.image_step_seconds(clip, "cpu", "contiguous", "fp32", side, 2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], value) for name, value in clip.model.state_dict().items())
    assert [module.training for module in clip.model.modules()] == modes
    assert all(p.grad is None for p in clip.model.parameters())


# The pretrained configuration -----------------------------------------------------------------------------------------


@pytest.fixture
def a_checkpoint(tmp_path, monkeypatch):
    """open_clip's download gives weights that were made with another name; ViT-B-32 is a small one here."""
    for name, quick in (("ViT-B-32", {}), ("ViT-B-32-quickgelu", {"quick_gelu": True})):
        small = {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT} | quick
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, small)

    def made(name: str, **more: object):
        torch.manual_seed(0)
        model = open_clip.create_model(name, pretrained=None, **more).eval()
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *a, **k: str(tmp_path / "weights.pt"))
        return model

    return made


def test_a_pretrained_tag_is_built_with_the_activation_that_it_was_trained_with(home, a_checkpoint, tmp_path):
    right = a_checkpoint("ViT-B-32-quickgelu")
    clip = build.load("ViT-B-32:openai", domain="general")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(clip.image_features(images), right.encode_image(images), rtol=1e-3, atol=1e-4)
    assert clip.config["model_cfg"]["quick_gelu"] is True
    assert clip.config["preprocess_cfg"]["mean"][0] == pytest.approx(0.48145466)
    set_side(clip, 96)
    reopening.check_reopens(clip, [64, 96])


def test_no_pretrained_tag_is_built_with_a_mismatch():
    for name, tag in open_clip.list_pretrained():
        config, cfg = open_clip.get_model_config(name), open_clip.pretrained.get_pretrained_cfg(name, tag)
        built = {**config, **build._as_trained(name, tag)}
        assert built.get("quick_gelu", False) == (cfg.get("quick_gelu", False) or config.get("quick_gelu", False))


def test_a_warning_of_the_library_that_means_a_wrong_result_is_an_error(home, monkeypatch):
    def warned(*args, **kwargs):
        warnings.warn_explicit("the weights were trained otherwise", UserWarning, "factory.py", 1, module="open_clip.factory")

    monkeypatch.setattr(open_clip, "create_model", warned)
    with pytest.raises(ClipftError, match="the weights were trained otherwise"):
        build.load("ViT-B-32:openai")


def test_weights_of_no_name_are_said_to_be_random(home, monkeypatch, capsys):
    small = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", lambda name, **k: small("ViT-S-32-alt", **k))
    build.load("ViT-S-32-alt")
    assert "names no weights, so they are random" in capsys.readouterr().out


# Every model of open_clip, whole --------------------------------------------------------------------------------------


@pytest.mark.models
@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_model_of_open_clip(name, home, tmp_path):
    config = open_clip.get_model_config(name)
    try:
        clip = build.load(name)
    except ClipftError as error:
        pytest.skip(error.why)
    weights = sum(p.numel() * 4 for p in clip.model.parameters())
    if 4 * weights > psutil.virtual_memory().available:
        pytest.skip(f"{weights / 2**30:.1f} GiB of weights do not fit four times")
    clip.preprocessing = package.preprocessing_of(get_domain("general"))
    multiple = clip.tower.multiple
    went_through(clip, tmp_path / "package", max(2 * multiple, clip.side // 2 // multiple * multiple))
    assert normalize(clip.encode_texts([SHORT])).isfinite().all() and config
