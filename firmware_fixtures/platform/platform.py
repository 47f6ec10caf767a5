# SPDX-FileCopyrightText: The Aegis authors
# SPDX-License-Identifier: Apache-2.0
"""The development platform `aegis-esp`, as PlatformIO Core loads it."""

from platformio.platform.base import PlatformBase


class AegisespPlatform(PlatformBase):
    """The compilers come from PATH, so there is no package to install."""

    def is_embedded(self):
        # PlatformIO infers this from an uploader package, and this platform has no packages.
        return True
