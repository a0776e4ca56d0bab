"""Low-rank updates against the plain computation, W + s · up down, forward and backward; what they take; what they leave behind."""

import copy
import warnings

import open_clip
import pytest
import torch
from fixtures.models import IMAGE, TEXTS, VIT, write_model
from fixtures.packages import a_card
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from clipft_tasks.contracts.low_rank import LowRankForm
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.model import adapters, build, package
from clipft_tasks.model.adapter_folder import Adapter
from clipft_tasks.model.clip import Clip
from clipft_tasks.model.fastpath import PackedAttention, quicken
from clipft_tasks.spec import RunSpec
from clipft_tasks.train import param_groups
from clipft_tasks.train.footprint import footprint
from clipft_tasks.train.state import trained_names

VARIANTS = ["plain", "rslora", "dora"]
PLACE = "visual.transformer.resblocks.0."


def form(variant: str = "plain", image: int = 2, text: int = 2, alpha: float | None = 3.0) -> LowRankForm:
    return LowRankForm(image_rank=image, text_rank=text, alpha=alpha, variant=variant)


class _Stack(nn.Module):
    """A layer where a tower has one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.visual = nn.Module()
        self.visual.blocks = nn.ModuleList([nn.Module()])
        self.visual.blocks[0].layer = layer


LAYERS = {
    "linear": (lambda: nn.Linear(24, 20), (5, 7, 24)),
    "linear without bias": (lambda: nn.Linear(24, 20, bias=False), (5, 24)),
    "convolution": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, dilation=1), (2, 8, 9, 9)),
    "convolution of patches": (lambda: quicken(nn.Sequential(nn.Conv2d(8, 12, 2, stride=2)))[0], (2, 8, 9, 9)),
    "convolution, mirrored edges": (lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect", bias=False), (2, 8, 9, 9)),
    "convolution, padded as TensorFlow does": (lambda: Conv2dSame(8, 12, 3, stride=2), (2, 8, 9, 9)),
    "1x1 convolution": (lambda: nn.Conv2d(16, 12, 1), (2, 16, 3, 3)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_an_update_is_the_layer_of_the_updated_weight(name, variant):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    plain = make().double()
    model = _Stack(copy.deepcopy(plain))
    assert adapters.add_low_rank(model, form(variant), 0).image == 1
    layer = model.visual.blocks[0].layer
    update = layer.adapter
    with torch.no_grad():
        for parameter in update.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.1)

    input = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    learned = [update.up, update.down.weight, *([update.magnitude] if update.magnitude is not None else [])]
    out = layer(input)
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, [input, *learned], upstream)

    factor = {"plain": 3 / 2, "rslora": 3 / 2**0.5, "dora": 3 / 2}[variant]
    whole = plain.weight + factor * (update.up @ update.down.weight.flatten(1)).view_as(plain.weight)
    if variant == "dora":  # Liu et al. 2024, formulas 5 and 11: the length is a constant to the gradient
        lengths = whole.detach().flatten(1).norm(dim=1)
        whole = whole * (update.magnitude / lengths).view(-1, *[1] * (whole.ndim - 1))
    expected_out = torch.func.functional_call(plain, {"weight": whole}, (input,))
    expected = torch.autograd.grad(expected_out, [input, *learned], upstream)
    torch.testing.assert_close(out, expected_out, rtol=1e-11, atol=1e-11)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)

    adapters.merge_low_rank(model)
    assert type(layer) is type(plain) and layer.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(layer(input), out, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_packed_attention_with_updates_is_that_of_the_updated_projection(variant, batch_first):
    torch.manual_seed(0)
    plain = quicken(nn.Sequential(nn.MultiheadAttention(16, 2, batch_first=batch_first)))[0].double()
    model = _Stack(copy.deepcopy(plain))
    assert adapters.add_low_rank(model, form(variant), 0).image == 2  # packed projection, and the one out
    layer = model.visual.blocks[0].layer
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "adapter" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.1)
    x, mask = torch.randn(3, 5, 16, dtype=torch.float64), torch.full((5, 5), -torch.inf, dtype=torch.float64).triu_(1)
    if not batch_first:
        mask = torch.full((3, 3), -torch.inf, dtype=torch.float64).triu_(1)
    out = layer(x, x, x, need_weights=False, attn_mask=mask)[0]
    with pytest.raises(ClipftError) as refused:
        layer(x, x, x, need_weights=True)
    assert refused.value.code == "model.update_not_applied"
    adapters.merge_low_rank(model)
    assert type(layer) is PackedAttention
    torch.testing.assert_close(layer(x, x, x, need_weights=False, attn_mask=mask)[0], out, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(layer(x, x, x, need_weights=True, attn_mask=mask)[0], out, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_has_no_product_for_a_weights_gradient_and_keeps_no_second_copy(variant):
    tokens, width = 400, 256

    def step(low: bool) -> tuple[int, int]:
        """Operations of the products, and numbers that the backward pass finds kept, weights apart."""
        model = _Stack(nn.Sequential(nn.Linear(width, width), nn.Linear(width, width)))
        if low:
            adapters.add_low_rank(model, form(variant), 0)
        kept: dict[int, int] = {}
        own = {p.data_ptr() for p in model.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in own:
                kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        x = torch.randn(tokens, width, requires_grad=True)
        with FlopCounterMode(display=False) as products, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.visual.blocks[0].layer(x).square().sum().backward()
        assert not low or all(p.grad is None for n, p in model.named_parameters() if n.endswith(("0.weight", "1.weight")))
        return products.get_total_flops(), sum(kept.values())

    full, low = step(low=False), step(low=True)
    # Two thirds (DoRA makes anew what came out), the sum of a weight and its update (twice, of rank 2), and four products of two
    # columns beside 256.
    assert low[0] / full[0] < (1 if variant == "dora" else 2 / 3) + 0.02
    assert low[1] <= full[1]


@pytest.mark.parametrize("mixed", [False, True])
def test_compiled_it_is_the_same(mixed):
    torch.manual_seed(0)
    model = _Stack(nn.Sequential(nn.Linear(24, 20), nn.Linear(20, 24)))
    adapters.add_low_rank(model, form("dora"), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    layer = model.visual.blocks[0].layer
    learned, x = [p for p in model.parameters() if p.requires_grad], torch.randn(6, 24, requires_grad=True)

    def gradients(run):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out = run(x)
        return torch.autograd.grad(out.float().square().sum(), [x, *learned])

    torch.testing.assert_close(gradients(torch.compile(layer, backend="aot_eager", fullgraph=True)), gradients(layer))


def opened(folder, vision=VIT, text=TEXTS["of CLIP"]) -> Clip:
    return build.from_folder(write_model(folder, vision, text), source="made")


def a_step(clip: Clip, spec: RunSpec) -> torch.optim.Optimizer:
    """One step as a training makes it; the gradients are still there."""
    adapters.add_low_rank(clip.model, spec.train.low_rank, 0)
    groups = [dict(group) for group in param_groups.groups(clip.model, spec.train)]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    images, tokens = torch.randn(2, 3, clip.side, clip.side), clip.tokenize(["a red square", "a blue one"])
    (clip.image_features(images) * clip.text_features(tokens) * clip.model.logit_scale.exp()).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_there_in_a_step_is_what_the_plan_counts(tmp_path, variant):
    fields = {"domain": "general", "train.lora_rank": 2, "train.lora_text_rank": 1, "train.lora_variant": variant}
    spec, clip = RunSpec.from_flat(fields), opened(tmp_path / "model")
    counted, full = footprint(spec, clip.model), footprint(RunSpec.from_flat({"domain": "general"}), clip.model)
    optimizer = a_step(clip, spec)
    gradients = sum(p.grad.nbytes for p in clip.model.parameters() if p.grad is not None)
    moments = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    assert gradients + moments == counted.training < full.training
    assert counted.weights == sum(p.nbytes for p in clip.model.parameters()) > full.weights


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_and_moments_of_a_large_model_are_a_twentieth_of_full_training(variant):
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-L-14"))
    quicken_on_meta(model)
    fields = {"domain": "general", "train.lora_rank": 16, "train.lora_variant": variant}
    low, full = (footprint(RunSpec.from_flat(f), model) for f in (fields, {"domain": "general"}))
    assert full.training == 3 * 4 * sum(p.numel() for p in model.parameters()) > 5e9
    assert 0.005 < low.training / full.training <= 0.05


def quicken_on_meta(model: nn.Module) -> None:
    """`quicken` asks whether a mask is causal, which a mask without numbers cannot say."""
    for tower in (model, model.visual):
        tower.attn_mask = None
    quicken(model)


def test_each_tower_has_a_rank_of_its_own(tmp_path):
    clip = opened(tmp_path / "model")
    start = {name: value.clone() for name, value in clip.model.state_dict().items()}
    made = adapters.add_low_rank(clip.model, form(image=3, text=0), 0)
    assert (made.image, made.text) == (8, 0) and not made.passed_over
    ranks = {len(p) for name, p in clip.model.named_parameters() if name.endswith("down.weight")}
    assert ranks == {3} and not any(p.requires_grad for n, p in clip.model.named_parameters() if n.startswith("transformer."))
    adapters.remove_low_rank(clip.model)
    now = clip.model.state_dict()
    assert now.keys() == start.keys() and all(torch.equal(now[name], start[name]) for name in start)


def test_what_has_no_update_is_counted_by_its_reason(tmp_path):
    clip = opened(tmp_path / "model", IMAGE["convolutional, batch norm (starter)"][0])
    made = adapters.add_low_rank(clip.model, form(), 0)
    assert made.image > 5 and made.passed_over["convolutions of channels apart"] > 0 and "passed over" in str(made)
    torchs = _Stack(nn.MultiheadAttention(16, 2))
    found = adapters.add_low_rank(torchs, form(), 0)
    assert found.image == 0
    assert found.passed_over == {"attention projections that are not packed": 1, "whose tower reads them by hand": 1}


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        ("vision transformer", "plain"),
        ("timm transformer, class token", "rslora"),
        ("convolutional, batch norm (starter)", "dora"),
    ],
)
def test_an_adapter_beside_its_base_is_the_merged_model(tmp_path, kind, variant):
    vision, side = IMAGE[kind]
    base = write_model(tmp_path / "base", vision, TEXTS["of CLIP"])
    fields = {"domain": "general", "train.lora_rank": 2, "train.lora_variant": variant, "resolution.train": side,
              "model.start": str(base), "model.context": 16}  # fmt: skip
    spec = RunSpec.from_flat(fields)
    clip = build.prepare(build.load(str(base), domain="general"), spec)
    clip.model.eval()
    optimizer = a_step(clip, spec)
    own = list(optimizer.param_groups)
    adapter = Adapter.of(clip, spec.train.low_rank, trained_names(clip, own))
    adapters.merge_low_rank(clip.model)

    made = tmp_path / "package"
    made.mkdir()
    (made / package.CARD).write_text(a_card(spec=spec.model_dump(mode="json")).model_dump_json())
    (made / package.PREPROCESSING).write_text(clip.prepared().model_dump_json())
    folder = adapter.write(tmp_path / "adapter", made)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 0.5 * (base / package.WEIGHTS).stat().st_size

    again = build.load(str(folder), domain="general")
    images, tokens = torch.randn(2, 3, side, side), clip.tokenize(["a red square", "a blue square of some size"])
    with torch.no_grad():
        torch.testing.assert_close(again.image_features(images), clip.image_features(images), rtol=0, atol=0)
        torch.testing.assert_close(again.text_features(tokens), clip.text_features(tokens), rtol=0, atol=0)
        start = build.prepare(build.load(str(base), domain="general"), spec)
        assert not torch.allclose(again.image_features(images), start.image_features(images), atol=1e-3)
    assert again.digest not in (clip.digest, start.digest) and again.source == str(folder) and again.side == side
    assert build.tokenizer(str(folder))[1] == build.tokenizer(str(base))[1]


def test_an_adapter_is_refused_without_its_base_or_its_files(tmp_path):
    base, spec = write_model(tmp_path / "base", VIT, TEXTS["of CLIP"]), RunSpec.from_flat({"train.lora_rank": 2})
    clip = build.load(str(base), domain="general")
    adapters.add_low_rank(clip.model, spec.train.low_rank, 0)
    adapter = Adapter.of(clip, spec.train.low_rank, frozenset(n for n, p in clip.model.named_parameters() if p.requires_grad))
    made = tmp_path / "package"
    made.mkdir()
    stored = RunSpec.from_flat({"domain": "general", "resolution.train": 64}).model_dump(mode="json")
    (made / package.CARD).write_text(a_card(spec=stored).model_dump_json())
    (made / package.PREPROCESSING).write_text(clip.prepared().model_dump_json())
    folder = adapter.write(tmp_path / "adapter", made)
    assert build.load(str(folder)).source == str(folder)

    (folder / "adapter.safetensors").write_bytes(b"cut")
    with pytest.raises(ClipftError) as refused:
        build.load(str(folder))
    assert refused.value.code == "adapter.invalid"

    adapter.write(tmp_path / "again", made)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = opened(tmp_path / "other")
    with torch.no_grad():
        other.model.visual.proj.add_(1)
    package.write_model(base, other)
    with pytest.raises(ClipftError) as refused:
        build.load(str(tmp_path / "again"))
    assert refused.value.code == "adapter.other_base"


def test_updates_of_another_shape_are_refused(tmp_path):
    clip = opened(tmp_path / "model")
    adapters.add_low_rank(clip.model, form(), 0)
    adapter = Adapter.of(clip, form(image=3), frozenset(n for n, p in clip.model.named_parameters() if p.requires_grad))
    with pytest.raises(ClipftError) as refused:
        adapter.merge_into(opened(tmp_path / "again"))
    assert refused.value.code == "adapter.invalid"


def test_autocast_computes_the_update_in_the_layers_precision():
    model = _Stack(nn.Linear(64, 48))
    adapters.add_low_rank(model, form("dora"), 0)
    layer = model.visual.blocks[0].layer
    nn.init.normal_(layer.adapter.up)
    x = torch.randn(6, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    whole = functional.linear(x, layer.adapter.merged(layer.weight), layer.bias)
    torch.testing.assert_close(out.float(), whole, rtol=0.05, atol=0.1)
