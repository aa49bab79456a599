#!/bin/bash
# Runs the suite in the virtual machine: as root, or with systemd as an ordinary user, as after a login by ssh.
dir=$(sed -n 's/.*\bdir=\([^ ]*\).*/\1/p' /proc/cmdline)
. "$dir/settings"
mkdir -p /dev/shm /dev/pts /var/tmp/suite
mountpoint -q /dev/shm || mount -t tmpfs -o mode=1777 shm /dev/shm
mountpoint -q /dev/pts || mount -t devpts pts /dev/pts
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs -o size=2g,mode=1777 suite /var/tmp/suite
mkdir -p "$ROOT/target/tmp" && mount -t tmpfs -o mode=1777 tmp "$ROOT/target/tmp"
mkdir -m 1777 /var/tmp/suite/home
ip link set lo up
export CI=true SHAKEDOWN_DRIVER=native SHAKEDOWN_TIMEOUT_SCALE=10 HOME=/var/tmp/suite/home TMPDIR=/var/tmp/suite
export SHAKEDOWN_STORE=$HOME/store SHAKEDOWN_RUN_DIR=$HOME/run
cd "$ROOT/tests"
echo "Linux $(uname -r), control groups: $(cat /sys/fs/cgroup/cgroup.controllers)"
become=
if [ -n "$USER_NAME" ]; then
	id=$(id -u "$USER_NAME")
	systemctl start "user@$id.service"
	export XDG_RUNTIME_DIR=/run/user/$id
	become="setpriv --reuid $USER_NAME --regid $USER_NAME --init-groups"
fi
$become "$SUITE" --test-threads 2 $FILTERS
status=$?
left=$(find /sys/fs/cgroup -name 'shakedown-*' -type d)
[ -z "$left" ] || { echo "control groups are left: $left"; status=1; }
echo "shakedown-vm: status $status"
sync
echo o > /proc/sysrq-trigger
read -t 10 < /dev/zero
