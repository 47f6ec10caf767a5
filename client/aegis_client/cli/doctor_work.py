"""What doctor and test-connection show."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_client.cli.opened import with_config
from aegis_client.cli.output import Output
from aegis_client.cli.wishes import identifier
from aegis_client.config import ClientConfig
from aegis_client.connection_report import measure_connection
from aegis_client.doctor import Check, Report, examine
from aegis_client.exit_codes import ExitCode, exit_code
from aegis_client.link_check import try_link


def doctor(*, link: bool, agent: str | None, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(config: ClientConfig) -> ExitCode:
        report = await examine(config)
        if link:
            tried = await try_link(config, identifier(agent, "--agent"))
            report = Report((*report.checks, tried))
        out.result(report.as_json())
        _table(out, "check", report.checks)
        return ExitCode.UNREACHABLE if report.status == "error" else ExitCode.OK

    return with_config(out, work)


def test_connection(*, agent: str | None, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(config: ClientConfig) -> ExitCode:
        found = await measure_connection(config, identifier(agent, "--agent"))
        out.result(found.as_json())
        _table(out, "hop", found.checks)
        return ExitCode.OK if found.error is None else exit_code(found.error.code)

    return with_config(out, work)


def _table(out: Output, what: str, checks: Sequence[Check]) -> None:
    out.table(
        [what, "status", "detail"],
        [[c.name, c.status, c.detail + (f"\n{c.remedy}" if c.remedy else "")] for c in checks],
    )
