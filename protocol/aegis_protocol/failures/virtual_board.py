"""
What can be wrong with a virtual board.

    VirtualBoardError
      BoardDidNotStart     its process ended, or said nothing in time
      BadBoardSetting      a chip, size, MAC, fault or path that makes no board
      EmulatorMissing      Unicorn is not installed, and this chip's code would run in it
      FlashFileUnusable    the file of the flash is locked, of another size, or can't be opened
      BoardAddressTaken    another board, or another program, has the socket or the link
      BoardControlFailed   its process does not answer on the control socket
"""

from __future__ import annotations

from aegis_protocol.errors import AegisError


class VirtualBoardError(AegisError):
    """A failure of the process that plays a board, not of anything on its flash."""

    code = "virtual_board.failed"
    remedy = "Start the virtual board again; its log says why it ended."


class BoardDidNotStart(VirtualBoardError):
    code = "virtual_board.did_not_start"
    remedy = "Run `aegis-agent virtual-board` by hand with the same options and read what it says."


class BadBoardSetting(VirtualBoardError):
    code = "virtual_board.bad_setting"
    remedy = "See `aegis-agent virtual-board --help` for what the option takes."


class EmulatorMissing(VirtualBoardError):
    code = "virtual_board.emulator_missing"
    remedy = "Install the extra that brings Unicorn: pip install 'aegis-esp[virtual]'."


class FlashFileUnusable(VirtualBoardError):
    code = "virtual_board.flash_file_unusable"
    remedy = "Give another --flash-file, or remove this one to start with an erased flash."


class BoardAddressTaken(VirtualBoardError):
    code = "virtual_board.address_taken"
    remedy = "Stop the program that listens there, or give another path."


class BoardControlFailed(VirtualBoardError):
    code = "virtual_board.control_failed"
    remedy = "Check that the board's process still runs."
    retryable = True
