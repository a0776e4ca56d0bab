"""The measurements: each takes the kit and returns plain facts. Ratios are between ways of doing the same thing in one run."""

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import open_clip
import torch

from bench.serving import towers
from bench.serving.__main__ import free_port
from bench.serving.peers import OURS, PEERS, Running
from clipft_tasks.contracts.plan import Precision
from clipft_tasks.data import augment
from clipft_tasks.data.loader import Batch
from clipft_tasks.devices import backend
from clipft_tasks.devices.mps_operators import Recorder, fallbacks
from clipft_tasks.devices.precision import precision_context
from clipft_tasks.domains import Augment
from clipft_tasks.model import attention, build
from clipft_tasks.model.activation_checkpointing import checkpoint_blocks, plain_blocks
from clipft_tasks.model.attention import Policy
from clipft_tasks.model.clip import Clip, OpenClipConfig
from clipft_tasks.model.fastpath import quicken
from clipft_tasks.objectives import InfoNCE
from clipft_tasks.train import microbenchmarks, step

from .machine import PROJECT, Facts

PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
SUITE = ("test_attention.py", "test_training_step.py", "test_towers.py", "test_loop.py")
SUITE_SECONDS = 300


@dataclass(frozen=True)
class Kit:
    """What is measured with.

    Attributes:
        device: as PyTorch calls it.
        quick: small models, few repeats.
        folder: for what a measurement leaves behind.
    """

    device: str
    quick: bool
    folder: Path

    @cached_property
    def clip(self) -> Clip:
        """The model that is timed, on the device."""
        return (self.small() if self.quick else build.load("starter")).to(self.device)

    @property
    def sides(self) -> tuple[int, ...]:
        return (48, 64, 80) if self.quick else (96, 128, 160)

    @property
    def batch(self) -> int:
        return 16 if self.quick else 64

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 5

    def small(self) -> Clip:
        """A model of a few layers with random weights, on the host."""
        torch.manual_seed(0)
        return self._random(towers.SMALL)

    def large(self) -> Clip:
        """A vision transformer whose attention is worth cutting into chunks, on the device."""
        torch.manual_seed(0)
        if self.quick:
            return self.small().to(self.device)
        return self._random(open_clip.get_model_config("ViT-B-16")).to(self.device)

    def _random(self, known: dict[str, Any]) -> Clip:
        config: OpenClipConfig = {"model_cfg": copy.deepcopy(known), "preprocess_cfg": PREPROCESS}
        tokenizer = open_clip.SimpleTokenizer(context_length=known["text_cfg"]["context_length"])
        return Clip(quicken(open_clip.CLIP(**copy.deepcopy(known))), tokenizer, config, "random", "")

    def wait(self) -> None:
        backend(self.device).synchronize()

    def seconds(self, *ways: Callable[[], object], each: int = 3) -> list[float]:
        """Seconds of each way, the medians over rounds in which all have their turn; the first of each warms up."""
        taken: list[list[float]] = [[] for _ in ways]
        for number in range(self.rounds + 1):
            for way, own in zip(ways, taken, strict=True):
                self.wait()
                began = time.perf_counter()
                for _ in range(each):
                    way()
                self.wait()
                if number:
                    own.append((time.perf_counter() - began) / each)
        return [statistics.median(own) for own in taken]


def batch_of(clip: Clip, side: int, count: int) -> Batch:
    """Pairs as the training's input pipeline gives them."""
    rng = np.random.default_rng(0)
    words = [f"a photo of thing {number}, seen from the side" for number in range(count)]
    return Batch(
        side=side, images=torch.from_numpy(rng.integers(0, 256, (count, 3, side + 16, side + 16), dtype=np.uint8)),
        geometry=augment.draw(count, Augment(rotate90=True, brightness=0.1), 0, 1), rows=slice(0, count),
        tokens=clip.tokenize(words), caption=torch.arange(count), label=torch.full((count,), -1), keys=np.arange(count).astype(str),
        held=True,
    )  # fmt: skip


