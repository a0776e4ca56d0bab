"""What a kind of device is asked: what it can do, its memory, its random numbers. One subclass a backend of PyTorch."""

import gc
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from ..contracts.plan import Fingerprint, Precision
from ..core.settings import settings
from . import cgroup
from .apple_silicon import Chip


@dataclass(frozen=True)
class Hardware:
    """A device and what surrounds it.

    Attributes:
        device: name of its backend, as PyTorch calls it.
        cores: threads that PyTorch may use on the CPU.
        memory: what training may use, bytes.
        devices: how many like it.
        chip: the Apple chip, where there is one.
    """

    device: str
    name: str
    cores: int
    memory: int
    devices: int = 1
    chip: Chip | None = None


class CopyStream(Protocol):
    """Copies to a device that run beside what it computes."""

    def copying(self) -> AbstractContextManager[object]:
        """Copies that are begun inside wait for nothing that the device computes."""

    def ready(self, tensor: torch.Tensor) -> None:
        """What is begun from now on waits for the copies so far, and may use `tensor`, which is one of them."""


class Device(ABC):
    """A kind of device. The class attributes are those of one of which nothing is known but that PyTorch runs on it.

    Attributes:
        name: its device type in PyTorch.
        is_host: it computes on the CPU's own cores and memory, which all processes of the machine share.
        half_precisions: 16-bit formats that may pay, the preferred one first.
        fused_optimizer: AdamW has a fused kernel for it, many times faster than a loop over parameters.
        late_metrics: that kernel should clip gradients and skip steps that are not finite by itself, so that nobody waits for a
            step's metrics; `train.step.fused_step_skips` tries it.
        fused_attention: scaled dot-product attention has a fused kernel for the backward pass too.
        fixed_shapes: every new tensor shape costs memory or a compilation, so sizes come from small sets.
        pinned_memory: copies from page-locked memory need not be waited for, and what they read is not given away before.
        held_copies: copies from the host need not be waited for as long as whoever asked for them holds what they read.
        checkpoint_keeps_rng: `torch.utils.checkpoint` draws the same random numbers again by itself.
        shares_host_memory: its memory is the host's.
        forks: it works in a forked child process.
        contiguous_because: why convolutions are kept in the contiguous layout; "": channels last is faster.
        compile_seconds: what compiling both towers at one size costs.
        matmul_size: side of the square matrices whose product measures its speed.
        memory_from: where the amount of memory that a plan divides comes from, in words.
        collectives: backend of `torch.distributed` for its tensors; "" where processes cannot share a batch.
        watts: power of one under load, assumed where no meter was read.
        out_of_memory: what its errors say when memory is short.
    """

    name: ClassVar[str]
    is_host: ClassVar[bool] = False
    half_precisions: ClassVar[tuple[Precision, ...]] = ("bf16",)
    fused_optimizer: ClassVar[bool] = False
    late_metrics: ClassVar[bool] = False
    fused_attention: ClassVar[bool] = True
    fixed_shapes: ClassVar[bool] = True
    pinned_memory: ClassVar[bool] = False
    held_copies: ClassVar[bool] = False
    checkpoint_keeps_rng: ClassVar[bool] = True
    shares_host_memory: ClassVar[bool] = False
    forks: ClassVar[bool] = True
    contiguous_because: ClassVar[str] = ""
    compile_seconds: ClassVar[float] = 60
    matmul_size: ClassVar[int] = 2048
    memory_from: ClassVar[str] = "what is free"
    collectives: ClassVar[str] = ""
    watts: ClassVar[float] = 300
    out_of_memory: ClassVar[tuple[str, ...]] = ("out of memory",)

    # What there is ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def available(self) -> bool:
        """Whether this machine has one."""

    @abstractmethod
    def hardware(self, chip: Chip | None) -> Hardware:
        """The device of this machine, which is available.

        Args:
            chip: this machine's Apple chip, if it has one.
        """

    def absence(self, chip: Chip | None) -> str:
        """Why this machine has none."""
        return "this machine has none"

    def fingerprint(self, hardware: Hardware) -> Fingerprint:
        """What two machines have in common that may share a plan; what is free at the moment is no part of it."""
        return Fingerprint(
            device=self.name,
            name=hardware.name,
            devices=hardware.devices,
            cores=hardware.cores,
            memory_gb=round(self.memory_total() / 2**30),
        )

    def threads_because(self, hardware: Hardware) -> str:
        """Why PyTorch gets as many threads as `hardware` has cores."""
        return "the cores this process may use; more threads than cores cost twice the time"

    # How to run on it ------------------------------------------------------------------------------------------------

    def likely_precision(self, speedups: Mapping[Precision, float]) -> Precision:
        """The 16-bit format to try.

        Args:
            speedups: of a matrix product over fp32, by format.
        """
        return max(speedups, key=lambda name: speedups[name])

    def check_processes(self, wanted: int, hardware: Hardware) -> None:
        """Raises: ClipftError where so many training processes cannot run."""
        return None

    def no_compile_because(self) -> str:
        """Why the towers are not compiled; "" where that may pay."""
        return ""

    def select(self, index: int) -> None:
        """Let this process use the device of that number, modulo how many there are."""
        return None

    def copy_stream(self) -> CopyStream | None:
        """A stream for copies to the device; None where copies and arithmetic are in one queue."""
        return None

    def synchronize(self) -> None:
        """Wait until all that was asked of it is done."""
        return None

    # Memory, in bytes ------------------------------------------------------------------------------------------------

    @abstractmethod
    def memory_total(self) -> int:
        """What the device has."""

    @abstractmethod
    def memory_free(self) -> int:
        """What may be allocated right now."""

    @abstractmethod
    def memory_used(self) -> int:
        """What this process's tensors take right now, with what the allocator keeps; on the host, the whole process."""

    def memory_peak(self) -> int:
        """The most that this process's tensors took since `reset_peak`, where the allocator counts it; otherwise what they take
        now."""
        return self.memory_used()

    def reset_peak(self) -> None:
        """Count `memory_peak` anew from now on."""
        return None

    def limit_memory(self, limit: int) -> None:
        """Let the allocator fail at `limit` bytes, so that too much is an error to recover from and not a machine that swaps.

        Does nothing where the allocator knows no limit.
        """
        return None

    def release(self) -> None:
        """Give back what the allocator keeps for later."""
        gc.collect()
        self._release()

    @abstractmethod
    def _release(self) -> None: ...

    # Random numbers --------------------------------------------------------------------------------------------------

    @abstractmethod
    def rng_state(self) -> torch.Tensor:
        """The state of its random number generator."""

    @abstractmethod
    def set_rng_state(self, state: torch.Tensor) -> None:
        """Go on from a state that `rng_state` gave."""


def usable_cores() -> int:
    """Cores that this process may run on, not those that the machine has: by its affinity, and by the limit of its container."""
    if settings().threads:
        return int(settings().threads or 1)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    time = cgroup.cores()
    return allowed if time is None else max(1, min(allowed, int(time)))
