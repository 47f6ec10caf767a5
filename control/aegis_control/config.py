"""
Control's settings: read once into a frozen model (`config_sources` says from where).

Order, the first that has a value wins: a command's option, the environment,
`/etc/aegis/control.env`, `/etc/aegis/secrets.env`, the default (`AEGIS_CONFIG_DIR` names another
folder than /etc/aegis). The files hold plain `NAME=value` lines. An empty value is an unset one.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from aegis_protocol.channels import ChannelName
from aegis_protocol.errors import AegisError
from aegis_protocol.grant import MAX_GRANT_LIFE_S
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from aegis_control.exact_values import check_database_url, check_network, check_origin
from aegis_control.log import check_spec
from aegis_control.rate_limits import check_rate
from aegis_control.sealing import MIN_KEY_CHARACTERS

DEFAULT_PORT: Final = 8470
DEFAULT_LISTEN: Final = f"127.0.0.1:{DEFAULT_PORT}"

_LISTEN: Final = re.compile(r"^(?P<host>\[[0-9a-fA-F:.]+\]|[^:\s]+):(?P<port>\d{1,5})$")
_STUN: Final = re.compile(r"^stuns?:[^\s?@/]+$")
_TURN: Final = re.compile(r"^turns?:[^\s?@/]+(\?transport=(udp|tcp))?$")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Words = Annotated[tuple[str, ...], NoDecode]


class ConfigInvalid(AegisError):
    code = "config.invalid"
    remedy = "Correct the setting that the message names; docs/settings.md lists them all."


class ControlConfig(BaseSettings):
    """Every setting of `aegis-control`, with its environment variable as the alias."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True
    )

    listen: str = Field(default=DEFAULT_LISTEN, validation_alias="AEGIS_LISTEN")
    """host:port; port 0 takes a free one."""
    public_base_url: str | None = Field(default=None, validation_alias="CONTROL_PUBLIC_BASE_URL")
    """How agents and clients reach control; by default what `listen` says."""
    tls_cert_file: Path | None = Field(default=None, validation_alias="AEGIS_TLS_CERT_FILE")
    tls_key_file: Path | None = Field(default=None, validation_alias="AEGIS_TLS_KEY_FILE")
    state_dir: Path = Field(
        default_factory=lambda: default_state_dir(), validation_alias="AEGIS_STATE_DIR"
    )
    database_url: SecretStr | None = Field(default=None, validation_alias="AEGIS_DATABASE_URL")
    """By default SQLite in the state directory."""
    allowed_channels: Words = Field(default=tuple(ChannelName), validation_alias="ALLOWED_CHANNELS")
    allowed_origins: Words = Field(default=(), validation_alias="ALLOWED_ORIGINS")
    mcp_auth_secret: SecretStr | None = Field(default=None, validation_alias="MCP_AUTH_SECRET")
    mcp_auth_secret_previous: SecretStr | None = Field(
        default=None, validation_alias="MCP_AUTH_SECRET_PREVIOUS"
    )
    agent_auth_secret: SecretStr | None = Field(default=None, validation_alias="AGENT_AUTH_SECRET")
    agent_auth_secret_previous: SecretStr | None = Field(
        default=None, validation_alias="AGENT_AUTH_SECRET_PREVIOUS"
    )
    stun_urls: Words = Field(default=(), validation_alias="AEGIS_STUN_URLS")
    turn_urls: Words = Field(default=(), validation_alias="AEGIS_TURN_URLS")
    seal_key: SecretStr | None = Field(default=None, validation_alias="AEGIS_SEAL_KEY")
    """What replicas share lies in the database sealed with this."""
    seal_key_previous: SecretStr | None = Field(
        default=None, validation_alias="AEGIS_SEAL_KEY_PREVIOUS"
    )
    turn_secret: SecretStr | None = Field(default=None, validation_alias="AEGIS_TURN_SECRET")
    turn_secret_previous: SecretStr | None = Field(
        default=None, validation_alias="AEGIS_TURN_SECRET_PREVIOUS"
    )
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = Field(
        default=(), validation_alias="AEGIS_TRUSTED_PROXIES"
    )
    rate_per_address: str = Field(default="60000/minute", validation_alias="AEGIS_RATE_PER_ADDRESS")
    """Requests from one address (IPv6: one /64); `off`: no limit."""
    rate_per_key: str = Field(default="30000/minute", validation_alias="AEGIS_RATE_PER_KEY")
    """Requests with one key."""
    rate_failures: str = Field(default="30/minute", validation_alias="AEGIS_RATE_FAILURES")
    """Wrong keys, tokens and grants from one address; and, apart, links that were not proven."""
    max_connections: int = Field(default=20_000, ge=64, validation_alias="AEGIS_MAX_CONNECTIONS")
    """Fewer where the limit of open files leaves room for fewer."""
    max_connections_each: int = Field(
        default=512, ge=16, validation_alias="AEGIS_MAX_CONNECTIONS_PER_ADDRESS"
    )
    """Of one address, but for agents' links and event streams."""
    log: str = Field(default="info", validation_alias="AEGIS_LOG")
    policy_file: Path | None = Field(default=None, validation_alias="AEGIS_POLICY_FILE")
    """By default policy.toml beside control.env, if it is there."""
    grant_secs: int = Field(
        default=MAX_GRANT_LIFE_S, ge=5, le=MAX_GRANT_LIFE_S, validation_alias="AEGIS_GRANT_SECS"
    )
    max_bandwidth_kbps: int = Field(default=0, ge=0, validation_alias="AEGIS_MAX_BANDWIDTH_KBPS")
    """0: no limit."""
    max_message_rate: int = Field(default=0, ge=0, validation_alias="AEGIS_MAX_MESSAGE_RATE")
    """Messages per second; 0: no limit."""
    max_job_secs: int = Field(
        default=14_400, ge=1, le=86_400, validation_alias="AEGIS_MAX_JOB_SECS"
    )
    max_waiting_jobs: int = Field(default=64, ge=1, validation_alias="AEGIS_MAX_WAITING_JOBS")
    """Per identity; one more is refused with 429."""
    request_timeout_s: float = Field(default=60, gt=0, validation_alias="AEGIS_REQUEST_TIMEOUT")
    connect_timeout_s: float = Field(default=10, gt=0, validation_alias="AEGIS_CONNECT_TIMEOUT")
    link_timeout_s: float = Field(default=15, gt=0, validation_alias="AEGIS_LINK_TIMEOUT")
    """An agent's link without a frame for so long is down."""
    stall_timeout_s: float = Field(default=30, ge=1, validation_alias="AEGIS_STALL_TIMEOUT")
    """A peer that takes nothing of what it is sent for so long is cut."""
    keepalive_s: float = Field(default=30, gt=0, validation_alias="AEGIS_KEEPALIVE_SECS")
    lost_after_s: float = Field(default=120, gt=0, validation_alias="AEGIS_LOST_AFTER_SECS")
    """After its agent's link went down a job is `lost`."""
    failed_after_s: float = Field(default=300, gt=0, validation_alias="AEGIS_FAILED_AFTER_SECS")
    """A job that was lost for so long has failed."""
    lease_max_s: float = Field(default=28_800, gt=0, validation_alias="AEGIS_LEASE_MAX_SECS")
    lease_idle_s: float = Field(default=600, gt=0, validation_alias="AEGIS_LEASE_IDLE_SECS")
    """A lease whose board no job has for so long ends."""
    max_wait_s: float = Field(default=14_400, gt=0, validation_alias="AEGIS_MAX_WAIT_SECS")
    absent_after_s: float = Field(default=60, gt=0, validation_alias="AEGIS_ABSENT_AFTER_SECS")
    """A pending job whose client neither listens nor polls for so long is dropped."""
    connect_grace_s: float = Field(default=60, gt=0, validation_alias="AEGIS_CONNECT_GRACE_SECS")
    """An assigned job to which nobody connects for so long goes back to pending, once."""
    audit_keep_days: float = Field(default=365, ge=0, validation_alias="AEGIS_AUDIT_KEEP_DAYS")
    """Older records of the audit are pruned; 0 keeps them for ever."""
    slow_ms: int = Field(default=500, ge=1, validation_alias="AEGIS_SLOW_MS")
    """A request or transaction that takes longer is logged and counted as slow."""
    drain_timeout_s: float = Field(default=10, gt=0, validation_alias="AEGIS_DRAIN_TIMEOUT")
    """After SIGTERM everything is closed within so long."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: Any) -> Any:
        # runs after `_split`: of these validators the last one is the first
        for word in value:
            check_network(word)
        return value

    @field_validator(
        "allowed_channels",
        "allowed_origins",
        "stun_urls",
        "turn_urls",
        "trusted_proxies",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(word for word in re.split(r"[,\s]+", value) if word)

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_database_url(value.get_secret_value())
        return value

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        match = _LISTEN.match(value)
        if match is None or int(match["port"]) > 65_535:
            raise ValueError("host:port, such as 127.0.0.1:8470 or [::]:8470")
        return value

    @field_validator("public_base_url")
    @classmethod
    def _base_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or parts.username is not None
        ):
            raise ValueError("a URL such as https://control.example.org")
        return value.rstrip("/")

    @field_validator("allowed_channels")
    @classmethod
    def _known_channels(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = [str(name) for name in ChannelName]
        for name in value:
            if name not in known:
                raise ValueError(f"{name!r} is no channel; there are {', '.join(known)}")
        return tuple(str(name) for name in dict.fromkeys(value))

    @field_validator("allowed_origins")
    @classmethod
    def _exact_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            check_origin(origin)
        return value

    @field_validator("stun_urls")
    @classmethod
    def _stun(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not _STUN.match(url):
                raise ValueError(f"{url!r} is no STUN URL such as stun:stun.example.org:3478")
        return value

    @field_validator("turn_urls")
    @classmethod
    def _turn(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not _TURN.match(url):
                raise ValueError(f"{url!r} is no TURN URL such as turn:turn.example.org:3478")
        return value

    @field_validator("seal_key", "seal_key_previous")
    @classmethod
    def _long_seal_key(cls, value: SecretStr | None) -> SecretStr | None:
        text = "" if value is None else value.get_secret_value().strip()
        if text and len(text) < MIN_KEY_CHARACTERS:
            raise ValueError(f"at least {MIN_KEY_CHARACTERS} random characters")
        return value

    @field_validator("log")
    @classmethod
    def _log_spec(cls, value: str) -> str:
        check_spec(value)
        return value

    @field_validator("rate_per_address", "rate_per_key", "rate_failures")
    @classmethod
    def _rates(cls, value: str) -> str:
        check_rate(value)
        return value

    @model_validator(mode="after")
    def _together(self) -> ControlConfig:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("AEGIS_TLS_CERT_FILE and AEGIS_TLS_KEY_FILE belong together")
        if bool(self.turn_urls) != (self.turn_secret is not None):
            raise ValueError("AEGIS_TURN_URLS and AEGIS_TURN_SECRET belong together")
        return self

    @property
    def host_and_port(self) -> tuple[str, int]:
        match = _LISTEN.match(self.listen)
        if match is None:
            raise ConfigInvalid(f"AEGIS_LISTEN: {self.listen}")
        return match["host"].strip("[]"), int(match["port"])

    @property
    def mcp_secrets(self) -> tuple[str, ...]:
        return _given(self.mcp_auth_secret, self.mcp_auth_secret_previous)

    @property
    def agent_secrets(self) -> tuple[str, ...]:
        return _given(self.agent_auth_secret, self.agent_auth_secret_previous)

    @property
    def turn_secrets(self) -> tuple[str, ...]:
        return _given(self.turn_secret, self.turn_secret_previous)

    @property
    def seal_keys(self) -> tuple[str, ...]:
        return _given(self.seal_key, self.seal_key_previous)

    @property
    def database(self) -> str:
        """The database's SQLAlchemy URL."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite+aiosqlite:///{self.state_dir.absolute() / 'control.db'}"


def default_state_dir() -> Path:
    """/var/lib/aegis/control for root, else the user's state folder (XDG base directories)."""
    if os.geteuid() == 0:
        return Path("/var/lib/aegis/control")
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "aegis" / "control"


def _given(*secrets: SecretStr | None) -> tuple[str, ...]:
    return tuple(s.get_secret_value() for s in secrets if s and s.get_secret_value().strip())
