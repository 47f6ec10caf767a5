"""The limits of a grant as token buckets: they slow the sender and never cut it off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BURST_S: Final = 0.25
_BITS_PER_BYTE: Final = 8


class TokenBucket:
    """
    Lets `rate_per_s` units pass in the long run, and a quarter of a second's worth at once.

    The balance may become negative, so that a unit larger than the burst passes too: what comes
    after it waits until the debt is paid.
    """

    def __init__(self, rate_per_s: float, clock: Callable[[], float]) -> None:
        self._rate_per_s = rate_per_s
        self._burst = max(1.0, rate_per_s * BURST_S)
        self._balance = self._burst
        self._clock = clock
        self._seen_at = clock()

    def take(self, units: float) -> None:
        self._refill()
        self._balance -= units

    def delay_s(self) -> float:
        """How long until something may pass; 0 for now."""
        self._refill()
        return 0.0 if self._balance > 0 else (1e-3 - self._balance / self._rate_per_s)

    def _refill(self) -> None:
        now = self._clock()
        earned = (now - self._seen_at) * self._rate_per_s
        self._balance = min(self._burst, self._balance + earned)
        self._seen_at = now


class Pacer:
    """The two limits of one connection; 0 is none."""

    def __init__(
        self, max_bandwidth_kbps: int, max_message_rate: int, clock: Callable[[], float]
    ) -> None:
        bytes_per_s = max_bandwidth_kbps * 1000 / _BITS_PER_BYTE
        self._bytes = TokenBucket(bytes_per_s, clock) if max_bandwidth_kbps else None
        self._messages = TokenBucket(max_message_rate, clock) if max_message_rate else None

    def took(self, size_bytes: int) -> None:
        if self._bytes is not None:
            self._bytes.take(size_bytes)
        if self._messages is not None:
            self._messages.take(1)

    def delay_s(self) -> float:
        return max(
            self._bytes.delay_s() if self._bytes else 0.0,
            self._messages.delay_s() if self._messages else 0.0,
        )
