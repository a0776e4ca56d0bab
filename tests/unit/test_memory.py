"""Memory: its shortage is told from other errors, and the size of a pass follows what fits."""

import platform
import subprocess
import sys

import pytest
import torch
from fixtures.errors import refuses

from clipft_tasks.devices.memory import OutOfMemoryError, is_out_of_memory
from clipft_tasks.train.micro_batches import PATIENCE, MicroBatches

LIMIT = 10 * 2**30
ROOM, FULL = 2 * 2**30, 6 * 2**30


def micro(size: int = 16, most: int = 64, side: int = 96, **others: int) -> MicroBatches:
    return MicroBatches({side: size} | {int(name.strip("_")): n for name, n in others.items()}, most, LIMIT)


def go(batches: MicroBatches, steps: int, in_use: int = ROOM, side: int = 96) -> int:
    for _ in range(steps):
        batches.went_well(side, in_use)
    return batches.at(side)


# Told apart -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.06 GiB is free. "
            "Including non-PyTorch memory, this process has 78.04 GiB memory in use."
        ),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 8.52 GB, other allocations: 384.00 KB, max allowed: 9.07 GB). Tried to "
            "allocate 563.62 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory "
            "allocations (may cause system failure)."
        ),
        RuntimeError("Invalid buffer size: 12 GB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
            "4000000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried to allocate 4000000 bytes."
        ),
        MemoryError("Unable to allocate 3.00 GiB for an array with shape (1024, 1024, 1024) and data type uint8"),
        OutOfMemoryError("on another process"),
    ],
    ids=["cuda", "cuda runtime", "cublas", "mps", "mps buffer", "cpu", "cpu on windows", "numpy", "own"],
)
def test_a_shortage_of_memory_is_known_by_its_words(error):
    assert is_out_of_memory(error)


def test_what_torch_itself_raises_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x8 and 16x2)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
        NotImplementedError("The operator 'aten::linalg_qr' is not currently implemented for the MPS device."),
        ValueError("out of memory"),
        KeyboardInterrupt(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_other_errors_are_no_shortage_of_memory(error):
    assert not is_out_of_memory(error)


# Smaller --------------------------------------------------------------------------------------------------------------


def test_each_failure_halves_down_to_one_and_no_further():
    batches, seen = micro(11), []
    while batches.at(96) > 1:
        batches.failed(96, "CUDA out of memory")
        seen.append(batches.at(96))
    assert seen == [6, 3, 2, 1] and batches.failures == 4
    with refuses("memory.single_too_large", "96 px", "CUDA oom", "resolution.train"):
        batches.failed(96, "CUDA oom\nand what else the driver says")
    assert batches.at(96) == 1


def test_a_size_above_the_share_is_cut_to_it_first():
    assert micro(64).fits(96) and not micro(63).fits(96)
    batches = micro(64, most=20)
    assert batches.fits(96)
    batches.failed(96, "short")
    assert batches.at(96) == 10 and not batches.fits(96)


def test_a_share_of_one_pair_cannot_be_halved():
    with refuses("memory.single_too_large", "96 px"):
        micro(64, most=1).failed(96, "short")


# Larger ---------------------------------------------------------------------------------------------------------------


def test_after_many_good_steps_with_room_it_doubles_up_to_the_batch():
    batches = micro(24)
    assert go(batches, PATIENCE - 1) == 24 and go(batches, 1) == 48
    assert go(batches, PATIENCE - 1) == 48 and go(batches, 1) == 64
    assert go(batches, 5 * PATIENCE) == 64


def test_without_room_for_twice_as_much_it_stays():
    batches = micro()
    assert go(batches, 5 * PATIENCE, FULL) == 16 and go(batches, PATIENCE, LIMIT // 2) == 16
    assert go(batches, PATIENCE) == 32


def test_a_failure_starts_the_count_anew():
    batches = micro()
    batches.failed(96, "short")
    assert go(batches, PATIENCE - 1) == 8 and go(batches, 1) == 16


def test_after_a_failure_that_followed_growth_it_waits_twice_as_long():
    batches = micro()
    assert go(batches, PATIENCE + 1) == 32
    batches.failed(96, "short")
    assert go(batches, 2 * PATIENCE - 1) == 16 and go(batches, 1) == 32
    go(batches, 1)
    batches.failed(96, "short")
    assert go(batches, 4 * PATIENCE - 1) == 16 and go(batches, 1) == 32


def test_other_sides_are_left_as_they_are():
    planned = {96: 16, 128: 8}
    batches = MicroBatches(planned, 64, LIMIT)
    batches.failed(96, "short")
    go(batches, PATIENCE)
    go(batches, PATIENCE - 1, side=128)
    assert (batches.at(96), batches.at(128)) == (16, 8) and go(batches, 1, side=128) == 16
    assert planned == {96: 16, 128: 8}  # the plan itself does not change


def test_growth_that_fails_at_once_is_tried_half_as_often():
    micro = MicroBatches({32: 8}, 32, 100)
    for _ in range(PATIENCE):
        micro.went_well(32, 10)
    assert micro.at(32) == 16
    micro.failed(32, "CUDA out of memory")
    assert micro.at(32) == 8
    for _ in range(PATIENCE):
        micro.went_well(32, 10)
    assert micro.at(32) == 8
    for _ in range(PATIENCE):
        micro.went_well(32, 10)
    assert micro.at(32) == 16


REUSE = """
import resource, torch
from clipft_tasks.devices.host_allocator import give_back_freed_memory, keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = [faults(), faults()][1]
keep_freed_memory()
kept = sum([faults() for _ in range(30)][5:]) // 25  # the first ones may have to grow the heap
give_back_freed_memory()
print(plain, kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_used_again_without_new_pages_until_it_is_given_back():
    said = subprocess.run([sys.executable, "-c", REUSE], capture_output=True, text=True, check=True).stdout
    plain, kept, given_back = map(int, said.split())
    assert kept * 4 < min(plain, given_back)  # a system short of memory takes some pages back by itself


def test_it_grows_by_what_all_processes_have_in_use_so_that_all_take_passes_of_one_size():
    used = [int(0.4 * LIMIT), int(0.6 * LIMIT)]
    ranks = [MicroBatches({96: 16}, 64, LIMIT, largest=lambda here: max(used)) for _ in used]
    for batches, in_use in zip(ranks, used, strict=True):
        go(batches, 2 * PATIENCE, in_use)
    assert [batches.at(96) for batches in ranks] == [16, 16]


def test_weights_do_not_double_when_a_pass_takes_more_pairs():
    batches = MicroBatches({96: 16}, 64, LIMIT, fixed=int(0.5 * LIMIT))
    assert go(batches, PATIENCE, int(0.7 * LIMIT)) == 32
