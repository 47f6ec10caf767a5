"""Which roots a connection to control trusts. Nothing here turns verification off."""

from __future__ import annotations

import ssl

from aegis_client.config import ClientConfig
from aegis_client.failures import ConfigInvalid


def trust_context(config: ClientConfig) -> ssl.SSLContext:
    """
    The system's roots, or those of SSL_CERT_FILE instead, and those of AEGIS_CA_FILE added.

    Raises ConfigInvalid when a file can't be used.
    """
    setting, path = "SSL_CERT_FILE", config.cert_file
    try:
        context = ssl.create_default_context(cafile=path)
        if config.ca_file is not None:
            setting, path = "AEGIS_CA_FILE", config.ca_file
            context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigInvalid(f"{setting}: {path} can't be used: {exc}", setting=setting) from exc
    return context
