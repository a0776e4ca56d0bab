"""Activation checkpointing: blocks keep their input alone and run again in the backward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..core.errors import ClipftError
from ..devices import Device, backend


def towers_of_blocks(model: nn.Module) -> list[list[nn.Module]]:
    """The towers' stacks of like blocks, outermost only: transformer layers, or a convolutional tower's stages."""
    stacks: list[list[nn.Module]] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module in inside or not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        if len({type(m) for m in module}) == 1 and all(len(list(m.children())) > 1 for m in module):
            stacks.append(list(module))
            inside.update(m for block in module for m in block.modules())
    return stacks


def checkpoint_blocks(model: nn.Module, every: int) -> int:
    """Checkpoint each `every`-th block of each tower (1: all), until `plain_blocks`.

    Returns: how many blocks.
    Raises: ClipftError when the model has no blocks.
    """
    chosen = [block for stack in towers_of_blocks(model) for block in stack[::every]]
    if not chosen:
        raise ClipftError(
            "memory.checkpointing", "this model has no stack of like blocks", "Set it to none.", code="model.no_blocks"
        )
    for block in chosen:
        block.forward = partial(_again, block)
    return len(chosen)


def plain_blocks(model: nn.Module) -> None:
    """Take checkpointing away again."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), partial):
            del module.__dict__["forward"]


def _again(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    device = next((backend(a.device) for a in args if isinstance(a, torch.Tensor)), None)
    if device is None or device.checkpoint_keeps_rng:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    contexts = partial(_same_numbers, device)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **kwargs)


def _same_numbers(device: Device) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What `torch.utils.checkpoint` does for most devices: the second pass draws the random numbers of the first."""

    def state() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.get_rng_state(), device.rng_state()

    def go_on_from(host: torch.Tensor, own: torch.Tensor) -> None:
        torch.set_rng_state(host)
        device.set_rng_state(own)

    first = state()

    @contextmanager
    def again() -> Iterator[None]:
        now = state()
        go_on_from(*first)
        try:
            yield
        finally:
            go_on_from(*now)

    return nullcontext(), again()
