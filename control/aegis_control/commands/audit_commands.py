"""`audit`: who did what; whether the record of it is whole; export and pruning."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer
from aegis_protocol.audit import (
    AuditHead,
    AuditList,
    AuditPruned,
    AuditPruneRequest,
    AuditRecord,
)
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.model import Wire

from aegis_control.audit_check import Problem
from aegis_control.commands import audit_trail
from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.tables import print_table, printable
from aegis_control.commands.times import seconds_since

app = typer.Typer(help="Who did what, when, from where and with what outcome.")

_LOOK_S: Final = 1.0
_PATIENCE_S: Final = 60.0
"""For how long `--follow` waits for a control that is away."""
_DAY_S: Final = 86_400


class AuditBroken(AegisError):
    code = "audit.broken"
    remedy = (
        "Somebody changed the audit behind control's back: keep the database as it is, compare it "
        "with your exports and backups, and change the secrets of whoever could write there."
    )


Heads = Annotated[
    list[str] | None,
    typer.Option("--head", help="A head from control's log; may be given several times."),
]


@app.callback(
    invoke_without_command=True,
    epilog="Example: aegis-control audit --since 2h --who mcp",
)
def show(
    context: typer.Context,
    since: Annotated[
        str | None, typer.Option(help="Records from then on: 90m, 7d, or a date.")
    ] = None,
    who: Annotated[
        str | None, typer.Option(help="An identity's or agent's id, `local` or `control`.")
    ] = None,
    job: Annotated[str | None, typer.Option(help="Records of this job.")] = None,
    what: Annotated[str | None, typer.Option(help="One kind of act, such as key.created.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object; with --follow one per line.")
    ] = False,
) -> None:
    """Show who did what. Without a command: the newest records."""
    if context.invoked_subcommand is not None:
        return
    asking = Asking(url, key_file, state_dir)
    wanted = {
        "since": None if since is None else repr(seconds_since(since, option="--since")),
        "who": who,
        "job": job,
        "what": what,
    }
    found = asking.get(audit_trail.path(limit=limit, **wanted), AuditList)
    if not follow:
        typer.echo(found.model_dump_json(indent=2)) if as_json else _print(found.records)
        return
    after = 0
    if not found.records:
        everything = asking.get(audit_trail.path(limit=1), AuditList).records
        after = everything[0].seq if everything else 0
    while True:
        for record in found.records:
            typer.echo(record.model_dump_json() if as_json else _line(record))
            after = record.seq
        if not found.more:
            time.sleep(_LOOK_S)
        found = _patiently(asking, audit_trail.path(limit=1000, after=after, **wanted))


@app.command(epilog="Example: aegis-control audit verify --head 1734.9f2c….1795271021.k3….Zm9v…")
def verify(
    head: Heads = None,
    file: Annotated[
        Path | None, typer.Option(help="An export, instead of the running control's audit.")
    ] = None,
    jwks: Annotated[
        Path | None,
        typer.Option(help="The issuer's keys (control's /.well-known/jwks.json), for --file."),
    ] = None,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Check that no record was altered, removed or moved, and with --head that none is cut off."""
    heads = [_head(text) for text in head or ()]
    trail = (
        audit_trail.of_control(Asking(url, key_file, state_dir))
        if file is None
        else audit_trail.of_file(file, jwks)
    )
    report = trail.check(heads)
    if as_json:
        typer.echo(report.to_json())
    else:
        for problem in report.problems:
            typer.echo(f"{problem.seq:>8}  {problem.code:<12}  {problem.detail}")
        typer.echo(report.summary())
    if report.problems:
        raise _broken(report.problems)


@app.command(epilog="Example: aegis-control audit export --output audit-2026-12.jsonl")
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file; by default what is printed.")
    ] = None,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
) -> None:
    """Write the whole audit as JSON lines, with its signatures: `verify --file` reads it back."""
    trail = audit_trail.of_control(Asking(url, key_file, state_dir))
    if output is None:
        for line in trail.lines():
            typer.echo(line)
        return
    count = trail.write(output)
    typer.echo(f"{count} records in {output}")


@app.command(epilog="Example: aegis-control audit head >> heads-kept-elsewhere.txt")
def head(
    url: Url = None, key_file: KeyFile = None, state_dir: State = None, as_json: Json = False
) -> None:
    """Sign the newest record now and print the head, to be kept somewhere else."""
    found = Asking(url, key_file, state_dir).post("/services/audit/head", Wire(), AuditHead)
    typer.echo(found.model_dump_json(indent=2) if as_json else found.text())


@app.command(epilog="Example: aegis-control audit prune --keep-days 90 --yes")
def prune(
    keep_days: Annotated[float, typer.Option(min=0, help="Older records are dropped.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; export them first.")] = False,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Drop old records. A checkpoint that control signs takes their place in the chain."""
    if not yes:
        raise BadRequest(
            "this drops records for good",
            remedy="Run `aegis-control audit export` first, then repeat this with --yes.",
        )
    wanted = AuditPruneRequest(before=time.time() - keep_days * _DAY_S)
    done = Asking(url, key_file, state_dir).post("/services/audit/prune", wanted, AuditPruned)
    typer.echo(done.model_dump_json(indent=2) if as_json else f"dropped {done.removed} records")


def _head(text: str) -> AuditHead:
    try:
        return AuditHead.parse(text)
    except ValueError as exc:
        raise BadRequest(
            f"--head {text[:60]}: no head such as SEQ.HASH.TIME.KID.SIGNATURE",
            remedy="Copy the whole word from control's log (`audit.head_published`).",
            field="head",
        ) from exc


def _broken(problems: tuple[Problem, ...]) -> AuditBroken:
    first = problems[0]
    return AuditBroken(
        f"the audit is not whole: {first.detail}",
        problems=[{"code": p.code, "seq": p.seq, "detail": p.detail} for p in problems],
    )


def _patiently(asking: Asking, path: str) -> AuditList:
    """Ask again while control is away (a restart), for a minute."""
    ends = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return asking.get(path, AuditList)
        except AegisError as exc:
            if not exc.retryable or time.monotonic() > ends:
                raise
            time.sleep(_LOOK_S)


_COLUMNS: Final = ("SEQ", "WHEN", "WHO", "FROM", "WHAT", "DECISION", "ABOUT", "OUTCOME")
_SMALL: Final = 48


def _print(records: tuple[AuditRecord, ...]) -> None:
    print_table(_COLUMNS, [_cells(record) for record in records], whole=("SEQ", "WHEN"))


def _line(record: AuditRecord) -> str:
    return printable("  ".join(cell for cell in _cells(record) if cell))


def _cells(record: AuditRecord) -> tuple[str, ...]:
    about = (
        ("job", record.job_id),
        ("agent", record.agent_id),
        ("board", record.board_id),
        ("artifact", record.artifact_sha256),
    )
    ruled = f"{record.decision} by {record.rule}" if record.rule else record.decision
    return (
        str(record.seq),
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.at)),
        record.who,
        record.source or "",
        record.what,
        ruled,
        " ".join(f"{name} {value}" for name, value in about if value) or _small(record),
        record.outcome or "",
    )


def _small(record: AuditRecord) -> str:
    """The facts that fit a table, of what is about no job, agent or board."""
    return " ".join(
        f"{name}={value}"
        for name, value in record.facts.items()
        if isinstance(value, str | int) and 0 < len(str(value)) <= _SMALL
    )
