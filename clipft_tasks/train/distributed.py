"""Several processes, one batch: each encodes its share, all see every feature, gradients are summed.

The loss is that of one process with the whole batch, and so is the gradient. Everything a step needs derives from its number,
so a run may be resumed by another number of processes.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from ..devices.hardware import select_devices

BUCKET = 2**24  # gradient elements that are sent together: 64 MiB in fp32


@dataclass(frozen=True)
class World:
    """Who shares a step. A world of one never communicates."""

    rank: int = 0
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes checkpoints, logs and progress."""
        return self.rank == 0

    def local_batch(self, total: int) -> int:
        """How many of `total` rows a process has; the last ones may have fewer."""
        return -(-total // self.size)

    def local_rows(self, total: int, rank: int | None = None) -> slice:
        """Which of `total` rows are a process's own; this one's, unless another is named."""
        each, rank = self.local_batch(total), self.rank if rank is None else rank
        return slice(min(rank * each, total), min((rank + 1) * each, total))

    def any(self, here: bool) -> bool:
        """Whether it is so on any process; a meeting point of processes, at which no device waits."""
        if self.size == 1:
            return here
        flag = torch.tensor([float(here)])  # on the host, so that its queue of work for the device stays full
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag.item())

    def most(self, here: float) -> float:
        """The largest of all processes' numbers; a meeting point as `any`."""
        if self.size == 1:
            return here
        number = torch.tensor([here], dtype=torch.float64)
        distributed.all_reduce(number, op=distributed.ReduceOp.MAX)
        return float(number.item())

    def room(self, own: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """This process's rows (k, d), padded to everybody's share, and an empty place for everybody's.

        All that a gathering needs of memory before it: a process that fails in the midst of one would leave the others waiting.
        """
        each = self.local_batch(total)
        padded = own.detach().contiguous()
        if len(own) < each:
            padded = torch.cat([padded, padded.new_zeros(each - len(own), own.shape[1])])
        return padded, own.new_empty(self.size * each, own.shape[1])

    def gather(self, own: Tensor, total: int, room: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Everybody's rows, in the order of ranks: (total, d). Gradients reach this process's rows alone.

        Args:
            own: (k, d), this process's share of the rows.
            room: what `room` gave for it.
        """
        if self.size == 1:
            return own
        padded, gathered = room or self.room(own, total)
        distributed.all_gather_into_tensor(gathered, padded)
        mine = self.local_rows(total)
        return torch.cat([gathered[: mine.start], own, gathered[mine.stop : total]])

    def sum_gradients(self, parameters: Iterable[Tensor], shared: Iterable[Tensor] = ()) -> None:
        """Sum gradients over processes, a bucket on its way while the next one is packed.

        A gradient ends as a part of its bucket, so nothing is copied back, and no more than a bucket is held twice.

        Args:
            shared: parameters whose gradient every process computed whole (temperature, bias, the objective's own).
        """
        if self.size == 1:
            return
        for parameter in shared:
            if parameter.grad is not None:
                parameter.grad /= self.size
        sent = []
        for bucket in _buckets([p for p in parameters if p.requires_grad]):
            # A process without a row of some kind has no gradient there.
            given = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = given[0].new_empty(sum(g.numel() for g in given))
            places = [_like(part, g) for part, g in zip(flat.split([g.numel() for g in given]), given, strict=True)]
            torch._foreach_copy_(places, given)
            for parameter, place in zip(bucket, places, strict=True):
                parameter.grad = place
            sent.append(distributed.all_reduce(flat, async_op=True))
        for work in sent:
            work.wait()

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Make these the main process's, everywhere."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


ALONE = World()


def _buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one kind and device, together of about BUCKET elements."""
    bucket: list[Tensor] = []
    for parameter in parameters:
        other = bucket and (bucket[0].dtype, bucket[0].device) != (parameter.dtype, parameter.device)
        if bucket and (other or sum(p.numel() for p in bucket) + parameter.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def _like(flat: Tensor, gradient: Tensor) -> Tensor:
    """A part of a bucket in the gradient's shape and memory layout, which the optimizer's fast path looks at."""
    if gradient.ndim == 4 and gradient.is_contiguous(memory_format=torch.channels_last):
        n, c, h, w = gradient.shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)
    return flat.view(gradient.shape)


def initialize() -> World:
    """The world that torchrun put this process into (its environment says so); a world of one otherwise."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    distributed.init_process_group(select_devices(int(os.environ["LOCAL_RANK"])))
    return World(distributed.get_rank(), size)


def shut_down() -> None:
    """Leave the world again, if this process is in one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
