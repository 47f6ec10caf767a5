"""Why a store can't be used at all."""

from __future__ import annotations

from aegis_protocol.errors import AegisError


class StoreUnusable(AegisError):
    code = "store.unusable"
    remedy = "Check AEGIS_DATABASE_URL, the disk, and that control's user may write there."


class SchemaNewer(StoreUnusable):
    code = "store.newer_schema"
    remedy = "Start the version of aegis-control that made these tables, or a newer one."
