# shellcheck shell=sh disable=SC2034,SC2154
# Functions that the hooks for initramfs-tools, dracut and mkinitcpio share: they read
# what the kernel's command line says of a root file system on NBD, and attach it.
# POSIX shell, for dash, busybox and klibc; no programs but mount, mkdir, cp, cat and
# chroot. README.md explains what can be written on the command line.

# Where the client lives. systemd leaves everything below /run/initramfs alone when the
# system goes down; other systems leave /run alone.
nbd_home=/run/initramfs/nbd

# nbd_words TEXT...: takes the words of the kernel's command line that are for us.
# Sets nbd_request (what to attach), nbd_device (which device to attach it to), nbd_root
# (what to mount, if root= says so), and nbd_extra (options).
nbd_words() {
	nbd_request='' nbd_device='' nbd_root='' nbd_extra=''
	nbd_net='' nbd_env=${NBDROOT:-}
	for nbd_word; do
		case $nbd_word in
		root=nbd:* | root=nbds:*) nbd_request=${nbd_word#root=} ;;
		root=/dev/nbd*)
			nbd_root=${nbd_word#root=}
			nbd_device=$nbd_root
			;;
		root=dhcp* | root=/dev/root | root=/dev/nfs) ;; # no device
		root=?*) nbd_root=${nbd_word#root=} ;;
		netroot=nbd:* | netroot=nbds:*) nbd_net=${nbd_word#netroot=} ;;
		nbdroot=*) nbd_net=${nbd_word#nbdroot=} ;;
		nbddev=*) nbd_device=${nbd_word#nbddev=} ;;
		nbdopts=*) nbd_extra=$nbd_extra${nbd_extra:+,}${nbd_word#nbdopts=} ;;
		esac
	done
	# Other scripts may know better, and root= comes before netroot=.
	nbd_request=${nbd_env:-${nbd_request:-$nbd_net}}
}

# nbd_wanted: is a root file system on NBD asked for?
nbd_wanted() {
	if [ -z "$nbd_request" ]; then
		case $nbd_root in
		/dev/nbd*) nbd_request=dhcp ;; # the device alone: the rest is DHCP's
		*) return 1 ;;
		esac
	fi
}

