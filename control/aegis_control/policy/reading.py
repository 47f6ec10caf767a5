"""Reads a policy file. What is wrong with it is named by file, line and field, with the remedy."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from aegis_protocol.failures.http import PolicyInvalid
from pydantic import ValidationError

from aegis_control.policy.rules import Policy, Rule, RuleLimits

MAX_FILE_BYTES: Final = 1 << 20

_TABLE: Final = re.compile(r"^\s*\[\[?\s*(?P<name>[^\]]+?)\s*\]\]?\s*(#.*)?$")
_ASSIGNED: Final = re.compile(r"^\s*([A-Za-z0-9_\-.\"' ]+?)\s*=")
_RULES: Final = "rules"


def read(path: Path) -> Policy:
    """Return the policy in `path`. PolicyInvalid; FileNotFoundError when there is none."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise PolicyInvalid(
            f"{path} can't be read: {exc.strerror}",
            remedy="Let control's user read it: `chmod 640` and its group.",
            path=str(path),
        ) from exc
    if len(raw) > MAX_FILE_BYTES:
        raise PolicyInvalid(f"{path} is larger than a policy can be", path=str(path))
    try:
        text = raw.decode()
    except UnicodeDecodeError as exc:
        raise PolicyInvalid(f"{path} is not UTF-8", path=str(path)) from exc
    return parse(text, name=str(path))


def parse(text: str, *, name: str) -> Policy:
    """Return the policy that `text` is; `name` is what errors call it. PolicyInvalid."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise PolicyInvalid(f"{name}: not TOML: {exc}", path=name) from exc
    try:
        return Policy.model_validate_json(_as_json(table, name))
    except ValidationError as exc:
        raise _invalid(exc, text, table, name) from exc


def line_of(text: str, where: Sequence[str | int]) -> int | None:
    """
    Return the number of the line on which the field `where` stands, or on which its rule begins.

    where  as pydantic tells it: ("rules", 1, "limits", "priority")
    """
    if len(where) > 1 and where[0] == _RULES:
        wanted, keys = where[1], [part for part in where[2:] if isinstance(part, str)]
    else:
        wanted, keys = -1, [part for part in where if isinstance(part, str)]
    rule, table, begins = -1, "", None
    for number, line in enumerate(text.splitlines(), start=1):
        header = _TABLE.match(line)
        if header is not None:
            named = header["name"].replace(" ", "")
            rule += named == _RULES
            table = named.removeprefix(_RULES).removeprefix(".")
        if rule != wanted:
            continue
        if begins is None and header is not None:
            begins = number
        path = [table, *_key(line)] if table else _key(line)
        if keys and (path[: len(keys)] == keys[: len(path)] != [] or (header and keys[0] == table)):
            if len(keys) == 1 or not header:
                return number
            begins = number
    return begins


def _key(line: str) -> list[str]:
    """The dotted key that `line` sets, if it sets one."""
    found = _ASSIGNED.match(line)
    return [] if found is None else [part.strip(" \"'") for part in found[1].split(".")]


def _as_json(table: dict[str, Any], name: str) -> str:
    """Strictly what TOML can say in JSON: a date would be no field of ours."""
    try:
        return json.dumps(table)
    except (TypeError, ValueError) as exc:
        raise PolicyInvalid(
            f"{name}: a date or time has no meaning in a policy", path=name
        ) from exc


def _invalid(exc: ValidationError, text: str, table: dict[str, Any], name: str) -> PolicyInvalid:
    found = exc.errors(include_url=False, include_context=False)
    # A field with a typing error is unknown, and the right one missing: the first says more.
    wrong = min(found, key=lambda error: error["type"] != "extra_forbidden")
    where = wrong["loc"]
    why = wrong["msg"].removeprefix("Value error, ")
    if wrong["type"] == "extra_forbidden":
        why = _unknown(where)
    line = line_of(text, where)
    at = f"{name}, line {line}" if line is not None else name
    field = _spelled(where, table)
    return PolicyInvalid(
        f"{at}: {field}: {why}" if field else f"{at}: {why}",
        path=name,
        line=line,
        field=".".join(str(part) for part in where),
    )


def _unknown(where: Sequence[str | int]) -> str:
    model = Policy if where[0] != _RULES else RuleLimits if "limits" in where[:-1] else Rule
    known = sorted(model.model_fields)
    near = difflib.get_close_matches(str(where[-1]), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"no such field; {hint}"


def _spelled(where: Sequence[str | int], table: dict[str, Any]) -> str:
    """`rule ci: limits.priority`, or the path as it is when the rule has no name."""
    if len(where) < 2 or where[0] != _RULES or not isinstance(where[1], int):
        return ".".join(str(part) for part in where)
    rules = table.get(_RULES)
    rule = rules[where[1]] if isinstance(rules, list) else None
    named = rule.get("name") if isinstance(rule, dict) else None
    whose = f"rule {named}" if isinstance(named, str) else f"rule {where[1] + 1}"
    rest = ".".join(str(part) for part in where[2:])
    return f"{whose}: {rest}" if rest else whose
