"""The audit as a command gets it: from a running control page by page, or from an export."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from aegis_protocol.audit import AuditHead, AuditList, AuditRecord, AuditSeal
from aegis_protocol.errors import AegisError
from aegis_protocol.http_api.issuer import IssuerKey, Jwks
from aegis_protocol.issuer_keys import followed, sound
from pydantic import ValidationError

from aegis_control.audit_check import ChainCheck, Problem
from aegis_control.commands.asking import Asking

_PAGE_ROWS = 1000


class AuditFileUnusable(AegisError):
    code = "audit.file_unusable"
    remedy = "Name a file that `aegis-control audit export` wrote, whole."


@dataclass(frozen=True)
class Report:
    """
    What a check found.

    heads          how many signed heads agree
    heads_pruned   what they cover is pruned: they can't be compared
    heads_unknown  agree, and their key is not known; a head that agrees covers them
    """

    records: int
    first_seq: int
    last_seq: int
    heads: int
    heads_pruned: int
    heads_unknown: int
    problems: tuple[Problem, ...]

    def to_json(self) -> str:
        body: dict[str, Any] = asdict(self)
        return json.dumps({"whole": not self.problems} | body, indent=2)

    def summary(self) -> str:
        what = f"{self.records} records ({self.first_seq} to {self.last_seq})"
        if self.records == 0:
            what = f"no record after {self.last_seq}"
        state = "whole" if not self.problems else "NOT WHOLE"
        pruned = f", {self.heads_pruned} are from before" if self.heads_pruned else ""
        unknown = f", {self.heads_unknown} are of earlier keys" if self.heads_unknown else ""
        return f"{state}: {what}, {self.heads} signed heads agree{pruned}{unknown}"


@dataclass(frozen=True)
class Trail:
    """read: the records, from the checkpoint on."""

    seal: AuditSeal
    read: Callable[[], Iterator[AuditRecord]]

    def check(self, heads: Sequence[AuditHead]) -> Report:
        """Check the chain against its own heads, and against `heads` that were kept elsewhere."""
        keys = {key.kid: key.x for key in self.seal.keys}
        check = ChainCheck(self.seal.checkpoint, (*self.seal.heads, *heads), keys)
        for record in self.read():
            check.take(record)
        problems = check.finish()
        return Report(
            check.records,
            check.first_seq,
            check.last_seq,
            check.heads_matched,
            check.heads_pruned,
            check.heads_unknown,
            problems,
        )

    def lines(self) -> Iterator[str]:
        yield json.dumps({"type": "seal"} | self.seal.model_dump(mode="json"))
        for record in self.read():
            yield json.dumps({"type": "record"} | record.model_dump(mode="json"))

    def write(self, path: Path) -> int:
        """Write `lines` to `path`, which appears when it is complete; returns the records."""
        part = path.with_name(f"{path.name}.part")
        count = -1
        try:
            with os.fdopen(
                os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
            ) as file:
                for line in self.lines():
                    file.write(f"{line}\n")
                    count += 1
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise AuditFileUnusable(
                f"{path} can't be written: {exc.strerror}", remedy="Name another file."
            ) from exc
        return count


def of_control(asking: Asking) -> Trail:
    seal = asking.get("/services/audit/seal", AuditSeal)
    start = 0 if seal.checkpoint is None else seal.checkpoint.seq

    def read() -> Iterator[AuditRecord]:
        after, more = start, True
        while more:
            page = asking.get(path(after=after, limit=_PAGE_ROWS), AuditList)
            yield from page.records
            after = page.records[-1].seq if page.records else after
            more = page.more

    return Trail(seal, read)


def of_file(file: Path, jwks: Path | None) -> Trail:
    """
    An export.

    jwks  the keys to trust, and those that they introduced since; without them those that the
          export names
    """
    seal = next((line for line in _lines(file) if isinstance(line, AuditSeal)), None)
    if seal is None:
        raise AuditFileUnusable(f"{file} does not begin with the audit's seal", path=str(file))
    if jwks is not None:
        seal = seal.model_copy(update={"keys": followed(_keys(jwks), seal.keys)})
    return Trail(seal, lambda: (line for line in _lines(file) if isinstance(line, AuditRecord)))


def path(**query: Any) -> str:
    """The path of `GET /services/audit` with what is given of `query`."""
    given = {name: value for name, value in query.items() if value is not None}
    return f"/services/audit?{urlencode(given)}"


def _lines(file: Path) -> Iterator[AuditSeal | AuditRecord]:
    number = 0
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                model = AuditSeal if number == 1 else AuditRecord
                yield model.model_validate_json(line)
    except (OSError, UnicodeDecodeError, ValidationError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else f"line {number} is none of an export's"
        raise AuditFileUnusable(f"{file} can't be read: {why}", path=str(file)) from exc


def _keys(file: Path) -> tuple[IssuerKey, ...]:
    try:
        found = Jwks.model_validate_json(file.read_bytes())
        keys = tuple(IssuerKey(kid=key.kid, x=key.x) for key in found.keys)
    except (OSError, ValidationError) as exc:
        raise _no_key_set(file) from exc
    if sound(keys) != keys:
        raise _no_key_set(file)
    return keys


def _no_key_set(file: Path) -> AuditFileUnusable:
    return AuditFileUnusable(
        f"{file} is no key set", remedy="Get it from control's /.well-known/jwks.json."
    )
