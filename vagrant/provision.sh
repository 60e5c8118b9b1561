#!/bin/sh
# Makes a Debian system into a lab host. Run as root inside that system: by mmdebstrap in the new tree
# (`namespace` and `vm`), by Vagrant in the booted box (`vagrant`).
#
# It installs what a host of `migrate` needs (criu, sshd, rsync, python3), what its tests use (redis, sudo,
# netfilter tools), and nothing of ours. Keys, names and addresses are a lab's own; see labkit/seed.py.
set -eu

role=${1:?usage: provision.sh namespace|vm|vagrant}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

packages='criu openssh-server openssh-client rsync python3 python3-venv iproute2 iputils-ping
    nftables iptables procps mount sudo redis-server nginx memcached nodejs tmux dtach vim-tiny less'

case $role in
    namespace) ;;
    vm) packages="$packages systemd-sysv linux-image-cloud-amd64 busybox-static kmod" ;;
    vagrant) apt-get update ;;
    *) echo "provision.sh: unknown role '$role'" >&2; exit 2 ;;
esac

# shellcheck disable=SC2086  # a list of words
apt-get install --yes --no-install-recommends -o Dpkg::Use-Pty=0 $packages

# The tests start their own servers; one that runs by itself would be in their way.
for server in redis-server nginx memcached; do
    rm -f "/etc/systemd/system/multi-user.target.wants/$server.service"
done
rm -f /etc/systemd/system/redis.service

touch /etc/default/locale  # sshd's PAM complains in the log if it is not there
id admin >/dev/null 2>&1 || useradd --create-home --shell /bin/bash admin
echo 'admin ALL=(ALL:ALL) NOPASSWD: ALL' > /etc/sudoers.d/lab-admin
chmod 0440 /etc/sudoers.d/lab-admin

cat > /etc/ssh/sshd_config.d/lab.conf <<'SSHD'
# Tests open many connections at once, and a name look-up would wait for a server that is not there.
PermitRootLogin prohibit-password
UseDNS no
MaxStartups 100:30:200
MaxSessions 100
SSHD

[ "$role" = vm ] || exit 0

# In an emulated machine each unit costs tenths of a second, and each generator a process: only what a lab
# needs may start. The lab's initrd does what udev and networkd would (labkit/initrd.py).
systemctl mask --quiet \
    systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service \
    systemd-udev-settle.service systemd-hwdb-update.service systemd-logind.service systemd-networkd.service \
    systemd-resolved.service systemd-timesyncd.service systemd-hostnamed.socket \
    systemd-random-seed.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    systemd-firstboot.service systemd-binfmt.service systemd-machine-id-commit.service systemd-journal-flush.service \
    systemd-journal-catalog-update.service systemd-update-done.service systemd-boot-update.service \
    systemd-pcrphase.service systemd-pstore.service systemd-user-sessions.service systemd-modules-load.service \
    modprobe@.service kmod-static-nodes.service getty.target getty@tty1.service serial-getty@ttyS0.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-tmpfiles-clean.timer dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount
mkdir -p /etc/systemd/system-generators
for generator in /usr/lib/systemd/system-generators/*; do
    ln -sf /dev/null "/etc/systemd/system-generators/${generator##*/}"
done
systemctl set-default --quiet multi-user.target
# Says "no logins yet" until a unit takes it away, and that unit is masked.
ln -sf /dev/null /etc/tmpfiles.d/systemd-nologin.conf
# Without these the first boot would run ldconfig and sysusers once more.
touch /etc/.updated /var/.updated
