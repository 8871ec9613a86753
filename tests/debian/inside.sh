#!/bin/bash
# What happens inside the Debian system that run.sh boots, once a boot: the first installs the package, runs a guest
# through a restart of the service and an upgrade of the package, and powers the host off; the second looks at what the
# first has left. Each line that begins with `@@` is read by run.sh.
set -uo pipefail
cd "$(dirname "$0")" || exit 1
export LC_ALL=C DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
stage=$(cat /var/lib/vman-test-stage 2>/dev/null || echo 1)
vm=web
failed=0

note() { echo "@@ note $*"; }
ok() { echo "@@ ok $*"; }
# check WHAT COMMAND...: the test of this name.
check() {
    local what=$1 said
    shift
    if said=$("$@" 2>&1); then ok "$what"; else
        failed=$((failed + 1))
        echo "@@ FAIL $what"
        printf '%s\n' "$said" | tail -20 | sed 's/^/@@    /'
        evidence "$what"
    fi
}
# evidence WHAT: what VM, QEMU and systemd were like when that failed. It goes to the console alone, which run.sh keeps.
evidence() {
    echo "=== evidence: $1"
    timeout 30 vman vm explain "$vm"
    timeout 30 vman vm info "$vm" -o json
    timeout 30 curl -s --unix-socket /run/vman/vman.sock http://localhost/health
    systemctl list-jobs --no-pager
    systemctl status vman vman.slice dbus --no-pager -n 0
    find /sys/fs/cgroup/vman.slice -name 'cgroup.events' -exec grep -H . {} +
    tail -n 40 /var/lib/vman/vms/*/*.log
    uptime
    ps -eo pid,ppid,stat,etimes,pcpu,wchan:20,args --sort=-pcpu | head -40
    echo "=== end of evidence"
}
# until SECONDS COMMAND...: waits for a condition.
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || { echo "waited in vain: $*"; "$@"; return 1; }
        sleep 0.5
    done
}
field() { vman vm info "$vm" -o json | jq -r "$1"; }
pid() { field .pid; }
counter() { vman vm console "$vm" | sed -n 's/.*VMAN-GUEST counter \([0-9]*\).*/\1/p' | tail -1; }
running() { [ "$(field .state)" = running ] || { vman vm explain "$vm"; field .detail; return 1; }; }
counts_beyond() { local now; now=$(counter); [ "${now:-0}" -gt "$1" ]; }
lives_on() { [ "$(pid)" = "$qemu" ] && [ "$(cut -d' ' -f22 "/proc/$qemu/stat")" = "$started" ] && running; }
end() {
    journalctl -u vman -b -p warning --no-pager -o cat | tail -15 | sed 's/^/@@ log /'
    if [ "$failed" != 0 ]; then
        echo "=== the whole journal of boot $stage"
        journalctl -b --no-pager -o short-monotonic
    fi
    echo "@@ end of boot $stage"
}

first() {
    check "the package installs" dpkg -i vman-old.deb
    check "systemctl start vman" systemctl start vman
    check "the service is ready (Type=notify)" systemctl is-active vman
    check "it starts with the next boot" systemctl is-enabled vman vman.socket vman-drain
    check "the health says ok" sh -c "curl -sf --unix-socket /run/vman/vman.sock http://localhost/health | jq -e '.status == \"ok\"' || { curl -s --unix-socket /run/vman/vman.sock http://localhost/health | jq .; false; }"
    check "an image is put" vman image put vmlinuz guest/vmlinuz --kind kernel
    check "another image is put" vman image put initrd guest/initrd --kind initrd
    check "a template is made" vman template create guest --cpus 1 --ram-mib 192 --kernel vmlinuz --initrd initrd \
        --cmdline 'console=ttyS0 quiet vman.counter_ms=500'
    local began=$SECONDS
    check "a guest is launched" vman vm launch "$vm" --template guest --wait 300
    check "it runs" running
    qemu=$(pid) started=$(cut -d' ' -f22 "/proc/$(pid)/stat")
    check "the guest's userland is up (an emulated machine in an emulated machine)" until_true 600 counts_beyond 0
    note "guest up after $((SECONDS - began)) s, pid $qemu, $(vman vm info "$vm" -o json | jq -c '{state,local_ip,incarnation}')"

    # What confines the guest under the unit.
    check "the QEMU is not root" sh -c "! grep -q '^Uid:[[:space:]]*0' /proc/$qemu/status"
    check "the QEMU has no capabilities" grep -q '^CapEff:[[:space:]]*0000000000000000$' "/proc/$qemu/status"
    check "the QEMU runs under seccomp" grep -q '^Seccomp:[[:space:]]*2' "/proc/$qemu/status"
    check "the QEMU gets no new privileges" grep -q '^NoNewPrivs:[[:space:]]*1' "/proc/$qemu/status"
    note "jail: $(curl -s --unix-socket /run/vman/vman.sock http://localhost/health | jq -c '.host')"
    note "control group of the QEMU: $(cat /proc/$qemu/cgroup)"
    check "the QEMU has a control group of its own" sh -c "[ \"\$(cat /proc/$qemu/cgroup)\" != \"\$(cat /proc/\$(systemctl show -P MainPID vman)/cgroup)\" ]"
    note "systemd-analyze: $(systemd-analyze security vman.service --no-pager | tail -1)"

    # What the journal tells.
    check "journalctl VMAN_VM_ID=$vm finds the VM's life" sh -c "journalctl -q -b VMAN_VM_ID=$vm VMAN_PHASE=running -o json | jq -e '.VMAN_EVENT == \"vm.phase_changed\"'"
    check "journalctl MESSAGE_ID=... finds changes of phase" sh -c "journalctl -q -b MESSAGE_ID=774e7fe8047a4e24a4551c8fd4a8c3f0 -o cat | grep -q ."
    check "journalctl -x explains" sh -c "journalctl -q -x -b MESSAGE_ID=774e7fe8047a4e24a4551c8fd4a8c3f0 | grep -q 'vman vm explain'"
    check "vman vm logs tells the same" sh -c "vman vm logs $vm | grep -q 'phase=running'"

    local before
    before=$(counter)
    check "systemctl restart vman" systemctl restart vman
    check "the guest did not notice the restart" lives_on
    check "it counts on after the restart" until_true 120 counts_beyond "$before"
    check "systemctl reload vman" systemctl reload vman
    before=$(counter)
    check "the package is upgraded" dpkg -i vman-new.deb
    check "the newer version is installed" sh -c "dpkg-query -W -f '\${Version}' vman | grep -q -- '-2$'"
    check "the daemon runs the new binary" sh -c "! readlink /proc/\$(systemctl show -P MainPID vman)/exe | grep -q deleted"
    check "the guest did not notice the upgrade" lives_on
    check "it counts on after the upgrade" until_true 120 counts_beyond "$before"
    check "vman upgrade check" vman upgrade check
    systemctl kill --kill-whom=main --signal=KILL vman
    check "a killed daemon is started again" until_true 60 running
    check "the guest did not notice the kill" lives_on
    echo 2 >/var/lib/vman-test-stage
    end
    sync
    systemctl poweroff
}

second() {
    check "vman is there after the boot" until_true 120 systemctl is-active vman
    check "the power button was heard in the guest" sh -c "vman vm console $vm | grep -q 'VMAN-GUEST power button'"
    note "how it ended: $(journalctl -q -b -1 VMAN_VM_ID=$vm MESSAGE_ID=774e7fe8047a4e24a4551c8fd4a8c3f0 -o json | jq -r '"\(.VMAN_PHASE)/\(.VMAN_REASON)"' | tail -3 | tr '\n' ' ')"
    check "the VM was stopped in order before the host was" sh -c "journalctl -q -b -1 VMAN_VM_ID=$vm VMAN_PHASE=stopped -o cat | grep -q ."
    check "the drain was recorded, and ended" sh -c "journalctl -q -b -1 MESSAGE_ID=b3065354454a4a51aa5c4744fa755590 -o cat | grep -q ."
    check "the daemon ended in order, after the guest" sh -c "journalctl -q -b -1 MESSAGE_ID=1399f287c6d24532a8391d76e3080ef3 -o cat | grep -q ."
    check "the boot starts again what was drained" until_true 300 running
    check "its guest's userland is up again" until_true 600 sh -c "[ \"\$(vman vm console $vm | grep -c 'VMAN-GUEST userland up')\" -ge 2 ]"
    note "accelerator: $(curl -s --unix-socket /run/vman/vman.sock http://localhost/health | jq -r .host.accelerator)"
    note "now: $(field '"\(.state) \(.reason), incarnation \(.incarnation)"')"
    # Less than it has already: the kernel ends it.
    check "the memory it may have is taken from it" sh -c "echo 1M >/sys/fs/cgroup\$(cut -d: -f3 /proc/$(pid)/cgroup)/memory.max"
    check "a QEMU that was ended for memory is told as that" until_true 60 sh -c "[ \"\$(vman vm info $vm -o json | jq -r '.state + \" \" + .reason')\" = 'error oom' ]"
    note "told: $(vman vm explain "$vm" | head -1)"
    check "it is started again" vman vm start "$vm" --wait 300
    check "it is stopped by force" vman vm stop "$vm" --force
    check "nothing of it is left under vman.slice" until_true 30 sh -c "! ls -d /sys/fs/cgroup/vman.slice/*/ 2>/dev/null"
    check "the package is removed" dpkg -r vman
    check "nothing of the VM is lost by that" test -s /var/lib/vman/vman.redb
    end
    systemctl poweroff
}

case $stage in
1) first ;;
*) second ;;
esac
