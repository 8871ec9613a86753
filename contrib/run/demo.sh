#!/usr/bin/env bash
# The demo behind `make run` and `make run-clean`: a daemon on a storage path of its own, a guest
# booted in it through the API, its console on the screen.
#
# It owns the demo's two directories and the daemon it starts, and never touches a VMAN that is
# installed. Ctrl-C ends the daemon; the guest lives on, for that is what VMAN promises, and the
# next `make run` finds it again. `make run-clean` removes everything.
#
# Environment: VMAN_LISTEN (default 127.0.0.1:8000 or the next free port), VMAN_ACCEL (default
# auto), VMAN_DEMO_DIR (default vman-demo in the user's state directory).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin

say() { echo "demo: $*"; }
die() { echo "demo: error: $*" >&2 && exit 1; }

# --- where things are -----------------------------------------------------------------------

state_home=${XDG_STATE_HOME:-${HOME:-/nonexistent}/.local/state}
[ -n "${VMAN_DEMO_DIR:-}" ] || mkdir -p "$state_home" 2>/dev/null || state_home=$PWD/.cache
demo=${VMAN_DEMO_DIR:-$state_home/vman-demo}
# Socket paths may have no more than 107 letters, so they are not kept below $demo.
if [ -w "${XDG_RUNTIME_DIR:-/nonexistent}" ]; then
    runtime=$XDG_RUNTIME_DIR/vman-demo
else
    runtime=/tmp/vman-demo-$(id -u)
fi
# Two demos at once (two values of VMAN_DEMO_DIR) must not share a socket.
[ -z "${VMAN_DEMO_DIR:-}" ] || runtime=$runtime-$(echo "$VMAN_DEMO_DIR" | cksum | cut -d' ' -f1)
accel=${VMAN_ACCEL:-auto}
listen=${VMAN_LISTEN:-}
socket=$runtime/vman.sock
log=$demo/daemon.log
daemon_pid='' guest_pid=''

make_directories() {
    # Others may have made a directory of this name in /tmp: it must be ours and closed to them.
    mkdir -p "$demo" && { mkdir -m 700 "$runtime" 2>/dev/null || true; }
    if [ ! -O "$runtime" ] || [ -L "$runtime" ] || [ ! -d "$runtime" ]; then
        die "$runtime belongs to somebody else; set XDG_RUNTIME_DIR to a directory of yours"
    fi
    chmod 700 "$runtime"
    # Only what carries this mark is ever removed by `clean`.
    : >"$demo/.vman-demo"
}

find_binary() {
    local target
    target=$(cargo metadata --no-deps --offline --format-version 1 2>/dev/null | jq -r .target_directory) || true
    vman=${target:-target}/debug/vman
}

build() {
    say "building VMAN (a minute or two the first time)"
    cargo build --bin vman
    contrib/guest/build.sh
    guest=$(contrib/guest/build.sh --print)
}

# --- the API --------------------------------------------------------------------------------

