"""
Whether the installed aiortc is the one that the fast path was written for.

The fast path replaces private methods and reads private attributes: another version, or another
text of the same version, may mean something else by them. Then links run on aiortc as it comes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Final

import aiortc.rtcdatachannel
import aiortc.rtcdtlstransport
import aiortc.rtcsctptransport
import structlog
from aioice import ice
from OpenSSL import SSL

SWITCH: Final = "AEGIS_FAST_LINKS"
"""Set to `off`, links use aiortc as it comes: to compare, or to rule the fast path out."""

VERSIONS: Final = {"aiortc": "1.16.0", "aioice": "0.13.0"}
SOURCES: Final[Mapping[ModuleType, str]] = {
    aiortc.rtcsctptransport: "8e67dd858614cab04946ed52889a29b3311bb4f697cc48b982cfcb1ed6b91d72",
    aiortc.rtcdtlstransport: "4ce8aa9051d42ef174584a0a35e0517172906af931fd7d7861ce11003aa06df3",
    aiortc.rtcdatachannel: "4cbc9e4fd37394aa9747c82fc638d1f44ad4c0b6d2110c28b79a594283495587",
    ice: "83435f28290210dd9a4f28345657a31877bd9c9c872ba1acb0256f1ddf49c007",
}
"""SHA-256 of the files whose methods are replaced or whose attributes are read."""

_LIBSSL_CALLS: Final = ("SSL_write", "SSL_read", "SSL_get_error", "BIO_write", "BIO_read")
_CONNECTION_PARTS: Final = ("_ssl", "_into_ssl", "_from_ssl")
_log = structlog.get_logger("aegis_links.fast")


@cache
def is_fast() -> bool:
    """Whether links of this process take the fast path; a refusal is logged, once."""
    if os.environ.get(SWITCH, "").lower() in {"off", "0", "no"}:
        return False
    reason = refusal()
    if reason is not None:
        _log.warning("fast_path.refused", reason=reason)
    return reason is None


def refusal(
    *,
    installed: Callable[[str], str] = version,
    sources: Mapping[ModuleType, str] = SOURCES,
) -> str | None:
    """Why the fast path must not be used here, in words; None if it may."""
    for name, expected in VERSIONS.items():
        if (found := installed(name)) != expected:
            return f"{name} is {found}; the fast path knows {expected}"
    for module, digest in sources.items():
        try:
            text = Path(module.__file__ or "").read_bytes()
        except OSError as exc:
            return f"the source of {module.__name__} can't be read: {exc.strerror}"
        if hashlib.sha256(text).hexdigest() != digest:
            return f"{module.__name__} is not as released"
    return _missing_in_pyopenssl()


def _missing_in_pyopenssl() -> str | None:
    library = getattr(SSL, "_lib", None)
    connection = SSL.Connection(SSL.Context(SSL.DTLS_METHOD), None)
    missing = [name for name in _LIBSSL_CALLS if not hasattr(library, name)]
    missing += [name for name in _CONNECTION_PARTS if not hasattr(connection, name)]
    missing += [] if hasattr(SSL, "_ffi") else ["_ffi"]
    return f"pyOpenSSL has no {', '.join(missing)}" if missing else None
