"""
Installs a PlatformIO platform (espressif32, pioarduino by address, …) into a home, for all builds.

It is PlatformIO that downloads, so this needs a network, and it runs the platform's own code as
whoever calls it: an operator's act, never a job's.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog
from aegis_protocol.failures.toolchain import InstallFailed, ToolchainMissing

from aegis_agent.platformio_home import child
from aegis_agent.platformio_home.build_core import environment, pio
from aegis_agent.platformio_home.install import Progress, is_complete, lock
from aegis_agent.platformio_home.layout import Layout
from aegis_agent.platformio_home.seed import write_state

log = structlog.get_logger()

_DEADLINE_S: Final = 3600.0
_WORD: Final = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}$")
_SPEC: Final = re.compile(r"^[^\s\-][^\r\n]{0,999}$")


async def install_platform(
    home: Path,
    spec: str,
    *,
    board: str | None = None,
    frameworks: Sequence[str] = (),
    on_progress: Progress,
) -> None:
    """
    Install platform `spec` (such as `espressif32@6.13.0` or an https:// address) into `home`.

    board, frameworks  what a project has: with them also the compiler and framework packages that
                       this very board needs; without, what the platform installs by default
    on_progress        called with each line that PlatformIO prints

    Raises
    ------
    ToolchainMissing  `install` has not finished in `home`
    InstallFailed     PlatformIO failed; `facts["output"]` has its last lines
    """
    if not is_complete(home):
        raise ToolchainMissing(
            "PlatformIO is not installed on this agent yet",
            remedy="Start the agent once, or run `aegis-agent toolchains list`.",
        )
    for word in (*frameworks, *([board] if board else [])):
        if not _WORD.match(word):
            raise InstallFailed(f"{word!r} is no name of a board or framework")
    if not _SPEC.match(spec):
        raise InstallFailed(f"{spec!r} is no platform")
    layout = Layout(home)
    async with lock(layout):
        log.info("platform.install_started", spec=spec)
        with tempfile.TemporaryDirectory(prefix="aegis-platform-") as scratch:
            project = Path(scratch)
            arguments = ["pkg", "install", "--global", "--platform", spec]
            if board is not None:
                _write_project(project, spec, board, frameworks)
                arguments = ["pkg", "install", "--project-dir", str(project)]
            await child.run(
                pio(home, *arguments),
                environment=_environment(layout),
                deadline_s=_DEADLINE_S,
                cwd=project,
                on_line=on_progress,
            )
        write_state(layout.core)
        log.info("platform.installed", spec=spec)


def _write_project(project: Path, spec: str, board: str, frameworks: Sequence[str]) -> None:
    lines = ["[env:install]", f"platform = {spec}", f"board = {board}"]
    if frameworks:
        lines.append(f"framework = {', '.join(frameworks)}")
    (project / "platformio.ini").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _environment(layout: Layout) -> dict[str, str]:
    """The builds' environment, plus what this machine needs to reach a network."""
    inherited = ("HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy",
                 "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")  # fmt: skip
    own = environment(layout.home, core=layout.core)
    return {**own, **{name: os.environ[name] for name in inherited if name in os.environ}}
