//! No value of a user's reaches QEMU's option parser.

use proptest::prelude::*;
use vman_model::network::LinkState;
use vman_model::vm::Firmware;
use vman_model::{DiskFormat, DiskOptions, Incarnation, VmId, VmUuid};

use super::*;

const FDS: Descriptors = Descriptors {
    qmp: 64,
    rescue: 65,
    console: 66,
    console_log: 67,
    agent: 68,
    taps: Vec::new(),
};

/// In every hostile value and in nothing that is ours.
const MARK: char = '\u{2620}';

fn plan() -> LaunchPlan {
    LaunchPlan {
        vm: VmId::parse("web-1").expect("an id"),
        uuid: VmUuid([7; 16]),
        confinement: vman_model::vm::Confinement::default(),
        incarnation: Incarnation(7),
        cpu_count: 2,
        ram_mib: 512,
        resources: vman_model::vm::Resources::default(),
        firmware: Firmware::Uefi,
        boot: None,
        disks: Vec::new(),
        nics: vec![NicPlan {
            link: LinkState::Up,
            kind: NetworkKind::User,
            mac: [0x52, 0x54, 0, 1, 2, 0xab],
            slot: 1,
            tap: None,
        }],
    }
}

fn flash(code: &str, vars: &str) -> Machinery {
    let flash = Flash {
        code: format!("/srv/{code}").into(),
        vars: format!("/srv/{vars}").into(),
    };
    Machinery {
        accel: Accel::Tcg,
        flash: Some(flash),
    }
}

fn text(words: &[OsString]) -> Vec<String> {
    words
        .iter()
        .map(|word| word.to_str().expect("utf-8").to_owned())
        .collect()
}

fn hostile() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just(",readonly=on".to_owned()),
        Just("\"},\"x\":{\"".to_owned()),
        Just("-device".to_owned()),
        Just("${HOME} %s $(reboot)".to_owned()),
        Just("=,,=".to_owned()),
        "[^\u{0}]{0,8}",
    ];
    prop::collection::vec(part, 0..4).prop_map(|parts| format!("{MARK}{}", parts.concat()))
}

fn words_with(values: &[String; 8]) -> Vec<String> {
    let path = |value: &String| PathBuf::from(format!("/srv/{value}"));
    let [code, vars, kernel, initrd, cmdline, file, raw, serial] = values;
    let disk = |node: &str, path, format, slot| DiskPlan {
        node: node.into(),
        device: format!("dev-{node}"),
        options: DiskOptions::default(),
        path,
        format,
        slot,
        serial: serial.clone(),
    };
    let boot = BootFiles {
        kernel: path(kernel),
        initrd: Some(path(initrd)),
        cmdline: cmdline.clone(),
    };
    let disks = vec![
        disk("root", path(file), DiskFormat::Qcow2, 0),
        disk("data", path(raw), DiskFormat::Raw, 2),
    ];
    let plan = LaunchPlan {
        boot: Some(boot),
        disks,
        ..plan()
    };
    text(&arguments(&plan, &flash(code, vars), &FDS).expect("a command line"))
}

proptest! {
    #[test]
    fn a_hostile_value_stays_within_a_json_string_or_its_own_word(
        values in prop::array::uniform8(hostile()),
    ) {
        let words = words_with(&values);
        let benign = words_with(&[const { String::new() }; 8]);
        prop_assert_eq!(words.len(), benign.len());
        let mut seen = 0;
        for index in 0..words.len() {
            let word = &words[index];
            if !word.contains(MARK) {
                prop_assert_eq!(word, &benign[index]);
                continue;
            }
            seen += 1;
            match words[index - 1].as_str() {
                "-append" => prop_assert_eq!(word, &values[4]),
                "-kernel" => prop_assert_eq!(word, &format!("/srv/{}", values[2])),
                "-initrd" => prop_assert_eq!(word, &format!("/srv/{}", values[3])),
                "-blockdev" | "-device" => {
                    let value: Value = serde_json::from_str(word).expect("json");
                    let ours: Value = serde_json::from_str(&benign[index]).expect("json");
                    prop_assert!(same_but_for_strings(&value, &ours), "{} {}", value, ours);
                }
                option => prop_assert!(false, "a user's value after {}", option),
            }
        }
        prop_assert_eq!(seen, 9, "each value is somewhere, the serial twice");
    }

    #[test]
    fn a_node_name_that_is_no_id_is_refused(node in "[a-z]{0,3}[^A-Za-z0-9._-][a-z,=]{0,5}") {
        let path = PathBuf::from("/srv/disk");
        let disk =
            DiskPlan {
                node,
                device: "dev".to_owned(),
                path,
                format: DiskFormat::Raw,
                slot: 0,
                serial: String::new(),
                options: DiskOptions::default(),
            };
        let result = arguments(&LaunchPlan { disks: vec![disk], ..plan() }, &flash("", ""), &FDS);
        prop_assert!(matches!(result, Err(CmdlineError::Id(_))));
    }
}

fn same_but_for_strings(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.keys().eq(other.keys())
                && one
                    .values()
                    .zip(other.values())
                    .all(|(one, other)| same_but_for_strings(one, other))
        }
        (Value::String(one), Value::String(other)) => one == other || one.contains(MARK),
        (one, other) => one == other,
    }
}

#[test]
fn the_marks_for_adoption_come_first() {
    let words = text(&arguments(&plan(), &flash("a", "b"), &FDS).expect("a command line"));
    assert_eq!(words[0], UUID_OPTION);
    assert_eq!(words[1], plan().uuid.to_string());
    assert_eq!(words[2], "-fw_cfg");
    assert_eq!(words[3], "name=opt/org.vman/incarnation,string=7");
}

#[test]
fn slots_that_are_not_or_are_taken_and_relative_paths_are_refused() {
    let nic = |slot| NicPlan {
        link: LinkState::Up,
        kind: NetworkKind::User,
        mac: [0; 6],
        slot,
        tap: None,
    };
    for nics in [vec![nic(ROOT_PORTS)], vec![nic(3), nic(3)]] {
        let result = arguments(&LaunchPlan { nics, ..plan() }, &flash("a", "b"), &FDS);
        assert!(matches!(result, Err(CmdlineError::Slot(_))));
    }
    let boot = BootFiles {
        kernel: "vmlinuz".into(),
        initrd: None,
        cmdline: "quiet".into(),
    };
    let result = arguments(
        &LaunchPlan {
            boot: Some(boot),
            ..plan()
        },
        &flash("a", "b"),
        &FDS,
    );
    assert!(matches!(result, Err(CmdlineError::Path(_))));
}

#[test]
fn a_nic_has_the_address_it_was_given() {
    let words = text(&arguments(&plan(), &flash("a", "b"), &FDS).expect("a command line"));
    assert!(
        words
            .iter()
            .any(|word| word.contains(r#""mac":"52:54:00:01:02:ab""#)),
        "{words:?}"
    );
}
