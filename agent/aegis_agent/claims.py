"""What the agent claims of its jobs to control's audit: signed, and kept while the link is down."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog
from aegis_protocol.control_link import Facts, ToControl
from aegis_protocol.signing import b64

from aegis_agent.identity import Identity

log = structlog.get_logger()

MAX_KEPT: Final = 256


class Claims:
    """send: takes a frame for control; False when it is lost."""

    def __init__(self, identity: Identity, send: Callable[[ToControl], bool]) -> None:
        self._identity = identity
        self._send = send
        self._kept: deque[Facts] = deque(maxlen=MAX_KEPT)

    def tell(self, facts: Facts) -> bool:
        """Sign and send `facts`, now or when the link is up again; False while they wait."""
        claim = facts.model_copy(update={"at": time.time()})
        signature = b64(self._identity.sign(claim.statement()))
        if len(self._kept) == MAX_KEPT:
            log.warning("claim.dropped", job_id=self._kept[0].job_id, kept=MAX_KEPT)
        self._kept.append(claim.model_copy(update={"signature": signature}))
        return self.send_kept()

    def send_kept(self) -> bool:
        """Send what waits, in order; call it when the link is up."""
        while self._kept:
            if not self._send(self._kept[0]):
                return False
            self._kept.popleft()
        return True
