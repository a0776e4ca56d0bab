"""What a container or a service may use: limits of Linux control groups, which count for a process whatever the machine has.

Both versions are read, the group of this process and those above it; the least limit counts. Where there are none, nothing is said.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
UNLIMITED = 2**60  # version 1 says "no limit" with a number of about this size


def memory_limit() -> int | None:
    """Bytes that this process and its neighbors in the group may use together; None where nothing limits them."""
    return min((limit for _, limit in _limited()), default=None)


def memory_free() -> int | None:
    """Bytes of the limit that are not used; what the kernel would give back of cached files counts as free."""
    return min((max(0, limit - _used(folder)) for folder, limit in _limited()), default=None)


def cores() -> float | None:
    """Cores' worth of time that the group may use; None where nothing limits it."""
    found = []
    for folder in _folders("cpu"):
        quota, _, period = (_text(folder / "cpu.max") or "").partition(" ")  # version 2
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us") or "", _text(folder / "cpu.cfs_period_us") or ""
        if quota.isdecimal() and period.isdecimal() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _limited() -> Iterator[tuple[Path, int]]:
    for folder in _folders("memory"):
        text = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes") or ""
        if text.isdecimal() and int(text) < UNLIMITED:
            yield folder, int(text)


def _used(folder: Path) -> int:
    used = int(_text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes") or 0)
    for line in (_text(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return used - int(value)
    return used


def _folders(controller: str) -> Iterator[Path]:
    """The folders that may limit this process: its own group's and those above it, as far as they can be seen from here."""
    for line in (_text(OWN) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = ROOT / controller if controllers else ROOT
        group = top / path.lstrip("/")
        seen = [folder for folder in (group, *group.parents) if folder == top or top in folder.parents]
        yield from (folder for folder in dict.fromkeys([*seen, top]) if folder.is_dir())


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None
