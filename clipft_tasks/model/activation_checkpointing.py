"""Activation checkpointing: blocks keep their input alone and run again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..core.errors import ClipftError


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
        raise ClipftError("memory.checkpointing", "this model has no stack of like blocks", "Set it to none.")
    for block in chosen:
        block.forward = partial(_again, block)  # type: ignore[method-assign]
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
    device = next((a.device.type for a in args if isinstance(a, torch.Tensor)), "cpu")
    if device != "mps":
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    # torch keeps no random state of MPS across a checkpoint, so it is kept here.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=_same_numbers_on_mps, **kwargs)


def _same_numbers_on_mps() -> tuple[Any, Any]:
    states = torch.get_rng_state(), torch.mps.get_rng_state()

    @contextmanager
    def again() -> Iterator[None]:
        now = torch.get_rng_state(), torch.mps.get_rng_state()
        torch.set_rng_state(states[0])
        torch.mps.set_rng_state(states[1])
        try:
            yield
        finally:
            torch.set_rng_state(now[0])
            torch.mps.set_rng_state(now[1])

    return nullcontext(), again()
