"""Chips: every Mac that was ever sold is told by what its sysctl says, and nothing that it says breaks a run."""

import json
import subprocess
from pathlib import Path

import pytest

from clipft_tasks.devices import apple_silicon
from clipft_tasks.devices.apple_silicon import Chip, detect

GIB = 2**30


def mac(brand: str, memory: int, *levels: int, macos: str = "", **more: str) -> dict[str, str]:
    """What sysctl says on a Mac with `levels` logical cores of each kind, the fastest first."""
    names = ("Super", "Performance") if brand.startswith("Apple M5") else ("Performance", "Efficiency", "Low power")
    said = {"machdep.cpu.brand_string": brand, "hw.memsize": str(memory), "hw.nperflevels": str(len(levels))}
    for level, cores in enumerate(levels):
        said |= {f"hw.perflevel{level}.logicalcpu": str(cores), f"hw.perflevel{level}.name": names[level]}
    return said | ({"kern.osproductversion": macos} if macos else {}) | more


def chip_of(said: dict[str, str], gpu: int = 0) -> Chip | None:
    return detect(lambda name: said.get(name, ""), lambda: gpu)


RECORDED = [
    (
        mac("Apple M1", 17179869184, 4, 4, macos="13.7.8"),
        Chip("Apple M1", 1, "", 4, 4, 8, 16 * GIB, "13.7.8"),
        "Apple M1 (4+4 CPU cores, 8 GPU cores, 16 GiB, macOS 13.7.8)",
    ),
    (
        mac("Apple M1 Pro", 17179869184, 8, 2),
        Chip("Apple M1 Pro", 1, "Pro", 8, 2, 16, 16 * GIB, ""),
        "Apple M1 Pro (8+2 CPU cores, 16 GPU cores, 16 GiB)",
    ),
    (
        mac("Apple M1 Max", 68719476736, 8, 2, macos="26.5.2"),
        Chip("Apple M1 Max", 1, "Max", 8, 2, 32, 64 * GIB, "26.5.2"),
        "Apple M1 Max (8+2 CPU cores, 32 GPU cores, 64 GiB, macOS 26.5.2)",
    ),
    (
        mac("Apple M1 Ultra", 68719476736, 16, 4, macos="15.6"),
        Chip("Apple M1 Ultra", 1, "Ultra", 16, 4, 48, 64 * GIB, "15.6"),
        "Apple M1 Ultra (16+4 CPU cores, 48 GPU cores, 64 GiB, macOS 15.6)",
    ),
    (
        mac("Apple M2", 17179869184, 4, 4, macos="14.6.1"),
        Chip("Apple M2", 2, "", 4, 4, 8, 16 * GIB, "14.6.1"),
        "Apple M2 (4+4 CPU cores, 8 GPU cores, 16 GiB, macOS 14.6.1)",
    ),
    (
        mac("Apple M2 Pro", 17179869184, 8, 4),
        Chip("Apple M2 Pro", 2, "Pro", 8, 4, 19, 16 * GIB, ""),
        "Apple M2 Pro (8+4 CPU cores, 19 GPU cores, 16 GiB)",
    ),
    (
        mac("Apple M2 Max", 68719476736, 8, 4, macos="26.6.2"),
        Chip("Apple M2 Max", 2, "Max", 8, 4, 38, 64 * GIB, "26.6.2"),
        "Apple M2 Max (8+4 CPU cores, 38 GPU cores, 64 GiB, macOS 26.6.2)",
    ),
    (
        mac("Apple M2 Ultra", 206158430208, 16, 8, macos="14.3.1"),
        Chip("Apple M2 Ultra", 2, "Ultra", 16, 8, 60, 192 * GIB, "14.3.1"),
        "Apple M2 Ultra (16+8 CPU cores, 60 GPU cores, 192 GiB, macOS 14.3.1)",
    ),
    (
        mac("Apple M3 Pro", 19327352832, 5, 6),
        Chip("Apple M3 Pro", 3, "Pro", 5, 6, 14, 18 * GIB, ""),
        "Apple M3 Pro (5+6 CPU cores, 14 GPU cores, 18 GiB)",
    ),
    (
        mac("Apple M3 Ultra", 103079215104, 20, 8),
        Chip("Apple M3 Ultra", 3, "Ultra", 20, 8, 60, 96 * GIB, ""),
        "Apple M3 Ultra (20+8 CPU cores, 60 GPU cores, 96 GiB)",
    ),
    (
        mac("Apple M4", 25769803776, 4, 6, macos="15.5"),
        Chip("Apple M4", 4, "", 4, 6, 10, 24 * GIB, "15.5"),
        "Apple M4 (4+6 CPU cores, 10 GPU cores, 24 GiB, macOS 15.5)",
    ),
    (
        mac("Apple M4 Pro", 68719476736, 10, 4, macos="26.5.2"),
        Chip("Apple M4 Pro", 4, "Pro", 10, 4, 20, 64 * GIB, "26.5.2"),
        "Apple M4 Pro (10+4 CPU cores, 20 GPU cores, 64 GiB, macOS 26.5.2)",
    ),
    (
        mac("Apple M4 Max", 68719476736, 12, 4),
        Chip("Apple M4 Max", 4, "Max", 12, 4, 40, 64 * GIB, ""),
        "Apple M4 Max (12+4 CPU cores, 40 GPU cores, 64 GiB)",
    ),
    (
        mac("Apple M5 Pro", 51539607552, 5, 10, macos="26.5.2"),
        Chip("Apple M5 Pro", 5, "Pro", 5, 10, 16, 48 * GIB, "26.5.2"),
        "Apple M5 Pro (5+10 CPU cores, 16 GPU cores, 48 GiB, macOS 26.5.2)",
    ),
    (
        mac("Apple M5 Max", 137438953472, 6, 12, macos="26.6.2"),
        Chip("Apple M5 Max", 5, "Max", 6, 12, 40, 128 * GIB, "26.6.2"),
        "Apple M5 Max (6+12 CPU cores, 40 GPU cores, 128 GiB, macOS 26.6.2)",
    ),
]


