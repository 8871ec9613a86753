//! A wrong configuration: one clear message, exit code 2, and nothing started.

use crate::support::daemon::Daemon;
use std::fs;

/// Variable, wrong value, and what the message has to name.
const WRONG: [(&str, &str, &str); 21] = [
    ("VMAN_STORAGE_PATH", "relative/path", "VMAN_STORAGE_PATH"),
    ("VMAN_RUNTIME_PATH", "relative", "VMAN_RUNTIME_PATH"),
    ("VMAN_LISTEN", "localhost", "VMAN_LISTEN"),
    ("VMAN_LISTEN", "0.0.0.0:8000", "reachable from outside"),
    ("VMAN_SOCKET", "vman.sock", "VMAN_SOCKET"),
    ("VMAN_AUTH", "maybe", "VMAN_AUTH"),
    ("VMAN_ACCEL", "xen", "VMAN_ACCEL"),
    ("VMAN_QEMU_BINARY", "./qemu", "VMAN_QEMU_BINARY"),
    ("VMAN_OPERATOR_DRY_RUN", "perhaps", "VMAN_OPERATOR_DRY_RUN"),
    (
        "VMAN_DEFAULT_BOOT_DISK",
        "../../etc/shadow",
        "VMAN_DEFAULT_BOOT_DISK",
    ),
    ("VMAN_OBSERVER_INTERVAL", "60", "VMAN_OBSERVER_INTERVAL"),
    ("VMAN_OBSERVER_POLICY", "panic", "VMAN_OBSERVER_POLICY"),
    ("VMAN_NETWORK_MODE", "carrier-pigeon", "VMAN_NETWORK_MODE"),
    ("VMAN_VLAN_ID", "4095", "VMAN_VLAN_ID"),
    (
        "VMAN_BRIDGE_NAME",
        "a-name-that-is-too-long",
        "VMAN_BRIDGE_NAME",
    ),
    ("VMAN_SUBNET", "192.168.100.0/33", "VMAN_SUBNET"),
    ("VMAN_GATEWAY", "10.0.0.1", "VMAN_GATEWAY"),
    ("VMAN_DNS", "8.8.8.8,dns.test", "VMAN_DNS"),
    ("VMAN_LOG_LEVEL", "loud", "VMAN_LOG_LEVEL"),
    ("VMAN_LOG_MAX_BYTES", "1", "VMAN_LOG_MAX_BYTES"),
    ("VMAN_MAX_VMS", "0", "VMAN_MAX_VMS"),
];

#[test]
fn each_wrong_configuration_is_told_with_its_source_and_exit_code_2_and_nothing_starts() {
    for (name, value, told) in WRONG {
        let mut daemon = Daemon::unstarted(&[(name, value)]);
        daemon.spawn();
        let status = daemon.ended();
        let log = daemon.log();
        assert_eq!(status.code(), Some(2), "{name}={value}: {log}");
        assert!(log.contains(told), "{name}={value}: {log}");
        assert!(log.contains("1 fault(s)"), "{name}={value}: {log}");
        let storage = fs::read_dir(daemon.storage()).unwrap().count();
        assert_eq!((storage, daemon.socket().exists()), (0, false), "{name}");
    }
}

#[test]
fn a_wrong_file_is_told_with_its_line_and_all_faults_at_once() {
    let mut daemon = Daemon::unstarted(&[("VMAN_LOG_LEVEL", "loud")]);
    let text = "VMAN_VLAN_ID=5000\nVMAN_NO_SUCH_KEY=1\n";
    fs::write(daemon.folder().join(".env"), text).unwrap();
    daemon.spawn();
    let status = daemon.ended();
    let log = daemon.log();
    assert_eq!(status.code(), Some(2), "{log}");
    for told in [
        "3 fault(s)",
        ".env:1",
        ".env:2",
        "VMAN_LOG_LEVEL from the environment",
    ] {
        assert!(log.contains(told), "{told}: {log}");
    }
}
