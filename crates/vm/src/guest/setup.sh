# Makes of Debian's least system a base image: what one for EC2 has before any component is run.
set -euo pipefail
# No pages to read, or most of the disk would be those.
printf 'path-exclude=/usr/share/%s/*\n' doc man locale info >/etc/dpkg/dpkg.cfg.d/lean
# A start-up archive with this machine's own drivers only, packed for quick unpacking.
mkdir -p /etc/initramfs-tools/conf.d
printf 'MODULES=list\nCOMPRESS=lz4\n' >/etc/initramfs-tools/conf.d/lean
printf '%s\n' virtio_pci virtio_blk ext4 >/etc/initramfs-tools/modules
apt-get --assume-yes --quiet --quiet --no-install-recommends install linux-image-cloud-amd64
apt-get clean

echo 'rehearsal' >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 rehearsal\n' >/etc/hosts
echo '/dev/vda / ext4 defaults,noatime 0 1' >/etc/fstab
install -D --mode=644 /opt/rehearsal/dhcp.network /etc/systemd/network/80-dhcp.network
install -D --mode=644 /opt/rehearsal/timesyncd.conf /etc/systemd/timesyncd.conf.d/amazon.conf
install -D --mode=644 /opt/rehearsal/rehearsal-agent.service /etc/systemd/system/rehearsal-agent.service
systemctl enable systemd-networkd.service systemd-timesyncd.service rehearsal-agent.service
# Debian's own housekeeping; apt's timers are disabled by the image's own documents too.
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
  fstrim.timer
