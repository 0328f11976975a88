"""Where reports of a data-parallel trial change hands. A process of its own, for which little is imported."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

WAIT_SECONDS = 1.0  # for a report, between two looks at whether the workers have ended


class ReportRelay:
    """Where a trial's leading worker leaves its reports for Tune, and learns whether to go on."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answers: asyncio.Queue[bool] = asyncio.Queue()
        self.failed: dict[int, str] = {}
        self.closed = False

    async def tell(self, report: dict[str, Any]) -> bool:
        """Leave a report, and wait for what is decided: False is to leave at once."""
        if self.closed:
            return False
        await self.reports.put(report)
        return await self.answers.get()

    async def take(self) -> dict[str, Any] | None:
        """The next report, if it comes soon."""
        with suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self.reports.get(), WAIT_SECONDS)
        return None

    async def answer(self) -> None:
        """Tune has taken the report, and the trial goes on."""
        await self.answers.put(True)

    async def close(self) -> None:
        """Nobody takes reports any more."""
        self.closed = True
        await self.answers.put(False)

    async def fail(self, rank: int, why: str) -> None:
        """A worker breaks off."""
        self.failed[rank] = why

    async def faults(self) -> dict[int, str]:
        """Why workers broke off that could say so, by rank, the first one first."""
        return self.failed
