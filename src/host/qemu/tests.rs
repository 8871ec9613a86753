//! The adapter with real QEMUs. Their guests are boot sectors written by hand: a few bytes that
//! power off, reset, or write to the serial port for ever.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustix::process::{Signal, pidfd_open, pidfd_send_signal};
use tokio::time::timeout;
use vman_actors::ports::{
    AdoptPlan, Adoption, BootFiles, LaunchError, MachineAction, MachineError, MachineNews,
};
use vman_model::vm::{ExitStatus, RunState};

use super::process::as_pid;
use super::testing::{Bench, Guard, PATIENCE, Told};
use super::*;
use crate::host::qmp::Client;

/// mov dx,0x3f8; mov al,'x'; out dx,al; jmp back
const WRITES: &[u8] = &[0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfb];

/// mov dx,0x604; mov ax,0x2000; out dx,ax; hlt; jmp back: sleep type 5 in q35's PM1a control.
const POWERS_OFF: &[u8] = &[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd];

/// mov dx,0xcf9; mov al,6; out dx,al; hlt; jmp back: a hard reset, over and over.
const RESETS: &[u8] = &[0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, 0xeb, 0xfd];

pub(super) fn adoption_of(plan: &LaunchPlan, process: Option<ProcessIdentity>) -> AdoptPlan {
    AdoptPlan {
        vm: plan.vm.clone(),
        uuid: plan.uuid,
        incarnation: plan.incarnation,
        process,
        bounds: None,
    }
}

pub(super) fn send(identity: &ProcessIdentity, signal: Signal) {
    let pid = as_pid(identity.pid).expect("a pid");
    let pidfd = pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("a process");
    pidfd_send_signal(pidfd, signal).expect("a signal");
}

pub(super) fn found(adoption: Adoption) -> Guard {
    match adoption {
        Adoption::Found(machine) => Guard(machine),
        Adoption::Gone => panic!("it lives"),
    }
}

pub(super) fn is_exit(news: &MachineNews) -> bool {
    matches!(news, MachineNews::Exited { .. })
}

pub(super) fn is_deaf(news: &MachineNews) -> bool {
    matches!(news, MachineNews::Deaf(_))
}

#[tokio::test]
async fn a_machine_starts_obeys_and_ends_leaving_nothing() {
    let Some(bench) = Bench::real() else { return };
    let plan = bench.plan("obeys", Some(WRITES));
    let (news, mut told) = Told::new();
    let machine = Guard(
        bench
            .host
            .launch(plan.clone(), news)
            .await
            .expect("started"),
    );
    assert_eq!(told.next().await, MachineNews::Ready(RunState::Running));
    machine.0.act(MachineAction::Pause).await.expect("paused");
    assert_eq!(told.next().await, MachineNews::RunState(RunState::Paused));
    machine.0.act(MachineAction::Resume).await.expect("resumed");
    assert_eq!(told.next().await, MachineNews::RunState(RunState::Running));
    machine.0.act(MachineAction::Reset).await.expect("reset");
    machine
        .0
        .act(MachineAction::Powerdown)
        .await
        .expect("asked");
    machine.0.act(MachineAction::Ping).await.expect("answered");
    // SeaBIOS that is reset while it runs resets once more, by itself.
    told.until(|news| *news == MachineNews::Ready(RunState::Running))
        .await;

    machine.0.terminate();
    let MachineNews::Exited { status, stderr } = told.until(is_exit).await else {
        panic!("its end")
    };
    assert_eq!(status, ExitStatus::Code(0));
    assert!(stderr.contains("terminating on signal 15"), "{stderr}");
    let error = machine
        .0
        .act(MachineAction::Ping)
        .await
        .expect_err("nobody there");
    assert_eq!(error, MachineError::Disconnected);
    machine.0.kill();

    let layout = &bench.host.settings.layout;
    for _ in 0..2 {
        bench.host.release(&plan.vm).await.expect("released");
        assert!(!layout.sockets(&plan.vm).exists());
    }
    assert!(layout.console_log(&plan.vm).exists());
    for _ in 0..2 {
        bench.host.erase(&plan.vm).await.expect("erased");
        assert!(!layout.files(&plan.vm).exists());
    }
    assert!(plan.disks[0].path.exists(), "disks are not the adapter's");
}

