//! The order in which VMs come up and go down.
#![allow(clippy::unwrap_used)] // also in what the tests call

use super::{
    Condition, Dependency, Drain, HostRecord, StartSpec, Starting, circle,
    plan::{Known, PATIENCE_MS, Stops, begin, drained, resume, starts, stops},
};
use crate::{
    event::Origin,
    ids::{BootId, OperationId, VmId},
    restart::{RestartBudget, RestartMode},
    time::UnixMs,
    vm::{Desired, Phase, VmRecord, step::tests::given::new_vm},
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn id(name: &str) -> VmId {
    VmId::parse(name).unwrap()
}

fn boot(name: &str) -> BootId {
    BootId::parse(name).unwrap()
}

/// A VM at rest that is started with the host.
fn vm(name: &str, priority: u32, depends_on: &[&str]) -> VmRecord {
    let mut vm = new_vm(RestartMode::Never, RestartBudget::default());
    vm.id = id(name);
    vm.spec.start = StartSpec {
        autostart: true,
        priority,
        depends_on: depends_on.iter().map(|other| on(other)).collect(),
    };
    vm
}

fn on(text: &str) -> Dependency {
    let (vm, condition) = match text.strip_suffix("@") {
        Some(vm) => (vm, Condition::Address),
        None => (text, Condition::Running),
    };
    Dependency {
        vm: id(vm),
        condition,
    }
}

fn running(vm: &mut VmRecord) {
    vm.phase = Phase::Running;
    vm.desired = Desired::Running;
    vm.boot_id = Some(boot("now"));
}

fn map(vms: &[VmRecord]) -> BTreeMap<&VmId, &VmRecord> {
    vms.iter().map(|vm| (&vm.id, vm)).collect()
}

fn booted(vms: &[VmRecord]) -> HostRecord {
    begin(None, &map(vms), &boot("now"))
}

struct Boot {
    vms: Vec<VmRecord>,
    host: HostRecord,
    gone: BTreeSet<VmId>,
    answering: BTreeSet<VmId>,
    waited_ms: u64,
}

impl Boot {
    fn of(vms: Vec<VmRecord>) -> Self {
        Self {
            host: booted(&vms),
            vms,
            gone: BTreeSet::new(),
            answering: BTreeSet::new(),
            waited_ms: 0,
        }
    }

    fn plan(&self) -> super::plan::Starts {
        let known = Known {
            gone: &self.gone,
            answering: &self.answering,
            waited_ms: self.waited_ms,
        };
        starts(&self.host, &map(&self.vms), known)
    }

    /// Who goes now; they are let go.
    fn go(&mut self) -> Vec<String> {
        let plan = self.plan();
        self.gone.extend(plan.go.iter().cloned());
        for vm in self.vms.iter_mut().filter(|vm| plan.go.contains(&vm.id)) {
            vm.phase = Phase::Claiming;
        }
        plan.go.iter().map(ToString::to_string).collect()
    }

    fn comes_up(&mut self, name: &str) {
        running(self.vms.iter_mut().find(|vm| vm.id == id(name)).unwrap());
    }

    fn fails(&mut self, name: &str) {
        let vm = self.vms.iter_mut().find(|vm| vm.id == id(name)).unwrap();
        vm.phase = Phase::Failed;
    }
}

#[test]
fn higher_priorities_first_and_the_lower_ones_when_those_are_up() {
    let mut boot = Boot::of(vec![vm("low", 0, &[]), vm("b", 5, &[]), vm("a", 5, &[])]);
    assert_eq!(boot.go(), ["a", "b"]);
    assert!(boot.go().is_empty());
    boot.comes_up("a");
    assert!(boot.go().is_empty(), "b is still on its way");
    boot.fails("b");
    assert_eq!(boot.go(), ["low"], "nobody waits for one that has failed");
}

#[test]
fn a_vm_waits_for_whom_it_depends_on_and_takes_them_with_it() {
    let mut db = vm("db", 0, &[]);
    db.spec.start.autostart = false;
    let mut boot = Boot::of(vec![vm("web", 9, &["db"]), db, vm("other", 5, &[])]);
    assert_eq!(
        boot.go(),
        ["db"],
        "who is waited for counts as much as who waits"
    );
    boot.comes_up("db");
    assert_eq!(boot.go(), ["web"]);
    boot.comes_up("web");
    assert_eq!(boot.go(), ["other"]);
}

#[test]
fn an_address_is_waited_for_until_it_answers() {
    let mut boot = Boot::of(vec![vm("db", 0, &[]), vm("web", 0, &["db@"])]);
    assert_eq!(boot.go(), ["db"]);
    boot.comes_up("db");
    assert!(boot.go().is_empty());
    boot.answering.insert(id("db"));
    assert_eq!(boot.go(), ["web"]);
}

#[test]
fn nobody_waits_for_one_that_will_not_come_nor_for_ever() {
    let mut boot = Boot::of(vec![vm("db", 0, &[]), vm("web", 0, &["db"])]);
    boot.go();
    boot.fails("db");
    let plan = boot.plan();
    assert_eq!(plan.late, [(id("web"), id("db"))]);
    assert_eq!(boot.go(), ["web"]);

    let mut boot = Boot::of(vec![vm("db", 0, &[]), vm("web", 0, &["db@"])]);
    boot.go();
    boot.comes_up("db");
    boot.waited_ms = PATIENCE_MS;
    assert_eq!(boot.go(), ["web"], "an address that never answers");
}

#[test]
fn what_is_on_its_way_already_is_held_and_let_go_in_its_turn() {
    let mut first = vm("first", 5, &[]);
    let mut second = vm("second", 0, &[]);
    for vm in [&mut first, &mut second] {
        running(vm);
        // As the boot before this one left them.
        vm.boot_id = Some(boot("before"));
        vm.spec.start.autostart = false;
    }
    let mut boot = Boot::of(vec![first, second]);
    assert!(boot.host.starting.iter().all(|starting| starting.held));
    assert_eq!(
        boot.go(),
        ["first"],
        "that it ran before the boot is not that it runs"
    );
    boot.comes_up("first");
    assert_eq!(boot.go(), ["second"]);
}

#[test]
fn only_a_new_boot_starts_vms() {
    let vms = [vm("a", 0, &[])];
    let host = booted(&vms);
    assert_eq!(host.starting.len(), 1);
    let mut rested = host.clone();
    rested.starting.clear();
    assert_eq!(begin(Some(&rested), &map(&vms), &boot("now")), rested);
    let again = begin(Some(&rested), &map(&vms), &boot("next"));
    assert_eq!(again.starting.len(), 1);
    // The host's record is lost, but a VM's life of this boot is known.
    let mut vms = vms;
    vms[0].boot_id = Some(boot("now"));
    assert!(begin(None, &map(&vms), &boot("now")).starting.is_empty());
}

#[test]
fn what_was_drained_is_started_again_by_the_next_boot_or_when_it_is_resumed() {
    let mut vms = [vm("a", 0, &[]), vm("rests", 0, &[])];
    for vm in &mut vms {
        vm.spec.start.autostart = false;
    }
    let mut host = begin(None, &map(&vms), &boot("now"));
    running(&mut vms[0]);
    host.drain = Some(drain(&host, &vms));
    vms[0].phase = Phase::Stopped;
    vms[0].desired = Desired::Stopped;
    let expected = [Starting {
        vm: id("a"),
        held: false,
    }];
    assert!(host.drains(&boot("now")) && !host.drains(&boot("next")));
    let next = begin(Some(&host), &map(&vms), &boot("next"));
    assert_eq!(
        (next.starting.as_slice(), next.drain),
        (&expected[..], None)
    );
    assert_eq!(resume(&host, &map(&vms)).starting, expected);
}

fn drain(host: &HostRecord, vms: &[VmRecord]) -> Drain {
    Drain {
        since: UnixMs(0),
        timeout_ms: 60_000,
        operation: OperationId::parse("op-1").unwrap(),
        origin: Origin::Daemon,
        vms: drained(host, &map(vms)),
        done: false,
    }
}

fn stopped(plan: Stops) -> Vec<(String, u64)> {
    match plan {
        Stops::Stop(vms) => vms
            .into_iter()
            .map(|(id, ms)| (id.to_string(), ms))
            .collect(),
        Stops::Wait(_) | Stops::Done => Vec::new(),
    }
}

#[test]
fn a_drain_goes_backwards_and_by_force_when_its_time_is_up() {
    let mut vms = [vm("web", 0, &["db"]), vm("db", 0, &[]), vm("last", 9, &[])];
    vms.iter_mut().for_each(running);
    let host = booted(&[]);
    let drain = drain(&host, &vms);
    assert_eq!(
        stopped(stops(&drain, &map(&vms), 0)),
        [("web".to_owned(), 30_000)]
    );
    vms[0].phase = Phase::Stopping;
    vms[0].desired = Desired::Stopped;
    assert!(matches!(stops(&drain, &map(&vms), 0), Stops::Wait(_)));
    let forced = stopped(stops(&drain, &map(&vms), 60_000));
    assert_eq!(forced.len(), 3);
    assert!(forced.iter().all(|(_, ms)| *ms == 0));
    vms[0].phase = Phase::Stopped;
    let next = stopped(stops(&drain, &map(&vms), 50_000));
    assert_eq!(
        next,
        [("db".to_owned(), 10_000)],
        "no longer than the drain itself"
    );
    for vm in &mut vms {
        vm.phase = Phase::Stopped;
    }
    assert_eq!(stops(&drain, &map(&vms), 0), Stops::Done);
}

#[test]
fn a_circle_is_found_and_told() {
    let a = vm("a", 0, &["b"]);
    let b = vm("b", 0, &["c"]);
    let others = BTreeMap::from([(&a.id, &a.spec.start), (&b.id, &b.spec.start)]);
    let others = |id: &VmId| others.get(id).copied();
    let (c, asked) = (id("c"), ["a", "nobody", "c"].map(on));
    let closing = circle(&c, &asked[..1], others);
    assert_eq!(closing, Some(vec![id("c"), id("a"), id("b")]));
    assert_eq!(circle(&c, &asked[1..2], others), None);
    assert_eq!(circle(&c, &asked[2..], others), Some(vec![id("c")]));
}

fn hosts() -> impl Strategy<Value = Vec<VmRecord>> {
    let one = (0..4_u32, prop::collection::vec(0..6_usize, 0..3));
    prop::collection::vec(one, 1..6).prop_map(|all| {
        let names: Vec<String> = (0..6).map(|n| format!("v{n}")).collect();
        all.iter()
            .enumerate()
            .map(|(n, (priority, depends_on))| {
                let others: Vec<&str> = depends_on.iter().map(|d| names[*d].as_str()).collect();
                vm(&names[n], *priority, &others)
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn every_vm_is_started_in_the_end_also_in_circles(vms in hosts(), fails in prop::collection::vec(any::<bool>(), 6)) {
        let mut boot = Boot::of(vms);
        let mut rounds = 0;
        while boot.gone.len() < boot.host.starting.len() {
            let go = boot.go();
            for name in &go {
                let n: usize = name[1..].parse().unwrap();
                if fails[n] { boot.fails(name) } else { boot.comes_up(name) }
            }
            if go.is_empty() {
                prop_assert_eq!(boot.waited_ms, 0, "nobody waits beyond the patience");
                boot.waited_ms = PATIENCE_MS;
            }
            rounds += 1;
            prop_assert!(rounds < 40);
        }
    }

    #[test]
    fn every_drain_stops_all(vms in hosts()) {
        let mut vms = vms;
        vms.iter_mut().for_each(running);
        let host = booted(&[]);
        let drain = drain(&host, &vms);
        prop_assert_eq!(drain.vms.len(), vms.len());
        let mut rounds = 0;
        loop {
            let stop = match stops(&drain, &map(&vms), 0) {
                Stops::Done => break,
                Stops::Wait(_) => Vec::new(),
                Stops::Stop(stop) => stop,
            };
            prop_assert!(!stop.is_empty(), "nobody moves");
            for (id, _) in stop {
                let vm = vms.iter_mut().find(|vm| vm.id == id).unwrap();
                vm.phase = Phase::Stopped;
                vm.desired = Desired::Stopped;
            }
            rounds += 1;
            prop_assert!(rounds < 20);
        }
    }
}
