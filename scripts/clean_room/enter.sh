#!/usr/bin/env bash
# Called by clean_room_check inside new namespaces: makes ROOM the root of a machine, clones, runs.
#
# It pivots rather than chroots: in a chroot the kernel allows no user namespace, and builds run
# in one.
set -euo pipefail
room=$1 repository=$2 commit=$3 account=$4 with=$5
shift 5

mount --bind "$room" "$room"
cd "$room"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount --rbind /sys/fs/cgroup sys/fs/cgroup # tests boot a systemd
mount -t tmpfs -o mode=0755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=0755 tmpfs run
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir -p mnt/repository.git mnt/host
mount --bind "$repository" mnt/repository.git
mount -o remount,bind,ro mnt/repository.git
hostname clean-room
pivot_root . mnt/host
umount --lazy /mnt/host
cd /

if [ -n "$with" ]; then
    IFS=, read -ra packages <<<"$with"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${packages[@]}" >/dev/null
fi

home=/root
if [ "$account" != root ]; then
    useradd --create-home --shell /bin/sh "$account"
    home=/home/$account
fi
chmod 0700 "$home"
as_account() {
    if [ "$account" = root ]; then
        env HOME="$home" USER="$account" "$@"
    else
        env HOME="$home" USER="$account" \
            setpriv --reuid "$account" --regid "$account" --init-groups "$@"
    fi
}
as_account git clone -q /mnt/repository.git "$home/aegis"
cd "$home/aegis"
as_account git checkout -q "$commit"

began=$SECONDS status=0
as_account "$@" || status=$?
echo "=== $*: exit $status after $((SECONDS - began)) s" >&2
[ ! -f build/setup-times.json ] || echo "=== set-up: $(cat build/setup-times.json)" >&2

# Whatever still lives in this pid namespace was left behind: pid 1 is this script.
left=0
for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    command=$(tr '\0' ' ' <"$process/cmdline" 2>/dev/null) || continue
    if [ "$pid" -ne 1 ] && [ -n "$command" ]; then
        echo "=== left running: $pid $command" >&2
        left=1
    fi
done
[ "$status" -ne 0 ] || status=$left
exit "$status"
