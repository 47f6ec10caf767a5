"""The front door of the library: the settings, the store, control, and sessions with agents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from aegis_links.ice_guide import IceGuide

from aegis_client import accounts
from aegis_client.accounts import Account
from aegis_client.config import ClientConfig
from aegis_client.control import ControlClient
from aegis_client.records import TaskRecords
from aegis_client.reporter import Reporter
from aegis_client.store import Store
from aegis_client.trust import KnownAgents
from aegis_client.wish import Wish

if TYPE_CHECKING:
    from aegis_client.session import Session


class Client:
    """Everything that belongs to one control. Made by `opened`."""

    def __init__(
        self,
        config: ClientConfig,
        store: Store,
        account: Account,
        control: ControlClient,
        guide: IceGuide,
    ) -> None:
        self.config = config
        self.store = store
        self.account = account
        self.control = control
        self.guide = guide
        self.known = KnownAgents(store, account.url)
        self.records = TaskRecords(store, account.url)

    @classmethod
    @asynccontextmanager
    async def opened(cls, config: ClientConfig) -> AsyncIterator[Client]:
        """Raises StoreNotFound, ConfigInvalid. Nothing is sent yet."""
        store = Store.open(config)
        account = accounts.resolve(config, store)
        async with (
            ControlClient.connected(config, account) as control,
            IceGuide(control.trust, relay_only=config.relay_only).running() as guide,
        ):
            yield cls(config, store, account, control, guide)

    def session(self, wish: Wish, reporter: Reporter) -> AbstractAsyncContextManager[Session]:
        """See `open_session.open_session`."""
        # Imported here: it brings the peer link's libraries, which most commands don't need.
        from aegis_client.open_session import open_session

        return open_session(self.control, self.known, self.config.trust, self.guide, wish, reporter)
