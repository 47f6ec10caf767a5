"""
Where builds run: bubblewrap, as an unprivileged user, with the project as all that they can write.

    Sandbox         starts processes, says why it can't
    SandboxSpec     what one process sees and may use
    SandboxProcess  its life; when it has ended nothing of it is left
"""

from aegis_links.uninterrupted import uninterrupted

from aegis_agent.sandbox.process import SandboxProcess
from aegis_agent.sandbox.sandbox import Captured, Sandbox
from aegis_agent.sandbox.spec import Limits, Mount, SandboxSpec

__all__ = [
    "Captured",
    "Limits",
    "Mount",
    "Sandbox",
    "SandboxProcess",
    "SandboxSpec",
    "uninterrupted",
]
