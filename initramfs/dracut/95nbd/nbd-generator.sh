#!/bin/sh
# Writes the unit that mounts the root, where systemd runs in the initramfs.

# shellcheck disable=SC1091
command -v getcmdline >/dev/null || . /lib/dracut-lib.sh

# shellcheck source=../../nbdroot.sh
. /lib/nbd/nbdroot.sh

# shellcheck disable=SC2046 # its words
nbd_words $(getcmdline)
[ -n "$nbd_request" ] || exit 0
nbd_parse '' '' || exit 0 # parse-nbdroot.sh says what is wrong

# shellcheck disable=SC2154 # nbd_parse sets them
what=$nbd_root
[ "$what" != "$nbd_device" ] || what=/dev/nbdroot
case $what in
    LABEL=* | UUID=* | PARTUUID=* | PARTLABEL=*) what=$(label_uuid_to_dev "$what") ;;
esac
fstype=${nbd_fstype:-$(getarg rootfstype=)}
flags=${nbd_flags:-$(getarg rootflags=)}
getarg ro >/dev/null && flags=${flags:+$flags,}ro

folder=${2:?}
mkdir -p "$folder"
{
    echo "[Unit]"
    echo "Before=initrd-root-fs.target"
    echo "[Mount]"
    echo "Where=/sysroot"
    echo "What=$what"
    [ -z "$fstype" ] || echo "Type=$fstype"
    [ -z "$flags" ] || echo "Options=$flags"
} >"$folder/sysroot.mount"
