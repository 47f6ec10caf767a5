"""The words that control, agent and client share: models, states, errors, framing. No I/O."""

from typing import Final

__version__ = "0.1.0"

PROTOCOL_VERSION: Final = 1
"""Version of everything on the wire; peers whose versions differ refuse each other."""
