# SPDX-FileCopyrightText: The Aegis authors
# SPDX-License-Identifier: Apache-2.0
"""
How SCons builds a project of this platform: start code and sources to an ELF, the ELF to an image,
besides it a bootloader image and a partition table.

What PlatformIO's other parts read from here: PROGPATH, FLASH_EXTRA_IMAGES and
INTEGRATION_EXTRA_DATA (`pio project metadata`), SIZE* (the size check).
"""

import os
import sys
from pathlib import Path

from SCons.Script import (
    ARGUMENTS,
    COMMAND_LINE_TARGETS,
    AlwaysBuild,
    Builder,
    Default,
    DefaultEnvironment,
)

# Kept in step with start/app.c: where elf2image patches the digest into esp_app_desc_t.
ELF_SHA256_OFFSET = "0xb0"
APP_OFFSET = "0x10000"
PARTITION_TABLE_OFFSET = "0x8000"
APP_TEXT_BYTES = 31  # esp_app_desc_t keeps 32 with the terminating NUL

COMPILERS = {"riscv": "riscv64-unknown-elf-", "xtensa": "xtensa-lx106-elf-"}
PACKAGES = {"riscv": "gcc-riscv64-unknown-elf", "xtensa": "gcc-xtensa-lx106"}
CPU_FLAGS = {
    # Plain -march when linking: with _zicsr GCC would choose the rv64 libgcc.
    "esp32p4": ["-march=rv32imafc", "-mabi=ilp32f"],
    "esp32c6": ["-march=rv32imac", "-mabi=ilp32"],
    "esp32c3": ["-march=rv32imc", "-mabi=ilp32"],
    "esp32": ["-mlongcalls"],
}

env = DefaultEnvironment()
platform = env.PioPlatform()
board = env.BoardConfig()
home = Path(platform.get_dir())
chip = board.get("build.mcu", "")
arch = board.get("build.arch", "")


def stop(message):
    sys.stderr.write("Error: %s\n" % message)
    env.Exit(1)


if chip not in CPU_FLAGS or arch not in COMPILERS:
    stop("platform aegis-esp can't build for chip %r of board %s" % (chip, board.id))
if not env.WhereIs(COMPILERS[arch] + "gcc"):
    stop(
        "%sgcc is not on PATH; on Debian and Ubuntu: apt-get install %s"
        % (COMPILERS[arch], PACKAGES[arch])
    )


def app_text(option, default):
    """Return project option `option`, checked to fit its field in the descriptor."""
    text = env.GetProjectOption(option, default)
    if not text.isascii() or not text.isprintable() or len(text) > APP_TEXT_BYTES:
        stop("%s: at most %d printable ASCII characters" % (option, APP_TEXT_BYTES))
    return text


cpu_flags = CPU_FLAGS[chip]
link_flags = ["-Wl,--no-warn-rwx-segments"] if arch == "riscv" else []
# SCons and PlatformIO put pipes between GCC and the terminal, so GCC can't know that one is there.
colored = int(ARGUMENTS.get("ISATTY", 0)) or os.environ.get("PLATFORMIO_FORCE_ANSI") == "true"
assembler_cpu_flags = [
    flag + "_zicsr" if flag.startswith("-march=") else flag for flag in cpu_flags
]
# The ELF is the same wherever project and platform lie. (GCC hands only -fdebug-prefix-map on to
# the assembler.)
prefixes = ["%s=." % env.subst("$PROJECT_DIR"), "%s=aegis-esp" % home]
path_flags = ["-ffile-prefix-map=" + prefix for prefix in prefixes]
assembler_path_flags = ["-fdebug-prefix-map=" + prefix for prefix in prefixes]