# api METHOD PATH [curl options]: the body on standard output. Answers of 400 and above fail and
# put the body on standard error.
api() {
    local method=$1 path=$2 status body
    shift 2
    body=$(mktemp "$runtime/answer.XXXXXX")
    status=$(curl -sS -o "$body" -w '%{http_code}' --max-time 120 -X "$method" --unix-socket "$socket" \
        "$@" "http://localhost$path") || status=000
    if [ "$status" -ge 400 ] || [ "$status" = 000 ]; then
        echo "$method $path: $status $(jq -r '.detail // .title' "$body" 2>/dev/null || head -c 500 "$body")" >"$runtime/refusal"
        rm -f "$body"
        return 1
    fi
    cat "$body" && rm -f "$body"
}
must() { api "$@" || die "$(cat "$runtime/refusal")"; }
json() { must "$1" "$2" -H 'Content-Type: application/json' --data "$3"; }
alive() { [ -S "$socket" ] && curl -s -o /dev/null --max-time 3 --unix-socket "$socket" http://localhost/live; }

# --- the daemon -----------------------------------------------------------------------------

port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

choose_listener() {
    local port=8000
    [ -n "$listen" ] && return
    while port_taken "$port"; do
        [ "$port" -lt 8100 ] || die "no free port from 8000 to 8100; choose one with VMAN_LISTEN=127.0.0.1:PORT"
        port=$((port + 1))
    done
    [ "$port" = 8000 ] || say "port 8000 is taken, using $port"
    listen=127.0.0.1:$port
}

# start_daemon ACCEL: returns when it is ready. Settings of another VMAN in the environment do not
# reach it.
start_daemon() {
    local tries=0 clean=()
    while read -r name; do clean+=(-u "$name"); done < <(compgen -e | grep '^VMAN_' || true)
    env "${clean[@]}" VMAN_STORAGE_PATH="$demo/storage" VMAN_RUNTIME_PATH="$runtime" VMAN_SOCKET="$socket" \
        VMAN_LISTEN="$listen" VMAN_AUTH=none VMAN_ACCEL="$1" VMAN_LOG_FORMAT=text VMAN_NETWORK_MODE=user \
        "$vman" serve >>"$log" 2>&1 </dev/null &
    daemon_pid=$!
    until [ "$(curl -s -o /dev/null -w '%{http_code}' --max-time 3 --unix-socket "$socket" http://localhost/ready)" = 200 ]; do
        tries=$((tries + 1))
        if ! kill -0 "$daemon_pid" 2>/dev/null || [ "$tries" -gt 300 ]; then
            tail -20 "$log" >&2
            die "the daemon did not get ready; the end of its log ($log) is above"
        fi
        sleep 0.1
    done
}

# Guests are not touched by this.
stop_daemon() {
    [ -n "$daemon_pid" ] || return 0
    local pid=$daemon_pid tries=0
    daemon_pid=''
    kill -TERM "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 150 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -KILL "$pid" 2>/dev/null && say "the daemon did not end within 15 s and was killed"
    wait "$pid" 2>/dev/null || true
}

# --- the guest ------------------------------------------------------------------------------

upload() {
    api GET "/images/$1" >/dev/null && return
    say "uploading $3 as image $1"
    must PUT "/images/$1?kind=$2" -H 'Content-Type: application/octet-stream' -T "$3" >/dev/null
}

# Names carry the guest's hash, so a guest that was built anew meets no old half of itself.
make_vm() {
    local hash template
    hash=$(cat "$guest/vmlinuz" "$guest/initrd" | sha256sum | cut -c1-8)
    upload "guest-$hash-kernel" kernel "$guest/vmlinuz"
    upload "guest-$hash-initrd" initrd "$guest/initrd"
    template=guest-$hash
    api GET "/templates/$template" >/dev/null || json POST /templates "{
        \"name\": \"$template\", \"cpu_count\": 1, \"ram_mib\": 256,
        \"boot\": {\"kernel\": \"guest-$hash-kernel\", \"initrd\": \"guest-$hash-initrd\",
                   \"cmdline\": \"console=ttyS0 quiet\"}}" >/dev/null
    if api GET /vms/hello >/dev/null; then
        say "VM hello is there from an earlier run"
    else
        say "creating VM hello"
        json POST /vms "{\"template_name\": \"$template\", \"name\": \"hello\"}" >/dev/null
    fi
}

vm_field() { must GET /vms/hello | jq -r ".$1 // empty"; }

# Ends in a VM that runs or is refused with the daemon's words. A VM of an earlier run may be in
# any state.
start_vm() {
    local tries=0
    while [ "$tries" -lt 60 ]; do
        case $(vm_field state) in
        running) return ;;
        paused) must POST '/vms/hello/actions/resume?wait_s=10' >/dev/null ;;
        stopped | error) must POST '/vms/hello/actions/start?wait_s=30' >/dev/null ;;
        esac
        tries=$((tries + 1))
        [ "$(vm_field state)" = running ] && return
        sleep 0.5
        # QEMU itself may die under a KVM that does not work.
        [ "$tries" -ge 3 ] && kvm_may_be_used && return 1
    done
    die "VM hello is $(vm_field state): $(vm_field detail)"
}

console_size() { { api GET /vms/hello/console || echo '{}'; } | jq -r '.file_size // 0'; }

# show_console SECONDS FROM: prints what the console says beyond its first FROM bytes until the
# guest is up. Fails if that does not come in time.
show_console() {
    local deadline=$((SECONDS + $1)) from=$2 shown=0 size
    while [ "$SECONDS" -lt "$deadline" ]; do
        api GET /vms/hello/console >"$runtime/console.json" || true
        size=$(jq -r '.file_size // 0' "$runtime/console.json")
        # The log was cut meanwhile: all of it is new.
        [ "${size:-0}" -ge "$from" ] || from=0
        jq -j '.console // ""' "$runtime/console.json" | tail -c "$((size - from))" | tr -d '\r' >"$runtime/console"
        # Whole lines only, so that none is printed in two halves.
        tail -n "+$((shown + 1))" "$runtime/console" | head -n "$(($(wc -l <"$runtime/console") - shown))" | sed 's/^/  | /'
        shown=$(wc -l <"$runtime/console")
        grep -q '^VMAN-GUEST userland up' "$runtime/console" && return
        sleep 0.2
    done
    return 1
}

kvm_may_be_used() { [ "$accel" = auto ] && [ -r /dev/kvm ] && [ -w /dev/kvm ]; }

