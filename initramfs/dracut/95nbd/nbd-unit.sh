#!/bin/sh
# The unit that mounts the root where systemd runs in the initramfs: for the generator,
# which knows what the kernel's command line says, and for the script that attaches the
# root, which knows what DHCP said. After nbd_parse; needs dracut-lib.sh.
# shellcheck disable=SC2154

# nbd_write_unit FOLDER
nbd_write_unit() {
    nbd_what=$nbd_root
    # The node is there before the disk is; see the rule for udev.
    [ "$nbd_what" != "$nbd_device" ] || nbd_what=/dev/nbdroot
    nbd_what=$(label_uuid_to_dev "$nbd_what")
    nbd_name=$(dev_unit_name "$nbd_what")
    nbd_type=${nbd_fstype:-$(getarg rootfstype=)}
    nbd_options=${nbd_flags:-$(getarg rootflags=)}
    getarg ro >/dev/null && nbd_options=${nbd_options:+$nbd_options,}ro

    mkdir -p "$1/initrd-root-fs.target.requires" "$1/$nbd_name.device.d"
    {
        echo "[Unit]"
        echo "Before=initrd-root-fs.target"
        echo "Requires=systemd-fsck@$nbd_name.service"
        echo "After=systemd-fsck@$nbd_name.service"
        echo "[Mount]"
        echo "Where=/sysroot"
        echo "What=$nbd_what"
        [ -z "$nbd_type" ] || echo "Type=$nbd_type"
        [ -z "$nbd_options" ] || echo "Options=$nbd_options"
    } >"$1/sysroot.mount"
    # systemd itself makes no such link unless root= tells what to mount.
    ln -sf ../sysroot.mount "$1/initrd-root-fs.target.requires/sysroot.mount"
    # How long to wait for a server is the client's business, and dracut's.
    nbd_seconds=$(getarg rd.timeout=)
    {
        echo "[Unit]"
        echo "JobTimeoutSec=${nbd_seconds:-0}"
        echo "JobRunningTimeoutSec=${nbd_seconds:-0}"
    } >"$1/$nbd_name.device.d/nbd.conf"
}