def training_step(clip: Clip, batch: Batch, precision: Precision, *, micro: int = 0, late: bool = True) -> Callable[[], object]:
    """One optimization step as the loop takes it.

    Args:
        late: metrics are read while the next step runs.
    """
    device = clip.device.type
    towers = step.Towers(clip, clip.image_features, clip.text_features, partial(precision_context, device, precision))
    clip.model.train()
    step.freeze_statistics(clip.model)
    parameters = list(clip.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=backend(device).fused_optimizer)
    unread: list[torch.Tensor] = []

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        report = step.backward(towers, InfoNCE(), batch, micro_batch=micro or len(batch), seed=1)
        norm = report["norm"] = step.total_norm(parameters)
        values = torch.stack(list(report.values()))
        step.clip_and_skip(optimizer, values, norm, 1.0)
        optimizer.step()
        unread.append(values)
        while len(unread) > (1 if late else 0):
            unread.pop(0).tolist()

    return run


def gradients(clip: Clip, batch: Batch, precision: Precision, policy: Policy | None = None, micro: int = 0) -> torch.Tensor:
    """All gradients of the batch's loss as one vector on the host, and the loss as its first number."""
    device = clip.device.type
    clip.model.train()
    step.freeze_statistics(clip.model)
    clip.model.zero_grad(set_to_none=True)
    towers = step.Towers(clip, clip.image_features, clip.text_features, partial(precision_context, device, precision))
    with attention.use(policy):
        report = step.backward(towers, InfoNCE(), batch, micro_batch=micro or len(batch), seed=1)
    parts = [p.grad.flatten().cpu().float() for p in clip.model.parameters() if p.grad is not None]
    return torch.cat([report["loss"].cpu().float().reshape(1), *parts])


def operators(kit: Kit) -> Facts:
    """What a training step and an inference ask of the device, and what of it torch declares no kernel for."""
    recorder = Recorder()
    with recorder:
        training_step(kit.clip, batch_of(kit.clip, kit.sides[0], 8), "fp32", micro=3, late=False)()
        with torch.inference_mode():
            kit.clip.encode_images(torch.zeros(2, 3, kit.sides[0], kit.sides[0], dtype=torch.uint8))
    missing = sorted(fallbacks(recorder.names))
    return {"operators": len(recorder.names), "without_declared_kernel": missing, "ran": True}


def parity(kit: Kit) -> Facts:
    """How far gradients on the device are from the host's, and from each other by ways that must not matter: relative 2-norms."""
    host = kit.small()
    own = replace(host, model=copy.deepcopy(host.model), similarity=copy.deepcopy(host.similarity)).to(kit.device)
    batch = batch_of(host, kit.sides[0] if kit.quick else 128, 8)
    expected = gradients(host, batch, "fp32")
    plain = gradients(own, batch, "fp32")

    def off(found: torch.Tensor, of: torch.Tensor = plain) -> float:
        return float((found - of).norm() / of.norm())

    facts: Facts = {
        "device against host": off(plain, expected),
        "parts of 3 against whole": off(gradients(own, batch, "fp32", micro=3)),
        "chunked attention": off(gradients(own, batch, "fp32", Policy("chunked", 2000))),
        "sliced attention": off(gradients(own, batch, "fp32", Policy("sliced", 2000))),
        "fp16": off(gradients(own, batch, "fp16")),
        "bf16": off(gradients(own, batch, "bf16")),
    }
    checkpoint_blocks(own.model, 1)
    facts["blocks run again"] = off(gradients(own, batch, "fp32"))
    plain_blocks(own.model)
    facts["fused AdamW clips and skips by itself"] = step.fused_step_skips(torch.device(kit.device))
    return facts


