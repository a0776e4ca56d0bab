"""Limits of control groups, as a container has them, in files that stand for the kernel's."""

import os
from pathlib import Path

import psutil
import pytest

from clipft_tasks.devices import backend, cgroup
from clipft_tasks.devices.hardware import usable_cores

GIB = 2**30


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Write the kernel's files: path below the root -> content; `own` is what /proc/self/cgroup says."""
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")

    def put(own: str, **files: object) -> None:
        (tmp_path / "own").write_text(own + "\n")
        (tmp_path / "cgroup").mkdir(exist_ok=True)
        for name, content in files.items():
            path = tmp_path / "cgroup" / Path(name.replace("__", "/").replace("_dot_", "."))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")

    return put


def test_version_two_in_a_container_which_sees_its_own_group_as_the_root(kernel):
    kernel("0::/", memory_dot_max=4 * GIB, memory_dot_current=3 * GIB, cpu_dot_max="150000 100000",
           memory_dot_stat=f"anon 5\ninactive_file {GIB}\n")  # fmt: skip
    assert cgroup.memory_limit() == 4 * GIB and cgroup.memory_free() == 2 * GIB and cgroup.cores() == 1.5


def test_the_least_limit_of_a_group_and_those_above_it_counts(kernel):
    kernel("0::/slice/job", slice__memory_dot_max=2 * GIB, slice__memory_dot_current=GIB, slice__cpu_dot_max="800000 100000",
           slice__job__memory_dot_max="max", slice__job__memory_dot_current=0, slice__job__cpu_dot_max="max 100000")  # fmt: skip
    assert cgroup.memory_limit() == 2 * GIB and cgroup.memory_free() == GIB and cgroup.cores() == 8


def test_version_one(kernel):
    kernel(
        "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x",
        memory__docker__x__memory_dot_limit_in_bytes=GIB, memory__docker__x__memory_dot_usage_in_bytes=0,
        cpu__docker__x__cpu_dot_cfs_quota_us=200000, cpu__docker__x__cpu_dot_cfs_period_us=100000,
    )  # fmt: skip
    assert cgroup.memory_limit() == cgroup.memory_free() == GIB and cgroup.cores() == 2


@pytest.mark.parametrize("own", ["", "0::/", "0::/not/there"])
def test_without_a_limit_nothing_is_said(kernel, own):
    kernel(own, memory_dot_max="max")
    assert cgroup.memory_limit() is cgroup.memory_free() is cgroup.cores() is None


def test_the_cpu_has_no_more_than_its_container(kernel, monkeypatch, home):
    kernel("0::/", memory_dot_max=GIB, memory_dot_current=GIB // 4, cpu_dot_max="100000 100000")
    cpu = backend("cpu")
    assert cpu.memory_total() == GIB and cpu.memory_free() == GIB * 3 // 4 and usable_cores() == 1
    kernel("0::/", memory_dot_max=2**50, memory_dot_current=0, cpu_dot_max=f"{(os.cpu_count() or 1) * 2}00000 100000")
    assert cpu.memory_total() == psutil.virtual_memory().total and usable_cores() >= 1
