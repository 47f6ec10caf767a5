"""What a session is asked for with, before there is a certificate to ask with."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegis_protocol.board import BoardWish
from aegis_protocol.channels import ChannelName
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.http_api.toolchains import ToolchainWish

from aegis_client.needs import Needs


@dataclass(frozen=True)
class Wish:
    """
    As in `GrantRequest`.

    needs      channels and actions
    timeout_s  the job's longest time, from the first connection
    wait_s     how long to wait for an agent
    agent      its id or name, if it must be that one
    job_id     a job that there is already
    """

    needs: Needs
    timeout_s: int = 600
    wait_s: float = 300.0
    target: str | None = None
    toolchain: ToolchainWish | None = None
    agent: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    boards: tuple[BoardWish, ...] = ()
    project_key: str | None = None
    cpu_cores: float = 1.0
    memory_mb: int = 1024
    job_id: str | None = None

    def request(self, peer_fingerprint: str) -> GrantRequest:
        return GrantRequest(
            peer_fingerprint=peer_fingerprint,
            required_channels=tuple(str(n) for n in ChannelName if n in self.needs.channels),
            cpu_cores=self.cpu_cores,
            memory_mb=self.memory_mb,
            timeout_secs=self.timeout_s,
            target=self.target,
            toolchain=self.toolchain,
            actions=tuple(sorted(self.needs.actions)),
            agent_id=self.agent,
            labels=self.labels,
            boards=self.boards,
            project_key=self.project_key,
            job_id=self.job_id,
        )
