//! `make bench-peers`: VMAN beside libvirt, in one run on one machine.
//!
//! Both over their UNIX sockets, both with 100 defined VMs on the real host, both
//! keeping what they have on the same disk; measured in turn, the best of the turns
//! of each. libvirt is asked by its own C library (`libvirt.c`), VMAN by the load
//! generator of the other benchmarks. libvirt comes from the distribution and runs
//! in namespaces of its own (`libvirt.sh`).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    dead_code,
    missing_docs
)]

#[path = "../scale/fleet.rs"]
mod fleet;
#[path = "../load/mod.rs"]
mod load;
#[path = "../../tests/support/mod.rs"]
mod support;

use fleet::{Fleet, check, name, new_vm};
use load::{Load, Target, run};
use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use support::wait_for;
use tempfile::TempDir;

const CONNECTIONS: usize = 8;
const DEFINED: usize = 100;
const LENGTH: Duration = Duration::from_secs(1);
const TURNS: usize = 3;
const PATIENCE: Duration = Duration::from_mins(1);

fn script(arguments: &[&str]) -> Command {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/libvirt.sh");
    let mut command = Command::new(file);
    command.args(arguments);
    command
}

/// What was measured of one of the two.
#[derive(Clone, Copy)]
struct Figure {
    rate: f64,
    p99_ms: f64,
}

/// A libvirtd of our own; ended when it is dropped.
struct Libvirt {
    folder: TempDir,
    daemon: Child,
    client: PathBuf,
}

impl Libvirt {
    /// None where it cannot be had.
    fn start() -> Option<Self> {
        let folder = tempfile::Builder::new()
            .prefix("vman-peer")
            .tempdir()
            .unwrap();
        let client = folder.path().join("client");
        let had = |arguments: &[&str]| script(arguments).status().is_ok_and(|s| s.success());
        if !had(&["install"]) || !had(&["client", client.to_str().unwrap()]) {
            return None;
        }
        let log = fs::File::create(folder.path().join("libvirtd.log")).unwrap();
        let daemon = script(&["serve", folder.path().to_str().unwrap()])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let libvirt = Self {
            folder,
            daemon,
            client,
        };
        wait_for("libvirtd to listen", PATIENCE, || {
            let found = fs::metadata(libvirt.socket()).ok()?;
            found.file_type().is_socket().then_some(())
        });
        libvirt.ask(&["define", &DEFINED.to_string()]);
        Some(libvirt)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("run/libvirt-sock")
    }

    fn ask(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.client)
            .arg(self.socket())
            .args(arguments)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "libvirt's client: {arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn figure(&self, what: &str, connections: usize) -> Figure {
        let seconds = LENGTH.as_secs_f64().to_string();
        let told = self.ask(&[what, &connections.to_string(), &seconds]);
        let numbers: Vec<f64> = told
            .split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect();
        Figure {
            rate: numbers[0],
            p99_ms: numbers[2] / 1_000.0,
        }
    }

    fn rss_kib(&self) -> u64 {
        let pid = fs::read_to_string(self.folder.path().join("run/libvirtd.pid")).unwrap();
        fleet::rss_kib(pid.trim().parse().unwrap())
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        support::host::signal(self.daemon.id(), rustix::process::Signal::TERM);
        let _ = self.daemon.wait();
    }
}

fn vman(fleet: &Fleet, what: &str, connections: usize) -> Figure {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let target = Target::Unix(fleet.daemon.socket());
    let load = Load::closed(connections, LENGTH);
    let load = if what == "create" {
        load.answered(201)
    } else {
        load
    };
    let outcome = run(&target, load, |out, worker, n| match what {
        "info" => {
            let n = usize::try_from(n).unwrap();
            fleet.get(out, &format!("/vms/{}", name((worker * 13 + n) % DEFINED)));
        }
        "list" => fleet.get(out, "/vms?limit=100"),
        _ => {
            let n = MADE.fetch_add(1, Ordering::Relaxed);
            fleet.post(out, "/vms", &new_vm(&format!("w{n}")));
        }
    });
    check(&outcome);
    Figure {
        rate: outcome.rate(),
        p99_ms: outcome.ms(0.99),
    }
}

fn main() {
    if load::floor::serve_if_asked() {
        return;
    }
    if std::env::args().any(|arg| arg == "--list" || arg == "--test") {
        return;
    }
    if !support::can_run("bench-peers") {
        return;
    }
    let Some(libvirt) = Libvirt::start() else {
        println!(
            "libvirt cannot be had here (it takes root and apt): there is nothing to compare with"
        );
        return;
    };
    let mut fleet = filled();
    let (mut defined, mut theirs_defined) = (DEFINED as f64, DEFINED as f64);
    println!(
        "{:<40} {:>10} {:>9}   {:>10} {:>9}   ratio",
        "", "VMAN", "p99 ms", "libvirt", "p99 ms"
    );
    let rows = [
        ("one VM's info, 8 connections", "info", CONNECTIONS),
        ("list with state of 100, 8 connections", "list", CONNECTIONS),
        ("define, 8 connections", "create", CONNECTIONS),
        ("define, 64 connections", "create", 64),
    ];
    for (told, what, connections) in rows {
        let [mut ours, mut theirs] = [None::<Figure>; 2];
        for _ in 0..TURNS {
            if what == "create" {
                // In a few seconds it would have as many as it takes.
                fleet = filled();
                defined = DEFINED as f64;
            }
            let (our, their) = (
                vman(&fleet, what, connections),
                libvirt.figure(what, connections),
            );
            if what == "create" {
                defined += our.rate * LENGTH.as_secs_f64();
                theirs_defined += their.rate * LENGTH.as_secs_f64();
            }
            keep_best(&mut ours, our);
            keep_best(&mut theirs, their);
        }
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        println!(
            "{told:<40} {:>8.0}/s {:>9.2}   {:>8.0}/s {:>9.2}   {:.1} times",
            ours.rate,
            ours.p99_ms,
            theirs.rate,
            theirs.p99_ms,
            ours.rate / theirs.rate
        );
    }
    println!(
        "{:<40} {:>6.1} MiB {:>9}   {:>6.1} MiB             (of {defined:.0} and {theirs_defined:.0} VMs)",
        "the daemon's memory after that",
        fleet.rss_kib() as f64 / 1_024.0,
        "",
        libvirt.rss_kib() as f64 / 1_024.0
    );
}

fn filled() -> Fleet {
    let fleet = Fleet::start(&[]);
    fleet.fill(0, DEFINED);
    fleet
}

/// A neighbour's noise only takes away.
fn keep_best(best: &mut Option<Figure>, figure: Figure) {
    if best.is_none_or(|best| figure.rate > best.rate) {
        *best = Some(figure);
    }
}
