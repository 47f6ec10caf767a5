"""
The toolchains of an agent: a table of kinds; a new kind is a new row and a new file.

    Toolchains    what was found here, and which kind builds a project
    ToolchainKind what a kind can do
"""

from aegis_agent.toolchains.kind import BuildPlan, BuildWish, Described, ToolchainKind
from aegis_agent.toolchains.toolchains import Toolchains

__all__ = ["BuildPlan", "BuildWish", "Described", "ToolchainKind", "Toolchains"]
