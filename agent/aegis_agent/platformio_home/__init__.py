"""
A PlatformIO installation of the agent's own: made, inspected, used by builds.

    install           makes home/venv and home/core; at once when they are there
    install_platform  adds a platform from the network
    preflight         which environment a build would use, and what is missing
    prepare_core, environment, build_command, metadata_command
                      what a sandboxed build needs to run it
    targets           the chips it can build for
"""

from aegis_agent.platformio_home.build_core import (
    build_command,
    environment,
    metadata_command,
    prepare_core,
    verbose_build_command,
)
from aegis_agent.platformio_home.install import (
    install,
    is_complete,
    is_current,
    unreachable_by_others,
)
from aegis_agent.platformio_home.inventory import installed_platforms, targets
from aegis_agent.platformio_home.layout import Layout, fixtures_dir, pins
from aegis_agent.platformio_home.needs import Missing
from aegis_agent.platformio_home.platforms import install_platform
from aegis_agent.platformio_home.preflight import PreflightPlan, plan_build, preflight

__all__ = [
    "Layout",
    "Missing",
    "PreflightPlan",
    "build_command",
    "environment",
    "fixtures_dir",
    "install",
    "install_platform",
    "installed_platforms",
    "is_complete",
    "is_current",
    "metadata_command",
    "pins",
    "plan_build",
    "preflight",
    "prepare_core",
    "targets",
    "unreachable_by_others",
    "verbose_build_command",
]
