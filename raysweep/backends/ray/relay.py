"""The relay between a data-parallel trial's workers and Tune. It runs in its own process and imports little."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

WAIT_SECONDS = 1.0  # the time to wait for a report before checking whether the workers have ended


class ReportRelay:
    """Passes the reports of a trial's main worker to Tune, and tells the worker whether the trial continues."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answers: asyncio.Queue[bool] = asyncio.Queue()
        self.failed: dict[int, str] = {}
        self.closed = False

    async def tell(self, report: dict[str, Any]) -> bool:
        """Hand in a report and wait for the decision; False means that the worker must stop at once."""
        if self.closed:
            return False
        await self.reports.put(report)
        return await self.answers.get()

    async def take(self) -> dict[str, Any] | None:
        """Return the next report; None if there is none within `WAIT_SECONDS`."""
        with suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self.reports.get(), WAIT_SECONDS)
        return None

    async def answer(self) -> None:
        """Tell the worker that Tune has taken the report and that the trial continues."""
        await self.answers.put(True)

    async def close(self) -> None:
        """Refuse all further reports."""
        self.closed = True
        await self.answers.put(False)

    async def fail(self, rank: int, why: str) -> None:
        """Record why a worker failed."""
        self.failed[rank] = why

    async def faults(self) -> dict[int, str]:
        """Return the reasons for failure by rank, in order of failure, of the workers that could give one."""
        return self.failed
