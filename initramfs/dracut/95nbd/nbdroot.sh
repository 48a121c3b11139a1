#!/bin/sh
# Attaches the root file system. dracut calls it when an interface is up, with the
# interface, netroot and the folder for the root.

# shellcheck disable=SC1091
command -v getcmdline >/dev/null || . /lib/dracut-lib.sh

PATH=/usr/sbin:/usr/bin:/sbin:/bin

# shellcheck source=../../nbdroot.sh
. /lib/nbd/nbdroot.sh
# shellcheck source=nbd-unit.sh
. /lib/nbd/nbd-unit.sh

# mount_later: tells dracut what to mount, where root= has not said it.
mount_later() {
    wait_for_dev -n /dev/nbdroot
    if [ -n "${DRACUT_SYSTEMD:-}" ]; then
        nbd_write_unit /run/systemd/system
        systemctl daemon-reload
        systemctl --no-block start sysroot.mount
        return
    fi
    # shellcheck disable=SC2154 # nbd_parse and dracut set them
    case $nbd_fstype$nbd_flags$rflags in
        *\'*)
            warn "nbd: not understood: $nbd_request"
            return
            ;;
    esac
    # It is read by the shell that then mounts what it finds in these.
    # shellcheck disable=SC2154 # hookdir is dracut's
    cat >"$hookdir/mount/10-nbdroot.sh" <<END
root=block:/dev/nbdroot
fstype='${nbd_fstype:-auto}'
rflags='$nbd_flags${nbd_flags:+${rflags:+,}}$rflags'
END
}

# shellcheck disable=SC2046 # its words
nbd_words $(getcmdline)
by_dhcp='' without_root=''
if [ -z "$nbd_request" ]; then
    by_dhcp=y nbd_request=$2
    [ -n "$nbd_root" ] || without_root=y
fi
if ! nbd_parse '' ''; then
    # shellcheck disable=SC2154 # nbd_parse sets it
    warn "nbd: $nbd_error"
    exit 1
fi
# Another interface may have been faster.
# shellcheck disable=SC2154 # nbd_parse sets it
[ ! -e "/sys/block/${nbd_device#/dev/}/pid" ] || exit 0

# udev has not yet seen the rule for what DHCP has told.
[ -z "$by_dhcp" ] || udevadm control --reload
if ! nbd_settle; then
    warn "nbd: cannot make a place for nbd-client"
    exit 1
fi
if ! nbd_attach; then
    warn "nbd: cannot attach $nbd_device"
    exit 1
fi
nbd_spare
[ -z "$without_root" ] || mount_later
