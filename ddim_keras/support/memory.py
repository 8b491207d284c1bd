"""How much memory and room on disk there is."""

from __future__ import annotations

import os
import pathlib
import shutil

_CONTROL_GROUP = pathlib.Path("/sys/fs/cgroup")


def available() -> int | None:
    """Return the bytes of memory that this process can still take, or None where nobody says.

    On Linux what is available to the machine, or to the container if that is less.
    """
    found = [bytes_ for bytes_ in (_of_machine(), _of_container()) if bytes_ is not None]
    return min(found) if found else None


def free_on_disk(folder: pathlib.Path) -> int:
    """Return the bytes that are free where a folder is, or will be made."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def readable(number: float) -> str:
    """Return bytes in words, such as "1.5 GB"."""
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def _of_machine() -> int | None:
    try:
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    # Of a machine that does not say what is available: half of what it has.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _of_container() -> int | None:
    try:
        limit = (_CONTROL_GROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((_CONTROL_GROUP / "memory.current").read_text())
        for line in (_CONTROL_GROUP / "memory.stat").read_text().splitlines():
            name, value = line.split()
            if name == "inactive_file":  # files' pages, which are given up when memory is needed
                used -= int(value)
        return max(0, int(limit) - used)
    except (OSError, ValueError):
        return None
