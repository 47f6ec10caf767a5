"""
Run by PlatformIO in every build, after the project's own scripts: writes down where the images
will be. (`pio project metadata` says the same, by configuring the project and running its scripts
a second time.)

It runs in the sandbox: what it writes is the project's word and no more.
"""

import json
import os

from SCons.Script import DefaultEnvironment

env = DefaultEnvironment()
layout = {
    "program": env.subst("$PROGPATH"),
    "application_offset": env.subst(
        str(env.get("INTEGRATION_EXTRA_DATA", {}).get("application_offset", "0x10000"))
    ),
    "images": [
        {"offset": env.subst(str(offset)), "path": env.subst(path)}
        for offset, path in env.get("FLASH_EXTRA_IMAGES", [])
    ],
}
with open(os.environ["AEGIS_LAYOUT"], "w", encoding="utf-8") as file:  # noqa: PTH123
    json.dump(layout, file)
