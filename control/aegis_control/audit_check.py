"""
Whether the audit is whole: a pure check of records in order, against signatures over them.

    removed       a number is missing
    altered       a record is not the one that was sealed there
    moved         a record was sealed at another place
    tail_cut      a signed head is from after the last record
    head_differs  a signed head has another hash than the record at its place
    unsigned      a head or checkpoint that no known key signed, unless a signed head from after it
                  covers it: a key of control's that was changed since is not among the known ones
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aegis_protocol.audit import GENESIS, AuditHead, AuditRecord

MAX_PROBLEMS: Final = 100
_MAX_SUSPECTS: Final = 32


@dataclass(frozen=True)
class Problem:
    """seq: the place that it is about."""

    code: str
    seq: int
    detail: str


@dataclass(frozen=True)
class Suspect:
    """A record whose hash is not what its content and the record before ask for."""

    record: AuditRecord
    before: str


class ChainCheck:
    """
    `take` every record in order, then `finish`.

    heads  signatures over the chain, in any order
    keys   public keys (base64url) by id, of whoever may have signed
    """

    def __init__(
        self,
        checkpoint: AuditHead | None,
        heads: Sequence[AuditHead],
        keys: Mapping[str, str],
    ) -> None:
        self.records = 0
        self.heads_matched = 0
        self.heads_pruned = 0
        self.heads_unknown = 0
        self.last_seq = 0 if checkpoint is None else checkpoint.seq
        self.first_seq = self.last_seq + 1
        self._before: str | None = GENESIS if checkpoint is None else checkpoint.hash
        self._wanted: dict[int, list[AuditHead]] = {}
        self._keys = keys
        self._unproven: list[AuditHead] = []  # of unknown keys, and nothing speaks against them
        self._proven_seq = -1
        self._suspects: list[Suspect] = []
        self._problems: list[Problem] = []
        if checkpoint is not None and self._counts(checkpoint, "checkpoint"):
            self._unproven += [checkpoint] * (checkpoint.kid not in keys)
        for head in heads:
            if head.seq < self.last_seq:
                self.heads_pruned += 1
            elif self._counts(head, "head"):
                self._wanted.setdefault(head.seq, []).append(head)
        if checkpoint is not None:
            self._compare(checkpoint.seq, checkpoint.hash)

    def take(self, record: AuditRecord) -> None:
        """Check the next record."""
        self.records += 1
        if record.seq <= self.last_seq:
            self._found("moved", record.seq, f"the record {record.seq} is there twice")
            return
        if record.seq > self.last_seq + 1:
            self._gap(self.last_seq + 1, record.seq - 1)
            self._before = None
        if self._before is not None and record.expected_hash(self._before) != record.hash:
            self._suspects.append(Suspect(record, self._before))
        self.last_seq, self._before = record.seq, record.hash
        self._compare(record.seq, record.hash)

    def finish(self) -> tuple[Problem, ...]:
        """Return what is wrong, by place; nothing when the audit is whole."""
        for seq, heads in self._wanted.items():
            known = [head for head in heads if head.kid in self._keys]
            self._unproven += [head for head in heads if head not in known]
            if known and seq > self.last_seq:
                self._found(
                    "tail_cut",
                    seq,
                    f"a head was signed at {known[0].at} over {seq} records;"
                    f" the last one now is {self.last_seq}",
                )
        for head in self._unproven:
            if head.seq <= self._proven_seq:
                self.heads_unknown += 1
            else:
                self._unsigned(head)
        self._problems += judge(self._suspects[:_MAX_SUSPECTS])
        more = len(self._suspects) - _MAX_SUSPECTS
        if more > 0:
            place = self._suspects[_MAX_SUSPECTS].record.seq
            self._found("altered", place, f"and {more} more from here on")
        return tuple(sorted(self._problems, key=lambda p: (p.seq, p.code))[:MAX_PROBLEMS])

    def _counts(self, head: AuditHead, kind: str) -> bool:
        """Tell whether it is signed, or may be: by a key that is not known (now)."""
        x = self._keys.get(head.kid)
        if head.kind == kind and (x is None or head.signed(x)):
            return True
        self._unsigned(head)
        return False

    def _unsigned(self, head: AuditHead) -> None:
        self._found("unsigned", head.seq, f"no known key signed the {head.kind} {head.seq}")

    def _compare(self, seq: int, digest: str) -> None:
        for head in self._wanted.pop(seq, ()):
            match (head.kid in self._keys, head.hash == digest):
                case (True, True):
                    self.heads_matched += 1
                    self._proven_seq = seq
                case (True, False):
                    what = f"the head signed at {head.at} has another hash here"
                    self._found("head_differs", seq, what)
                case (False, True):
                    self._unproven.append(head)
                case _:
                    self._unsigned(head)

    def _gap(self, first: int, last: int) -> None:
        what = f"the record {first} is" if first == last else f"the records {first} to {last} are"
        self._found("removed", first, f"{what} missing")
        for seq in [seq for seq in self._wanted if first <= seq <= last]:
            del self._wanted[seq]

    def _found(self, code: str, seq: int, detail: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(code, seq, detail))


def judge(suspects: Sequence[Suspect]) -> list[Problem]:
    """
    Tell which of the records that don't fit were altered, and which are at a wrong place.

    A record that fits after another's hash is itself whole: only the one before it is not.
    """
    befores = {s.before for s in suspects} | {s.record.hash for s in suspects}
    hashes = {s.record.hash for s in suspects}
    places = [s.record.seq for s in suspects]
    found = []
    for suspect in suspects:
        record = suspect.record
        if any(record.expected_hash(before) == record.hash for before in befores):
            continue
        home = next((p for p in places if _fits(record, p, befores, hashes)), None)
        if home is None:
            what = f"the record {record.seq} is not the one that was sealed"
            found.append(Problem("altered", record.seq, what))
        else:
            what = f"the record at {record.seq} was sealed as {home}"
            found.append(Problem("moved", record.seq, what))
    if suspects and not found:  # every content is whole: the hashes themselves were written anew
        first = suspects[0].record.seq
        found.append(Problem("altered", first, f"the chain does not hold before {first}"))
    return found


def _fits(record: AuditRecord, place: int, befores: set[str], hashes: set[str]) -> bool:
    there = record.model_copy(update={"seq": place})
    return any(there.expected_hash(before) in hashes for before in befores)
