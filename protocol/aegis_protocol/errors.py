"""
Named failures. Whatever a user can meet and act upon is an `AegisError`.

    AegisError                 code, remedy, retryable, facts
      <one class per failure>  in the module of the noun it speaks of

On every wire an error is an `ErrorBody`: `{"code", "message", "remedy", "retryable", "facts"}`.
Codes are `noun.what_is_wrong`, stable, listed in docs/errors.md. A class is found again by its
code, so that an error raised on an agent is the same class at the client.
Anything that is no `AegisError` is a bug and travels to `main`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field

JsonFact = str | int | float | bool | None | list[Any] | dict[str, Any]

_BY_CODE: Final[dict[str, type[AegisError]]] = {}


class ErrorBody(BaseModel):
    """An error as it stands on a wire."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str = Field(max_length=80, pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$")
    message: str = Field(max_length=4096)
    remedy: str = Field(default="", max_length=4096)
    retryable: bool = False
    facts: dict[str, Any] = Field(default_factory=dict)


class ErrorReply(BaseModel):
    """The body of every HTTP error and of `espctl --json` on stderr."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    error: ErrorBody


class AegisError(Exception):
    """
    A failure with a name.

    message   what happened, one sentence, no secret in it
    remedy    what to do next; the class has a default
    facts     JSON values that a program may want (never a secret)
    """

    code: ClassVar[str] = "internal.error"
    remedy: str = "This is a defect in Aegis: please report it with the log of the program."
    retryable: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            taken = _BY_CODE.get(cls.code)
            if taken is not None and taken.__qualname__ != cls.__qualname__:
                raise TypeError(f"error code {cls.code} belongs to {taken.__qualname__}")
            _BY_CODE[cls.code] = cls

    def __init__(self, message: str, *, remedy: str | None = None, **facts: JsonFact) -> None:
        super().__init__(message)
        self.message = message
        if remedy is not None:
            self.remedy = remedy
        self.facts: dict[str, Any] = dict(facts)

    def body(self) -> ErrorBody:
        return ErrorBody(
            code=self.code,
            message=self.message[:4096],
            remedy=self.remedy[:4096],
            retryable=self.retryable,
            facts=self.facts,
        )


_BY_CODE[AegisError.code] = AegisError  # no subclass, so not registered by itself


class RemoteError(AegisError):
    """An error with a code that this version does not know; it keeps the peer's own code."""

    code = "remote.error"
    remedy = "The peer may be of another version: compare `--version` on both sides."

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(body.message, remedy=body.remedy or None)
        self.facts = dict(body.facts)
        self.retryable = body.retryable
        self._body = body

    def body(self) -> ErrorBody:
        return self._body


def from_body(body: ErrorBody) -> AegisError:
    """Return the error that `body` describes, of its own class where this version has it."""
    cls = _BY_CODE.get(body.code)
    if cls is None or cls is RemoteError:
        return RemoteError(body)
    error = cls.__new__(cls)
    AegisError.__init__(error, body.message, remedy=body.remedy or None)
    error.facts = dict(body.facts)
    return error


def known_codes() -> dict[str, type[AegisError]]:
    """Return every registered code and its class; import the modules that define them first."""
    return dict(_BY_CODE)
