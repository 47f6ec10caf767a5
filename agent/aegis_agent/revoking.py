"""
Carries out what control has revoked: what is live ends at once, and what was revoked is refused
from then on, also after a restart. Control is told how far that has come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import assert_never

import structlog
from aegis_links.uninterrupted import uninterrupted
from aegis_protocol.control_link import JobRevoke, KeyRevoke, Revocation, Revoked
from aegis_protocol.failures.source import DiskFull

from aegis_agent.ledger import Kind, Ledger
from aegis_agent.sessions import SessionTable

log = structlog.get_logger()


class Revoking:
    """
    tell_control  tells it how far this has come; False when the link is down
    through       how far that is: `hello` says it
    """

    def __init__(
        self, ledger: Ledger, sessions: SessionTable, *, tell_control: Callable[[Revoked], bool]
    ) -> None:
        self._ledger = ledger
        self._sessions = sessions
        self._tell_control = tell_control
        self.through = ledger.revoked_through()

    async def carry_out(self, revoked: Sequence[Revocation], *, through: int) -> None:
        """
        End what `revoked` names, remember it, and tell control that it is done `through` there.

        Where it can't be kept control is not told: it says all of it again at the next link.
        """
        if not revoked and through == self.through:
            return  # which `hello` has told
        what: list[tuple[Kind, str]] = []
        for one in revoked:
            match one:
                case JobRevoke():
                    self._sessions.revoke(one.reason, job_id=one.job_id, jti=one.jti)
                    what.append(("job", one.job_id) if one.jti is None else ("grant", one.jti))
                case KeyRevoke():
                    self._sessions.revoke(one.reason, identity=one.identity)
                    what.append(("identity", one.identity))
                case _:
                    assert_never(one)
        try:
            keeping = asyncio.to_thread(
                self._ledger.revoke, what, through=through, now_s=time.time()
            )
            await uninterrupted(keeping)
        except DiskFull as exc:
            log.error("revocations.not_kept", detail=exc.message)  # noqa: TRY400
            return
        self.through = through
        log.info("revocations.done", count=len(revoked), through=through)
        self._tell_control(Revoked(through=through))