# real chips -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "chip", "text"), RECORDED, ids=[chip.name for _, chip, _ in RECORDED])
def test_a_chip_is_told_by_what_sysctl_says(said, chip, text):
    found = chip_of(said, chip.gpu_cores)
    assert found == chip and str(found) == text
    assert not found.virtual and not found.translated
    assert found.native_half == ("fp16" if chip.generation <= 2 else "bf16")


def test_a_third_kind_of_core_counts_with_the_others():
    found = chip_of(mac("Apple M6", 34359738368, 2, 4, 6, macos="27.0.1"), 12)
    assert found == Chip("Apple M6", 6, "", 2, 10, 12, 32 * GIB, "27.0.1")
    assert found.native_half == "bf16" and str(found) == "Apple M6 (2+10 CPU cores, 12 GPU cores, 32 GiB, macOS 27.0.1)"


def test_a_generation_of_two_digits_is_a_number():
    found = chip_of(mac("Apple M12 Ultra", 64 * GIB, 8, 8))
    assert (found.generation, found.tier, found.native_half) == (12, "Ultra", "bf16")


# odd ones -------------------------------------------------------------------------------------------------------------


def test_a_virtual_machine_has_its_chip_but_one_kind_of_core_and_no_gpu():
    found = chip_of(mac("Apple M1 (Virtual)", 7516192768, 3, macos="15.5"))
    assert found == Chip("Apple M1 (Virtual)", 1, "", 3, 0, 0, 7 * GIB, "15.5", virtual=True)
    assert found.native_half == "fp16" and str(found) == "Apple M1 (Virtual) (3+0 CPU cores, 7 GiB, macOS 15.5)"