#[tokio::test]
async fn the_console_is_kept_and_followed_and_bounded() {
    let Some(bench) = Bench::real() else { return };
    let plan = bench.plan("talks", Some(WRITES));
    let (news, mut told) = Told::new();
    let _machine = Guard(
        bench
            .host
            .launch(plan.clone(), news)
            .await
            .expect("started"),
    );
    assert_eq!(told.next().await, MachineNews::Ready(RunState::Running));
    let mut follower = bench.host.follow_console(&plan.vm, 10);
    let heard = timeout(PATIENCE, follower.next())
        .await
        .expect("in time")
        .expect("some");
    assert!(!heard.is_empty());
    let log = bench.host.settings.layout.console_log(&plan.vm);
    let grown = async {
        while std::fs::metadata(&log).expect("there").len() < console::CAP + console::KEEP {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE * 2, grown).await.expect("it writes");
    bench
        .host
        .trim_logs(vec![plan.vm.clone()])
        .await
        .expect("cut");
    let tail = bench.host.console(&plan.vm, 50_000).await.expect("an end");
    assert_eq!(tail.bytes.len(), 50_000);
    assert!(tail.file_size >= console::CAP + console::KEEP);
    let before = tail.file_size;
    let goes_on = async {
        while bench
            .host
            .console(&plan.vm, 1)
            .await
            .expect("an end")
            .file_size
            == before
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, goes_on)
        .await
        .expect("it goes on writing");
}

#[tokio::test]
async fn a_guest_that_powers_off_is_told_and_its_qemu_waits() {
    let Some(bench) = Bench::real() else { return };
    let plan = bench.plan("off", Some(POWERS_OFF));
    let (news, mut told) = Told::new();
    let started = bench.host.launch(plan.clone(), news).await;
    let machine = started.expect("started");
    told.until(|news| *news == MachineNews::RunState(RunState::Shutdown))
        .await;

    // The reason is there for a daemon that was away as well.
    let process = Some(machine.identity());
    let next = bench.next_daemon();
    machine.act(MachineAction::Ping).await.expect("still there");
    told.until(|news| *news == MachineNews::Ready(RunState::Shutdown))
        .await;
    drop(machine);
    let (news, mut told) = Told::new();
    let adopted = next
        .adopt(adoption_of(&plan, process), news)
        .await
        .expect("known");
    let adopted = found(adopted);
    assert_eq!(told.next().await, MachineNews::Ready(RunState::Shutdown));
    adopted.0.terminate();
    told.until(is_exit).await;
}

#[tokio::test]
async fn a_guest_that_resets_itself_is_told_and_not_taken_for_an_end() {
    let Some(bench) = Bench::real() else { return };
    let (news, mut told) = Told::new();
    let plan = bench.plan("again", Some(RESETS));
    let _machine = Guard(bench.host.launch(plan, news).await.expect("started"));
    for _ in 0..2 {
        told.until(|news| *news == MachineNews::GuestReset).await;
    }
}

#[tokio::test]
async fn a_qemu_that_refuses_its_disk_says_so_with_its_exit() {
    let Some(bench) = Bench::real() else { return };
    let plan = bench.plan("nodisk", Some(WRITES));
    std::fs::remove_file(&plan.disks[0].path).expect("removed");
    let (news, mut told) = Told::new();
    let _machine = Guard(bench.host.launch(plan, news).await.expect("started"));
    let MachineNews::Exited { status, stderr } = told.until(is_exit).await else {
        panic!("its end")
    };
    assert_eq!(status, ExitStatus::Code(1));
    assert!(stderr.contains("No such file or directory"), "{stderr}");
}

#[tokio::test]
async fn a_binary_that_is_not_there_starts_nothing() {
    let bench = Bench::with_binary("/no/such/qemu");
    let (news, _told) = Told::new();
    let error = bench
        .host
        .launch(bench.plan("none", None), news)
        .await
        .err()
        .expect("an error");
    assert_eq!(
        error,
        LaunchError::NoBinary {
            binary: "/no/such/qemu".into()
        }
    );
    let probe = bench.host.probe().await;
    assert!(probe.qemu.expect_err("none").contains("was not found"));
}

#[tokio::test]
async fn a_qemu_that_never_greets_can_be_ended() {
    let bench = Bench::with_binary("unused");
    let script = bench.folder.path().join("never");
    std::fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").expect("a script");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).expect("executable");
    let mut settings = (*bench.host.settings).clone();
    settings.binary = script;
    settings.deadlines.greeting = Duration::from_millis(50);
    let host = QemuHost::new(settings);
    let (news, mut told) = Told::new();
    let machine = Guard(
        host.launch(bench.plan("never", None), news)
            .await
            .expect("started"),
    );
    assert!(is_deaf(&told.next().await));
    let error = machine
        .0
        .act(MachineAction::Pause)
        .await
        .expect_err("nobody listens");
    assert_eq!(error, MachineError::Disconnected);
    machine.0.kill();
    let exited = told.next().await;
    let expected = MachineNews::Exited {
        status: ExitStatus::Signal(9),
        stderr: String::new(),
    };
    assert_eq!(exited, expected);
}

#[tokio::test]
async fn a_qemu_that_hangs_is_deaf_until_it_goes_on_and_can_be_killed() {
    let Some(bench) = Bench::real() else { return };
    let mut settings = (*bench.host.settings).clone();
    settings.deadlines.command = Duration::from_millis(300);
    settings.deadlines.greeting = Duration::from_millis(300);
    let host = QemuHost::new(settings);
    let (news, mut told) = Told::new();
    let machine = Guard(
        host.launch(bench.plan("hangs", None), news)
            .await
            .expect("started"),
    );
    told.until(|news| *news == MachineNews::Ready(RunState::Running))
        .await;
    for action in [MachineAction::Ping, MachineAction::Pause] {
        send(&machine.0.identity(), Signal::STOP);
        let error = machine.0.act(action).await.expect_err("no answer");
        assert_eq!(error, MachineError::Timeout(300));
        told.until(is_deaf).await;
        send(&machine.0.identity(), Signal::CONT);
        told.until(|news| matches!(news, MachineNews::Ready(_)))
            .await;
    }
    send(&machine.0.identity(), Signal::STOP);
    machine.0.kill();
    let MachineNews::Exited { status, .. } = told.until(is_exit).await else {
        panic!("its end")
    };
    assert_eq!(status, ExitStatus::Signal(9));
}

#[tokio::test]
async fn a_qemu_that_is_killed_is_heard_of_without_being_asked() {
    let Some(bench) = Bench::real() else { return };
    let (news, mut told) = Told::new();
    let machine = bench
        .host
        .launch(bench.plan("killed", None), news)
        .await
        .expect("started");
    assert_eq!(told.next().await, MachineNews::Ready(RunState::Running));
    send(&machine.identity(), Signal::KILL);
    let MachineNews::Exited { status, .. } = told.next().await else {
        panic!("its end")
    };
    assert_eq!(status, ExitStatus::Signal(9));
}

#[tokio::test]
async fn uefi_firmware_boots_with_variables_of_its_own() {
    let Some(bench) = Bench::real() else { return };
    let mut plan = bench.plan("uefi", None);
    plan.firmware = vman_model::vm::Firmware::Uefi;
    (plan.ram_mib, plan.incarnation) = (128, Incarnation(1));
    let (news, mut told) = Told::new();
    let machine = match bench.host.launch(plan.clone(), news).await {
        Ok(machine) => Guard(machine),
        Err(LaunchError::Preparation { what, error }) if what == "UEFI firmware" => {
            eprintln!("SKIPPED: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert_eq!(told.next().await, MachineNews::Ready(RunState::Running));
    machine
        .0
        .act(MachineAction::Ping)
        .await
        .expect("it answers");
    assert!(bench.host.settings.layout.uefi_vars(&plan.vm).exists());
}

#[tokio::test]
async fn the_probe_tells_versions_and_the_accelerator() {
    let Some(bench) = Bench::real() else { return };
    let probe = bench.host.probe().await;
    let version = probe.qemu.expect("there is one");
    assert!(
        version.starts_with(|first: char| first.is_ascii_digit()),
        "{version}"
    );
    assert!(
        probe.accelerator.starts_with("tcg"),
        "{}",
        probe.accelerator
    );
}

/// Enough of a Linux kernel for QEMU to load it: the header of boot protocol 2.12.
fn almost_a_kernel() -> Vec<u8> {
    let mut kernel = vec![0; 8192];
    kernel[0x1f1] = 1;
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&0x020c_u16.to_le_bytes());
    kernel[0x211] = 1;
    kernel[0x22c..0x230].copy_from_slice(&0x37ff_ffff_u32.to_le_bytes());
    kernel[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    kernel
}

#[tokio::test]
async fn a_kernels_words_and_paths_reach_the_machine_as_they_are() {
    let Some(bench) = Bench::real() else { return };
    let mut plan = bench.plan("words", None);
    let folder = bench.folder.path().join("images, of=\"all\" kinds");
    std::fs::create_dir(&folder).expect("a folder");
    let (kernel, initrd) = (folder.join("-kernel"), folder.join("initrd,readonly=on"));
    std::fs::write(&kernel, almost_a_kernel()).expect("a kernel");
    std::fs::write(&initrd, b"initrd").expect("an initrd");
    let cmdline = "-device,x=\"y\" a=b,c {\"json\": 1} %s $(x) \u{e4}".to_owned();
    let boot = BootFiles {
        kernel,
        initrd: Some(initrd.clone()),
        cmdline,
    };
    plan.boot = Some(boot.clone());
    let (news, mut told) = Told::new();
    let started = bench.host.launch(plan.clone(), news).await;
    let _machine = Guard(started.expect("started"));
    assert_eq!(told.next().await, MachineNews::Ready(RunState::Running));
    // The monitor for people works beside ours.
    let rescue = bench.host.settings.layout.rescue(&plan.vm);
    let (client, _) = Client::connect(&rescue, Deadlines::default())
        .await
        .expect("a monitor");
    let mut asked = Vec::new();
    for property in ["append", "initrd"] {
        let arguments = serde_json::json!({"path": "/machine", "property": property});
        asked.push(
            client
                .execute("qom-get", Some(arguments), PATIENCE)
                .await
                .expect("told"),
        );
    }
    let expected = [boot.cmdline, initrd.to_str().expect("utf-8").to_owned()];
    assert_eq!(asked, expected);
}
