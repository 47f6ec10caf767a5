"""
What can be wrong with a toolchain, or with a project before anything is compiled.

    AegisError
      ToolchainMissing, PackageMissing, InstallFailed      the agent lacks something
      ProjectNotPlatformIO, ProjectConfigInvalid           the project is not what it should be
      EnvironmentUnknown, EnvironmentAmbiguous, TargetUnsupported
                                                           no one environment fits the target
"""

from aegis_protocol.errors import AegisError


class ToolchainMissing(AegisError):
    code = "toolchain.missing"
    remedy = "Install the toolchain on the agent; `aegis-agent toolchains list` shows what it has."


class PackageMissing(AegisError):
    """facts: missing, a list of {kind, name, requirement}."""

    code = "toolchain.package_missing"
    remedy = "On the agent, `aegis-agent toolchains install-platform` installs it."


class InstallFailed(AegisError):
    code = "toolchain.install_failed"
    remedy = "Look at the last lines of the installer; it may need a network, or space on the disk."
    retryable = True


class ProjectNotPlatformIO(AegisError):
    code = "project.not_platformio"
    remedy = "Name the folder that holds platformio.ini; `pio project init` makes a new project."


class ProjectConfigInvalid(AegisError):
    code = "project.config_invalid"
    remedy = "Correct platformio.ini as the message says."


class EnvironmentUnknown(AegisError):
    code = "build.env_unknown"
    remedy = "Choose one of the project's environments with `--env`."


class EnvironmentAmbiguous(AegisError):
    code = "build.env_ambiguous"
    remedy = "Choose one of the environments with `--env`."


class TargetUnsupported(AegisError):
    code = "build.target_unsupported"
    remedy = "Add an environment with a board of that chip to platformio.ini, or choose its target."
