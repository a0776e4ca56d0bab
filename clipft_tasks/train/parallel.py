"""Several processes, one batch: each encodes its share, all see every feature, gradients are summed.

The loss is that of one process with the whole batch, and so is the gradient. Everything a step needs derives from its number,
so a run may be resumed by another number of processes.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class World:
    """Who shares a step. A world of one never communicates."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints, logs and progress."""
        return self.rank == 0

    def any(self, here: bool) -> bool:
        """Whether it is so on any process; a meeting point."""
        if self.size == 1:
            return here
        flag = torch.tensor([float(here)], device=_device())
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag.item())

    def gather(self, own: Tensor, count: int) -> Tensor:
        """Everybody's rows, in the order of ranks: (sum of counts, d). Gradients reach this process's rows alone.

        Args:
            own: (count, d); processes may differ in count.
        """
        if self.size == 1:
            return own
        counts = [torch.zeros(1, dtype=torch.long, device=own.device) for _ in range(self.size)]
        distributed.all_gather(counts, torch.tensor([count], device=own.device))
        sizes = [int(c) for c in counts]
        padded = own.new_zeros((max(sizes), own.shape[1]))
        padded[:count] = own.detach()
        all_rows = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(all_rows, padded)
        parts = [rows[:size] for rows, size in zip(all_rows, sizes, strict=True)]
        parts[self.rank] = own
        return torch.cat(parts)

    def sum_gradients(self, parameters: Iterable[Tensor], shared: Iterable[Tensor] = ()) -> None:
        """Sum gradients over processes.

        Args:
            shared: parameters whose gradient every process computed whole (temperature, bias, the objective's own).
        """
        if self.size == 1:
            return
        for parameter in shared:
            if parameter.grad is not None:
                parameter.grad /= self.size
        given = [p for p in parameters if p.requires_grad]
        for parameter in given:  # a process without a row of some kind has no gradient there
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in given if p.grad is not None])
        distributed.all_reduce(flat)
        start = 0
        for parameter in given:
            assert parameter.grad is not None
            parameter.grad.copy_(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()

    def copy_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Make these the leader's, everywhere."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


ALONE = World()


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else torch.device("cpu")


def join() -> World:
    """The world that torchrun put this process into (its environment says so); a world of one otherwise."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return World(distributed.get_rank(), size)


def leave() -> None:
    """Leave the world again, if there is one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
