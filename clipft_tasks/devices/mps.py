"""The GPU of an Apple chip, through Metal Performance Shaders. It shares its memory with the CPU."""

import psutil
import torch

from ..core.errors import ClipftError
from ..core.settings import settings
from .apple_silicon import Chip
from .base import Device, Hardware, usable_cores


class Mps(Device):
    name = "mps"
    half_precisions = ("fp16", "bf16")
    fused_optimizer = True
    late_metrics = True
    held_copies = True
    fused_attention = False  # https://github.com/pytorch/pytorch/issues/179294
    shares_host_memory = True
    checkpoint_keeps_rng = False
    forks = False  # https://github.com/pytorch/pytorch/issues/178037
    contiguous_because = "on MPS, channels-last convolutions are converted back and forth"
    matmul_size = 2048
    memory_from = "what macOS recommends for the GPU"
    watts = 40.0
    out_of_memory = ("out of memory", "Invalid buffer size")

    def available(self) -> bool:
        return torch.backends.mps.is_available()

    def hardware(self, chip: Chip | None) -> Hardware:
        cores = settings().threads or (chip.fast_cores if chip else usable_cores())
        return Hardware(self.name, str(chip or "Apple GPU"), cores, self._recommended(), chip=chip)

    def absence(self, chip: Chip | None) -> str:
        if chip and chip.translated:
            return "this Python is an Intel build under Rosetta, which has no MPS"
        return super().absence(chip)

    def threads_because(self, hardware: Hardware) -> str:
        if hardware.chip is None:
            return super().threads_because(hardware)
        return f"the fast cores of {hardware.chip.name}; the other {hardware.chip.other_cores} would hold them up"

    def check_processes(self, wanted: int, hardware: Hardware) -> None:
        if wanted > 1:
            raise ClipftError(
                "memory.processes",
                "a Mac has one GPU, which processes would only share",
                "Leave it empty.",
                code="device.too_many_processes",
            )

    def no_compile_because(self) -> str:
        return "the compiler for MPS is not ready for training"

    def synchronize(self) -> None:
        torch.mps.synchronize()

    def memory_total(self) -> int:
        return int(psutil.virtual_memory().total)

    def memory_free(self) -> int:
        return self._recommended() - torch.mps.driver_allocated_memory()

    def memory_used(self) -> int:
        return torch.mps.driver_allocated_memory()

    def limit_memory(self, limit: int) -> None:
        # PyTorch's own limit is 1.7 times what the system recommends.
        torch.mps.set_per_process_memory_fraction(min(1.0, limit / self._recommended()))

    def _release(self) -> None:
        torch.mps.empty_cache()

    def rng_state(self) -> torch.Tensor:
        return torch.mps.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        torch.mps.set_rng_state(state)

    def _recommended(self) -> int:
        return int(torch.mps.recommended_max_memory())
