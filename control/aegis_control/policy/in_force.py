"""The policy that counts now: read at start, and again on SIGHUP; a bad file changes nothing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import PolicyInvalid

from aegis_control.log import get_logger
from aegis_control.policy.reading import read
from aegis_control.policy.rules import NO_POLICY, Policy
from aegis_control.store.audit import Act, record
from aegis_control.store.database import Database

log = get_logger("policy")


@dataclass(frozen=True)
class Standing:
    """
    path       the file that it came from; None: there is none, the defaults count
    loaded_at  unix seconds
    trouble    what is wrong with the file as it is now, while the older one stays in force
    """

    policy: Policy
    path: Path | None
    loaded_at: float
    trouble: AegisError | None = None

    @property
    def told(self) -> Literal["default", "file", "stale"]:
        """What `/health` says of it."""
        if self.trouble is not None:
            return "stale"
        return "default" if self.path is None else "file"

    def tell(self) -> None:
        file = None if self.path is None else str(self.path)
        log.info("policy.loaded", file=file, rules=len(self.policy.rules))


class PolicyInForce:
    """
    path      where the file would be; None: never
    required  whether it must be there
    """

    def __init__(self, path: Path | None, *, required: bool) -> None:
        self._path = path
        self._asked = asyncio.Event()
        self._standing = _first(path, required=required)

    @property
    def standing(self) -> Standing:
        return self._standing

    @property
    def policy(self) -> Policy:
        return self._standing.policy

    def ask(self) -> None:
        """Have `run` look at the file again."""
        self._asked.set()

    async def run(self, database: Database, stopping: asyncio.Event) -> None:
        """Read the file anew whenever that is asked for, until `stopping` is set."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            if stopping.is_set():
                return
            await asyncio.to_thread(self.reload)
            await self._note(database)

    def reload(self) -> Standing:
        """Put the file as it is now in force. When it is bad what counted goes on counting."""
        before = self._standing
        try:
            found = standing_of(self._path, required=before.path is not None)
        except PolicyInvalid as exc:
            log.error("policy.refused", detail=exc.message, remedy=exc.remedy)  # noqa: TRY400
            self._standing = Standing(before.policy, before.path, before.loaded_at, exc)
        else:
            self._standing = found
            log.info(
                "policy.loaded",
                file=None if found.path is None else str(found.path),
                rules=len(found.policy.rules),
            )
        return self._standing

    async def _note(self, database: Database) -> None:
        standing = self._standing
        trouble = standing.trouble
        act = Act(
            what="policy.reloaded",
            decision="done" if trouble is None else "failed",
            outcome=None if trouble is None else trouble.message,
            facts={"rules": len(standing.policy.rules), "sha256": digest(standing.policy)},
        )
        async with database.write() as conn:
            await record(conn, act, now_s=time.time())


def digest(policy: Policy) -> str:
    """What tells two policies apart, in hex."""
    return sha256(policy.model_dump_json().encode()).hexdigest()


def _first(path: Path | None, *, required: bool) -> Standing:
    found = standing_of(path, required=required)
    log.info(
        "policy.loaded",
        file=None if found.path is None else str(found.path),
        rules=len(found.policy.rules),
    )
    return found


def standing_of(path: Path | None, *, required: bool) -> Standing:
    """What counts with the file as it is; PolicyInvalid when that is wrong, or missing."""
    if path is None:
        return Standing(NO_POLICY, None, time.time())
    try:
        return Standing(read(path), path, time.time())
    except FileNotFoundError as exc:
        if not required:
            return Standing(NO_POLICY, None, time.time())
        raise PolicyInvalid(
            f"{path} is not there",
            remedy="Put it back, or unset AEGIS_POLICY_FILE and restart control to do without.",
            path=str(path),
        ) from exc