def suite(kit: Kit) -> Facts:
    """The parity tests, on the device where there is one."""
    files = [str(PROJECT / "tests" / "parity" / name) for name in SUITE[: 1 if kit.quick else None]]
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=SUITE_SECONDS)
    except subprocess.TimeoutExpired:
        return {"ended": f"not within {SUITE_SECONDS} s"}
    lines = done.stdout.splitlines()
    return {"ended": lines[-1] if lines else "", "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))]}


def precision(kit: Kit) -> Facts:
    """Products and image steps by format, over fp32."""
    base = microbenchmarks.product_flops(kit.device, "fp32")
    facts: Facts = {"fp32 product, TFLOP/s": base / 1e12}
    taken: dict[str, float] = {}
    for name in get_args(Precision):
        taken[name] = microbenchmarks.image_step_seconds(kit.clip, kit.device, "contiguous", name, kit.sides[1], kit.batch)
        if name != "fp32":
            facts[f"{name} product"] = microbenchmarks.product_flops(kit.device, name, base / 50) / base
            facts[f"{name} image step"] = taken["fp32"] / taken[name]
    return facts


def speed(kit: Kit) -> Facts:
    """Pairs a second at three sizes, and how much faster a step is whose metrics are read late."""
    facts: Facts = {}
    for side in kit.sides:
        batch = batch_of(kit.clip, side, kit.batch)
        late, at_once = kit.seconds(*(training_step(kit.clip, batch, "fp32", late=late) for late in (True, False)))
        facts[f"{side} px, pairs a second"] = kit.batch / late
        facts[f"{side} px, late reading"] = at_once / late
    return facts


def memory(kit: Kit) -> Facts:
    """What attention keeps for the backward pass, whole and in chunks, and what that costs in time."""
    clip, side, facts = kit.large(), 96 if kit.quick else 384, dict[str, object]()
    images = torch.zeros(2 if kit.quick else 4, 3, side, side, dtype=torch.uint8)
    ways = {"whole": Policy("fused"), "chunked": Policy("chunked", 2**22)}

    def run(policy: Policy) -> None:
        with attention.use(policy):
            clip.encode_images(images).sum().backward()
        clip.model.zero_grad(set_to_none=True)

    for name, policy in ways.items():
        _, each = microbenchmarks.kept_bytes(clip, side, "fp32", policy)
        facts[f"{name}, MiB a pair kept"] = each / 2**20
    clip.model.train()
    whole, chunked = kit.seconds(*(partial(run, policy) for policy in ways.values()), each=1)
    facts |= {"chunked over whole, time": chunked / whole, "in use, GiB": backend(kit.device).memory_used() / 2**30}
    backend(kit.device).release()
    return facts


def optimizer(kit: Kit) -> Facts:
    """Seconds of AdamW's step by its ways, on the weights of the model that is timed."""
    adamw = partial(torch.optim.AdamW, lr=1e-6)
    ways = {
        "one tensor at a time": partial(adamw, foreach=False), "foreach": partial(adamw, foreach=True), "fused": partial(adamw, fused=True),
    }  # fmt: skip
    parameters = [torch.nn.Parameter(p.detach().clone()) for p in kit.clip.model.parameters()]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    taken = kit.seconds(*(way(parameters).step for way in ways.values()))
    facts: Facts = {f"{name}, ms": 1000 * value for name, value in zip(ways, taken, strict=True)}
    return facts | {"fused over foreach": taken[1] / taken[2], "fused over one at a time": taken[0] / taken[2]}


def serving(kit: Kit, clients: Sequence[int] = (1, 8)) -> Facts:
    """The server on this device: requests a second with one 640x480 JPEG each."""
    tower = "small" if kit.quick else "starter"
    package = towers.write_home(kit.folder / "serving" / tower, tower)
    peer = next(peer for peer in PEERS if peer.name == OURS)
    cores = backend(kit.device).hardware(None).cores
    server = Running(peer, tower, package, kit.folder, free_port(), cores, device=kit.device)
    seconds, facts = (2, dict[str, object]()) if kit.quick else (8, {})
    try:
        image = peer.image[1](towers.images()[0])
        server.wait((peer.image[0], image), (peer.text[0], peer.text[1]("a photo")))
        facts["backends"] = server.backends()
        bodies = towers.written(kit.folder, "images", [peer.image[1](item) for item in towers.images()])
        for count in clients:
            command = [sys.executable, "-m", "bench.serving.client", server.port, peer.image[0], count, seconds, bodies]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, cwd=PROJECT)
            found = json.loads(done.stdout)
            facts[f"{count} clients, requests a second"] = found["answers"] / seconds
            facts[f"{count} clients, p99 ms"] = found["p99"]
            facts[f"{count} clients, errors"] = found["errors"]
    finally:
        server.stop()
    return facts