def test_rosetta_of_an_old_macos_hides_the_name_only():
    said = mac("VirtualApple @ 2.50GHz processor", 17179869184, 4, 4, macos="12.6", **{"sysctl.proc_translated": "1"})
    assert chip_of(said, 8) == Chip("Apple Silicon", 0, "", 4, 4, 8, 16 * GIB, "12.6", translated=True)
    assert chip_of(said).native_half == "" and not chip_of(said).virtual


def test_rosetta_of_a_new_macos_tells_the_chip():
    said = mac("Apple M4", 25769803776, 4, 6, macos="15.5", **{"sysctl.proc_translated": "1"})
    assert chip_of(said, 10) == Chip("Apple M4", 4, "", 4, 6, 10, 24 * GIB, "15.5", translated=True)


def test_a_native_process_is_not_translated():
    assert not chip_of(mac("Apple M4", 25769803776, 4, 6, **{"sysctl.proc_translated": "0"})).translated


def test_the_developer_kit_is_a_chip_without_generation():
    found = chip_of(mac("Apple processor", 17179869184, 4, 4, macos="11.0"), 8)
    assert found == Chip("Apple processor", 0, "", 4, 4, 8, 16 * GIB, "11.0")
    assert found.native_half == ""


@pytest.mark.parametrize("brand", ["Apple M7 Extreme", "Apple A18 Pro", "Apple M"])
def test_a_name_that_is_not_known_yet_keeps_its_cores(brand):
    found = chip_of(mac(brand, 8 * GIB, 6, 8), 20)
    assert found == Chip(brand, 0, "", 6, 8, 20, 8 * GIB, "")


@pytest.mark.parametrize(
    "said",
    [
        {"machdep.cpu.brand_string": "Intel(R) Core(TM) i9-9980HK CPU @ 2.40GHz", "hw.memsize": "34359738368", "hw.ncpu": "16"},
        mac("Intel(R) Core(TM) i7-8700B CPU @ 3.20GHz", 15032385536, 4, **{"hw.perflevel0.name": "Standard"}),
        {},
    ],
    ids=["intel", "intel-vm", "linux"],
)
def test_other_machines_have_none_and_their_gpu_is_not_asked_for(said):
    def gpu() -> int:
        raise AssertionError("system_profiler takes seconds")

    assert detect(lambda name: said.get(name, ""), gpu) is None


BROKEN = {
    "machdep.cpu.brand_string": "Apple M2",
    "hw.memsize": "lots",
    "hw.nperflevels": "unknown oid",
    "hw.perflevel0.logicalcpu": "eight",
    "hw.ncpu": "8",
}


def test_values_that_are_no_numbers_count_as_not_said():
    found = chip_of(BROKEN)
    assert found == Chip("Apple M2", 2, "", 8, 0, 0, 0, "")
    assert str(found).startswith("Apple M2 (8+0 CPU cores") and "GPU" not in str(found) and "macOS" not in str(found)


def test_logical_cores_go_before_all_cores_and_there_is_always_one():
    assert chip_of(BROKEN | {"hw.logicalcpu": "6"}).fast_cores == 6
    assert chip_of({"machdep.cpu.brand_string": "Apple M2"}).fast_cores == 1


# sysctl and system_profiler -------------------------------------------------------------------------------------------


