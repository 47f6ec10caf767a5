"""Where a build's output goes: the viewers' spool, the log, and who reads it for errors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aegis_agent.build.execution import Heard
from aegis_agent.build.lines import EscapeFilter
from aegis_agent.build.reading import OutputReading
from aegis_agent.build.request import Output


class Sink:
    """color: whether escape sequences stay in what the outputs get."""

    def __init__(self, outputs: Sequence[Output], reading: OutputReading, *, color: bool) -> None:
        self.heard = Heard(asyncio.get_running_loop().time())
        self._outputs = outputs
        self._reading = reading
        self._filter = None if color else EscapeFilter()

    def take(self, data: bytes) -> None:
        self.heard.at = asyncio.get_running_loop().time()
        self._reading.feed(data)
        if self._filter is not None:
            data = self._filter.feed(data)
        for output in self._outputs:
            output.append(data)
