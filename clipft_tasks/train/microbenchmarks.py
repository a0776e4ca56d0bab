"""Measurements behind the plan: seconds of products and steps, bytes that a pair keeps, its arithmetic."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..contracts.plan import Layout, Precision
from ..core.errors import ClipftError
from ..core.files import atomic_write
from ..core.settings import settings
from ..devices import backend
from ..devices.memory import is_out_of_memory
from ..devices.precision import DTYPES, MEMORY_FORMATS, precision_context
from ..model import attention
from ..model.clip import Clip
from .step import freeze_statistics

CAPTION = "an average caption of about a dozen words or so"


@contextmanager
def same_random_numbers(device: str) -> Iterator[None]:
    """Random numbers that are drawn in here are drawn again afterwards."""
    own = backend(device)
    host, state = torch.get_rng_state(), own.rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(host)
        own.set_rng_state(state)


@contextmanager
def undisturbed(clip: Clip) -> Iterator[None]:
    """A measurement in the mode of training, after which the model and all random numbers are as they were.

    It is made with the very model that is trained next, so nothing may stay of it: no statistics of batch norm, no gradient.
    """
    model = clip.model
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    modes = [(module, module.training) for module in model.modules()]
    try:
        with same_random_numbers(clip.device.type):
            model.train()
            freeze_statistics(model)
            yield
    finally:
        model.zero_grad(set_to_none=True)
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])


def remembered(what: str, measure: Callable[[], float]) -> float:
    """A metric that holds for a chip and torch version: measured once, then read back from the cache under home."""
    path = settings().folder("cache", "probes") / f"torch-{torch.__version__}.json"
    try:
        known = {str(k): float(v) for k, v in json.loads(path.read_text()).items() if math.isfinite(float(v))}
    except (OSError, ValueError, TypeError, AttributeError):
        known = {}
    if what not in known:
        known[what] = measure()
        atomic_write(path, json.dumps(known, indent=1, sort_keys=True))
    return float(known[what])


def product_flops(device: str, precision: Precision, atleast: float = 0.0) -> float:
    """Arithmetic of a square matrix product per second. Stops early once it is clearly below `atleast`."""
    size = backend(device).matmul_size
    with same_random_numbers(device):
        a = torch.randn(size, size, device=device).to(DTYPES[precision])
    best = math.inf
    for attempt in range(6):
        began = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        if attempt:
            best = min(best, time.perf_counter() - began)
            if 2 * size**3 / best < atleast:
                break
    return 2 * size**3 / best


def image_step_seconds(clip: Clip, device: str, layout: Layout, precision: Precision, side: int, images: int) -> float:
    """Seconds an image of a forward and backward pass of the image tower, the better of two after one to warm up.

    Raises: ClipftError when a single image does not fit.
    """
    clip.to(device).model.to(memory_format=MEMORY_FORMATS[layout])
    while True:
        try:
            with undisturbed(clip):
                return _image_step_seconds(clip, device, layout, precision, side, images)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if images == 1:
                raise ClipftError(
                    f"images of {side} px",
                    "a single one does not fit into memory",
                    "Lower resolution.train.",
                    code="memory.single_too_large",
                ) from error
        images //= 2
        backend(device).release()


def _image_step_seconds(clip: Clip, device: str, layout: Layout, precision: Precision, side: int, images: int) -> float:
    batch = clip.normalize(torch.zeros(images, 3, side, side)).contiguous(memory_format=MEMORY_FORMATS[layout])
    best = float("inf")
    for attempt in range(3):
        began = time.perf_counter()
        with precision_context(device, precision):
            out = clip.image_features(batch).float().sum()
        out.backward()
        float(out.detach())
        if attempt:
            best = min(best, time.perf_counter() - began)
    return best / images


def kept_bytes(
    clip: Clip, side: int, precision: Precision, policy: attention.Policy, texts: Sequence[str] = ()
) -> tuple[float, float]:
    """Bytes that autograd keeps for the backward of n pairs, as (fixed, per pair): a line through two counted passes.

    Args:
        texts: captions as long as any that will come; without them, one of a dozen words.
    """
    weights = {p.untyped_storage().data_ptr() for p in clip.model.parameters()}
    device, texts = clip.device.type, texts or (CAPTION,)

    def kept(pairs: int) -> int:
        seen: dict[int, tuple[torch.Tensor, int]] = {}

        def count(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                # The tensor is held, or its memory would be counted again under another's address.
                seen[storage.data_ptr()] = (tensor.detach(), storage.nbytes())
            return tensor.detach()  # itself would be a cycle that nothing ever frees

        images = torch.zeros(pairs, 3, side, side, dtype=torch.uint8, device=clip.device)
        modes = torch.autograd.graph.saved_tensors_hooks(count, lambda t: t)
        with modes, attention.use(policy), precision_context(device, precision):
            held = (clip.encode_images(images), clip.encode_texts([texts[i % len(texts)] for i in range(pairs)]))
        total = sum(size for _, size in seen.values())
        del held
        return total

    with undisturbed(clip):
        one, two = kept(1), kept(3)
    each = max((two - one) / 2, 1.0)
    return max(one - each, 0.0), each


def pair_flops(clip: Clip, side: int) -> float:
    """Arithmetic of one pair's forward and backward pass: three times the forward's, as is usual."""
    with undisturbed(clip), torch.no_grad(), FlopCounterMode(display=False) as counter:
        clip.encode_images(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=clip.device))
        clip.encode_texts([CAPTION])
    return 3.0 * int(counter.get_total_flops())
