//! On this host's control groups where it has them, and on folders that look like version 2's.

use super::*;
use crate::host::qemu::process::{Exit, Inherited, Process, Spawn};
use std::sync::atomic::{AtomicU32, Ordering};

/// A group of this test run alone.
fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("test.{}.{number}", std::process::id())
}

/// This host's, or none and a word aloud.
fn host(of: Measure) -> Option<Cgroups> {
    let found = Cgroups::find_out(&[]);
    let has = found.measures().any(|measure| measure == of);
    if !has {
        eprintln!(
            "SKIPPED: {} cannot be had here: {:?}",
            of.as_str(),
            found.lacking
        );
    }
    has.then_some(found)
}

struct Bench {
    folder: tempfile::TempDir,
    cgroups: Cgroups,
    measures: Vec<Measure>,
}

impl Bench {
    fn new(cgroups: Cgroups) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            measures: cgroups.measures().collect(),
            cgroups,
        }
    }

    fn note(&self) -> PathBuf {
        self.folder.path().join("cgroups")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// A program that begins when it is in a group with these limits, and was seen there.
    fn start(&self, limits: &Limits, words: &[&str]) -> Process {
        let (name, note) = (name(), self.note());
        self.cgroups
            .make(&name, limits, &self.measures, &note)
            .unwrap();
        let seen = self.folder.path().join(&name);
        let wait = format!("until [ -e {} ]; do :; done; exec \"$@\"", seen.display());
        let shell = ["-c", &wait, "sh"];
        let words = shell.iter().chain(words);
        let process = Process::spawn(Spawn {
            program: Path::new("/bin/sh"),
            arguments: words.map(Into::into).collect(),
            inherited: Inherited::default(),
            cage: None,
            log: &self.log(),
            banner: "",
        });
        let process = process.unwrap();
        let pid = process.identity().pid;
        assert!(!is_within(pid, &note).unwrap(), "not before it is taken in");
        self.cgroups
            .take_in(pid, &name, limits, &self.measures, &note)
            .unwrap();
        assert!(is_within(pid, &note).unwrap());
        fs::write(seen, "").unwrap();
        process
    }

    /// What a program in a group with these limits says, and how it ends.
    async fn run(&self, limits: &Limits, words: &[&str]) -> (String, Exit) {
        let process = self.start(limits, words);
        let ended = tokio::time::timeout(Duration::from_secs(30), process.exited());
        let exit = ended.await.expect("it ends");
        (fs::read_to_string(self.log()).unwrap(), exit)
    }
}

#[tokio::test]
async fn a_process_is_put_into_its_group_and_the_group_says_its_limits() {
    let Some(cgroups) = host(Measure::CgroupPids) else {
        return;
    };
    let bench = Bench::new(cgroups);
    let limits = Limits {
        tasks_max: 77,
        ..TRIAL
    };
    let (said, exit) = bench.run(&limits, &["/bin/cat", "/proc/self/cgroup"]).await;
    assert_eq!(exit, Exit::Code(0));
    let groups = noted(&bench.note()).unwrap();
    let name = groups[0].file_name().unwrap().to_str().unwrap();
    let inside = said.lines().filter(|line| line.ends_with(name)).count();
    assert_eq!(inside, groups.len(), "{said}");
    let bounded = groups.iter().find(|group| group.join("pids.max").exists());
    let pids = fs::read_to_string(bounded.unwrap().join("pids.max")).unwrap();
    assert_eq!(pids.trim(), "77");
    remove(&bench.note()).unwrap();
    assert!(groups.iter().all(|group| !group.exists()));
    assert!(!bench.note().exists());
    remove(&bench.note()).unwrap();
}

#[tokio::test]
async fn a_program_that_takes_more_memory_than_it_may_is_ended_and_counted() {
    let Some(cgroups) = host(Measure::CgroupMemory) else {
        return;
    };
    let bench = Bench::new(cgroups);
    let limits = Limits {
        memory_max: 16 << 20,
        ..TRIAL
    };
    let modest = [
        "/bin/dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=1M",
        "count=1",
    ];
    let (said, exit) = bench.run(&limits, &modest).await;
    assert_eq!(exit, Exit::Code(0), "{said}");
    assert_eq!(oom_kills(&bench.note()).unwrap(), Some(0));
    remove(&bench.note()).unwrap();
    let greedy = [
        "/bin/dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=200M",
        "count=1",
    ];
    let (said, exit) = bench.run(&limits, &greedy).await;
    assert_eq!(exit, Exit::Signal(9), "{said}");
    assert_eq!(oom_kills(&bench.note()).unwrap(), Some(1));
    remove(&bench.note()).unwrap();
    assert_eq!(oom_kills(&bench.note()).unwrap(), None, "nothing is noted");
}

#[tokio::test]
async fn a_group_in_which_somebody_lives_is_neither_removed_nor_swept() {
    let Some(cgroups) = host(Measure::CgroupPids) else {
        return;
    };
    let bench = Bench::new(cgroups);
    let child = bench.start(&TRIAL, &["/bin/sleep", "1000"]);
    let groups = noted(&bench.note()).unwrap();
    assert!(remove(&bench.note()).is_err());
    // Other tests' groups may be empty for a moment.
    bench.cgroups.sweep(Duration::from_secs(30), &[]);
    assert!(groups.iter().all(|group| group.exists()));
    assert!(bench.note().exists(), "what is left is still known");
    child.kill().unwrap();
    child.exited().await;
    remove(&bench.note()).unwrap();
    assert!(groups.iter().all(|group| !group.exists()));
}

