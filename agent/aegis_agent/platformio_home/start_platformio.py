"""
Starts PlatformIO; copied into a home's core, and run there by the home's own Python.

PlatformIO takes a machine without any network for one whose server is slow, and tries for a
minute. Where no address can be reached at all it says so at once.
"""

from __future__ import annotations

import socket
import sys

import platformio.http
from platformio.__main__ import main

# Documentation addresses (RFC 5737, RFC 3849). Connecting a UDP socket asks the routing table and
# sends nothing.
_ANYWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def has_route() -> bool:
    """Whether this machine, or this sandbox, has a way to anywhere outside of it."""
    for family, address in _ANYWHERE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
        except OSError:
            continue
        return True
    return False


if __name__ == "__main__":
    if not has_route():
        platformio.http._internet_on = lambda: False
    sys.argv[0] = "pio"
    sys.exit(main())
