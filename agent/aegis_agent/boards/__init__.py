"""The boards of this machine: found, held, flashed, watched."""

from aegis_agent.boards.console import Console
from aegis_agent.boards.device import BoardDevice
from aegis_agent.boards.images import FlashJob
from aegis_agent.boards.registry import BoardRegistry

__all__ = ["BoardDevice", "BoardRegistry", "Console", "FlashJob"]
