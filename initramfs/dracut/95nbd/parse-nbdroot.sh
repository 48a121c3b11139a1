#!/bin/sh
# Looks whether the root file system is on NBD: root=nbd:…, netroot=nbd:… or nbdroot=….
# Sourced by dracut, also a second time when DHCP has told the root path; dracut goes by
# what this leaves in root, netroot, rootok, fstype and rflags.
# shellcheck disable=SC2034,SC2154

# shellcheck source=../../nbdroot.sh
. /lib/nbd/nbdroot.sh

# shellcheck disable=SC2046 # its words
nbd_words $(getcmdline)
if [ -z "$nbd_request" ]; then
    case $netroot in
        nbd:* | nbds:*) nbd_request=$netroot ;; # from DHCP
    esac
fi
# A mere root=/dev/nbd… may be anybody's device.
if [ -n "$nbd_request" ]; then
    if nbd_needs_dhcp; then
        die "nbd: \"$nbd_request\" is for DHCP; dracut wants it as netroot=dhcp, with a root path like nbd:SERVER:EXPORT"
    fi
    nbd_parse '' '' || die "nbd: $nbd_error"
    modprobe nbd max_part=15 || die "nbd: the kernel has no module nbd"
    case $nbd_request in
        nbd:* | nbds:*) netroot=$nbd_request ;;
        *) netroot=nbd:$nbd_request ;; # only the beginning matters to dracut
    esac
    fstype=${nbd_fstype:-$fstype}
    rflags=${nbd_flags:-$rflags}
    root=block:$nbd_root
    if [ "$nbd_root" = "$nbd_device" ]; then
        # The node is there before the disk is; so wait for what udev makes of the disk.
        # The second name is that of root=/dev/root, which leaves all to DHCP.
        printf 'KERNEL=="%s", ENV{ID_FS_TYPE}=="?*", SYMLINK+="nbdroot root"\n' \
            "${nbd_device#/dev/}" >/etc/udev/rules.d/99-nbdroot.rules
        root=block:/dev/nbdroot
    fi
    rootok=1
    # Where systemd mounts the root, dracut has nothing else to wait for.
    echo "[ -e /sys/block/${nbd_device#/dev/}/pid ]" >"$hookdir/initqueue/finished/nbdroot.sh"
fi
