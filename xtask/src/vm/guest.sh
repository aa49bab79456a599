#!/bin/bash
# Runs the suite in the virtual machine: as root; as an ordinary user under systemd, as after a login by ssh; or as one
# without systemd, in a control group that is handed over here.
dir=$(sed -n 's/.*\bdir=\([^ ]*\).*/\1/p' /proc/cmdline)
. "$dir/settings"
mkdir -p /dev/shm /dev/pts /var/tmp/suite
mountpoint -q /dev/shm || mount -t tmpfs -o mode=1777 shm /dev/shm
mountpoint -q /dev/pts || mount -t devpts pts /dev/pts
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup /sys/fs/cgroup
# The file system that most stores are on: tmpfs of older kernels has no idmapped mounts.
truncate -s 3G /run/suite.img && mkfs.ext4 -q -E lazy_itable_init=1 /run/suite.img && modprobe -a loop ext4 &&
	mount -o loop,nobarrier /run/suite.img /var/tmp/suite && chmod 1777 /var/tmp/suite || echo "the suite is not on ext4"
mkdir -p "$ROOT/target/tmp" && mount -t tmpfs -o mode=1777 tmp "$ROOT/target/tmp"
mkdir -m 1777 /var/tmp/suite/home
ip link set lo up
export CI=true SHAKEDOWN_DRIVER=native SHAKEDOWN_TIMEOUT_SCALE=10 HOME=/var/tmp/suite/home TMPDIR=/var/tmp/suite
export INSTA_WORKSPACE_ROOT=$ROOT SHAKEDOWN_STORE=$HOME/store SHAKEDOWN_RUN_DIR=$HOME/run
cd "$ROOT/tests"
echo "Linux $(uname -r), control groups: $(cat /sys/fs/cgroup/cgroup.controllers)"
become=
group=
if [ -n "$USER_NAME" ]; then
	id=$(id -u "$USER_NAME")
	become="setpriv --reuid $USER_NAME --regid $USER_NAME --init-groups"
	if [ -d /run/systemd/system ]; then
		systemctl start "user@$id.service"
		export XDG_RUNTIME_DIR=/run/user/$id
	else
		# As cgroups(7) says in "Delegation": the directory, and the files by which groups below it are made and filled.
		group=/sys/fs/cgroup/delegated
		for name in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$name" > /sys/fs/cgroup/cgroup.subtree_control; done
		mkdir $group
		chown "$USER_NAME" $group $group/cgroup.procs $group/cgroup.threads $group/cgroup.subtree_control
	fi
fi
(
	[ -z "$group" ] || echo $BASHPID > $group/cgroup.procs
	exec $become "$SUITE" --test-threads 2 --show-output $FILTERS
)
status=$?
# The session ends a moment after the suite, and systemd removes a scope when the last process in it has ended.
for _ in $(seq 60); do
	left=$(find /sys/fs/cgroup -name 'shakedown-*' -type d)
	[ -n "$left" ] || break
	sleep 1
done
[ -z "$left" ] || { echo "control groups are left: $left"; status=1; }
echo "shakedown-vm: status $status"
sync
echo o > /proc/sysrq-trigger
read -t 10 < /dev/zero
