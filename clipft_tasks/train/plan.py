"""The plan: what the hardware allows, each decision with its reason."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..decision import Decision
from ..errors import ClipftError
from ..model.clip import Clip
from ..spec import RunSpec
from .hardware import Hardware, probe, use_threads

BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
GAIN = 1.2  # a lower precision must be this much faster: it costs casts and, in fp16, skipped steps
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """Decisions of one run. `to_dict` is what is logged and what the training task receives."""

    device: Decision
    precision: Decision
    layout: Decision
    threads: Decision
    micro_batch: Decision
    memory_gb: Decision

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, dict[str, Any]]) -> "Plan":
        return cls(**{name: Decision(**value) for name, value in content.items()})

    def lines(self) -> list[str]:
        return [f"{name:12} {decision.value!s:>10}  {decision.reason}" for name, decision in vars(self).items()]


def make(spec: RunSpec, clip: Clip) -> Plan:
    """Decide how to run `spec` on this machine.

    Raises:
        ClipftError: a device that is not there, or a memory ceiling below a single pair.
    """
    hardware = probe(spec.memory.device)
    device = Decision(
        hardware.device,
        f"asked for; {hardware.name}" if spec.memory.device != "auto" else f"the fastest that is there; {hardware.name}",
    )
    use_threads(hardware.cores)
    layout = layout_of(hardware.device, clip)
    return Plan(
        device=device,
        precision=_precision(spec, hardware, clip, layout.value),
        layout=layout,
        threads=Decision(hardware.cores, "the cores this process may use; more threads than cores cost twice the time"),
        micro_batch=(fit := _micro_batch(spec, hardware, clip))[0],
        memory_gb=fit[1],
    )


def layout_of(device: str, clip: Clip) -> Decision:
    """The memory layout in which the image tower runs fastest on a device."""
    convolutional = any(isinstance(m, torch.nn.Conv2d) and m.groups > 1 for m in clip.model.visual.modules())
    if not convolutional:
        return Decision("contiguous", "the image tower is no convolutional network")
    if device == "mps":
        return Decision("contiguous", "on MPS, channels-last convolutions are converted back and forth")
    return Decision("channels_last", "depthwise convolutions run faster so (bench/layout.py)")


def _precision(spec: RunSpec, hardware: Hardware, clip: Clip, layout: str) -> Decision:
    if spec.memory.precision != "auto":
        return Decision(spec.memory.precision, "asked for")
    candidates = {"cuda": ("bf16",), "mps": ("fp16", "bf16"), "cpu": ("bf16",)}[hardware.device]
    base = _product_seconds(hardware.device, torch.float32)
    products = {name: base / _product_seconds(hardware.device, DTYPES[name], cap=4 * base) for name in candidates}
    likely = max(products, key=lambda name: products[name])
    # Where a bare matrix product gains nothing the model cannot either, and trying could take minutes.
    if products[likely] < GAIN:
        return Decision("fp32", f"a matrix product in {likely} runs at {products[likely]:.2g}x the speed of fp32")
    ratio = _step_seconds(clip, hardware.device, layout, None, spec) / _step_seconds(
        clip, hardware.device, layout, DTYPES[likely], spec
    )
    if ratio < GAIN:
        return Decision("fp32", f"a training step in {likely} runs at {ratio:.2g}x the speed of fp32; casts would not pay")
    return Decision(likely, f"a training step in {likely} runs at {ratio:.2g}x the speed of fp32")


def _product_seconds(device: str, dtype: torch.dtype, cap: float = 1.0) -> float:
    """Seconds of a small matrix product in `dtype`, the best of a few; stops early once it is clearly above `cap`."""
    size = 256 if device == "cpu" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for attempt in range(6):
        began = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        if attempt:
            best = min(best, time.perf_counter() - began)
            if best > cap:
                break
    return best


def _step_seconds(clip: Clip, device: str, layout: str, dtype: torch.dtype | None, spec: RunSpec) -> float:
    """Seconds of a forward and backward pass of the image tower over a few pictures, the better of two after one to warm up."""
    side, count = spec.resolution.train, 8 if device == "cpu" else 32
    clip.to(device).model.train().to(memory_format=MEMORY_FORMATS[layout])
    pictures = clip.normalise(torch.zeros(count, 3, side, side)).contiguous(memory_format=MEMORY_FORMATS[layout])
    best = float("inf")
    state = {k: v.clone() for k, v in clip.model.named_buffers()}  # batch norm's statistics must not move by a probe
    for attempt in range(3):
        began = time.perf_counter()
        with torch.autocast(device, dtype, enabled=dtype is not None):
            out = clip.model.encode_image(pictures).float().sum()
        out.backward()
        float(out.detach())
        if attempt:
            best = min(best, time.perf_counter() - began)
    clip.model.zero_grad(set_to_none=True)
    for name, buffer in clip.model.named_buffers():
        buffer.copy_(state[name])
    clip.model.eval()
    return best


def _micro_batch(spec: RunSpec, hardware: Hardware, clip: Clip) -> tuple[Decision, Decision]:
    budget = spec.memory.memory_gb * 2**30 if spec.memory.memory_gb else hardware.memory * 0.7
    ceiling = Decision(
        round(budget / 2**30, 2), "asked for" if spec.memory.memory_gb else f"70% of what {hardware.name} has free"
    )
    if spec.memory.micro_batch:
        return Decision(min(spec.memory.micro_batch, spec.train.batch), "asked for"), ceiling
    parameters = sum(p.numel() * 4 for p in clip.model.parameters())
    fixed = 4 * parameters  # weights, gradients, two moments of AdamW
    pair = kept_bytes(clip, spec.resolution.train) * 1.5  # what the backward keeps, and room for its workspace
    fits = int((budget - fixed) // pair)
    if fits < 1:
        raise ClipftError(
            f"a memory ceiling of {ceiling.value} GiB",
            f"weights and optimiser need {fixed / 2**30:.2f} GiB and one pair {pair / 2**20:.0f} MiB",
            f"Raise memory.memory_gb to {(fixed + pair) / 2**30 + 0.01:.2f} or lower resolution.train.",
        )
    measured = f"{pair / 2**20:.1f} MiB a pair measured, {fixed / 2**30:.2f} GiB fixed"
    if fits >= spec.train.batch:
        return Decision(spec.train.batch, f"the whole batch fits ({measured}); no second pass is paid"), ceiling
    micro = max(b for b in BUCKETS if b <= fits)
    return Decision(micro, f"{measured}; the batch of {spec.train.batch} is gathered exactly by cached features"), ceiling


def kept_bytes(clip: Clip, side: int) -> int:
    """Bytes that autograd keeps for one pair's backward at picture size `side`, counted in a real forward pass."""
    seen: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in clip.model.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    pictures = torch.zeros(2, 3, side, side, dtype=torch.uint8, device=clip.device)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        held = (clip.encode_images(pictures), clip.encode_texts(["an average caption of about a dozen words or so"] * 2))
        total = sum(seen.values())
    del held
    return max(total // 2, 1)
