"""
Serial ports behind URLs of our own, for pyserial: `virtual:///path/of/a/socket`.

`register()` makes them known; then `serial.serial_for_url`, and so every program built upon
pyserial that runs in this process, opens them like any port.
"""

from __future__ import annotations

import serial


def register() -> None:
    """Make pyserial know the URLs of this package; calling it again changes nothing."""
    if __name__ not in serial.protocol_handler_packages:
        serial.protocol_handler_packages.append(__name__)
