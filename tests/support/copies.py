"""Find where a process has an array in memory."""

from pathlib import Path


def place_in_memory(address):
    """Return device, inode and offset of the file mapped at `address`, or None for the process's private memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, device, inode = line.split()[:5]
        start, end = (int(number, 16) for number in span.split("-"))
        if start <= address < end:
            return f"{device} {inode} {int(offset, 16) + address - start}" if inode != "0" else None
    raise AssertionError(f"nothing is mapped at {address:#x}")
