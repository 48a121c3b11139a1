#!/bin/sh
# Writes the unit that mounts the root, where systemd runs in the initramfs.

# shellcheck disable=SC1091
command -v getcmdline >/dev/null || . /lib/dracut-lib.sh

# shellcheck source=../../nbdroot.sh
. /lib/nbd/nbdroot.sh
# shellcheck source=nbd-unit.sh
. /lib/nbd/nbd-unit.sh

# shellcheck disable=SC2046 # its words
nbd_words $(getcmdline)
# shellcheck disable=SC2154 # nbd_words sets it
[ -n "$nbd_request" ] || exit 0
nbd_parse '' '' || exit 0 # parse-nbdroot.sh says what is wrong
nbd_write_unit "${2:?}"