# nbd_needs_dhcp: does the command line leave to DHCP what to attach?
nbd_needs_dhcp() {
	case $nbd_request in
	dhcp | dhcp,* | '' | ,* | :/* | /*) return 0 ;;
	esac
	return 1
}

# nbd_parse PATH SERVER: reads nbd_request, with DHCP's root path and server where it
# leaves them to it. Sets nbd_uri, or nbd_host, nbd_port and nbd_name; and nbd_fstype,
# nbd_flags and nbd_opts, where they are given. Empty means not given.
nbd_parse() {
	nbd_uri='' nbd_host='' nbd_port='' nbd_name='' nbd_fstype='' nbd_flags='' nbd_opts=''
	nbd_text=$nbd_request
	case $nbd_text in
	dhcp | '')
		nbd_text=${1#nbdroot=}
		[ -n "$nbd_text" ] || nbd_text=$2
		;;
	dhcp,*) nbd_text=${1:-$2},${nbd_text#dhcp,} ;;
	esac
	case $nbd_text in
	nbd://* | nbds://*) nbd_uri=$nbd_text ;;
	nbd:*) nbd_parse_colons "${nbd_text#nbd:}" ;;
	*,*) nbd_parse_commas "$nbd_text" ;;
	*) nbd_parse_path "$nbd_text" ;;
	esac
	nbd_base
	[ -n "$nbd_uri" ] && return 0
	[ -n "$nbd_host" ] || nbd_host=$2
	if [ -z "$nbd_host" ]; then
		nbd_error="\"$nbd_request\" names no server, and neither does DHCP (root path \"$1\")"
		return 1
	fi
}

# nbd_base: makes nbd_device the whole disk, and nbd_root what is to be mounted.
nbd_base() {
	[ -n "$nbd_device" ] || nbd_device=nbd0
	nbd_device=/dev/${nbd_device#/dev/}
	[ -n "$nbd_root" ] || nbd_root=$nbd_device
	case $nbd_device in
	/dev/nbd*p*) nbd_device=${nbd_device%p*} ;;
	esac
}

# nbd_number TEXT: is it a number?
nbd_number() {
	case $1 in
	'' | *[!0-9]*) return 1 ;;
	esac
}

# nbd_port_or_name TEXT: digits are a port, everything else is the name of an export.
nbd_port_or_name() {
	if nbd_number "$1"; then
		nbd_port=$1
	else
		nbd_name=$1
	fi
}

# nbd_cut: moves the first field of nbd_rest to nbd_field.
nbd_cut() {
	nbd_field=${nbd_rest%%:*}
	case $nbd_rest in
	*:*) nbd_rest=${nbd_rest#*:} ;;
	*) nbd_rest='' ;;
	esac
}

# nbd_parse_colons TEXT: SERVER:PORT[:EXPORT] or SERVER:EXPORT, then
# [:FSTYPE[:ROOTFLAGS[:OPTIONS]]], as dracut.cmdline(7) has it. Between a port and a type
# of file system the export may stand or not: what is known as a type is one.
nbd_parse_colons() {
	nbd_rest=$1
	nbd_parse_host
	nbd_cut
	nbd_port_or_name "$nbd_field"
	if [ -n "$nbd_port" ] && ! nbd_fstype_next; then
		nbd_cut
		nbd_name=$nbd_field
	fi
	nbd_cut
	nbd_fstype=$nbd_field
	nbd_cut
	nbd_flags=$nbd_field
	nbd_opts=$nbd_rest
}

# nbd_parse_host: moves the host, in brackets or not, from nbd_rest to nbd_host.
nbd_parse_host() {
	case $nbd_rest in
	\[*\]*)
		nbd_host=${nbd_rest#\[}
		nbd_host=${nbd_host%%\]*}
		nbd_rest=${nbd_rest#*\]}
		nbd_rest=${nbd_rest#:}
		;;
	*)
		nbd_cut
		nbd_host=$nbd_field
		;;
	esac
}

# nbd_fstype_next: is the next field of nbd_rest a type of file system, or nothing that
# could be the name of an export?
nbd_fstype_next() {
	case $nbd_rest in
	:*)
		nbd_rest2=${nbd_rest#:}
		! nbd_is_fstype "${nbd_rest2%%:*}"
		;;
	'') return 0 ;;
	*) nbd_is_fstype "${nbd_rest%%:*}" ;;
	esac
}

nbd_is_fstype() {
	case $1 in
	auto | ext[234] | xfs | btrfs | f2fs | bcachefs | jfs | nilfs2 | reiserfs) return 0 ;;
	squashfs | erofs | iso9660 | udf | vfat | exfat | ntfs | ntfs3 | minix | zfs) return 0 ;;
	esac
	return 1
}

# nbd_parse_commas TEXT: SERVER,PORT-OR-NAME[,DEVICE], Debian's form. root= takes
# precedence over the device.
nbd_parse_commas() {
	nbd_host=${1%%,*}
	nbd_rest=${1#*,}
	nbd_port_or_name "${nbd_rest%%,*}"
	case $nbd_rest in
	*,*) [ -n "$nbd_device" ] || nbd_device=${nbd_rest#*,} ;;
	esac
	nbd_host=${nbd_host#\[}
	nbd_host=${nbd_host%\]}
}

# nbd_parse_path TEXT: SERVER, SERVER:PORT, SERVER[:PORT]/NAME and SERVER:/NAME. After a
# colon the slash belongs to the name, as for NFS. SERVER may be missing, which leaves it
# to DHCP, or be an IPv6 address in brackets.
nbd_parse_path() {
	case $1 in
	\[*\]*)
		nbd_host=${1#\[}
		nbd_host=${nbd_host%%\]*}
		nbd_rest=${1#*\]}
		;;
	*)
		nbd_host=${1%%[:/]*}
		nbd_rest=${1#"$nbd_host"}
		;;
	esac
	case $nbd_rest in
	:/*) nbd_name=${nbd_rest#:} ;;
	:*/*)
		nbd_rest=${nbd_rest#:}
		nbd_port=${nbd_rest%%/*}
		nbd_name=${nbd_rest#*/}
		;;
	:*) nbd_port=${nbd_rest#:} ;;
	/*)
		nbd_name=$nbd_rest
		[ -z "$nbd_host" ] || nbd_name=${nbd_rest#/}
		;;
	esac
	[ "$nbd_host" != dhcp ] || nbd_host=''
}

# nbd_ipv6: is the server an IPv6 address?
nbd_ipv6() {
	case ${nbd_uri#*://}$nbd_host in
	\[* | *:*:*) return 0 ;;
	esac
	return 1
}

# nbd_settle NAMESERVER...: makes a place for the client that stays when the initramfs
# goes: after that is deleted, and /proc, /sys, /dev and /run have moved, a process that
# was started from it finds none of them at its path.
nbd_settle() {
	mkdir -p "$nbd_home" /run/nbd &&
		mount -t tmpfs -o mode=0700,size=64m nbd "$nbd_home" &&
		mkdir -p "$nbd_home/proc" "$nbd_home/sys" "$nbd_home/dev" "$nbd_home/run/nbd" \
			"$nbd_home/etc" "$nbd_home/sbin" "$nbd_home/tmp" &&
		mount -t proc proc "$nbd_home/proc" &&
		mount -t sysfs sysfs "$nbd_home/sys" &&
		mount -t devtmpfs dev "$nbd_home/dev" &&
		mount -o bind /run/nbd "$nbd_home/run/nbd" &&
		cp "$(nbd_client)" "$nbd_home/sbin/nbd-client" || return 1
	for nbd_file in nbd ssl hosts resolv.conf; do
		if [ -e "/etc/$nbd_file" ]; then
			cp -R "/etc/$nbd_file" "$nbd_home/etc/$nbd_file"
		fi
	done
	for nbd_server; do
		case $nbd_server in
		'' | 0.0.0.0) ;;
		*) echo "nameserver $nbd_server" >>"$nbd_home/etc/resolv.conf" ;;
		esac
	done
}

# nbd_client: prints where the client is.
nbd_client() {
	for nbd_path in "${NBDCLIENT:-}" /sbin/nbd-client /usr/sbin/nbd-client /usr/bin/nbd-client /bin/nbd-client; do
		if [ -n "$nbd_path" ] && [ -x "$nbd_path" ]; then
			echo "$nbd_path"
			return
		fi
	done
	return 1
}

# nbd_attach: attaches what nbd_parse has found. It comes back when the device is ready.
nbd_attach() {
	set -- "$nbd_device"
	if [ -n "$nbd_uri" ]; then
		set -- "$nbd_uri" "$@"
	else
		[ -z "$nbd_port" ] || set -- "$nbd_port" "$@"
		set -- "$nbd_host" "$@"
		[ -z "$nbd_name" ] || set -- "$@" -N "$nbd_name"
	fi
	nbd_tls=''
	case $nbd_uri in
	nbds:*) nbd_tls=y ;;
	esac
	nbd_own_ca='' nbd_own_cert='' nbd_own_retry=''
	nbd_list=$nbd_opts,$nbd_extra,
	while [ -n "$nbd_list" ]; do
		nbd_option=${nbd_list%%,*}
		nbd_list=${nbd_list#*,}
		nbd_option "$nbd_option"
		[ -z "$nbd_flag" ] || set -- "$@" "$nbd_flag"
	done
	[ -n "$nbd_own_retry" ] || set -- "$@" --retry=120
	if [ -n "$nbd_tls" ]; then
		nbd_dir=/etc/nbd/tls
		if [ -z "$nbd_own_ca" ] && [ -e "$nbd_home$nbd_dir/ca-cert.pem" ]; then
			set -- "$@" "-cacertfile=$nbd_dir/ca-cert.pem"
		fi
		if [ -z "$nbd_own_cert" ] && [ -e "$nbd_home$nbd_dir/client-cert.pem" ]; then
			set -- "$@" "-certfile=$nbd_dir/client-cert.pem" "-keyfile=$nbd_dir/client-key.pem"
		fi
	fi
	# The name that systemd spares, no heed to SIGTERM, and memory that stays where it is.
	chroot "$nbd_home" /sbin/nbd-client "$@" -persist -systemd-mark --ignore-term -swap
}

# nbd_option WORD: sets nbd_flag to what the client calls an option. It may be written as
# in nbdtab(5), or as on the command line of nbd-client.
nbd_option() {
	nbd_flag=${1#-}
	nbd_flag=${nbd_flag#-}
	case $nbd_flag in
	'' | persist | systemd-mark | swap | ro | rw) nbd_flag='' ;;
	bs=*) nbd_flag=-block-size=${1#*=} ;;
	conns=*) nbd_flag=-connections=${1#*=} ;;
	tls | enable-tls) nbd_tls=y nbd_flag=-enable-tls ;;
	no_optgo) nbd_flag=-no-optgo ;;
	cacertfile=*) nbd_tls=y nbd_own_ca=y nbd_flag=-$nbd_flag ;;
	certfile=* | keyfile=*) nbd_tls=y nbd_own_cert=y nbd_flag=-$nbd_flag ;;
	retry=*) nbd_own_retry=y nbd_flag=--$nbd_flag ;;
	*) nbd_flag=--$nbd_flag ;;
	esac
}

# nbd_spare: tells sysvinit to leave the client alone when the system goes down. systemd
# goes by its name. The number in sysfs would be that of one of its threads.
nbd_spare() {
	mkdir -p /run/sendsigs.omit.d &&
		chroot "$nbd_home" /sbin/nbd-client -c "$nbd_device" >/run/sendsigs.omit.d/nbd-root
}
