"""Who trains, and how fast: rules, layer decay, weight decay, and low-rank updates that leave an ordinary model behind."""

import copy

import open_clip
import pytest
import torch
from conftest import TINY
from fixtures.errors import refuses
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clipft_tasks.contracts.low_rank import LowRankForm
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.model.adapters import add_low_rank, merge_low_rank
from clipft_tasks.model.fastpath import PackedAttention, quicken
from clipft_tasks.model.parameter_names import depth_of, is_head
from clipft_tasks.spec import TrainSpec
from clipft_tasks.train.param_groups import groups, parse

CLIP_HEADS = {"logit_scale", "text_projection", "ln_final.weight", "visual.proj", "visual.ln_post.weight"}


def tiny(kind: type = open_clip.CLIP) -> nn.Module:
    torch.manual_seed(0)
    return kind(**copy.deepcopy(TINY["model_cfg"]))


def other_towers() -> nn.Module:
    """A timm tower of twelve blocks and a transformers text tower of two layers, named as in open_clip."""
    from open_clip.hf_model import HFTextEncoder
    from open_clip.timm_model import TimmModel
    from transformers import BertConfig

    model, width = nn.Module(), {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    model.visual = TimmModel("vit_tiny_patch16_224", embed_dim=32, image_size=32, pretrained=False)
    config = BertConfig(num_hidden_layers=2, vocab_size=100, **width)
    model.text = HFTextEncoder("", 32, config=config, pooler_type="mean_pooler", proj_type="linear", pretrained=False)
    model.logit_scale = nn.Parameter(torch.ones([]))
    return model


def by_name(model: nn.Module, key: str, **spec: object) -> dict[str, float]:
    """What the groups say of each parameter that trains."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], group[key]) for group in groups(model, TrainSpec(**spec)) for p in group["params"]]
    assert len(found) == len(dict(found)) and {n for n, p in model.named_parameters() if p.requires_grad} == dict(found).keys()
    return dict(found)


def test_a_decoder_that_no_embedding_passes_through_does_not_train():
    model = tiny()
    model.text_decoder = nn.Linear(4, 4)
    assert by_name(model, "factor").keys() == by_name(tiny(), "factor").keys()


# Rules ----------------------------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_wins():
    rules = ["visual.transformer.resblocks.1.*=0.5", "visual.*=0.1", "visual.proj=7"]
    found = by_name(tiny(), "factor", rules=rules)
    assert found["visual.transformer.resblocks.1.mlp.c_fc.bias"] == 0.5
    assert found["visual.transformer.resblocks.0.mlp.c_fc.bias"] == found["visual.proj"] == 0.1
    assert found["transformer.resblocks.0.mlp.c_fc.bias"] == found["logit_scale"] == 1


@given(st.text() | st.text("abc*.=freez01-+ ", max_size=16))
def test_any_text_is_a_rule_or_a_refusal(text):
    model = nn.ModuleDict({"a": nn.Linear(1, 1), "visual": nn.Linear(1, 1)})
    try:
        ((pattern, factor),) = parse([text], model)
    except ClipftError as refused:
        assert repr(text) in str(refused)
    else:
        assert pattern and 0 <= factor < float("inf") and parse([f"{pattern} = {factor!r}"], model) == [(pattern, factor)]


@pytest.mark.parametrize("word", ["freeze", " freeze ", "0"])
def test_what_is_frozen_has_no_gradient(word):
    model = tiny()
    found = by_name(model, "factor", rules=[f"visual.conv1*={word}", "transformer.*=freeze"])
    assert not model.visual.conv1.weight.requires_grad and "visual.conv1.weight" not in found
    assert not any(name.startswith("transformer.") for name in found) and "visual.proj" in found


def test_rules_and_layer_decay_multiply():
    found = by_name(tiny(), "factor", rules=["visual.*=0.1"], layer_decay=0.5)
    assert found["visual.transformer.resblocks.0.mlp.c_fc.bias"] == pytest.approx(0.1 * 0.25)
    assert found["visual.proj"] == 0.1


@pytest.mark.parametrize("rule", ["visual.*", "visual.*=", "=0.1", "visual.*=slow", "visual.*=-1", ""])
def test_a_rule_that_says_nothing_is_named(rule):
    with refuses("train.invalid_rule", f"rule {rule!r}", "pattern=freeze"):
        groups(tiny(), TrainSpec(rules=["visual.*=0.1", rule]))


def test_a_rule_that_matches_nothing_is_named_with_names_that_there_are():
    with refuses("train.unmatched_rule", "'vision.*=0.1'", "visual."):
        groups(tiny(), TrainSpec(rules=["vision.*=0.1"]))


def test_freezing_everything_is_an_error():
    with refuses("train.nothing_to_train", "train.rules"):
        groups(tiny(), TrainSpec(rules=["visual.*=freeze", "*=0"]))


# Layer decay and weight decay -----------------------------------------------------------------------------------------


def test_without_layer_decay_all_learn_at_one_rate_and_heads_are_marked():
    assert set(by_name(tiny(), "factor").values()) == {1.0}
    heads = {name for name, head in by_name(tiny(), "head").items() if head}
    assert heads == CLIP_HEADS | {"ln_final.bias", "visual.ln_post.bias"}


def test_in_clip_deeper_blocks_learn_faster_heads_fastest_and_embeddings_slowest():
    found = by_name(tiny(), "factor", layer_decay=0.5)
    assert {found[name] for name in CLIP_HEADS} == {1.0}
    for name, rate in found.items():
        if "resblocks.1." in name or name.startswith("transformer.resblocks.0."):
            assert rate == 0.5, name
        elif name.startswith("visual.transformer.resblocks.0."):
            assert rate == 0.25, name
    assert {found[f"visual.{n}"] for n in ("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.bias")} == {0.125}
    custom = by_name(tiny(open_clip.CustomTextCLIP), "factor", layer_decay=0.5)
    assert custom["text.transformer.resblocks.0.ln_1.weight"] == 0.5 and custom["text.text_projection"] == 1
    assert custom["text.token_embedding.weight"] == custom["text.positional_embedding"] == 0.25


def test_in_timm_and_transformers_towers_deeper_blocks_learn_faster():
    found = by_name(other_towers(), "factor", layer_decay=0.5)
    for name, rate in found.items():
        if name.startswith("visual.trunk.blocks."):
            assert rate == 0.5 ** (12 - int(name.split(".")[3])), name
        elif name.startswith("text.transformer.encoder.layer."):
            assert rate == 0.5 ** (2 - int(name.split(".")[4])), name
        elif name.startswith("text.transformer.embeddings."):
            assert rate == 0.5**3, name
    assert found["visual.trunk.pos_embed"] == found["visual.trunk.cls_token"] == 0.5**13
    assert found["visual.head.proj.weight"] == found["text.proj.weight"] == found["logit_scale"] == 1


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("visual.layer1.0.conv1.weight", 0),
        ("visual.layer4.2.downsample.0.weight", 3),
        ("visual.conv1.weight", None),
        ("text.transformer.encoder.block.3.layer.1.DenseReluDense.wi_0.weight", 3),
        ("text.transformer.encoder.layer.5.attention.self.query.weight", 5),
        ("visual.trunk.stages.2.blocks.7.conv_dw.weight", 2),
        ("visual.trunk.layer_scale", None),
    ],
)
def test_a_parameters_depth_is_that_of_its_block_or_stage(name, depth):
    assert depth_of(name) == depth


def test_what_timm_excepts_and_vectors_of_any_shape_do_not_decay():
    model = other_towers()
    model.visual.trunk.gamma = nn.Parameter(torch.ones(8, 1, 1))
    found = by_name(model, "weight_decay", weight_decay=0.3)
    assert found["visual.trunk.cls_token"] == found["visual.trunk.pos_embed"] == found["visual.trunk.gamma"] == 0
    assert found["visual.trunk.patch_embed.proj.weight"] == found["visual.trunk.blocks.0.attn.qkv.weight"] == 0.3
    pooled = open_clip.create_model("ViT-B-16-SigLIP", load_weights=False, device="meta")
    assert by_name(pooled, "weight_decay", weight_decay=0.3)["visual.trunk.attn_pool.latent"] == 0


def test_norms_biases_positions_and_the_temperature_do_not_decay():
    for name, decay in by_name(tiny(), "weight_decay", weight_decay=0.3).items():
        kept = "ln_" in name or "bias" in name or "positional" in name or name in ("logit_scale", "visual.class_embedding")
        assert decay == (0.0 if kept else 0.3), name
    for name, decay in by_name(other_towers(), "weight_decay", weight_decay=0.3).items():
        if "norm" in name.lower() or "bias" in name or name in ("logit_scale", "visual.trunk.pos_embed"):
            assert decay == 0, name
        elif "blocks" in name or "layer" in name or "head" in name:
            assert decay == 0.3, name


# Low-rank updates -----------------------------------------------------------------------------------------------------


def outputs(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    tokens = torch.randint(1, 49408, (3, 32), generator=generator)
    with torch.no_grad():
        return torch.cat([model.encode_image(images), model.encode_text(tokens)])


RANK_4 = LowRankForm(image_rank=4, text_rank=4)


@pytest.fixture
def plain() -> nn.Module:
    return quicken(tiny()).eval()


def test_low_rank_updates_start_with_the_model_unchanged_and_train_alone_with_the_heads(plain):
    model = copy.deepcopy(plain)
    made = add_low_rank(model, RANK_4, seed=0)
    assert (made.image, made.text) == (2 * 4, 4)  # three blocks of four weights
    torch.testing.assert_close(outputs(model), outputs(plain), rtol=1e-5, atol=1e-5)
    trained = by_name(model, "factor")
    updates = {name for name in trained if name.endswith((".up", ".down.weight"))}
    assert len(updates) == 2 * 12
    attentions = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    assert [isinstance(m, PackedAttention) for m in attentions] == [True] * 3
    assert trained.keys() - updates == {name for name, _ in plain.named_parameters() if is_head(name)}


def test_a_merged_model_equals_the_adapted_one_and_is_an_ordinary_one(plain):
    model = copy.deepcopy(plain)
    add_low_rank(model, RANK_4, seed=0)
    groups(model, TrainSpec())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model.encode_image(torch.ones(2, 3, 32, 32)).sum() + model.encode_text(torch.ones(2, 32).long()).sum()).backward()
        optimizer.step()
    adapted = outputs(model)
    assert not torch.allclose(adapted, outputs(plain), atol=1e-2)
    merge_low_rank(model)
    torch.testing.assert_close(outputs(model), adapted, rtol=1e-5, atol=1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    fresh = tiny().eval()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(outputs(fresh), adapted, rtol=1e-4, atol=1e-4)
    before = plain.state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed and all(is_head(name) or ("resblocks" in name and name.endswith("weight")) for name in changed)
