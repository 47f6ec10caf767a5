"""What goes wrong with a board."""

from aegis_protocol.errors import AegisError


class BoardError(AegisError):
    code = "board.error"
    remedy = "Look at the board and at the agent's log, then try again."


class BoardNotFound(BoardError):
    code = "board.not_found"
    remedy = "`espctl boards` lists the boards there are."


class BoardNotGranted(BoardError):
    code = "board.not_granted"
    remedy = "Ask for the board with the job: `--board`."


class BoardGone(BoardError):
    code = "board.gone"
    remedy = "Check the USB cable and the board's power, then run the command again."
    retryable = True


class BoardInDoubt(BoardError):
    code = "board.in_doubt"
    remedy = "Nobody knows what was written to the board: look at its console, or flash it again."


class BoardBusy(BoardError):
    code = "board.busy"
    remedy = "Something else has the port open or is flashing: end it, then try again."
    retryable = True


class BoardNotFree(BoardError):
    """facts: reasons, as a waiting job has them."""

    code = "board.not_free"
    remedy = "Wait for it (`espctl lease take --wait 600`), or take another board."
    retryable = True


class LeaseNotFound(AegisError):
    code = "lease.not_found"
    remedy = "`espctl lease list` shows the leases there are."


class LeaseOver(AegisError):
    code = "lease.over"
    remedy = "Take the board again: `espctl lease take`."


class LeaseTooLong(AegisError):
    code = "lease.too_long"
    remedy = "Ask for no more than the message says; release the board when you are done."


class BoardSilent(BoardError):
    code = "board.no_answer"
    remedy = "Hold BOOT while pressing RESET, check cable and port, then try again."
    retryable = True


class NoResetLines(BoardError):
    code = "board.no_reset_lines"
    remedy = "Press the board's reset button, or use a port with DTR and RTS."


class ChipMismatch(BoardError):
    code = "board.chip_mismatch"
    remedy = "Build for this board's chip, or choose a board of the image's chip."


class VerifyFailed(BoardError):
    code = "flash.verify_failed"
    remedy = "Flash again at a lower speed (`--baud 115200`); if it persists, the flash is worn."
    retryable = True


class FlashFailed(BoardError):
    code = "flash.failed"
    remedy = "Flash again; at a lower speed (`--baud 115200`) if the cable is long."
    retryable = True


class FlashTimedOut(BoardError):
    code = "flash.timed_out"
    remedy = "Check the cable, then flash again; the board was reset."
    retryable = True


class FlashCanceled(BoardError):
    code = "flash.canceled"
    remedy = "The board's image is now unknown: flash it again."


class ImageInvalid(BoardError):
    code = "flash.image_invalid"
    remedy = "Use a bundle as `espctl build` made it."


class ConsoleHeld(BoardError):
    code = "console.writer_taken"
    remedy = "Another peer of this job types already: read along, or end its monitor."


class MonitorLimit(BoardError):
    code = "monitor.timed_out"
    remedy = "The pattern did not come in time: look at the console's last lines."


class MonitorFailed(BoardError):
    code = "monitor.fail_pattern"
    remedy = "The console showed what you said is a failure."
