"""
Builds: what a client asked for, in the sandbox on a terminal, and what is left behind.

    Builder.prepare   says at once what is wrong; gives a Build
    Build.run         runs it and collects a BuildOutcome
"""

from aegis_agent.build.build import Build
from aegis_agent.build.builder import Builder
from aegis_agent.build.request import BuildOutcome, BuildRequest

__all__ = ["Build", "BuildOutcome", "BuildRequest", "Builder"]
