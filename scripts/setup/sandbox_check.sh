# shellcheck shell=sh
# Does bubblewrap work here as builds will use it? If not, say why and exactly what to do.

# Builds never run as root: the agent drops to an unprivileged user first, so root checks as one.
require_sandbox() {
    if [ "$(id -u)" -eq 0 ]; then
        set -- setpriv --reuid 65534 --regid 65534 --clear-groups
    else
        set --
    fi
    set -- "$@" timeout 20 bwrap --unshare-all --unshare-user --disable-userns --die-with-parent \
        --new-session --ro-bind / / --proc /proc --dev /dev --chdir / true
    complaint=$(cd / && "$@" 2>&1) && return 0
    say "bubblewrap can't make a sandbox here, and no build runs without one. It said:"
    say ""
    say "    ${complaint:-nothing, within 20 s}"
    say ""
    explain_sandbox "$complaint"
    exit 2
}

explain_sandbox() {
    case $1 in
        *nknown\ option*)
            say "This bubblewrap is too old: version 0.8 or newer is needed (Debian 12, Ubuntu 24.04)."
            return
            ;;
    esac
    if [ "$(kernel_setting kernel/apparmor_restrict_unprivileged_userns)" = 1 ]; then
        say "AppArmor restricts unprivileged user namespaces here, as Ubuntu 24.04 does by default."
        say "An AppArmor profile that allows them for bubblewrap alone lies in this folder. Please run"
        say ""
        say "    cd $root"
        say "    sudo install -m 0644 systemd/apparmor/aegis-bwrap /etc/apparmor.d/aegis-bwrap"
        say "    sudo apparmor_parser -r /etc/apparmor.d/aegis-bwrap"
        say ""
        say "then run make again. What the profile gives away and how to undo it, it says itself."
        say "Becoming root does not help: builds never run as root."
    elif [ "$(kernel_setting kernel/unprivileged_userns_clone)" = 0 ]; then
        say "This kernel is set to refuse unprivileged user namespaces. Please run"
        say ""
        say "    echo kernel.unprivileged_userns_clone=1 | sudo tee /etc/sysctl.d/60-aegis-userns.conf"
        say "    sudo sysctl --system"
        say ""
        say "then run make again."
    elif [ "$(kernel_setting user/max_user_namespaces)" = 0 ]; then
        say "This kernel is set to allow no user namespace. Please run"
        say ""
        say "    echo user.max_user_namespaces=15000 | sudo tee /etc/sysctl.d/60-aegis-userns.conf"
        say "    sudo sysctl --system"
        say ""
        say "then run make again."
    else
        say "The usual reason is a container or a chroot: they forbid nested user namespaces. Run it on"
        say "the host or in a virtual machine. In Docker, this container option allows them:"
        say ""
        say "    --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
    fi
}

kernel_setting() {
    cat "/proc/sys/$1" 2>/dev/null || true
}