@pytest.fixture
def executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes shell scripts into a folder that is all there is on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    apple_silicon.gpu_cores.cache_clear()

    def write(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    yield write
    apple_silicon.gpu_cores.cache_clear()


def fake_sysctl(said: dict[str, str]) -> str:
    """A script with the words of macOS: values alone with -n, unknown names on stderr."""
    cases = "\n".join(f"'{name}') echo '{value}' ;;" for name, value in said.items())
    unknown = """*) echo "sysctl: unknown oid '$2'" >&2; exit 1 ;;"""
    return f'[ "$1" = -n ] || exit 2\ncase "$2" in\n{cases}\n{unknown}\nesac'


def profiler(content: object) -> str:
    return f"echo '{json.dumps(content)}'"


def hangs(command, *, timeout, **_):
    raise subprocess.TimeoutExpired(command, timeout)


def test_sysctl_gives_the_value_without_its_line_end(executable):
    executable("sysctl", fake_sysctl({"hw.memsize": "17179869184", "machdep.cpu.brand_string": "Apple M1"}))
    assert (
        apple_silicon.sysctl("hw.memsize") == "17179869184" and apple_silicon.sysctl("machdep.cpu.brand_string") == "Apple M1"
    )


def test_an_unknown_name_is_nothing(executable):
    executable("sysctl", fake_sysctl({}))
    assert apple_silicon.sysctl("hw.nperflevels") == ""


def test_what_a_failing_sysctl_prints_does_not_count(executable):
    executable("sysctl", "echo 8; exit 1")
    assert apple_silicon.sysctl("hw.ncpu") == ""


def test_without_sysctl_there_is_no_chip(executable):
    assert apple_silicon.sysctl("hw.memsize") == "" and detect() is None


def test_a_sysctl_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(apple_silicon.subprocess, "run", hangs)
    assert apple_silicon.sysctl("hw.memsize") == ""


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ({"SPDisplaysDataType": [{"sppci_cores": "10"}]}, 10),
        ({"SPDisplaysDataType": [{"sppci_model": "a display"}, {"sppci_cores": "38"}]}, 38),
        ({"SPDisplaysDataType": [{"sppci_cores": 10}]}, 10),
        ({"SPDisplaysDataType": [{"sppci_cores": "ten"}]}, 0),
        ({"SPDisplaysDataType": [{}]}, 0),
        ({"SPDisplaysDataType": []}, 0),
        ({}, 0),
    ],
)
def test_cores_of_the_gpu_are_what_system_profiler_says(executable, content, cores):
    executable("system_profiler", f'[ "$*" = "-json SPDisplaysDataType" ] || exit 2\n{profiler(content)}')
    assert apple_silicon.gpu_cores() == cores


@pytest.mark.parametrize("script", ["echo rubbish", "echo '{\"SPDisplays'", "true", "echo no >&2; exit 1"])
def test_garbled_output_of_system_profiler_is_no_gpu(executable, script):
    executable("system_profiler", script)
    assert apple_silicon.gpu_cores() == 0


def test_no_system_profiler_or_one_that_hangs_is_no_gpu(executable, monkeypatch):
    assert apple_silicon.gpu_cores() == 0
    apple_silicon.gpu_cores.cache_clear()
    monkeypatch.setattr(apple_silicon.subprocess, "run", hangs)
    assert apple_silicon.gpu_cores() == 0


def test_system_profiler_is_asked_once(executable, tmp_path):
    executable("system_profiler", f"echo x >> {tmp_path / 'asked'}\n{profiler({'SPDisplaysDataType': [{'sppci_cores': '8'}]})}")
    assert [apple_silicon.gpu_cores() for _ in range(3)] == [8, 8, 8]
    assert (tmp_path / "asked").read_text() == "x\n"


def test_a_whole_machine_is_recognized_through_both_programs(executable):
    executable("sysctl", fake_sysctl(mac("Apple M4", 25769803776, 4, 6, macos="15.5")))
    executable("system_profiler", profiler({"SPDisplaysDataType": [{"sppci_cores": "10"}]}))
    assert detect() == Chip("Apple M4", 4, "", 4, 6, 10, 24 * GIB, "15.5")


@pytest.mark.parametrize("said", ["[]", "null", '{"SPDisplaysDataType": null}', '{"SPDisplaysDataType": ["x"]}'])
def test_a_profiler_that_says_something_else_knows_no_cores(said, monkeypatch):
    apple_silicon.gpu_cores.cache_clear()
    done = subprocess.CompletedProcess([], 0, said, "")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    assert apple_silicon.gpu_cores() == 0
    apple_silicon.gpu_cores.cache_clear()


def test_unknown_memory_is_left_out_of_the_words():
    said = mac("Apple M2", 17179869184, 4, 4, **{"hw.memsize": "lots"})
    assert "GiB" not in str(chip_of(said))
