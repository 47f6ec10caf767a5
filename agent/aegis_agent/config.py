"""
The agent's settings as a frozen model; `settings.py` reads them, once.

Boards with no USB identity of their own are listed in `agent.toml` (`AEGIS_AGENT_CONFIG`):

    [[boards]]
    id = "bench-1"
    port = "virtual:///run/aegis/bench-1.sock"   # or /dev/ttyUSB0, socket://, rfc2217://
    chip = "esp32p4"
    labels = { site = "lab1" }
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from aegis_protocol.channels import SEND_QUEUE_CAP_BYTES
from aegis_protocol.errors import AegisError
from aegis_protocol.model import Id, Labels, TargetName
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from aegis_agent.log import levels
from aegis_agent.status_server import Listen

_PORT: Final = re.compile(r"^(/dev/|/|virtual://|socket://|rfc2217://|COM\d+$)")
_MAX_SECRET_CHARS: Final = 256
"""As the protocol's EnrollRequest has it."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ConfigInvalid(AegisError):
    code = "config.invalid"
    remedy = "Correct the setting that the message names; docs/agent.md lists them all."


class StaticBoard(BaseModel):
    """A board of the list; port is a device path or a virtual, socket or rfc2217 URL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Id
    port: str = Field(max_length=500)
    chip: TargetName | None = None
    labels: Labels = Field(default_factory=dict)

    @field_validator("port")
    @classmethod
    def _known_port(cls, port: str) -> str:
        if not _PORT.match(port):
            raise ValueError("a port is a path, or a virtual://, socket:// or rfc2217:// URL")
        return port


class AgentConfig(BaseModel):
    """Every setting of `aegis-agent`, with its environment variable as the alias."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    control_base_url: str = Field(
        default="http://127.0.0.1:8470", validation_alias="CONTROL_BASE_URL"
    )
    agent_auth_secret: SecretStr | None = Field(default=None, validation_alias="AGENT_AUTH_SECRET")
    state_dir: Path = Field(
        default_factory=lambda: default_state_dir(), validation_alias="AEGIS_STATE_DIR"
    )
    config_file: Path | None = Field(default=None, validation_alias="AEGIS_AGENT_CONFIG")
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")] = Field(
        default_factory=lambda: _host_name(), validation_alias="AEGIS_AGENT_NAME"
    )
    labels: Labels = Field(default_factory=dict, validation_alias="AEGIS_AGENT_LABELS")
    slots: int = Field(
        default_factory=lambda: max(1, min(64, (os.cpu_count() or 1) // 2)),
        ge=1,
        le=64,
        validation_alias="AEGIS_SLOTS",
    )
    cpu_cores: float = Field(
        default_factory=lambda: float(os.cpu_count() or 1),
        gt=0,
        allow_inf_nan=False,
        validation_alias="AEGIS_CPU_CORES",
    )
    memory_mb: int = Field(
        default_factory=lambda: _memory_mb(), gt=0, validation_alias="AEGIS_MEMORY_MB"
    )
    discover_boards: bool = Field(default=True, validation_alias="AEGIS_DISCOVER_BOARDS")
    platformio_home: Path | None = Field(default=None, validation_alias="AEGIS_PLATFORMIO_HOME")
    build_uid_base: int = Field(
        default=65_100, ge=1000, le=4_000_000_000, validation_alias="AEGIS_BUILD_UID_BASE"
    )
    silence_secs: Seconds = Field(default=600, validation_alias="AEGIS_BUILD_SILENCE_SECS")
    spool_bytes: int = Field(
        default=256 * 1024 * 1024, ge=65_536, validation_alias="AEGIS_SPOOL_BYTES"
    )
    disk_quota_mb: int = Field(default=20_000, ge=100, validation_alias="AEGIS_DISK_QUOTA_MB")
    send_queue_bytes: int = Field(
        default=SEND_QUEUE_CAP_BYTES,
        ge=65_536,
        le=SEND_QUEUE_CAP_BYTES,
        validation_alias="AEGIS_SEND_QUEUE_BYTES",
    )
    max_offline_secs: Seconds = Field(default=300, validation_alias="AEGIS_MAX_OFFLINE_SECS")
    max_job_secs: int = Field(default=14_400, ge=60, validation_alias="AEGIS_MAX_JOB_SECS")
    linger_secs: Seconds = Field(default=30, validation_alias="AEGIS_JOB_LINGER_SECS")
    """How long a job without a peer or a running task is kept."""
    link_timeout_s: Seconds = Field(default=15, validation_alias="AEGIS_LINK_TIMEOUT")
    connect_timeout_s: Seconds = Field(default=10, validation_alias="AEGIS_CONNECT_TIMEOUT")
    status_listen: str | None = Field(default=None, validation_alias="AEGIS_STATUS_LISTEN")
    """A loopback address or a socket's path for /health, /metrics and /status.json."""
    relay_only: bool = Field(default=False, validation_alias="AEGIS_RELAY_ONLY")
    ca_file: Path | None = Field(default=None, validation_alias="AEGIS_CA_FILE")
    allow_insecure: bool = Field(default=False, validation_alias="AEGIS_ALLOW_INSECURE")
    log: str = Field(default="info", validation_alias="AEGIS_LOG")
    boards: tuple[StaticBoard, ...] = ()

    @field_validator("agent_auth_secret")
    @classmethod
    def _secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        if len(value.get_secret_value()) > _MAX_SECRET_CHARS:
            raise ValueError(f"at most {_MAX_SECRET_CHARS} characters")
        return value

    @field_validator("state_dir", "config_file", "platformio_home", "ca_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("labels", mode="before")
    @classmethod
    def _split_labels(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [item.partition("=") for item in value.split(",") if item.strip()]
        if any(not sign for _, sign, _ in pairs):
            raise ValueError("labels are written as site=lab1,room=2")
        return {key.strip(): label.strip() for key, _, label in pairs}

    @field_validator("status_listen")
    @classmethod
    def _local_listen(cls, value: str | None) -> str | None:
        if not value:
            return None
        Listen.read(value)
        return value

    @field_validator("control_base_url")
    @classmethod
    def _base_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.port == 0
            or parts.query
            or parts.fragment
            or parts.username is not None
            or len(value) > 256
        ):
            raise ValueError("a URL such as https://control.example.org")
        return value.rstrip("/")

    @field_validator("log")
    @classmethod
    def _log_levels(cls, value: str) -> str:
        levels(value)
        return value

    @model_validator(mode="after")
    def _names_differ(self) -> AgentConfig:
        ids = [board.id for board in self.boards]
        doubled = sorted({board_id for board_id in ids if ids.count(board_id) > 1})
        if doubled:
            raise ValueError(f"two boards are called {doubled[0]}")
        return self

    @property
    def toolchain_home(self) -> Path:
        return self.platformio_home or self.state_dir / "toolchains" / "platformio"


def first_fault(exc: ValidationError) -> str:
    """The first thing that is wrong, as `FIELD: why`; what was given is not shown."""
    wrong = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in wrong["loc"])
    why = wrong["msg"].removeprefix("Value error, ")
    return f"{field}: {why}" if field else why


def default_state_dir() -> Path:
    """/var/lib/aegis/agent for root, else the user's state folder (XDG base directories)."""
    if os.geteuid() == 0:
        return Path("/var/lib/aegis/agent")
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "aegis" / "agent"


def _host_name() -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()).lstrip("_.-")
    return name[:63] or "agent"


def _memory_mb() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024)
    except (ValueError, OSError):
        return 1024
