"""How a build ends when it does not end well."""

from aegis_protocol.errors import AegisError


class BuildFailed(AegisError):
    code = "build.failed"
    remedy = "Mend the errors shown; `--verbose` shows every command."


class BuildTooLarge(AegisError):
    code = "build.too_large"
    remedy = "Make the program smaller or choose a partition table with a larger app."


class BuildCanceled(AegisError):
    code = "build.canceled"
    remedy = "Start it again when you want to."


class BuildTimedOut(AegisError):
    code = "build.timed_out"
    remedy = "Ask for more time with `--timeout`."


class BuildSilent(AegisError):
    code = "build.silent"
    remedy = "The build printed nothing for too long: look at its last lines."


class ArtifactMissing(AegisError):
    code = "artifact.not_found"
    remedy = "`espctl download --list` shows what there is."


class ArtifactUnsafe(AegisError):
    code = "artifact.unsafe"
    remedy = "The build left something that is no ordinary file of sane size: look at its scripts."


class TaskNotFound(AegisError):
    code = "task.not_found"
    remedy = "`espctl jobs` lists your jobs and their builds."


class SandboxUnavailable(AegisError):
    code = "sandbox.unavailable"
    remedy = (
        "Install bubblewrap on the agent (`apt-get install bubblewrap`) and allow it user "
        "namespaces; docs/agent.md says how on Ubuntu."
    )
