#!/bin/sh
# Attaches the root file system. dracut calls it when an interface is up, with the
# interface, netroot and the folder for the root.

# shellcheck disable=SC1091
command -v getcmdline >/dev/null || . /lib/dracut-lib.sh

PATH=/usr/sbin:/usr/bin:/sbin:/bin

# shellcheck source=../../nbdroot.sh
. /lib/nbd/nbdroot.sh

# shellcheck disable=SC2046 # its words
nbd_words $(getcmdline)
nbd_request=${nbd_request:-$2} # from DHCP
if ! nbd_parse '' ''; then
    # shellcheck disable=SC2154 # nbd_parse sets it
    warn "nbd: $nbd_error"
    exit 1
fi
# Another interface may have been faster.
# shellcheck disable=SC2154 # nbd_parse sets it
[ ! -e "/sys/block/${nbd_device#/dev/}/pid" ] || exit 0

if ! nbd_settle; then
    warn "nbd: cannot make a place for nbd-client"
    exit 1
fi
if ! nbd_attach; then
    warn "nbd: cannot attach $nbd_device"
    exit 1
fi
nbd_spare
