#!/bin/bash
# dracut's module for a root file system on NBD.

# called by dracut
check() {
    require_binaries nbd-client || return 1
    # For this machine alone only if its root is on NBD.
    if [[ ${hostonly-} ]] || [[ ${mount_needs-} ]]; then
        local device
        device=$(find_root_block_device) || return 255
        [[ -b /dev/block/$device ]] || return 255
        check_block_and_slaves block_is_nbd "$device" || return 255
    fi
    return 0
}

# called by dracut
depends() {
    echo network rootfs-block
}

# called by dracut
installkernel() {
    instmods nbd
}

# called by dracut
install() {
    # shellcheck disable=SC2154 # moddir is dracut's
    local module=$moddir client
    client=$(find_binary nbd-client)
    # It runs in a folder of its own, where there are no libraries.
    if ldd "${dracutsysrootdir-}$client" &>/dev/null; then
        dfatal "nbd: $client needs shared libraries; build it with CGO_ENABLED=0"
        return 1
    fi
    inst_multiple mount mkdir cp cat chroot
    inst_simple "$client" /sbin/nbd-client
    inst_simple /usr/share/nbd/nbdroot.sh /lib/nbd/nbdroot.sh
    inst_simple "$module/nbd-unit.sh" /lib/nbd/nbd-unit.sh
    inst_multiple -o /etc/nbd/tls/ca-cert.pem /etc/nbd/tls/client-cert.pem /etc/nbd/tls/client-key.pem
    inst_hook cmdline 90 "$module/parse-nbdroot.sh"
    # dracut calls what is before the first colon of netroot=, and "root".
    inst_script "$module/nbdroot.sh" /sbin/nbdroot
    inst_script "$module/nbdroot.sh" /sbin/nbdsroot
    if dracut_module_included systemd-initrd; then
        # shellcheck disable=SC2154 # systemdutildir is dracut's
        inst_script "$module/nbd-generator.sh" "$systemdutildir/system-generators/dracut-nbd-generator"
    fi
    dracut_need_initqueue
}
