"""The roots by which a command knows a control that is elsewhere."""

from __future__ import annotations

import os
import ssl


def trust() -> ssl.SSLContext:
    """
    Those that clients have: the system's (or SSL_CERT_FILE's instead), and AEGIS_CA_FILE's.

    Raises OSError or ssl.SSLError when a file can't be used.
    """
    context = ssl.create_default_context()
    if path := os.environ.get("AEGIS_CA_FILE", ""):
        context.load_verify_locations(path)
    return context
