"""The cgroups of a process, with which batch systems and containers limit its cores and its memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def cgroups(proc: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folder and the version of each cgroup of a process and of all its ancestors.

    Args:
        proc: The process's directory in /proc.
        controller: What the cgroups limit: `cpu` or `memory`.
    """
    for mount, folder, version in hierarchies(proc, controller):
        while True:
            yield folder, version
            if folder == mount:
                break
            folder = folder.parent


def hierarchies(proc: Path, controller: str) -> Iterator[tuple[Path, Path, int]]:
    """Yield the mount point, the process's folder and the version of each hierarchy that can have the controller."""
    try:
        # A file system may be mounted at a path that is not valid text.
        mounts = os.fsdecode((proc / "mountinfo").read_bytes()).splitlines()
        memberships = [line.split(":", 2) for line in os.fsdecode((proc / "cgroup").read_bytes()).splitlines()]
    except OSError:  # this is not Linux, or there is no /proc
        return
    for line in mounts:
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _, options = [*right.split(), "", "", ""][:3]
        for _, controllers, path in memberships:
            is_version_2 = kind == "cgroup2" and controllers == ""
            is_version_1 = (
                kind == "cgroup" and controller in controllers.split(",") and controller in options.split(",")
            )
            if is_version_2 or is_version_1:
                # In a container the mount shows only a part of the hierarchy, which starts at `root`.
                inside = path.removeprefix(root) if root != "/" else path
                folder = Path(mount, inside.lstrip("/"))
                is_below = ".." not in folder.parts and folder.is_dir()
                yield Path(mount), folder if is_below else Path(mount), 2 if is_version_2 else 1
