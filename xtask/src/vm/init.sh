#!/bin/busybox sh
# Process 1 of the virtual machine: the host's root, read-only, below a layer in memory, with the machine's own kernel
# modules. `dir=` is the task's directory on the host, `job=` what becomes process 1.
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
for word in $($B cat /proc/cmdline); do
	case $word in job=*) job=${word#job=} ;; dir=*) dir=${word#dir=} ;; esac
done
while read module; do $B insmod "/modules/$module"; done < /modules/order
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap,ro host /host &&
	$B mount -t tmpfs -o size=60% layer /layer && $B mkdir /layer/upper /layer/work &&
	$B mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /root || $B poweroff -f
release=$($B uname -r)
$B rm -rf /root/usr/lib/modules /root/etc/fstab; $B mkdir -p /root/usr/lib/modules
$B ln -s "$dir/kernel/lib/modules/$release" "/root/usr/lib/modules/$release"
$B mkdir -p /root/proc /root/sys /root/dev /root/run
for place in proc sys dev; do $B mount --move /$place /root/$place; done
$B mount -t tmpfs -o size=80% run /root/run
# Else systemd empties /tmp as it starts, and the sources may be there.
$B mkdir -p /root/etc/tmpfiles.d; : > /root/etc/tmpfiles.d/tmp.conf
$B echo "[Unit]
Requires=dbus.service systemd-logind.service
After=dbus.service systemd-logind.service
[Service]
Type=oneshot
ExecStart=/bin/bash $dir/guest.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity" > /root/etc/systemd/system/vm-suite.service
# systemd takes a machine with this file for a container, which has no command line of the kernel.
$B rm -f /root/.dockerenv
exec $B switch_root /root $job
