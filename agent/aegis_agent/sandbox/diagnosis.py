"""Why bubblewrap can't make a sandbox here, and exactly what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aegis_protocol.failures.build import SandboxUnavailable

SYSCTL: Final = Path("/proc/sys")
_SET = "echo {setting} | sudo tee /etc/sysctl.d/60-aegis-userns.conf && sudo sysctl --system"


def explained(error: SandboxUnavailable, said: bytes) -> SandboxUnavailable:
    """Return `error` with what bubblewrap said and the remedy for this machine."""
    text = " ".join(said.decode(errors="replace").split())[:1000]
    if not text:
        return error
    return SandboxUnavailable(
        f"bubblewrap could not make the sandbox: {text}", remedy=_remedy(text), said=text
    )


def _remedy(said: str) -> str:
    if "execvp" in said:
        return "The toolchain is not whole: install it again on the agent."
    if "nknown option" in said:
        return "bubblewrap 0.8 or newer is needed (Debian 12, Ubuntu 24.04): upgrade it."
    if _kernel("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor restricts unprivileged user namespaces here, as Ubuntu 24.04 does. Allow "
            "them for bubblewrap alone: sudo install -m 0644 systemd/apparmor/aegis-bwrap "
            "/etc/apparmor.d/aegis-bwrap && sudo apparmor_parser -r /etc/apparmor.d/aegis-bwrap"
        )
    if _kernel("kernel/unprivileged_userns_clone") == "0":
        return "This kernel refuses unprivileged user namespaces: " + _SET.format(
            setting="kernel.unprivileged_userns_clone=1"
        )
    if _kernel("user/max_user_namespaces") == "0":
        return "This kernel allows no user namespace: " + _SET.format(
            setting="user.max_user_namespaces=15000"
        )
    return (
        "The usual reason is a container or chroot, which forbid nested namespaces: run the agent "
        "on the host or in a virtual machine, or give the container `--security-opt "
        "seccomp=unconfined --security-opt apparmor=unconfined --security-opt "
        "systempaths=unconfined`, and CAP_SYS_ADMIN where the agent runs as its root."
    )


def _kernel(setting: str) -> str:
    try:
        return (SYSCTL / setting).read_text().strip()
    except OSError:
        return ""
