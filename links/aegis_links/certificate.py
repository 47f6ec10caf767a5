"""The DTLS certificate by which a peer is known: made first, its fingerprint goes into a grant."""

from __future__ import annotations

from dataclasses import dataclass

from aegis_protocol.fingerprint import Fingerprint
from aiortc import RTCCertificate


@dataclass(frozen=True)
class Certificate:
    """A self-signed P-256 certificate for one connection; valid for 30 days."""

    rtc: RTCCertificate

    @classmethod
    def generate(cls) -> Certificate:
        return cls(RTCCertificate.generateCertificate())

    @property
    def fingerprint(self) -> Fingerprint:
        for value in self.rtc.getFingerprints():
            if value.algorithm == "sha-256":
                return Fingerprint.parse(f"sha-256:{value.value}")
        raise LookupError("a certificate has a SHA-256 fingerprint")
