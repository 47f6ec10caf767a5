"""docs/errors.md lists every error there is, as its class, control and espctl have it."""

from __future__ import annotations

import json
import re

import pytest
from aegis_client.exit_codes import exit_code
from aegis_control.http.statuses import STATUS, status_of
from aegis_protocol.errors import AegisError, ErrorBody, from_body, known_codes
from aegis_protocol.rpc import METHODS
from doc_pages import Section, sections
from error_classes import error_classes

NONE = "–"
PROGRAMS = {"`aegis-agent`": "aegis_agent", "`aegis-control`": "aegis_control",
            "`espctl`": "aegis_client", "links": "aegis_links"}  # fmt: skip
CLASSES = error_classes()


def page(title: str) -> Section:
    (found,) = [one for one in sections("errors.md") if one.title == title]
    return found


WIRE = {row[0].strip("`"): row for row in page("Errors that can cross a wire").table()}
LOCAL = {(PROGRAMS[row[0]], row[1].strip("`")): row[1:]
         for row in page("Errors of one program").table()}  # fmt: skip
ROWS = {("aegis_protocol", code): row for code, row in WIRE.items()} | LOCAL


def test_every_code_has_its_row_and_no_other_has() -> None:
    assert len(WIRE) == len(page("Errors that can cross a wire").table()), "a code is there twice"
    assert ROWS.keys() == CLASSES.keys()


def test_every_code_is_found_again_by_a_peer() -> None:
    assert {code for _, code in ROWS} <= known_codes().keys()
    assert all(known_codes()[code] is CLASSES["aegis_protocol", code] for code in WIRE)


@pytest.mark.parametrize("key", ROWS, ids=" ".join)
def test_a_row_says_what_its_class_says(key: tuple[str, str]) -> None:
    _, meaning, message, remedy, retry, *_ = ROWS[key]
    cls = CLASSES[key]
    assert meaning.endswith(".")
    assert remedy == cls.remedy
    assert retry == ("yes" if cls.retryable else "no")
    example = ErrorBody(code=cls.code, message=message, remedy=remedy, retryable=cls.retryable)
    again = from_body(example)
    assert again.body() == example
    assert again.code == cls.code or cls.code == "remote.error"


@pytest.mark.parametrize("code", WIRE)
def test_a_row_has_controls_status_and_espctls_exit_code(code: str) -> None:
    *_, status, exits = WIRE[code]
    answered = code in STATUS or code == AegisError.code
    assert status == (str(int(status_of(code))) if answered else NONE)
    assert exits == str(int(exit_code(code)))


@pytest.mark.parametrize("key", LOCAL, ids=" ".join)
def test_only_espctls_own_errors_have_an_exit_code(key: tuple[str, str]) -> None:
    package, code = key
    *_, exits = LOCAL[key]
    assert exits == (str(int(exit_code(code))) if package == "aegis_client" else NONE)


def test_every_status_of_control_belongs_to_a_code() -> None:
    assert STATUS.keys() <= {code for _, code in ROWS}


def test_rows_are_sorted_so_that_a_code_is_found() -> None:
    assert list(WIRE) == sorted(WIRE)
    assert list(LOCAL) == sorted(LOCAL)


def test_the_example_is_an_error_of_its_class() -> None:
    (text,) = page("The error object").written_in("json")
    example = ErrorBody.model_validate_json(text)
    assert json.loads(text) == example.model_dump(mode="json")
    assert from_body(example).body() == example


def test_codes_named_in_meanings_and_remedies_exist() -> None:
    words = " ".join(" ".join(row[1:4]) for row in ROWS.values())
    named = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", words))
    assert named <= {code for _, code in ROWS} | METHODS.keys()