boot() {
    local before
    if [ "$(vm_field state)" = running ]; then
        say "it has been running all along (QEMU's pid is $(vm_field pid)); its console says now:"
        must GET /vms/hello/console | jq -r .console | tr -d '\r' | tail -5 | sed 's/^/  | /'
        return
    fi
    before=$(console_size)
    say "starting VM hello; its console:"
    if ! kvm_may_be_used; then
        start_vm
    else
        start_vm && show_console 20 "$before" && return
        # Seen on hosts that are virtual machines themselves: firmware runs, Linux hangs.
        say "no userland after 20 s. KVM is there but may be broken here, so once more without it (VMAN_ACCEL=tcg)"
        api POST '/vms/hello/actions/stop?force=true&wait_s=30' >/dev/null || true
        stop_daemon
        accel=tcg
        start_daemon tcg
        before=$(console_size)
        start_vm
    fi
    show_console 180 "$before" || die "the guest did not reach userland within 180 s; see the console above and $log"
}

# --- what it says ---------------------------------------------------------------------------

tell() {
    cat <<END

VM hello is up. VMAN serves, until you press Ctrl-C:
  API      http://$listen/vms
  docs     http://$listen/docs
  log      $log
Try next, in another terminal:
  export VMAN_URL=http://$listen; alias vman=$vman
  1  vman vm list
  2  vman vm console hello
  3  vman vm explain hello
  4  vman vm restart hello
  5  kill -9 $daemon_pid; ps -p $1      the daemon dies, the guest does not; make run finds it again
END
}

farewell() {
    local status=$? pid
    trap - EXIT INT TERM HUP
    pid=$(api GET /vms/hello 2>/dev/null | jq -r '.pid // empty' 2>/dev/null) || pid=$guest_pid
    [ -n "$daemon_pid" ] || exit "$status"
    echo
    kill -0 "$daemon_pid" 2>/dev/null && say "stopping the daemon"
    stop_daemon
    rm -f "$runtime"/{answer.*,refusal,console,console.json}
    if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then
        say "no daemon is left. The guest lives on, by design: QEMU, pid $pid."
        say "  to go on with it        make run"
        say "  to end only the guest   kill $pid"
    else
        say "no daemon is left${guest_pid:+, and no guest}."
    fi
    say "  to remove the demo      make run-clean"
    exit "$status"
}

# --- commands -------------------------------------------------------------------------------

run() {
    local status=0
    if alive; then
        say "a demo daemon is already running on http://$(cat "$demo/listen" 2>/dev/null || echo "(socket $socket)")"
        say "use that one, or end it first (Ctrl-C in its terminal)"
        exit 0
    fi
    find_binary
    build
    make_directories
    choose_listener
    trap farewell EXIT
    trap 'exit 0' INT TERM HUP
    say "starting the daemon; it stores in $demo"
    start_daemon "$accel"
    echo "$listen" >"$demo/listen"
    make_vm
    boot
    guest_pid=$(vm_field pid)
    tell "$guest_pid"
    # Until Ctrl-C, which goes to farewell, or until somebody follows the fifth advice. Without
    # the shell's own word on a killed process.
    { wait "$daemon_pid" || status=$?; } 2>/dev/null
    say "the daemon ended by itself, status $status; see $log"
}

# The QEMUs of the demo, by their command lines: only for when no daemon can be asked.
end_left_guests() {
    local dir
    for dir in /proc/[0-9]*; do
        [ -O "$dir" ] && [[ $(readlink "$dir/exe" 2>/dev/null) == */qemu-system-* ]] || continue
        if tr '\0' '\n' <"$dir/cmdline" 2>/dev/null | grep -qF -e "$demo/storage/" -e "$runtime/"; then
            say "ending the guest with pid ${dir#/proc/}"
            kill "${dir#/proc/}" 2>/dev/null || true
        fi
    done
}

clean() {
    local id
    alive && die "the demo's daemon is still running: end it first (Ctrl-C in its terminal)"
    if [ ! -e "$demo/.vman-demo" ]; then
        say "there is no demo in $demo: nothing to remove"
        return
    fi
    make_directories
    find_binary
    if [ -x "$vman" ]; then
        listen=''
        # A subshell, so that a daemon that cannot start does not keep the rest from being removed.
        (
            trap stop_daemon EXIT
            start_daemon "$accel"
            for id in $(must GET /vms | jq -r '.[].id'); do
                say "deleting VM $id"
                must DELETE "/vms/$id" >/dev/null
            done
        ) || say "the daemon could not be asked to delete the VMs, doing without it"
    fi
    end_left_guests
    rm -rf "$demo" "$runtime"
    say "removed $demo and $runtime"
}

case ${1:-run} in
run) run ;;
clean) clean ;;
*) die "usage: demo.sh [run|clean]" ;;
esac
