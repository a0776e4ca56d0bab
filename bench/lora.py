"""A step of low-rank training beside one of full fine-tuning: python -m bench.lora [--model NAME] [--batch N] [--ranks 4,16]

Random weights, captions of 6 to 20 tokens, data on the device; the training loop's own step, in bf16 and compiled on CUDA, in fp32
and eager on a CPU. Gradients and optimizer state are counted after a step. `--eager` compares without compilation.
"""

import argparse
import copy
import gc
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import TypedDict

import open_clip
import torch
from torch import Tensor

from bench import gpu
from clipft_tasks.contracts.low_rank import LowRankForm, Variant
from clipft_tasks.data import augment
from clipft_tasks.devices.precision import precision_context
from clipft_tasks.model.adapters import add_low_rank
from clipft_tasks.model.clip import Clip, OpenClipConfig
from clipft_tasks.model.fastpath import quicken
from clipft_tasks.objectives import InfoNCE
from clipft_tasks.spec import TrainSpec
from clipft_tasks.train import step
from clipft_tasks.train.param_groups import groups

DEFAULTS = {"cuda": ("ViT-L-14", 160), "cpu": ("ViT-B-32", 16)}
RANKS = (4, 16)
VARIANTS: tuple[Variant, ...] = ("plain", "dora")


class Case(TypedDict):
    """What a step takes: seconds, GiB at the peak (0 on a CPU, which has no such counter), bytes of gradients and of the
    optimizer's state, and numbers that train."""

    seconds: float
    peak_gib: float
    gradients: int
    optimizer: int
    trained: int


def model_of(name: str, device: str) -> Clip:
    """An open_clip model with random weights, as the training loop has it."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, output_dict=True)
    config: OpenClipConfig = {
        "model_cfg": open_clip.get_model_config(name),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
    clip = Clip(quicken(model), open_clip.get_tokenizer(name), copy.deepcopy(config), name, "")
    clip.to(device).model.train()
    step.freeze_statistics(clip.model)
    return clip


def batch_of(clip: Clip, count: int) -> gpu.Ready:
    tokens, captions = gpu.tokens_of(count, clip.context_length)[:, : gpu.WORDS + 4], torch.arange(count)
    return gpu.Ready(
        side=clip.side, images=torch.rand(count, 3, clip.side, clip.side, device=clip.device) * 255,
        geometry=augment.draw(1, augment.PLAIN, 0, 0), rows=slice(0, count), tokens=tokens, caption=captions,
        label=torch.full((count,), -1), keys=captions.numpy(),
    )  # fmt: skip


def measured(name: str, form: LowRankForm | None, batch: int, device: str, compiled: bool, rounds: int) -> Case:
    """A step of a fresh model, as often as asked."""
    cuda = device == "cuda"
    if cuda:
        gpu.fresh()
    clip = model_of(name, device)
    if form:
        add_low_rank(clip.model, form, 0)
    own = groups(clip.model, TrainSpec())
    optimizer = torch.optim.AdamW([dict(group) for group in own], lr=1e-5, fused=True)
    parameters = [p for group in own for p in group["params"]]
    image, text = clip.image_features, clip.text_features
    if compiled:
        image, text = torch.compile(image, dynamic=False), torch.compile(text, dynamic=False)
    towers = step.Towers(clip, image, text, lambda: precision_context(device, "bf16" if cuda else "fp32"))
    data = batch_of(clip, batch)

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        report = step.backward(towers, InfoNCE(), data, micro_batch=batch, seed=1)
        norm = step.total_norm(parameters)
        if cuda:
            step.clip_and_skip(optimizer, torch.stack(list(report.values())), norm, 1.0)
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
        optimizer.step()
        clip.model.logit_scale.data.clamp_(0, math.log(100))
        return report["loss"]

    seconds = gpu.seconds(run, rounds=rounds) if cuda else _seconds(run, rounds)
    gradients = sum(p.grad.nbytes for p in clip.model.parameters() if p.grad is not None)
    held = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.numel() > 1)
    return Case(seconds=seconds, peak_gib=gpu.peak_gib() if cuda else 0.0, gradients=gradients, optimizer=held,
                 trained=sum(p.numel() for p in parameters))  # fmt: skip


def _seconds(run: Callable[[], object], rounds: int) -> float:
    """Median CPU seconds of a call: on a shared machine they are steadier than those of the clock."""
    taken = []
    for number in range(rounds + 1):
        began = time.process_time()
        run()
        if number:  # the first one allocates
            taken.append(time.process_time() - began)
    return statistics.median(taken)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=DEFAULTS[device][0])
    parser.add_argument("--batch", type=int, default=DEFAULTS[device][1])
    parser.add_argument("--ranks", default=",".join(map(str, RANKS)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eager", action="store_true")
    asked = parser.parse_args()
    compiled = device == "cuda" and not asked.eager
    forms: dict[str, LowRankForm | None] = {"full fine-tuning": None}
    for rank in map(int, asked.ranks.split(",")):
        for variant in VARIANTS:
            forms[f"rank {rank}, {variant}"] = LowRankForm(image_rank=rank, text_rank=rank, variant=variant)

    cases: dict[str, Case] = {}
    for name, form in forms.items():
        gc.collect()  # the model of the case before
        cases[name] = measured(asked.model, form, asked.batch, device, compiled, asked.rounds)
    full = cases["full fine-tuning"]
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    how = f"{'bf16' if device == 'cuda' else 'fp32'}, {'compiled' if compiled else 'eager'}"
    print(f"{asked.model} at {asked.batch} pairs, {where}, torch {torch.__version__}, {how}; ratios to full fine-tuning")
    print("| training | seconds a step | of full | peak GiB | gradients and optimizer, MiB | of full | numbers that train |")
    print("|---|---|---|---|---|---|---|")
    ratios: dict[str, dict[str, float]] = {}
    for name, case in cases.items():
        kept, of_full = case["gradients"] + case["optimizer"], full["gradients"] + full["optimizer"]
        ratios[name] = {"seconds": case["seconds"] / full["seconds"], "kept": kept / of_full}
        if device == "cuda":
            ratios[name]["peak"] = case["peak_gib"] / full["peak_gib"]
        peak = f"{case['peak_gib']:.1f}" if device == "cuda" else "–"
        print(f"| {name} | {case['seconds']:.4f} | {ratios[name]['seconds']:.1%} | {peak} | {kept / 2**20:,.1f} | "
              f"{kept / of_full:.2%} | {case['trained']:,} |")  # fmt: skip
    print(
        json.dumps(
            {
                "model": asked.model,
                "batch": asked.batch,
                "device": where,
                "compiled": compiled,
                "cases": cases,
                "ratios": ratios,
            }
        )
    )


if __name__ == "__main__":
    main()
