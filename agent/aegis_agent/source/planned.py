"""A plan that was checked, and what of it is not on this agent yet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from aegis_protocol.source import SourceFile, SourcePlan, plan_digest, unique_blobs


@dataclass(frozen=True, eq=False)
class PlannedSource:
    """
    missing  for each of `unique_blobs(plan.files)`, whether the agent lacks it

    As long as one lives, none of its blobs is evicted.
    """

    plan_id: str
    plan: SourcePlan
    missing: tuple[bool, ...]

    @cached_property
    def blobs(self) -> tuple[SourceFile, ...]:
        return tuple(unique_blobs(self.plan.files))

    @cached_property
    def missing_blobs(self) -> tuple[SourceFile, ...]:
        return tuple(blob for blob, lacks in zip(self.blobs, self.missing, strict=True) if lacks)

    @property
    def missing_bytes(self) -> int:
        return sum(blob.size_bytes for blob in self.missing_blobs)

    @property
    def missing_count(self) -> int:
        return len(self.missing_blobs)

    @cached_property
    def source_sha256(self) -> str:
        return plan_digest(self.plan)
