"""A piece of a build's or console's output as text: of a running one, or of a build's kept log."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aegis_links.spool import Gap, Piece, Spool
from aegis_protocol.failures.build import TaskNotFound
from aegis_protocol.failures.grant import ActionNotGranted
from aegis_protocol.rpc import LogsTailParams, LogsTailResult

from aegis_agent.rights import stream_needs
from aegis_agent.tasks import MESSAGE_ROOM_BYTES

if TYPE_CHECKING:
    from aegis_agent.session import PeerSession

_ANSI: Final = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")
_CUT_ANSI: Final = re.compile(rb"\x1b(\[[0-?]{0,32}[ -/]{0,4}|\][^\x07\x1b]{0,256}\x1b?)?\Z")
_CUT_CHAR: Final = re.compile(rb"([\xc2-\xdf]|[\xe0-\xef].?|[\xf0-\xf4].{0,2})\Z", re.DOTALL)


async def tail(session: PeerSession, wish: LogsTailParams) -> LogsTailResult:
    """
    The bytes from `wish.offset` on, or the last ones, without colours; fewer where they would not
    fit a message. An offset beyond the end is the end.

    Raises TaskNotFound; ActionNotGranted for a console without console.read.
    """
    task = session.job.tasks.get(wish.task_id)
    if task is not None and stream_needs(task.kind) not in session.actions:
        raise ActionNotGranted(
            f"the output of a {task.kind} needs the action {stream_needs(task.kind)}",
            action=str(stream_needs(task.kind)),
        )
    if task is not None and task.spool is not None and (task.kind != "build" or not task.over):
        return _of_spool(task.spool, wish)
    path, artifact = session.services.results.path(session.job.identity, wish.task_id, "build.log")
    return await asyncio.to_thread(_of_file, path, artifact.size_bytes, wish)


def _of_file(path: Path, total: int, wish: LogsTailParams) -> LogsTailResult:
    offset = _begin(wish, 0, total)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            raw = file.read(wish.max_bytes)
    except FileNotFoundError as exc:  # evicted in this moment
        raise TaskNotFound(f"there is no result of task {wish.task_id}") from exc
    return _told(raw, offset, total)


def _of_spool(spool: Spool, wish: LogsTailParams) -> LogsTailResult:
    total = spool.end_offset
    offset = _begin(wish, spool.start_offset, total)
    found = spool.read(offset, wish.max_bytes)
    if isinstance(found, Gap):
        found = spool.read(found.stop, wish.max_bytes)
    if isinstance(found, Piece):
        return _told(found.data, found.offset, total)
    return _told(b"", offset, total)


def _begin(wish: LogsTailParams, start: int, total: int) -> int:
    if wish.offset is None:
        return max(start, total - wish.max_bytes)
    return min(max(wish.offset, start), total)


def _told(raw: bytes, offset: int, total: int) -> LogsTailResult:
    if offset + len(raw) < total:
        # An escape or a character that is cut here comes whole with the next piece.
        whole = _CUT_CHAR.sub(b"", _CUT_ANSI.sub(b"", raw))
        raw = whole or raw
    text = _text(raw)
    while len(json.dumps(text)) > MESSAGE_ROOM_BYTES:
        raw = raw[: len(raw) // 2]
        text = _text(raw)
    return LogsTailResult(
        text=text, offset=offset, next_offset=offset + len(raw), total_bytes=total
    )


def _text(raw: bytes) -> str:
    return _ANSI.sub(b"", raw).decode(errors="replace")
