# Boots the Debian system of this folder in QEMU; read by run.sh and net.sh (`.`), not run by itself.
#
#   debian_boot LABEL LOG    until the system powers itself off: its lines that begin with `@@ ` are told. Wants
#                            $cache (kernel and initrd), $work (root.qcow2 and disk.tar) and $deadline (seconds);
#                            $qemu is the process while it is there, for whoever cleans up.
debian_boot() {
    local label=$1 log=$2 began=$SECONDS
    # A busy host may be too late for the kernel's test of its timer, and a kernel that panics shall end.
    qemu-system-x86_64 -accel "${VMAN_DEBIAN_ACCEL:-tcg},thread=multi" -cpu max -smp 2 -m 2048 -nodefaults \
        -display none -no-reboot -serial "file:$log" -kernel "$cache/vmlinuz" -initrd "$cache/initrd" \
        -append 'root=/dev/vda rw console=ttyS0 systemd.show_status=0 quiet no_timer_check panic=-1' \
        -drive "file=$work/root.qcow2,if=virtio,format=qcow2,cache=unsafe" \
        -drive "file=$work/disk.tar,if=virtio,format=raw,readonly=on" -nic none -device virtio-rng-pci </dev/null &
    qemu=$!
    while kill -0 "$qemu" 2>/dev/null; do
        if [ $((SECONDS - began)) -gt "$deadline" ]; then
            echo "$label: not done after $deadline s; its console is in $log" >&2
            exit 1
        fi
        sleep 1
    done
    wait "$qemu" || true
    qemu=
    tr -d '\r' <"$log" | sed -n 's/^@@ /  /p'
    echo "$label took $((SECONDS - began)) s"
}
