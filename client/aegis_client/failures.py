"""The failures that only a client can meet: its settings, its store, what was typed."""

from aegis_protocol.errors import AegisError


class ConfigInvalid(AegisError):
    code = "config.invalid"
    remedy = "Correct the setting that the message names; docs/espctl.md lists them all."


class UrlInsecure(AegisError):
    code = "config.url_insecure"
    remedy = (
        "Use https. In a network that you trust, ESPCTL_ALLOW_INSECURE=1 allows plain http to "
        "another host: whoever listens there then sees the key."
    )


class AnswerOverdue(AegisError):
    code = "link.no_answer"
    remedy = (
        "Control took the offer, and the agent did not answer it: see with `espctl agents` whether "
        "it is online, then try again."
    )
    retryable = True


class Interrupted(AegisError):
    code = "command.interrupted"
    remedy = "What it had started on the agent was canceled: run it again when you want to."


class StoreNotFound(AegisError):
    code = "store.not_found"
    remedy = "Set AEGIS_STORE to a folder of yours whose parent exists, or unset it."


class StoreDamaged(AegisError):
    code = "store.damaged"
    remedy = "Move the file that the message names away; what it held must be entered again."


class UsageInvalid(AegisError):
    code = "usage.invalid"
    remedy = "`espctl COMMAND --help` shows what a command takes."


class SourceUnreadable(AegisError):
    code = "source.unreadable"
    remedy = "Make the file readable for you, or name it in .aegisignore."


class OutputUnwritable(AegisError):
    code = "output.unwritable"
    remedy = "Choose a folder that you may write to with `--output`."


class BundleInvalid(AegisError):
    code = "bundle.invalid"
    remedy = "Use a flash_bundle.tar.gz as `espctl build` made it."


class NoEarlierBuild(AegisError):
    code = "task.none_known"
    remedy = "Build it first with `espctl build DIR --target T`, or name a task: `espctl jobs`."


class ProofFailed(AegisError):
    code = "monitor.elf_mismatch"
    remedy = "The board runs another program than the one that was built: flash it again."
