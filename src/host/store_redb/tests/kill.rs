//! SIGKILL at each step of the first creation, by strace(1).

use super::*;
use std::process::{Command, Stdio};

const PLACE: &str = "VMAN_TEST_STORE_IN";
/// Whatever the creation does to files.
const STEPS: &str =
    "openat,pwrite64,write,ftruncate,fallocate,fsync,fdatasync,rename,unlink,fcntl,flock,close";

/// Not a test: what the test below runs and kills.
#[test]
#[ignore = "run by another test"]
fn opens_a_store_where_it_is_told_to() {
    let place = std::env::var_os(PLACE).expect("another test runs this one");
    let storage = RedbStorage::new(Path::new(&place).join("vman.redb"));
    storage.open().unwrap();
    storage.commit(&[row("a", "1")]).unwrap();
}

fn killed_at(step: u32, place: &Path) -> Option<bool> {
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null"])
        .arg(format!("--trace-path={}", place.display()))
        .args(
            ["vman.redb", "vman.redb.new", "vman.redb.created"]
                .map(|name| format!("--trace-path={}", place.join(name).display())),
        )
        .arg(format!("--inject={STEPS}:signal=KILL:when={step}"))
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("host::store_redb::tests::kill::opens_a_store_where_it_is_told_to")
        .env(PLACE, place)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .ok()?;
    Some(!status.success())
}

#[test]
fn a_creation_killed_at_any_step_is_finished_by_the_next_start() {
    for step in 1..1000 {
        let dir = tempfile::tempdir().unwrap();
        let Some(killed) = killed_at(step, dir.path()) else {
            crate::host::testing::skip("strace is not installed");
            return;
        };
        let storage = opened_in(&dir);
        storage.commit(&[row("b", "1")]).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 2, "step {step}: {names:?}");
        if !killed {
            assert_eq!(storage.load(Table::Vms).unwrap().len(), 2);
            assert!(step > 20, "only {step} steps were seen");
            eprintln!("killed at each of {} steps", step - 1);
            return;
        }
    }
    panic!("the creation never came to its end");
}
