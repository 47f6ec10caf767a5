"""The base of every model on a wire: frozen, and deaf to fields that it does not know."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class Wire(BaseModel):
    """Fields may be added to a model, never renamed: a peer ignores what it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:@-]{1,80}$")]
"""An identifier that is safe in URLs, file names and logs."""

TargetName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]{1,19}$")]
"""A chip as esptool and ESP-IDF spell it: esp32, esp32p4, esp32c3."""

Sha256Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

Labels = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,40}$")],
        Annotated[str, StringConstraints(max_length=80)],
    ],
    Field(max_length=32),
]

SizeBytes = Annotated[int, Field(ge=0, le=1 << 40)]
UnixSeconds = Annotated[float, Field(allow_inf_nan=False)]
"""A time that is no number would pass every check of what is over."""
