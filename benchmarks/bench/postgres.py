"""A PostgreSQL of a measurement's own: in a temporary folder, on a Unix socket, gone with it."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_USER: Final = "nobody"
_READY_S: Final = 30.0


def is_installed() -> bool:
    return all(shutil.which(name) for name in ("postgres", "initdb")) and (
        find_spec("asyncpg") is not None
    )


@asynccontextmanager
async def private_cluster() -> AsyncIterator[str]:
    """Yield the URL of an empty database. As root it runs as `nobody`: initdb refuses root."""
    uid = pwd.getpwnam(_USER).pw_uid if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="aegis-bench-pg-"))
    try:
        if uid is not None:
            os.chown(folder, uid, -1)
        await _run("initdb", "-D", str(folder / "data"), "-U", "aegis", "-A", "trust", user=uid)
        server = await asyncio.create_subprocess_exec(
            *("postgres", "-D", str(folder / "data"), "-k", str(folder)),
            *("-c", "listen_addresses=", "-c", "max_connections=50"),
            stdout=DEVNULL,
            stderr=DEVNULL,
            user=uid,
            cwd=folder,
        )
        try:
            async with asyncio.timeout(_READY_S):
                while not await _answers(folder):  # noqa: ASYNC110  nobody tells
                    await asyncio.sleep(0.05)
            yield f"postgresql+asyncpg://aegis@/postgres?host={folder}"
        finally:
            server.terminate()
            await server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _answers(folder: Path) -> bool:
    import asyncpg

    try:
        connection = await asyncpg.connect(host=str(folder), user="aegis", database="postgres")
    except (OSError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


async def _run(*command: str, user: int | None) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=DEVNULL, stderr=PIPE, user=user, cwd="/"
    )
    async with asyncio.timeout(_READY_S):
        _, err = await process.communicate()
    if process.returncode:
        raise ConnectionError(f"{command[0]}: {err.decode(errors='replace')[-500:]}")
