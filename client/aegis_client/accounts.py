"""Which control to talk to, and with which key: kept by `espctl login`, overruled by settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegis_protocol.failures.http import KeyMissing

from aegis_client.config import DEFAULT_URL, ClientConfig, checked_url
from aegis_client.store import Kept, Store, hashed


class KeptAccount(Kept):
    url: str
    key: str
    identity: str = ""
    role: str = ""


class CurrentAccount(Kept):
    url: str


@dataclass(frozen=True)
class Account:
    """One control and the key for it. The sources are words for people: where each came from."""

    url: str
    key: str | None = field(repr=False)
    url_source: str
    key_source: str

    def required_key(self) -> str:
        if self.key is None:
            raise KeyMissing(f"there is no key for {self.url}", url=self.url)
        return self.key


def resolve(config: ClientConfig, store: Store) -> Account:
    """
    Return the account in force. A kept key is sent to the URL it was kept for and to no other.
    """
    current = store.read("account.json", CurrentAccount)
    if config.url is not None:
        url, url_source = config.url, "the environment"
    elif current is not None:
        # Looked at anew: plain http may have been allowed when it was kept, and not be now.
        url = checked_url(current.url, allow_insecure=config.allow_insecure)
        url_source = "espctl login"
    else:
        url, url_source = DEFAULT_URL, "the default"
    if config.key is not None:
        return Account(url, config.key, url_source, config.key_setting)
    kept = store.read(_name(url), KeptAccount)
    if kept is not None and kept.url == url:
        return Account(url, kept.key, url_source, "espctl login")
    return Account(url, None, url_source, "")


def keep(store: Store, account: KeptAccount) -> None:
    """Keep the key of one control and make that control the current one."""
    store.write(_name(account.url), account)
    store.write("account.json", CurrentAccount(url=account.url))


def forget(store: Store, url: str) -> bool:
    """Remove the key for `url`; tell whether there was one."""
    current = store.read("account.json", CurrentAccount)
    if current is not None and current.url == url:
        store.remove("account.json")
    return store.remove(_name(url))


def _name(url: str) -> str:
    return f"accounts/{hashed(url)}.json"
