//! Children of all kinds, most of them shells.

use std::io::Read;
use std::time::Duration;

use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn shell(directory: &Path, inherited: Inherited, script: &str) -> Process {
    let spawn = Spawn {
        program: Path::new("/bin/sh"),
        arguments: vec!["-c".into(), script.into()],
        inherited,
        cage: None,
        log: &directory.join("qemu.log"),
        banner: "banner",
    };
    Process::spawn(spawn).expect("it starts")
}

async fn output_of(script: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let process = shell(directory.path(), Inherited::default(), script);
    assert_eq!(
        timeout(PATIENCE, process.exited()).await.expect("in time"),
        Exit::Code(0)
    );
    let log = fs::read_to_string(directory.path().join("qemu.log")).expect("a log");
    log.strip_prefix("banner\n")
        .expect("its first line")
        .to_owned()
}

#[tokio::test]
async fn the_exit_code_and_the_signal_are_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let process = shell(directory.path(), Inherited::default(), "exit 7");
    assert_eq!(
        timeout(PATIENCE, process.exited()).await.expect("in time"),
        Exit::Code(7)
    );
    assert!(process.is_gone());
    process.kill().expect("killing what is gone is no error");
    let process = shell(directory.path(), Inherited::default(), "exec sleep 1000");
    assert!(!process.is_gone());
    process.kill().expect("killed");
    assert_eq!(
        timeout(PATIENCE, process.exited()).await.expect("in time"),
        Exit::Signal(9)
    );
}

#[tokio::test]
async fn an_abandoned_child_is_reaped() {
    let directory = tempfile::tempdir().expect("a directory");
    let process = shell(directory.path(), Inherited::default(), "exec sleep 1000");
    let pid = as_pid(process.identity().pid).expect("a pid");
    let pidfd = Arc::clone(&process.pidfd);
    drop(process);
    assert!(!is_gone(pidfd.as_fd()), "losing interest ends nothing");
    pidfd_send_signal(&pidfd, Signal::KILL).expect("killed");
    let gone = async {
        while proc::start_time(pid).expect("readable").is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("no zombie stays");
}

#[tokio::test]
async fn a_child_has_its_own_session_a_clean_environment_and_no_descriptor_of_ours() {
    // An inheritable descriptor, as a careless library would leave it.
    let careless = File::open("/dev/null").expect("a file");
    fcntl_setfd(&careless, FdFlags::empty()).expect("inheritable");
    let seen = output_of(
        "echo $$; cut -d' ' -f6 /proc/$$/stat; pwd; umask; \
         for fd in /proc/$$/fd/*; do printf '%s ' ${fd##*/}; done; echo; \
         grep SigIgn /proc/$$/status; echo ${HOME-none}",
    )
    .await;
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], lines[1], "it leads a session");
    assert_eq!(lines[2..4], ["/", "0077"]);
    let ours = careless.as_raw_fd().to_string();
    assert!(!lines[4].split(' ').any(|fd| fd == ours), "{seen}");
    let ignored = lines[5].split_whitespace().nth(1).expect("a mask");
    let ignored = u64::from_str_radix(ignored, 16).expect("hexadecimal");
    // 32 and 33 belong to the C library, which lets nobody touch them.
    assert_eq!(ignored & !(0b11 << 31), 0, "{seen}");
    assert_eq!(lines[6], "none");
}

#[tokio::test]
async fn a_descriptor_meant_for_it_is_there_under_the_number_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut ours, theirs) = io::pipe().expect("a pipe");
    let mut inherited = Inherited::default();
    let number = inherited.add(&theirs).expect("a descriptor");
    drop(theirs);
    let script = format!("echo hello > /proc/self/fd/{number}");
    let process = shell(directory.path(), inherited, &script);
    timeout(PATIENCE, process.exited()).await.expect("in time");
    let mut heard = String::new();
    ours.read_to_string(&mut heard)
        .expect("its end, since we keep no copy");
    assert_eq!(heard, "hello\n");
}

#[tokio::test]
async fn a_binary_that_is_not_there_is_told_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let spawn = Spawn {
        program: Path::new("/no/such/qemu"),
        arguments: Vec::new(),
        inherited: Inherited::default(),
        cage: None,
        log: &directory.path().join("qemu.log"),
        banner: "banner",
    };
    let error = Process::spawn(spawn).expect_err("nothing to start");
    assert!(
        matches!(&error, SpawnError::Start { source, .. } if source.kind() == io::ErrorKind::NotFound)
    );
}

#[tokio::test]
async fn a_log_that_grew_is_put_aside_and_the_new_one_is_appended_to() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("qemu.log");
    fs::write(&log, "before\n").expect("written");
    let spawn = |banner: &str| {
        let spawn = Spawn {
            program: Path::new("/bin/sh"),
            arguments: vec!["-c".into(), "echo said >&2".into()],
            inherited: Inherited::default(),
            cage: None,
            log: &log,
            banner,
        };
        Process::spawn(spawn).expect("it starts")
    };
    timeout(PATIENCE, spawn("first").exited())
        .await
        .expect("in time");
    assert_eq!(
        fs::read_to_string(&log).expect("a log"),
        "before\nfirst\nsaid\n"
    );
    fs::write(&log, vec![b'x'; 1024 * 1024 + 1]).expect("written");
    timeout(PATIENCE, spawn("second").exited())
        .await
        .expect("in time");
    assert_eq!(fs::read_to_string(&log).expect("a log"), "second\nsaid\n");
    assert!(directory.path().join("qemu.log.1").exists());
}
