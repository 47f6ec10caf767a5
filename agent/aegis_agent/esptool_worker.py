# SPDX-License-Identifier: GPL-2.0-or-later
"""
The program that flashes: esptool's library in a process of its own.

It imports esptool, which is GPL-2.0-or-later, and so is this file. One JSON object on standard
input says what to write; JSON objects on standard output say how it goes:

    {"event": "connected", "chip": "esp32p4", "mac": "…", "description": "…"}
    {"event": "progress", "phase": "write", "image": "app", "done": 16384, "total": 61440}
    {"event": "done"}
    {"event": "failed", "code": "board.no_answer", "message": "…", "facts": {}}
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Final

from aegis_agent.serial_urls import register

_ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ATTEMPTS: Final = 3
_ROM_BAUD: Final = 115_200

# esptool's errors have no codes: they are told apart by their words, here and nowhere else.
_CODES: Final = (
    ("MD5 of file does not match", "flash.verify_failed"),
    ("Verification failed", "flash.verify_failed"),
    ("is not an? .*image", "board.chip_mismatch"),
    ("This chip is", "board.chip_mismatch"),
    ("not match", "board.chip_mismatch"),
    ("requires chip revision", "board.chip_mismatch"),
    ("port is busy|exclusively lock|Resource busy|Device or resource busy", "board.busy"),
    ("Could not open|No such file|does not exist|gone|Input/output error", "board.gone"),
    ("device disconnected|device reports readiness", "board.gone"),
    ("Failed to connect|Wrong boot mode|No serial data received", "board.no_answer"),
    ("Could not connect", "board.no_answer"),
    ("Invalid head of packet", "flash.failed"),
)

_out = os.fdopen(os.dup(1), "w", buffering=1)


def main() -> int:
    """Do what standard input asks for; 0 when the flash holds what was given."""
    # Whatever esptool prints must not mix with the events.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    register()
    wish = json.loads(sys.stdin.readline())
    try:
        _flash(wish)
    except KeyboardInterrupt:
        return 130
    except Exception as exc:  # noqa: BLE001 (esptool raises errors of many kinds)
        _say("failed", code=_code(exc), message=_words(exc), facts={})
        return 1
    _say("done")
    return 0


def _flash(wish: dict[str, Any]) -> None:
    from esptool import cmds
    from esptool.logger import log

    progress = _progress_logger(wish["images"])
    log.set_logger(progress)
    before = "default-reset" if wish["modem_lines"] else "no-reset"
    esp = cmds.detect_chip(
        wish["port"], _ROM_BAUD, before, False, _ATTEMPTS if wish["modem_lines"] else _ATTEMPTS * 2
    )
    try:
        chip = esp.CHIP_NAME.lower().replace("-", "")
        mac = esp.read_mac("BASE_MAC")
        _say(
            "connected",
            chip=chip,
            mac=":".join(f"{byte:02x}" for byte in mac) if mac else None,
            description=esp.get_chip_description(),
        )
        if chip != wish["target"]:
            message = f"the images are for {wish['target']}, the board is an {chip}"
            _say("failed", code="board.chip_mismatch", message=message, facts={"board": chip})
            _leave(cmds, esp, wish)
            raise SystemExit(1)
        esp = cmds.run_stub(esp)
        if wish["baud"] != _ROM_BAUD:
            esp.change_baud(wish["baud"])
        cmds.attach_flash(esp)
        if wish["erase_all"]:
            cmds.erase_flash(esp)
        settings = wish["settings"]
        # Sorted by offset, as esptool writes them, so that progress names the right image.
        with _opened(wish["images"]) as files:
            cmds.write_flash(
                esp,
                files,
                flash_freq=settings["freq"],
                flash_mode=settings["mode"],
                flash_size=settings["size"],
                compress=True,
            )
        _leave(cmds, esp, wish)
    finally:
        esp._port.close()


def _leave(cmds: Any, esp: Any, wish: dict[str, Any]) -> None:
    reset = wish["reset_after"] and wish["modem_lines"]
    cmds.reset_chip(esp, "hard-reset" if reset else "no-reset")


class _opened:
    """The images' files, open, as esptool takes them: (offset, file)."""

    def __init__(self, images: list[dict[str, Any]]) -> None:
        self._images = sorted(images, key=lambda image: int(image["offset"]))
        self._files: list[Any] = []

    def __enter__(self) -> list[tuple[int, Any]]:
        for image in self._images:
            self._files.append(Path(image["path"]).open("rb"))
        return [
            (image["offset"], file) for image, file in zip(self._images, self._files, strict=True)
        ]

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()


def _progress_logger(images: list[dict[str, Any]]) -> Any:
    from esptool.logger import TemplateLogger

    names = [image["name"] for image in sorted(images, key=lambda image: int(image["offset"]))]

    class ProgressLogger(TemplateLogger):  # type: ignore[misc]
        """Takes esptool's words away and passes its progress on."""

        def __init__(self) -> None:
            self._at = 0

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
            name = names[min(self._at, len(names) - 1)]
            _say("progress", phase="write", image=name, done=cur_iter, total=total_iters)
            if cur_iter >= total_iters:
                self._at += 1

    return ProgressLogger()


def _code(exc: Exception) -> str:
    text = str(exc)
    for pattern, code in _CODES:
        if re.search(pattern, text):
            return code
    return "board.gone" if isinstance(exc, OSError) else "flash.failed"


def _words(exc: Exception) -> str:
    return _ANSI.sub("", str(exc)).strip().splitlines()[0][:500] if str(exc).strip() else repr(exc)


def _say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), file=_out, flush=True)


if __name__ == "__main__":
    sys.exit(main())
