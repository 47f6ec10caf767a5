"""
A second host on this machine: a network namespace with a cable to this one, which can be cut.

Its addresses are of the range for tests of networks (RFC 2544), and each host has its own.

Links of other tests may take such an address for a way, and break when it goes. A test that can't
have that makes a network of its own.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_RANGE: Final = ipaddress.IPv4Network("198.18.0.0/15")


_CLONE_NEWNET: Final = 0x40000000  # sched.h


@contextmanager
def a_network_of_its_own() -> Iterator[None]:
    """
    This thread, and every program it starts, is on a host by itself: loopback, and one address
    that stays.
    """
    system = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        assert system.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            _run("ip", "link", "set", "lo", "up")
            _run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
            _run("ip", "addr", "add", f"{_a_network()[1]}/30", "dev", "eth0")
            for end in ("eth0", "eth1"):
                _run("ip", "link", "set", end, "up")
            yield
        finally:
            assert system.setns(before.fileno(), _CLONE_NEWNET) == 0


class OtherHost:
    """Made by `plugged_in`. `server` is the address by which it reaches what listens here."""

    def __init__(self) -> None:
        self.name = f"aegis{os.getpid()}x{secrets.token_hex(2)}"
        self._cable = f"ae{secrets.token_hex(4)}"
        self.server = str(_a_network()[1])
        self._network: ipaddress.IPv4Network | None = None

    @classmethod
    @contextmanager
    def plugged_in(cls) -> Iterator[OtherHost]:
        host = cls()
        _run("ip", "netns", "add", host.name)
        try:
            _run(
                *("ip", "link", "add", host._cable, "type", "veth"),
                *("peer", "name", "eth0", "netns", host.name),
            )
            host._inside("ip", "link", "set", "lo", "up")
            host._inside("ip", "link", "set", "eth0", "up")
            _run("ip", "link", "set", host._cable, "up")
            _run("ip", "addr", "add", f"{host.server}/32", "dev", host._cable)
            host.move()
            yield host
        finally:
            _run("ip", "netns", "del", host.name)  # and the cable with it

    @classmethod
    @contextmanager
    def behind_nat(cls) -> Iterator[OtherHost]:
        """One more cable away: what is between them shows its own address in the place of this."""
        with cls.plugged_in() as router:
            host = cls()
            host.server = router.server
            _run("ip", "netns", "add", host.name)
            try:
                cable = ("type", "veth", "peer", "name", "eth0", "netns", host.name)
                router._inside("ip", "link", "add", "inner", *cable)
                router._inside("ip", "addr", "add", "192.168.77.1/30", "dev", "inner")
                router._inside("ip", "link", "set", "inner", "up")
                host._inside("ip", "link", "set", "lo", "up")
                host._inside("ip", "addr", "add", "192.168.77.2/30", "dev", "eth0")
                host._inside("ip", "link", "set", "eth0", "up")
                host._inside("ip", "route", "add", "default", "via", "192.168.77.1")
                router._inside("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
                router._inside("nft", "add table ip nat")
                hook = "{ type nat hook postrouting priority 100 ; }"
                router._inside("nft", f"add chain ip nat out {hook}")
                router._inside("nft", "add rule ip nat out oifname eth0 masquerade")
                yield host
            finally:
                _run("ip", "netns", "del", host.name)

    def command(self, *words: str) -> tuple[str, ...]:
        """The words that run a program there."""
        return ("/usr/sbin/ip", "netns", "exec", self.name, *words)

    def move(self) -> None:
        """Take another address, as a laptop does that changes networks; the old one is gone."""
        if self._network is not None:
            _run("ip", "addr", "del", f"{self._network[1]}/30", "dev", self._cable)
            self._inside("ip", "-4", "addr", "flush", "dev", "eth0")
        self._network = _a_network()
        here, there = self._network[1], self._network[2]
        _run("ip", "addr", "add", f"{here}/30", "dev", self._cable)
        self._inside("ip", "addr", "add", f"{there}/30", "dev", "eth0")
        self._inside("ip", "route", "add", "default", "via", str(here))

    def block_udp(self) -> None:
        """No datagram comes in any more; TCP goes on."""
        self._inside("nft", "add table inet cut")
        self._inside("nft", "add chain inet cut in { type filter hook input priority 0 ; }")
        self._inside("nft", "add rule inet cut in meta l4proto udp drop")

    def let_udp_pass(self) -> None:
        self._inside("nft", "delete table inet cut")

    def _inside(self, *words: str) -> None:
        _run(*self.command(*words))


def _a_network() -> ipaddress.IPv4Network:
    number = secrets.randbelow(_RANGE.num_addresses // 4)
    return ipaddress.IPv4Network((int(_RANGE[number * 4]), 30))


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
