"""What is wrong with a project's files or their upload."""

from aegis_protocol.errors import AegisError


class PathUnsafe(AegisError):
    code = "source.path_unsafe"
    remedy = "Rename or move the file: paths stay inside the project and are plain UTF-8."


class SymlinkUnsafe(AegisError):
    code = "source.symlink_unsafe"
    remedy = "Point the link inside the project, or name it in .aegisignore."


class SourceTooLarge(AegisError):
    code = "source.too_large"
    remedy = "Name what a build does not need in .aegisignore."


class SourceNotFound(AegisError):
    code = "source.not_found"
    remedy = "Name the folder of a project."


class UploadIncomplete(AegisError):
    code = "source.upload_incomplete"
    remedy = "Run the command again: what has arrived is kept, the rest is sent."
    retryable = True


class SourceChanged(AegisError):
    code = "source.changed"
    remedy = "A file changed while it was read: run the command again."
    retryable = True


class PlanUnknown(AegisError):
    code = "source.plan_unknown"
    remedy = "Send the plan again: the agent kept it for this session only."
    retryable = True


class WorkspaceBusy(AegisError):
    code = "workspace.busy"
    remedy = "Another build of this project is running there: wait for it or cancel it."
    retryable = True


class DiskFull(AegisError):
    code = "agent.disk_full"
    remedy = "Free space on the agent, or raise AEGIS_DISK_QUOTA_MB."