env.Replace(
    AR=COMPILERS[arch] + "gcc-ar",
    AS=COMPILERS[arch] + "gcc",
    CC=COMPILERS[arch] + "gcc",
    CXX=COMPILERS[arch] + "g++",
    GDB=COMPILERS[arch] + "gdb",
    LINK=COMPILERS[arch] + "g++",
    OBJCOPY=COMPILERS[arch] + "objcopy",
    RANLIB=COMPILERS[arch] + "gcc-ranlib",
    SIZETOOL=COMPILERS[arch] + "size",
    ARFLAGS=["rcD"],
    RANLIBFLAGS=["-D"],
    SIZEPROGREGEXP=r"^(?:\.iram0\.text|\.dram0\.data|\.flash\.\w+)\s+([0-9]+).*",
    SIZEDATAREGEXP=r"^(?:\.dram0\.data|\.dram0\.bss)\s+([0-9]+).*",
    SIZECHECKCMD="$SIZETOOL -A -d $SOURCES",
    SIZEPRINTCMD="$SIZETOOL -B -d $SOURCES",
    PROGSUFFIX=".elf",
    ESPTOOL=[env.subst("$PYTHONEXE"), "-P", "-m", "esptool", "--chip", chip],
    FLASH_FLAGS=[
        "--flash-mode", board.get("build.flash_mode"),
        "--flash-freq", board.get("build.flash_freq"),
        "--flash-size", board.get("upload.flash_size"),
    ],  # fmt: skip
)
if env.get("PROGNAME", "program") == "program":
    env.Replace(PROGNAME="firmware")

env.Append(
    ASFLAGS=assembler_cpu_flags,
    ASPPFLAGS=["-x", "assembler-with-cpp", "-g", *assembler_cpu_flags, *assembler_path_flags],
    CCFLAGS=[
        *cpu_flags,
        "-Os", "-g", "-Wall", "-Wextra",
        "-ffreestanding", "-ffunction-sections", "-fdata-sections",
        # Or memset's loop becomes a call of memset.
        "-fno-tree-loop-distribute-patterns",
        *path_flags,
    ],
    CFLAGS=["-std=gnu17"],
    CXXFLAGS=["-std=gnu++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"],
    CPPDEFINES=[("AEGIS_CHIP", env.StringifyMacro(chip)), "AEGIS_CHIP_" + chip.upper()],
    CPPPATH=[str(home / "start" / "include")],
    LINKFLAGS=[
        *cpu_flags, *link_flags,
        "-nostdlib", "-nostartfiles", "-Wl,--gc-sections", "-Wl,--build-id=none",
        "-T", chip + ".memory.ld",
    ],
    LIBS=["gcc"],
)  # fmt: skip
if colored:
    # Between $( and $): no rebuild when the terminal comes or goes.
    env.Append(_CCCOMCOM=" $( -fdiagnostics-color=always $)")

env.Append(
    BUILDERS={
        "ElfToBin": Builder(
            action=env.VerboseAction(
                '"${ESPTOOL[0]}" ${ESPTOOL[1:]} elf2image $FLASH_FLAGS $IMAGE_FLAGS -o $TARGET $SOURCES',
                "Building $TARGET",
            ),
            suffix=".bin",
        )
    }
)

# ---- start code, which application and bootloader share -------------------------------------------

start_dir = str(home / "start")
foreign = "xtensa" if arch == "riscv" else "riscv"
start_objects = [
    env.Object(node)
    for node in env.CollectBuildFiles(
        "$BUILD_DIR/start", start_dir, ["+<*>", "-<%s/>" % foreign, "-<app.c>"]
    )
]


def describe(name, version):
    """Return the start code's object that says who the program is."""
    described = env.Clone()
    described.Append(
        CPPDEFINES=[
            ("APP_NAME", env.StringifyMacro(name)),
            ("APP_VERSION", env.StringifyMacro(version)),
            ("PLATFORM_NAME", env.StringifyMacro("aegis-esp " + platform.version)),
        ]
    )
    variant = "$BUILD_DIR/" + ("boot" if name == "bootloader" else "app")
    (node,) = described.CollectBuildFiles(variant, start_dir, ["+<app.c>"])
    return described.Object(node)


