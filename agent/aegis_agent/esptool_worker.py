# SPDX-License-Identifier: GPL-2.0-or-later
"""
The program that flashes: esptool's library in a process of its own.

It imports esptool, which is GPL-2.0-or-later, and so is this file. One JSON object on standard
input says what to write; JSON objects on standard output say how it goes:

    {"event": "phase", "phase": "connect"}       connect, stub, erase, write
    {"event": "connected", "chip": "esp32p4", "mac": "…", "description": "…"}
    {"event": "progress", "image": 0, "done": 16384, "total": 61440}
    {"event": "done", "sha256": ["…"]}
    {"event": "failed", "code": "board.no_answer", "message": "…", "facts": {}}

When standard input closes, it lets the port go and ends. The board is left as it is then.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from aegis_agent.serial_urls import register

_ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ATTEMPTS: Final = 3
_ROM_BAUD: Final = 115_200
_END_S: Final = 2.0
_MODES: Final = ("keep", "qio", "qout", "dio", "dout")
_IMAGE_HEADER: Final = struct.Struct("<B11xH")
"""The magic byte, and from offset 12 the id of the chip that it is for."""

_ERRNO_CODES: Final = {
    errno.EBUSY: "board.busy",
    errno.EAGAIN: "board.busy",  # flock(2)
    errno.EACCES: "board.error",
    **dict.fromkeys(
        (
            errno.ENOENT,
            errno.ENXIO,
            errno.ENODEV,
            errno.EIO,
            errno.EPIPE,
            errno.ECONNREFUSED,
            errno.ECONNRESET,
        ),
        "board.gone",
    ),
}
# esptool's errors have no codes: they are told apart by their words, here and nowhere else.
_WORD_CODES: Final = (
    ("MD5 of file does not match|written flash region is empty", "flash.verify_failed"),
    ("is not an? .* image|does not contain an? .* image", "board.chip_mismatch"),
    ("requires chip revision|This chip is", "board.chip_mismatch"),
    (
        "will not fit in|Unknown size|(flash frequency|flash size).* is not sup",
        "flash.image_invalid",
    ),
    ("device disconnected|device reports readiness|socket disconnected", "board.gone"),
    ("reader thread died|Could not open|Attempting to use a port that is not open", "board.gone"),
    ("Failed to connect|Wrong boot mode|No serial data received", "board.no_answer"),
    ("Failed to autodetect chip type", "board.no_answer"),
)

_out = os.fdopen(os.dup(1), "w", buffering=1)


class _Refused(Exception):
    """What we, not esptool, find wrong before anything is written."""

    def __init__(self, code: str, message: str, **facts: str) -> None:
        super().__init__(message)
        self.code = code
        self.facts = facts


def main() -> int:
    """Do what standard input asks for; 0 when the flash holds what was given."""
    # Whatever esptool prints must not mix with the events.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # Who started the daemon in the background may have had us ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    wish = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    register()
    try:
        digests = _flash(wish)
    except KeyboardInterrupt:
        return 130
    except _Refused as exc:
        _say("failed", code=exc.code, message=str(exc), facts=exc.facts)
        return 1
    except Exception as exc:  # noqa: BLE001 (esptool raises errors of many kinds)
        _say("failed", code=_code(exc), message=_words(exc), facts={})
        return 1
    _say("done", sha256=digests)
    return 0


def _flash(wish: dict[str, Any]) -> list[str]:
    images = [_read(image) for image in wish["images"]]
    _say("phase", phase="connect")
    from esptool import cmds
    from esptool.logger import log

    log.set_logger(_progress_logger(len(images) - 1))
    # A port whose board must be in its loader already may need a moment more to answer.
    before, attempts = ("default-reset", _ATTEMPTS) if wish["reset_first"] else ("no-reset", 4)
    esp = cmds.detect_chip(wish["port"], _ROM_BAUD, before, False, attempts)
    with contextlib.closing(esp._port):
        _check_board(esp, wish, images)
        _say("phase", phase="stub")
        esp = cmds.run_stub(esp)
        # It would open the port anew at a rate that the chip's loader doesn't have.
        esp.WRITE_FLASH_ATTEMPTS = 1
        if wish["baud"] != _ROM_BAUD:
            esp.change_baud(wish["baud"])
        cmds.attach_flash(esp)
        _check_settings(esp, wish["settings"])
        _say("phase", phase="erase" if wish["erase_all"] else "write")
        cmds.write_flash(
            esp,
            images,
            flash_freq=wish["settings"]["freq"],
            flash_mode=wish["settings"]["mode"],
            flash_size=wish["settings"]["size"],
            erase_all=wish["erase_all"],
            compress=True,
        )
        digests = [_digest(esp, wish["settings"], offset, data) for offset, data in images]
        # All is written and verified: a port that its board takes along on reset is no failure.
        with contextlib.suppress(Exception):
            if wish["reset_after"]:
                esp._port.dtr = False  # asserted by the opening, it would hold EN high
            cmds.reset_chip(esp, "hard-reset" if wish["reset_after"] else "no-reset")
    return digests


def _read(image: dict[str, Any]) -> tuple[int, bytes]:
    """Return an image as esptool takes it: offset and bytes, which are those of the manifest."""
    try:
        data = Path(image["path"]).read_bytes()
    except OSError as exc:
        raise _Refused("flash.image_invalid", f"{image['name']} is not there any more") from exc
    if sha256(data).hexdigest() != image["sha256"]:
        raise _Refused("flash.image_invalid", f"{image['name']} is not what its manifest says")
    return image["offset"], data


def _check_board(esp: Any, wish: dict[str, Any], images: list[tuple[int, bytes]]) -> None:
    chip = re.sub(r"[^a-z0-9]", "", esp.CHIP_NAME.lower())
    raw = esp.read_mac("BASE_MAC")
    mac = ":".join(f"{byte:02x}" for byte in raw) if raw else None
    _say("connected", chip=chip, mac=mac, description=esp.get_chip_description())
    if wish["mac"] is not None and mac != wish["mac"]:
        message = f"another board is at this port now, with the MAC {mac}"
        raise _Refused("board.not_granted", message, mac=str(mac))
    if chip != wish["target"]:
        message = f"the images are for {wish['target']}, the board is an {chip}"
        raise _Refused("board.chip_mismatch", message, image=wish["target"], board=chip)
    for image, (_, data) in zip(wish["images"], images, strict=True):
        # esptool looks at the bootloader alone; an application for another chip would not start.
        if image["name"] not in ("bootloader", "app") or len(data) < _IMAGE_HEADER.size:
            continue
        magic, chip_id = _IMAGE_HEADER.unpack_from(data)
        if magic == esp.ESP_IMAGE_MAGIC and chip_id != esp.IMAGE_CHIP_ID:
            message = f"{image['name']} is an image for another chip than the {chip}"
            raise _Refused("board.chip_mismatch", message, image=image["name"], board=chip)


def _check_settings(esp: Any, settings: dict[str, str]) -> None:
    """Refuse what esptool would find only once it has begun to write."""
    if settings["mode"] not in _MODES:
        raise _Refused("flash.image_invalid", f"there is no flash mode {settings['mode']}")
    try:
        if settings["freq"] != "keep":
            esp.parse_flash_freq_arg(settings["freq"])
        if settings["size"] not in ("keep", "detect"):
            esp.parse_flash_size_arg(settings["size"])
    except Exception as exc:
        raise _Refused("flash.image_invalid", _words(exc)) from exc


def _digest(esp: Any, settings: dict[str, str], offset: int, data: bytes) -> str:
    """
    Return the SHA-256 of what is on the flash.

    esptool has compared the chip's own MD5 with what it sent. Where settings are to be changed it
    sends another header than the file's, so that region is read back.
    """
    if offset == esp.BOOTLOADER_FLASH_OFFSET and set(settings.values()) != {"keep"}:
        data = esp.read_flash(offset, len(data))
    return sha256(data).hexdigest()


def _progress_logger(last_image: int) -> Any:
    from esptool.logger import TemplateLogger

    class ProgressLogger(TemplateLogger):  # type: ignore[misc]
        """Takes esptool's words away and passes its progress on."""

        def __init__(self) -> None:
            self._image = 0

        def print(self, *args: Any, **kwargs: Any) -> None: ...

        def note(self, message: str) -> None: ...

        def warning(self, message: str, *args: Any, **kwargs: Any) -> None: ...

        def error(self, message: str, *args: Any, **kwargs: Any) -> None: ...

        def stage(self, finish: bool = False) -> None: ...

        def set_verbosity(self, verbosity: Any) -> None: ...

        def progress_bar(
            self,
            cur_iter: int,
            total_iters: int,
            prefix: str = "",
            suffix: str = "",
            bar_length: int = 30,
        ) -> None:
            _say("progress", image=self._image, done=cur_iter, total=total_iters)
            if cur_iter >= total_iters and self._image < last_image:
                self._image += 1

    return ProgressLogger()


def _code(exc: BaseException) -> str:
    """Return the code of what went wrong: by the errno at its root, else by its words."""
    for cause in _causes(exc):
        number = cause.args[0] if isinstance(cause, termios.error) else None
        if isinstance(cause, OSError):
            number = cause.errno
        if number in _ERRNO_CODES:
            return _ERRNO_CODES[number]
    text = str(exc)
    for pattern, code in _WORD_CODES:
        if re.search(pattern, text):
            return code
    return "flash.failed"


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _words(exc: Exception) -> str:
    lines = _ANSI.sub("", str(exc)).strip().splitlines()
    return lines[0][:500] if lines else repr(exc)[:500]


def _say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), file=_out, flush=True)


def _end_with_stdin() -> None:
    """Interrupt the work when nobody is there any more who wants it; insist after 2 s."""
    while os.read(0, 1024):  # not by sys.stdin: it could not be closed under this thread
        pass
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    threading.Event().wait(_END_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