#[test]
fn an_empty_group_is_swept_away_unless_a_vm_notes_it_whose_end_is_still_to_be_read() {
    let (root, hierarchies) = version_2("pids", "gone");
    let place = hierarchies.two(false).unwrap().unwrap();
    let folder = place.above.join(FOLDER);
    let (gone, noted) = (folder.join("gone"), folder.join("noted"));
    fs::remove_dir_all(&gone).unwrap();
    for group in [&gone, &noted] {
        fs::create_dir(group).unwrap();
    }
    let cgroups = Cgroups {
        usable: vec![Usable {
            controller: Controller::Pids,
            version: Version::Two,
            folder,
        }],
        ..Cgroups::default()
    };
    // Its clock's tick may be the present one.
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while gone.exists() && std::time::Instant::now() < until {
        cgroups.sweep(Duration::ZERO, std::slice::from_ref(&noted));
        std::thread::yield_now();
    }
    assert!(!gone.exists() && noted.exists());
    drop(root);
}

/// A folder that looks like a version 2 hierarchy. What the kernel makes with a group is made here
/// before.
fn version_2(controllers: &str, name: &str) -> (tempfile::TempDir, Hierarchies) {
    let root = tempfile::tempdir().unwrap();
    let put = |file: &str, text: &str| {
        let file = root.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    put("cgroup.controllers", controllers);
    for group in ["", "vman/"] {
        put(&format!("{group}cgroup.subtree_control"), "");
    }
    for file in [
        "memory.max",
        "cpu.weight",
        "cpu.max",
        "pids.max",
        "cgroup.procs",
    ] {
        put(&format!("vman/{name}/{file}"), "");
    }
    let mount = format!(
        "1 0 0:1 / {} rw - cgroup2 cgroup2 rw",
        root.path().display()
    );
    (root, Hierarchies::parse(&mount, "0::/"))
}

#[test]
fn in_version_2_the_controllers_are_handed_down_and_one_group_has_them_all() {
    let (root, hierarchies) = version_2("cpu memory pids", "vm");
    let place = hierarchies.two(false).unwrap().unwrap();
    let usable = |controller| Usable {
        controller,
        version: Version::Two,
        folder: place.above.join(FOLDER),
    };
    let all = [Controller::Memory, Controller::Cpu, Controller::Pids].map(usable);
    for one in &all {
        hand_down(one, &place.above).unwrap();
    }
    let given = root.path().join("vman/cgroup.subtree_control");
    assert_eq!(
        fs::read_to_string(given).unwrap(),
        "+pids",
        "the last of three"
    );
    let bench = Bench::new(Cgroups {
        scopes: None,
        usable: all.to_vec(),
        lacking: Vec::new(),
    });
    bench
        .cgroups
        .make("vm", &TRIAL, &bench.measures, &bench.note())
        .unwrap();
    let group = root.path().join("vman/vm");
    assert_eq!(noted(&bench.note()).unwrap(), std::slice::from_ref(&group));
    let read = |file: &str| fs::read_to_string(group.join(file)).unwrap();
    assert_eq!(read("memory.max"), (1_u64 << 30).to_string());
    assert_eq!(
        (read("cpu.max"), read("pids.max")),
        ("100000 100000".into(), "64".into())
    );
    fs::write(group.join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
    assert_eq!(oom_kills(&bench.note()).unwrap(), Some(2));
}

#[test]
fn what_a_host_has_not_is_said_with_the_reason() {
    let (root, hierarchies) = version_2("cpu", "vm");
    let found = Cgroups::try_out(&hierarchies, false);
    let why = |of: Measure| {
        let lacking = found.lacking.iter().find(|(measure, _)| *measure == of);
        lacking.map(|(_, why)| why.as_str()).unwrap_or_default()
    };
    assert!(why(Measure::CgroupMemory).contains("no controller memory"));
    // A real kernel would have made the trial's files.
    assert!(why(Measure::CgroupCpu).contains("cpu.weight"), "{found:?}");
    let none = Cgroups::try_out(&Hierarchies::default(), false);
    assert_eq!(none.lacking.len(), 4);
    drop(root);
}

#[test]
fn only_what_the_claim_says_is_made() {
    let bench = Bench::new(Cgroups::find_out(&[]));
    bench
        .cgroups
        .make(&name(), &TRIAL, &[], &bench.note())
        .unwrap();
    assert_eq!(noted(&bench.note()).unwrap(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_process_that_has_ended_meanwhile_is_no_failure_and_is_in_no_group() {
    let Some(cgroups) = host(Measure::CgroupPids) else {
        return;
    };
    let bench = Bench::new(cgroups);
    let child = bench.start(&TRIAL, &["/bin/true"]);
    child.exited().await;
    let pid = child.identity().pid;
    let again = bench
        .cgroups
        .take_in(pid, "gone", &TRIAL, &bench.measures, &bench.note());
    again.unwrap();
    assert!(!is_within(pid, &bench.note()).unwrap());
    remove(&bench.note()).unwrap();
}

#[test]
fn what_systemd_has_taken_away_holds_up_no_release_where_its_groups_are_read_only() {
    let Some(disk) = crate::host::testing::SmallDisk::mount("1m") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("cgroups");
    let scope = disk.path().join("vman.slice/vman.web.scope");
    fs::create_dir_all(&scope).unwrap();
    note_down(&note, std::slice::from_ref(&scope)).unwrap();
    disk.remount("ro");
    assert!(remove(&note).is_err(), "it is there");
    disk.remount("rw");
    fs::remove_dir(&scope).unwrap();
    disk.remount("ro");
    remove(&note).unwrap();
    assert!(!note.exists());
}
