//! Children in real jails, started by the launcher that starts QEMU.

use super::*;
use crate::host::qemu::process::{Exit, Inherited, Process, Spawn};
use std::collections::BTreeMap;
use tokio::time::timeout;
use vman_actors::ports::DiskPlan;
use vman_model::{DiskFormat, Incarnation, VmUuid, vm::Firmware};

const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    folder: tempfile::TempDir,
    jail: Jail,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for name in ["a", "b"] {
            let _ = cgroup::remove(&self.jail.layout.cgroups(&vm(name)));
        }
    }
}

fn vm(name: &str) -> VmId {
    VmId::parse(name).unwrap()
}

impl Bench {
    /// A storage path that other users may reach, with a store and two VMs' files.
    fn new(mode: JailMode) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).unwrap();
        let layout = Layout {
            runtime: folder.path().join("run"),
            storage: folder.path().join("storage"),
        };
        for below in ["disks", "images", "vms/a", "vms/b", "run"] {
            fs::create_dir_all(layout.storage.join(below)).unwrap();
        }
        for name in ["a", "b"] {
            fs::create_dir_all(layout.sockets(&vm(name))).unwrap();
        }
        for file in ["vman.redb", "disks/a.raw", "disks/b.raw", "images/base"] {
            let path = layout.storage.join(file);
            fs::write(&path, "secret").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        }
        let config = JailConfig {
            mode,
            ..JailConfig::default()
        };
        // Anything that runs and knows an option will do.
        let jail = Jail::new(config, layout, "/bin/true".into());
        Self { folder, jail }
    }

    fn storage(&self, below: &str) -> PathBuf {
        self.folder.path().join("storage").join(below)
    }

    fn plan(&self, name: &str, confinement: Confinement) -> LaunchPlan {
        LaunchPlan {
            vm: vm(name),
            uuid: VmUuid::from_random([0; 16]),
            incarnation: Incarnation(1),
            cpu_count: 1,
            ram_mib: 32,
            resources: vman_model::vm::Resources::default(),
            firmware: Firmware::Bios,
            boot: None,
            disks: vec![DiskPlan {
                node: "disk".to_owned(),
                device: "disk".to_owned(),
                options: vman_model::DiskOptions::default(),
                path: self.storage(&format!("disks/{name}.raw")),
                format: DiskFormat::Raw,
                slot: 0,
                serial: String::new(),
            }],
            nics: Vec::new(),
            confinement,
        }
    }

    /// What a shell says that is started as the VM's QEMU is.
    async fn run(&self, plan: &LaunchPlan, script: &str) -> String {
        let log = self.folder.path().join("log");
        let _ = fs::remove_file(&log);
        self.jail.hand_over(plan, &[]).unwrap();
        let process = Process::spawn(Spawn {
            program: Path::new("/bin/sh"),
            arguments: vec!["-c".into(), script.into()],
            inherited: Inherited::default(),
            cage: self.jail.cage(plan).unwrap(),
            log: &log,
            banner: "",
        })
        .unwrap();
        let exit = timeout(PATIENCE, process.exited()).await.unwrap();
        let said = fs::read_to_string(&log).unwrap();
        assert_eq!(exit, Exit::Code(0), "{said}");
        said
    }

    async fn confine(&self, name: &str) -> Confinement {
        let (vm, none) = (vm(name), BTreeSet::new());
        let confined = self.jail.confine(&vm, &none, false, Accel::Tcg);
        confined.await.unwrap()
    }
}

/// Whether own users can be had; says so aloud where they cannot.
fn needs_root() -> bool {
    if is_root() {
        return true;
    }
    eprintln!("SKIPPED: not root, so no user can be changed");
    false
}

fn status(said: &str) -> BTreeMap<&str, &str> {
    let pairs = said.lines().filter_map(|line| line.split_once(":\t"));
    pairs.map(|(key, value)| (key, value.trim())).collect()
}

