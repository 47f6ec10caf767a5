"""What doctor shows."""

from __future__ import annotations

from aegis_client.cli.opened import with_config
from aegis_client.cli.output import Output
from aegis_client.cli.wishes import identifier
from aegis_client.config import ClientConfig
from aegis_client.doctor import Report, examine
from aegis_client.exit_codes import ExitCode
from aegis_client.link_check import try_link


def doctor(*, link: bool, agent: str | None, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(config: ClientConfig) -> ExitCode:
        report = await examine(config)
        if link:
            tried = await try_link(config, identifier(agent, "--agent"))
            report = Report((*report.checks, tried))
        out.result(report.as_json())
        out.table(
            ["check", "status", "detail"],
            [
                [c.name, c.status, c.detail + (f"\n{c.remedy}" if c.remedy else "")]
                for c in report.checks
            ],
        )
        return ExitCode.UNREACHABLE if report.status == "error" else ExitCode.OK

    return with_config(out, work)