# ---- bootloader ----------------------------------------------------------------------------------

boot_env = env.Clone()
boot_env.Append(LINKFLAGS=["-T", "bootloader.sections.ld"])
boot_elf = boot_env.Program(
    "$BUILD_DIR/bootloader.elf",
    [
        *boot_env.CollectBuildFiles("$BUILD_DIR/bootloader", str(home / "bootloader")),
        describe("bootloader", platform.version),
        *start_objects,
    ],
)
bootloader = boot_env.ElfToBin("$BUILD_DIR/bootloader", boot_elf)

# ---- partition table -----------------------------------------------------------------------------

# The project's own before the platform's, as Espressif's platform looks for it.
table_name = board.get("build.partitions")
table_csv = Path(env.subst("$PROJECT_DIR"), table_name)
if not table_csv.is_file():
    table_csv = home / "partitions" / table_name
partitions = env.Command(
    "$BUILD_DIR/partitions.bin",
    str(table_csv),
    env.VerboseAction(
        '"$PYTHONEXE" "%s" $SOURCE $TARGET' % (home / "builder" / "partition_table.py"),
        "Building $TARGET",
    ),
)
env.Depends(partitions, str(home / "builder" / "partition_table.py"))

# ---- application ---------------------------------------------------------------------------------

app_name = app_text("custom_app_name", Path(env.subst("$PROJECT_DIR")).name)
app_version = app_text("custom_app_version", "0.0.0")
env.Append(PIOBUILDFILES=[start_objects, describe(app_name, app_version)])
env.Append(LINKFLAGS=["-T", "app.sections.ld", "-Wl,-Map,${BUILD_DIR}/${PROGNAME}.map"])

env.Replace(
    FLASH_EXTRA_IMAGES=[
        (board.get("build.bootloader_offset"), "$BUILD_DIR/bootloader.bin"),
        (PARTITION_TABLE_OFFSET, "$BUILD_DIR/partitions.bin"),
    ],
)
env["INTEGRATION_EXTRA_DATA"].update({"application_offset": APP_OFFSET})

elf = env.BuildProgram()
# PlatformIO has put ldscripts/ on the linker's search path, which SCons does not follow.
env.Depends([elf, boot_elf], [str(script) for script in sorted((home / "ldscripts").glob("*.ld"))])
app_env = env.Clone(IMAGE_FLAGS=["--elf-sha256-offset", ELF_SHA256_OFFSET])
image = app_env.ElfToBin(os.path.join("$BUILD_DIR", "${PROGNAME}"), elf)
if "nobuild" in COMMAND_LINE_TARGETS:
    image = [env.File("$BUILD_DIR/${PROGNAME}.bin")]

AlwaysBuild(env.Alias("nobuild", image))
buildprog = env.Alias("buildprog", [image, bootloader, partitions])
env.AddPlatformTarget(
    "size",
    elf,
    env.VerboseAction("$SIZEPRINTCMD", "Calculating size $SOURCE"),
    "Program Size",
    "Calculate program size",
)


def upload_needs_port(source, target, env):
    if not env.subst("$UPLOAD_PORT"):
        sys.stderr.write("Error: name the board's port with --upload-port: none is guessed\n")
        return 1
    return 0


env.Replace(
    UPLOADCMD=" ".join(
        [
            '"${ESPTOOL[0]}" ${ESPTOOL[1:]} --port "$UPLOAD_PORT" --baud $UPLOAD_SPEED write-flash',
            *("%s %s" % image for image in env["FLASH_EXTRA_IMAGES"]),
            "%s $SOURCE" % APP_OFFSET,
        ]
    )
)
env.AddPlatformTarget(
    "upload",
    [image, bootloader, partitions],
    [
        env.VerboseAction(upload_needs_port, "Checking the port"),
        env.VerboseAction("$UPLOADCMD", "Uploading $SOURCE"),
    ],
    "Upload",
    "Write all images to the board on --upload-port",
)
Default([buildprog])