#[tokio::test]
async fn a_child_has_a_user_of_its_own_and_nothing_of_the_daemons() {
    if !needs_root() {
        return;
    }
    let bench = Bench::new(JailMode::Auto);
    let confinement = bench.confine("a").await;
    let uid = confinement.uid.unwrap();
    let plan = bench.plan("a", confinement);
    let said = bench.run(&plan, "cat /proc/self/status; ulimit -c").await;
    let found = status(&said);
    let (ids, group) = (
        format!("{uid}\t{uid}\t{uid}\t{uid}"),
        bench.jail.config.first_uid,
    );
    assert_eq!((found["Uid"], found["Gid"]), (ids.as_str(), ids.as_str()));
    assert_eq!(found["Groups"], group.to_string());
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(found[set], "0000000000000000", "{set}");
    }
    assert_eq!(found["NoNewPrivs"], "1");
    assert!(said.ends_with("\n0\n"), "{said}");
    let own_ipc = "readlink /proc/self/ns/ipc; cat /proc/self/oom_score_adj; ls /proc/self/fd";
    let said = bench.run(&plan, own_ipc).await;
    let mine = fs::read_link("/proc/self/ns/ipc").unwrap();
    assert!(!said.contains(mine.to_str().unwrap()), "{said}");
    // The three of every process and the one that lists them.
    assert!(said.trim_start().ends_with("\n300\n0\n1\n2\n3\n"), "{said}");
}

