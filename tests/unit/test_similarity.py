"""Similarities: what each promises, and that a model carries its own."""

import numpy as np
import pytest
import torch
from fixtures.errors import refuses
from fixtures.packages import a_package

from clipft_tasks.model.similarity import make
from clipft_tasks.spec.objective_catalog import SIMILARITIES

FEATURES = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0)) * 9


@pytest.fixture(params=SIMILARITIES)
def fitted(request):
    similarity = make(request.param, 16)
    similarity.begin(*FEATURES)
    return similarity


def embedded(similarity):
    return similarity.embed_image(FEATURES[0]), similarity.embed_text(FEATURES[1])


def test_it_begins_close_to_the_cosines_order_of_magnitude(fitted):
    values = fitted(*embedded(fitted))
    assert values.shape == (6, 6) and values.isfinite().all() and values.abs().max() < 20  # not what length 36 would give


def test_nothing_is_more_alike_than_the_same_thing(fitted):
    if fitted.name == "dot":
        pytest.skip("a longer vector may be more alike than the same one; that is what lengths are for")
    image = fitted.embed_image(FEATURES[0])
    assert torch.equal(fitted(image, image).argmax(dim=1), torch.arange(6))


def test_rows_may_be_compared_in_parts(fitted):
    image, text = embedded(fitted)
    torch.testing.assert_close(fitted(image, text)[2:4], fitted(image[2:4], text))
    torch.testing.assert_close(fitted(image, text)[:, 1:3], fitted(image, text[1:3]))


def test_arrays_give_what_tensors_give(fitted):
    image, text = embedded(fitted)
    np.testing.assert_allclose(
        fitted.compare(image.detach().numpy(), text.detach().numpy()), fitted(image, text).detach(), rtol=1e-6
    )


def test_a_prefix_is_an_embedding_of_its_own(fitted):
    image, text = (fitted.prefix(e, 8) for e in embedded(fitted))
    assert image.shape == (6, 8) and fitted(image, text).isfinite().all()
    if fitted.name == "cosine":
        torch.testing.assert_close(image.norm(dim=-1), torch.ones(6))


def test_the_mean_of_one_thing_is_that_thing(fitted):
    text = fitted.embed_text(FEATURES[1])
    torch.testing.assert_close(fitted.mean(text[:, None].expand(6, 3, 16), 1), text, rtol=1e-4, atol=1e-5)


def test_the_center_of_two_points_is_equally_far_from_both(fitted):
    if fitted.name in ("dot", "bilinear"):
        pytest.skip("no distance")
    text = fitted.embed_text(FEATURES[1])
    center = fitted.mean(text[:2][None], 1)
    one, other = fitted(center, text[:2])[0]
    if fitted.name != "cosine":
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert min(one, other) > fitted(text[:1], text[1:2])[0, 0]


def test_euclidean_is_the_cosine_less_one_on_unit_vectors():
    one, other = (torch.nn.functional.normalize(f, dim=-1) for f in FEATURES)
    torch.testing.assert_close(make("euclidean", 16)(one, other), one @ other.T - 1)


def test_bilinear_begins_as_the_cosine():
    image, text = embedded(make("cosine", 16))
    torch.testing.assert_close(make("bilinear", 16)(image, text), make("cosine", 16)(image, text))


def test_hyperbolic_distances_follow_the_formula():
    similarity = make("hyperbolic", 16).double()
    similarity.begin(*FEATURES.double())
    image, text = similarity.embed_image(FEATURES[0].double()), similarity.embed_text(FEATURES[1].double())
    lift = lambda x: torch.cat([(1 + x.square().sum(-1, keepdim=True)).sqrt(), x], dim=-1)  # noqa: E731 - curvature 1
    signs = torch.tensor([-1.0] + [1.0] * 16, dtype=torch.float64)
    lorentz = (lift(image) * signs) @ lift(text).T
    torch.testing.assert_close(similarity(image, text), -torch.acosh(-lorentz))


def test_an_unknown_name_is_answered_with_those_there_are():
    with refuses("plugin.not_found", "manhattan", "cosine, dot, euclidean, hyperbolic, bilinear"):
        make("manhattan", 16)


@pytest.mark.parametrize("name", ["dot", "hyperbolic", "bilinear"])
def test_a_package_gives_back_what_its_similarity_learned(tiny, name, tmp_path):
    from clipft_tasks.model import build

    clip = build.load(str(tiny), domain="general")
    clip.similarity = make(name, clip.embed_dim)
    with torch.no_grad():
        for value in clip.similarity.state_dict().values():
            value.add_(0.1 * torch.randn_like(value))
    folder = a_package(tmp_path / "package", clip)
    again = build.load(str(folder))
    assert again.similarity.name == name and again.similarity.fitted
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        image, text = clip.encode_images(images), clip.encode_texts(["one", "two"])
        torch.testing.assert_close(
            again.similarity(again.encode_images(images), again.encode_texts(["one", "two"])), clip.similarity(image, text)
        )
    (folder / "similarity.safetensors").unlink()
    with refuses("package.invalid", "similarity.safetensors"):
        build.load(str(folder))
