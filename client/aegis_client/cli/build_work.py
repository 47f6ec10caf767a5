"""What build does, and how a build's end is shown."""

from __future__ import annotations

from typing import Final

from aegis_protocol.manifest import Diagnostic

from aegis_client.build_project import BuildReport, ProjectBuild, build_project, detach_build
from aegis_client.cli.opened import with_client
from aegis_client.cli.output import Output
from aegis_client.cli.progress import LiveReporter, log_stream
from aegis_client.client import Client
from aegis_client.exit_codes import ExitCode, exit_code
from aegis_client.wish import Wish

_SHOWN: Final = 20


def build(out: Output, wanted: ProjectBuild, wish: Wish, *, show: bool | None) -> ExitCode:
    async def work(client: Client) -> ExitCode:
        with LiveReporter(out, log_stream(out, show)) as reporter:
            report = await build_project(client, wanted, wish, reporter)
        return shown(out, report)

    return with_client(out, work)


def detach(out: Output, wanted: ProjectBuild, wish: Wish) -> ExitCode:
    async def work(client: Client) -> None:
        with LiveReporter(out, None) as reporter:
            job_id, started = await detach_build(client, wanted, wish, reporter)
        out.result(
            {
                "job_id": job_id,
                "task_id": started.task_id,
                "state": "running",
                "environment": started.environment,
                "toolchain": started.toolchain,
            }
        )
        out.line(f"{job_id} builds; come back with: espctl attach {job_id}")

    return with_client(out, work)


def shown(out: Output, report: BuildReport) -> ExitCode:
    """Print how a build ended; return the exit code."""
    out.result(report.as_json())
    error = report.error
    if error is not None:
        diagnostics(out, report.result.diagnostics)
        out.error(error)
        return exit_code(error.code)
    if out.json:
        return ExitCode.OK
    summary(out, report)
    return ExitCode.OK


def summary(out: Output, report: BuildReport) -> None:
    result, manifest = report.result, report.manifest
    warm = " (warm)" if result.warm else ""
    out.note(
        f"built {report.environment} for {report.target} on {report.agent_name} "
        f"in {result.duration_s:.1f} s{warm}; {report.sent_files} files "
        f"({report.sent_bytes} bytes) were sent"
    )
    if result.size is not None and result.size.flash_total:
        size = result.size
        out.note(
            f"flash {size.flash_used}/{size.flash_total} bytes, RAM {size.ram_used}/"
            f"{size.ram_total} bytes"
        )
    if manifest is not None and not out.quiet:
        out.table(
            ["offset", "image", "bytes", "SHA-256"],
            [
                [f"0x{image.offset:x}", image.path, str(image.size_bytes), image.sha256[:16]]
                for image in manifest.images
            ],
        )
    warnings = [d for d in result.diagnostics if d.severity == "warning"]
    if warnings and not out.quiet:
        diagnostics(out, tuple(warnings))
    if report.output is not None:
        out.line(str(report.output))


def diagnostics(out: Output, found: tuple[Diagnostic, ...]) -> None:
    """What the compiler said, the errors first."""
    order = {"error": 0, "warning": 1, "note": 2}
    ranked = sorted(found, key=lambda d: order[d.severity])
    if not ranked:
        return
    out.table(
        ["", "where", "message"],
        [
            [d.severity, where(d), d.message + (f"\n{d.hint}" if d.hint else "")]
            for d in ranked[:_SHOWN]
        ],
    )
    if len(ranked) > _SHOWN:
        out.note(f"and {len(ranked) - _SHOWN} more; diagnostics.json has them all")


def where(diagnostic: Diagnostic) -> str:
    """file:line:column, as far as it is known."""
    parts = [diagnostic.file, diagnostic.line, diagnostic.column]
    return ":".join(str(part) for part in parts if part)
