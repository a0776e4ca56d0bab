"""Which Apple chip this is, read from sysctl. Nothing here needs a Mac: the reader is an argument."""

import functools
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

Reader = Callable[[str], str]

BRAND = re.compile(r"Apple M(?P<generation>\d+)(?: (?P<tier>Pro|Max|Ultra))?(?P<virtual> \(Virtual\))?$")


@dataclass(frozen=True)
class Chip:
    """An Apple Silicon chip. Zero and "" mean that this machine does not say.

    Attributes:
        generation: 1 for M1, and so on; 0 when the name does not tell.
        tier: "", Pro, Max or Ultra.
        fast_cores: of the fastest kind (performance cores; "super" cores from M5 on).
        other_cores: all others, efficiency cores for the most part.
        gpu_cores: of the integrated GPU.
        memory: unified memory, bytes.
        macos: version, such as 15.5.
        virtual: a virtual machine, whose GPU shares memory and cores with others.
        translated: this Python is an Intel build under Rosetta, which has no MPS.
    """

    name: str
    generation: int
    tier: str
    fast_cores: int
    other_cores: int
    gpu_cores: int
    memory: int
    macos: str
    virtual: bool = False
    translated: bool = False

    @property
    def native_half(self) -> str:
        """The 16-bit format that the GPU computes natively, "" when unknown; M1 and M2 emulate bf16. A microbenchmark has the last word."""
        return {0: ""}.get(self.generation, "bf16" if self.generation >= 3 else "fp16")

    def __str__(self) -> str:
        cores = f"{self.fast_cores}+{self.other_cores} CPU cores"
        gpu = f", {self.gpu_cores} GPU cores" if self.gpu_cores else ""
        system = f", macOS {self.macos}" if self.macos else ""
        memory = f", {self.memory / 2**30:.0f} GiB" if self.memory else ""
        return f"{self.name} ({cores}{gpu}{memory}{system})"


def sysctl(name: str) -> str:
    """A value of this machine's sysctl, or "" when there is none."""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@functools.cache
def gpu_cores() -> int:
    """Cores of the GPU, from system_profiler; 0 where it does not say (virtual machines)."""
    try:
        done = subprocess.run(
            ["system_profiler", "-json", "SPDisplaysDataType"], capture_output=True, text=True, check=False, timeout=20
        )
        displays = json.loads(done.stdout)["SPDisplaysDataType"]
        return max((_number(str(d.get("sppci_cores", ""))) for d in displays), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, subprocess.TimeoutExpired):
        return 0


def detect(read: Reader = sysctl, gpu: Callable[[], int] = gpu_cores) -> Chip | None:
    """The chip of this machine, or None when it is no Apple Silicon.

    Args:
        read: sysctl name -> value, "" for one that is not there.
        gpu: cores of the GPU.
    """
    brand = read("machdep.cpu.brand_string")
    translated = read("sysctl.proc_translated") == "1"
    if not (brand.startswith("Apple") or translated):
        return None
    match = BRAND.match(brand)
    levels = _number(read("hw.nperflevels")) or 1
    cores = [_number(read(f"hw.perflevel{level}.logicalcpu")) for level in range(levels)]
    fast, others = cores[0], sum(cores[1:])  # level 0 is the fastest, whatever it is called
    if not fast:
        fast, others = _number(read("hw.logicalcpu")) or _number(read("hw.ncpu")), 0
    return Chip(
        name=brand if match else (brand if brand.startswith("Apple") else "Apple Silicon"),
        generation=int(match["generation"]) if match else 0,
        tier=(match["tier"] or "") if match else "",
        fast_cores=fast or 1,
        other_cores=others,
        gpu_cores=gpu(),
        memory=_number(read("hw.memsize")),
        macos=read("kern.osproductversion"),
        virtual=bool(match and match["virtual"]),
        translated=translated,
    )


def _number(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0
