"""`verify-token`: what a secret is good for, without its ever standing in an argument."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.http_api.keys import TokenVerdict, VerifyTokenRequest

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.tables import print_table
from aegis_control.commands.times import minute

_MAX_BYTES: Final = 16_384
_SECRETS: Final = ("aegis_", "ey")


def verify_token(
    file: Annotated[
        Path | None, typer.Argument(help="The file that it is in; without one, standard input.")
    ] = None,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """
    Explain an API key, a grant, an enrolment token or a shared secret: is it good, until when,
    for what, and if not, why not. Exits 0 when it is good, 1 when not.
    """
    text = _read(file)
    verdict = Asking(url, key_file, state_dir).post(
        "/services/verify-token", VerifyTokenRequest(token=text), TokenVerdict
    )
    if as_json:
        typer.echo(verdict.model_dump_json(indent=2, exclude_none=True))
    else:
        _print(verdict)
    if not verdict.valid:
        raise typer.Exit(1)


def _read(file: Path | None) -> str:
    if file is None:
        if sys.stdin.isatty():
            raw = getpass.getpass("The key, token or grant (not shown): ").encode()
        else:
            raw = sys.stdin.buffer.read(_MAX_BYTES + 1)
    else:
        if file.name.startswith(_SECRETS) and not file.exists():
            raise BadRequest(
                "a secret must not stand in an argument: other users can read it there",
                remedy="Name a file, or write it to standard input. Revoke what was typed.",
                field="file",
            )
        try:
            with file.open("rb") as opened:
                raw = opened.read(_MAX_BYTES + 1)
        except OSError as exc:
            raise BadRequest(f"{file} can't be read: {exc.strerror}", field="file") from exc
    text = raw.decode(errors="replace").strip()
    if not text or len(raw) > _MAX_BYTES or not text.isprintable():
        raise BadRequest("that is no key, token or grant: one line of text", field="token")
    return text


def _print(verdict: TokenVerdict) -> None:
    rows = [(name, value) for name, value in _facts(verdict) if value]
    print_table(("WHAT", "IS"), rows, whole=("WHAT",))


def _facts(verdict: TokenVerdict) -> list[tuple[str, str]]:
    named = " ".join(word for word in (verdict.id, verdict.name and f"({verdict.name})") if word)
    agent = verdict.agent_id or ""
    return [
        ("kind", verdict.kind.replace("_", " ")),
        ("valid", f"yes: {verdict.why}" if verdict.valid else f"no: {verdict.why}"),
        ("code", verdict.code or ""),
        ("id", named if verdict.kind != "grant" else verdict.id or ""),
        ("made", minute(verdict.issued_at)),
        ("until", minute(verdict.expires_at, none="never ends" if verdict.identity else "")),
        ("identity", verdict.identity or ""),
        ("role", "" if verdict.role is None else str(verdict.role)),
        ("agent", f"{agent} ({verdict.name})" if verdict.kind == "grant" else agent),
        ("job", f"{verdict.job_id} ({verdict.job_state or 'gone'})" if verdict.job_id else ""),
        ("target", verdict.target or ""),
        ("boards", " ".join(verdict.boards)),
        ("channels", " ".join(verdict.channels)),
        ("actions", " ".join(str(action) for action in verdict.actions)),
        *((f"only {kind}", " ".join(words)) for kind, words in verdict.limits.items()),
    ]