#[tokio::test]
async fn a_child_opens_its_own_disk_and_the_images_and_nothing_else() {
    if !needs_root() {
        return;
    }
    let bench = Bench::new(JailMode::Auto);
    let (a, b) = (bench.confine("a").await, bench.confine("b").await);
    assert_ne!(a.uid, b.uid);
    let (a, b) = (bench.plan("a", a), bench.plan("b", b));
    bench.jail.hand_over(&b, &[]).unwrap();
    let storage = bench.storage("");
    let storage = storage.to_str().unwrap();
    let script = format!(
        "cd {storage} || cd /; s={storage}
        for f in disks/a.raw images/base vman.redb disks/b.raw vms/b /etc/shadow /etc/passwd /root; do
            case $f in /*) p=$f;; *) p=$s$f;; esac
            if head -c 1 $p >/dev/null 2>&1 || ls $p/ >/dev/null 2>&1; then echo $f yes; else echo $f no; fi
        done
        for f in disks/a.raw images/base disks/new; do
            if echo x 2>/dev/null >>$s$f; then echo $f written; else echo $f kept; fi
        done 2>/dev/null"
    );
    let said = bench.run(&a, &script).await;
    let mut expected = vec!["disks/a.raw yes", "images/base yes", "vman.redb no"];
    expected.extend(["disks/b.raw no", "vms/b no", "/etc/shadow no"]);
    if a.confinement.measures.contains(&Measure::Landlock) {
        expected.push("/etc/passwd no");
    } else {
        eprintln!("SKIPPED: no Landlock here, so /etc/passwd is readable");
        expected.push("/etc/passwd yes");
    }
    expected.extend([
        "/root no",
        "disks/a.raw written",
        "images/base kept",
        "disks/new kept",
    ]);
    let told: Vec<_> = said.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_child_sees_no_more_of_the_host_than_it_may_open_and_no_link() {
    let bench = Bench::new(JailMode::Auto);
    let confinement = bench.confine("a").await;
    let has = |measure| confinement.measures.contains(&measure);
    if !has(Measure::MountNamespace) || !has(Measure::NetworkNamespace) {
        return eprintln!("SKIPPED: the host makes no namespaces for us");
    }
    // What Landlock forbids is seen through without it.
    let without = Confinement {
        measures: vec![
            Measure::NoNewPrivileges,
            Measure::MountNamespace,
            Measure::NetworkNamespace,
        ],
        uid: None,
    };
    let plan = bench.plan("a", without);
    let storage = bench.storage("");
    let storage = storage.to_str().unwrap();
    let script = format!(
        "ls /; echo in etc:; ls /etc; echo in storage:; ls {storage} {storage}/vms
        for f in /etc/shadow /root {storage}/vman.redb {storage}/vms/b; do
            test -e $f && echo $f is there
        done
        head -c 6 {storage}/disks/a.raw; echo
        touch /new /usr/new {storage}/images/new 2>/dev/null && echo written
        echo x >{storage}/vms/a/new && echo own written
        echo links: $(tail -n +3 /proc/net/dev | cut -d: -f1)"
    );
    let said = bench.run(&plan, &script).await;
    for foreign in ["home", "shadow", "vman.redb", "is there", "\nwritten"] {
        assert!(!said.contains(foreign), "{foreign}: {said}");
    }
    for own in ["usr", "secret", "own written", "links: lo\n"] {
        assert!(said.contains(own), "{own}: {said}");
    }
    let links = fs::read_to_string("/proc/net/dev").unwrap();
    assert!(
        links.lines().count() >= 3,
        "this test is not in that network"
    );
    assert!(bench.storage("vms/a/new").exists());
    assert!(
        fs::read_dir(bench.jail.layout.empty())
            .unwrap()
            .next()
            .is_none()
    );
}

#[tokio::test]
async fn a_vm_on_qemus_own_network_keeps_the_hosts() {
    let bench = Bench::new(JailMode::Auto);
    let (vm, none) = (vm("a"), BTreeSet::new());
    let confined = bench.jail.confine(&vm, &none, true, Accel::Tcg).await;
    let measures = confined.unwrap().measures;
    assert!(!measures.contains(&Measure::NetworkNamespace));
}

#[tokio::test]
async fn what_a_released_vm_had_is_roots_again() {
    if !needs_root() {
        return;
    }
    let bench = Bench::new(JailMode::Auto);
    let plan = bench.plan("a", bench.confine("a").await);
    bench.jail.hand_over(&plan, &[]).unwrap();
    let owner = |file: &str| fs::metadata(bench.storage(file)).unwrap().uid();
    assert_eq!(Some(owner("disks/a.raw")), plan.confinement.uid);
    assert_eq!(owner("vms/a"), 0, "no QEMU makes links in its folder");
    // By a daemon that knows nothing of it.
    let next = Jail::new(
        bench.jail.config,
        bench.jail.layout.clone(),
        "/bin/true".into(),
    );
    next.take_back(&vm("a")).unwrap();
    next.take_back(&vm("a")).unwrap();
    assert_eq!(owner("disks/a.raw"), 0);
    let folder = fs::metadata(bench.storage("vms/a")).unwrap();
    assert_eq!((folder.gid(), folder.mode() & 0o777), (0, 0o700));
    next.take_back(&vm("never-there")).unwrap();
}

#[tokio::test]
async fn a_disk_changes_hands_while_its_qemu_runs() {
    if !needs_root() {
        return;
    }
    let bench = Bench::new(JailMode::Auto);
    let plan = bench.plan("a", bench.confine("a").await);
    let disk = bench.storage("disks/b.raw");
    let owner = || fs::metadata(&disk).unwrap().uid();
    let child = Process::spawn(Spawn {
        program: Path::new("/bin/sleep"),
        arguments: vec!["1000".into()],
        inherited: Inherited::default(),
        cage: bench.jail.cage(&plan).unwrap(),
        log: &bench.folder.path().join("log"),
        banner: "",
    })
    .unwrap();
    hand_disk(child.identity().pid, &disk).unwrap();
    assert_eq!(Some(owner()), plan.confinement.uid);
    take_disk(&disk).unwrap();
    assert_eq!(owner(), 0);
    // One that is not confined opens it as it is.
    hand_disk(std::process::id(), &disk).unwrap();
    assert_eq!(owner(), 0);
    child.kill().unwrap();
}

#[tokio::test]
async fn what_lacks_is_told_and_with_require_nothing_starts() {
    let bench = Bench::new(JailMode::Require);
    fs::set_permissions(bench.folder.path(), Permissions::from_mode(0o700)).unwrap();
    let told = bench.jail.describe(Accel::Tcg).await;
    assert!(told.contains("without own_user: "), "{told}");
    let (vm, none) = (vm("a"), BTreeSet::new());
    let refused = bench.jail.confine(&vm, &none, false, Accel::Tcg).await;
    let why = refused.unwrap_err().to_string();
    assert!(
        why.contains("VMAN_JAIL=require") && why.contains("own_user"),
        "{why}"
    );

    let bench = Bench::new(JailMode::Off);
    let off = bench.confine("a").await;
    assert_eq!(
        (off.uid, off.measures.as_slice()),
        (None, &[Measure::Seccomp][..])
    );
    assert!(bench.jail.cage(&bench.plan("a", off)).unwrap().is_none());
}

#[tokio::test]
async fn ids_are_used_again_late_and_never_by_two() {
    let bench = Bench::new(JailMode::Auto);
    let mut jail = Jail::new(
        bench.jail.config,
        bench.jail.layout.clone(),
        "/bin/true".into(),
    );
    jail.config.uids = 4;
    let first = jail.config.first_uid;
    let take = |name: &str, taken: &[u32]| {
        let taken = taken.iter().copied().collect();
        jail.take_uid(&vm(name), &taken).ok().map(|uid| uid - first)
    };
    assert_eq!(take("a", &[]), Some(1));
    assert_eq!(take("b", &[]), Some(2));
    jail.take_back(&vm("a")).unwrap();
    assert_eq!(take("c", &[]), Some(3));
    assert_eq!(take("d", &[first + 1]), None);
    assert_eq!(take("d", &[]), Some(1));
    assert_eq!(take("e", &[]), None);
}
