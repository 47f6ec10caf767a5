"""
How often an address or a key may ask, and how often an address may present a secret that is wrong.

    per address   every request but health and agents' links
    per key       every request with a key that is good
    failures      wrong keys, tokens and grants; an address that had its share is refused before
                  the next one is looked at, so that guessing costs control next to nothing
    links         links that were not proven; an address from which an enrolled agent came is
                  exempt, so that one broken machine can't keep its neighbours out

An IPv6 host has a whole /64 to itself, so that is what counts there. Windows slide (an estimate
from two counters, `limits`' sliding window counter); they lie in this process alone, so each
replica has limits of its own. Of all windows the 65,536 used last are kept.
"""

from __future__ import annotations

import ipaddress
import math
import re
import time
from collections import OrderedDict
from typing import Final

from aegis_protocol.failures.http import RateLimited
from limits import RateLimitItem, RateLimitItemPerMinute, parse
from limits.storage import SlidingWindowCounterSupport, Storage
from limits.strategies import SlidingWindowCounterRateLimiter

from aegis_control.log import get_logger

log = get_logger("rates")

OFF: Final = "off"
MAX_WINDOWS: Final = 65_536
MAX_PROVEN: Final = 4096

_RATE: Final = re.compile(r"^[1-9][0-9]{0,8}/(second|minute|hour|day)$")
_TOLD: Final = RateLimitItemPerMinute(1)


def check_rate(text: str) -> None:
    """Raise ValueError unless `text` is a rate such as 30/minute, or `off`."""
    if text != OFF and not _RATE.match(text):
        raise ValueError(
            f"{text!r} is no rate such as 30/minute (second, minute, hour, day), or off"
        )


def network_of(address: str) -> str:
    """Return what counts as one caller: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


class RateLimits:
    """Rates as `check_rate` takes them. Each method may raise RateLimited, with `retry_after_s`."""

    def __init__(self, *, per_address: str, per_key: str, failures: str) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(Windows(MAX_WINDOWS))
        self._per_address = _rate(per_address)
        self._per_key = _rate(per_key)
        self._failures = _rate(failures)
        self._proven: OrderedDict[str, None] = OrderedDict()

    def admit(self, address: str) -> None:
        """Count a request from `address`."""
        self._spend(self._per_address, "address", network_of(address))

    def count_key(self, identity: str) -> None:
        """Count a request of an identity."""
        self._spend(self._per_key, "key", identity)

    def before_secret(self, address: str) -> None:
        """To be asked before a secret from `address` is looked at."""
        self._check(self._failures, "failures", network_of(address))

    def failed(self, address: str) -> None:
        """A secret from `address` was wrong."""
        self._note(self._failures, "failures", network_of(address))

    def before_link(self, address: str) -> None:
        """To be asked before a link from `address` is opened."""
        caller = network_of(address)
        if caller not in self._proven:
            self._check(self._failures, "links", caller)

    def link_failed(self, address: str) -> None:
        """A link from `address` was not proven to be an enrolled agent's."""
        self._note(self._failures, "links", network_of(address))

    def link_proven(self, address: str) -> None:
        """An enrolled agent is at `address`."""
        caller = network_of(address)
        self._proven[caller] = None
        self._proven.move_to_end(caller)
        while len(self._proven) > MAX_PROVEN:
            self._proven.popitem(last=False)

    def _spend(self, rate: RateLimitItem | None, scope: str, caller: str) -> None:
        if rate is not None and not self._limiter.hit(rate, scope, caller):
            raise self._refusal(rate, scope, caller)

    def _check(self, rate: RateLimitItem | None, scope: str, caller: str) -> None:
        if rate is not None and not self._limiter.test(rate, scope, caller):
            raise self._refusal(rate, scope, caller)

    def _note(self, rate: RateLimitItem | None, scope: str, caller: str) -> None:
        if rate is not None:
            self._limiter.hit(rate, scope, caller)

    def _refusal(self, rate: RateLimitItem, scope: str, caller: str) -> RateLimited:
        shown = f"{rate.amount}/{rate.GRANULARITY.name}"
        if self._limiter.hit(_TOLD, "told", scope, caller):
            log.warning("rate.exceeded", scope=scope, caller=caller, limit=shown)
        left_s = self._limiter.get_window_stats(rate, scope, caller).reset_time - time.time()
        return RateLimited(
            _WORDS[scope].format(shown),
            retry_after_s=max(1, math.ceil(left_s + rate.get_expiry() / rate.amount)),
            scope=scope,
            limit=shown,
        )


_WORDS: Final = {
    "address": "too many requests from this address: at most {}",
    "key": "too many requests with this key: at most {}",
    "failures": "too many wrong secrets from this address: at most {}",
    "links": "too many links from this address that no enrolled agent opened: at most {}",
}


class Windows(Storage, SlidingWindowCounterSupport):
    """
    Counters in memory, at most `most` of them: the one that was used longest ago gives way.

    limits' own has no bound, and looks through all of it in a thread at every hit.
    """

    STORAGE_SCHEME = ["aegis-windows"]  # noqa: RUF012 - as the base class has it

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._windows: OrderedDict[str, tuple[int, int, int]] = OrderedDict()
        """By key: the number of the window that counts now, its count, that of the one before."""

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry: int, amount: int = 1
    ) -> bool:
        before, before_left_s, now, _ = self.get_sliding_window(key, expiry)
        if math.floor(before * before_left_s / expiry + now) + amount > limit:
            return False
        self.incr(key, expiry, amount)
        return True

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        at_s = time.time()
        into_s = at_s % expiry
        number, now, before = self._windows.get(key, (0, 0, 0))
        match int(at_s // expiry) - number:
            case 0:
                pass
            case 1:
                now, before = 0, now
            case _:
                now, before = 0, 0
        return before, expiry - into_s if before else 0.0, now, 2 * expiry - into_s

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        self.clear(key)

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        before, _, now, _ = self.get_sliding_window(key, expiry)
        self._windows[key] = (int(time.time() // expiry), now + amount, before)
        self._windows.move_to_end(key)
        while len(self._windows) > self._most:
            self._windows.popitem(last=False)
        return now + amount

    def get(self, key: str) -> int:
        return self._windows.get(key, (0, 0, 0))[1]

    def get_expiry(self, key: str) -> float:
        """Of no use to a window that slides; the base class wants it."""
        return time.time()

    def check(self) -> bool:
        return True

    def reset(self) -> int | None:
        count = len(self._windows)
        self._windows.clear()
        return count

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)


def _rate(text: str) -> RateLimitItem | None:
    check_rate(text)
    return None if text == OFF else parse(text)
