//! Records in, whom to start or stop next out. Pure and total.
//!
//! Starting: VMs of a higher priority first; each when those it depends on are
//! up. A VM that is waited for has at least the priority of who waits, and is
//! started with it. Nobody waits for one that will not come, nor for longer than
//! [`PATIENCE_MS`]: a VM that cannot start must not keep a whole host down.
//! Stopping: the same order backwards, with one deadline for all.

use super::{Condition, Drain, HostRecord, Starting};
use crate::{
    ids::{BootId, VmId},
    vm::{Desired, Phase, VmRecord},
};
use std::collections::{BTreeMap, BTreeSet};

/// How long a VM waits for others after the host was booted, in milliseconds.
pub const PATIENCE_MS: u64 = 5 * 60 * 1_000;
/// How long one guest may take to power off in a drain, in milliseconds, if the
/// drain leaves it so long.
pub const STOP_MS: u64 = 30_000;

type Vms<'a> = BTreeMap<&'a VmId, &'a VmRecord>;

/// The priority that counts: no lower than that of any who waits for it.
fn priorities<'a>(vms: &Vms<'a>) -> BTreeMap<&'a VmId, u32> {
    let own = |vm: &VmRecord| vm.spec.start.priority;
    let mut all: BTreeMap<&VmId, u32> = vms.iter().map(|(id, vm)| (*id, own(vm))).collect();
    let mut raised: Vec<&VmId> = vms.keys().copied().collect();
    // Each is looked at again only when it was raised, so circles end as well.
    while let Some(id) = raised.pop() {
        let Some(vm) = vms.get(id) else { continue };
        let mine = all.get(id).copied().unwrap_or_default();
        for other in &vm.spec.start.depends_on {
            if let Some(theirs) = all.get_mut(&other.vm)
                && *theirs < mine
            {
                *theirs = mine;
                if let Some((id, _)) = vms.get_key_value(&other.vm) {
                    raised.push(id);
                }
            }
        }
    }
    all
}

/// What the host's record is when a daemon starts. A new boot is one that no
/// record knows: neither the host's nor, where that is lost, any VM's.
pub fn begin(previous: Option<&HostRecord>, vms: &Vms<'_>, boot_id: &BootId) -> HostRecord {
    let same = match previous {
        Some(host) => host.boot_id == *boot_id,
        None => vms.values().any(|vm| vm.boot_id.as_ref() == Some(boot_id)),
    };
    if same {
        return previous.cloned().unwrap_or_else(|| HostRecord {
            boot_id: boot_id.clone(),
            starting: Vec::new(),
            drain: None,
        });
    }
    let drained = previous.and_then(|host| host.drain.as_ref());
    let mut wanted: BTreeSet<&VmId> = drained.iter().flat_map(|drain| &drain.vms).collect();
    // What a boot that was cut short had not come to.
    let left = previous.iter().flat_map(|host| &host.starting);
    wanted.extend(left.map(|starting| &starting.vm));
    let automatic = vms.values().filter(|vm| vm.spec.start.autostart);
    wanted.extend(automatic.map(|vm| &vm.id));
    HostRecord {
        boot_id: boot_id.clone(),
        starting: starting(wanted, vms),
        drain: None,
    }
}

/// The same when a drained host is resumed without a boot.
pub fn resume(host: &HostRecord, vms: &Vms<'_>) -> HostRecord {
    let drained = host.drain.iter().flat_map(|drain| &drain.vms);
    HostRecord {
        boot_id: host.boot_id.clone(),
        starting: starting(drained.collect(), vms),
        drain: None,
    }
}

/// What is wanted and what is on its way, and all they wait for.
fn starting<'a>(mut wanted: BTreeSet<&'a VmId>, vms: &Vms<'a>) -> Vec<Starting> {
    let on_its_way = |vm: &&&VmRecord| !vm.phase.is_rest() && vm.desired == Desired::Running;
    wanted.extend(vms.values().filter(on_its_way).map(|vm| &vm.id));
    let mut ask: Vec<&VmId> = wanted.iter().copied().collect();
    while let Some(id) = ask.pop() {
        let Some(vm) = vms.get(id) else { continue };
        for other in &vm.spec.start.depends_on {
            if wanted.insert(&other.vm) {
                ask.push(&other.vm);
            }
        }
    }
    let there = wanted.into_iter().filter_map(|id| vms.get(id));
    let alive = there.filter(|vm| !matches!(vm.desired, Desired::Erased { .. }));
    alive
        .map(|vm| Starting {
            vm: vm.id.clone(),
            held: !vm.phase.is_rest(),
        })
        .collect()
}

/// What to do about the VMs that are to be started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Starts {
    /// Whose turn it is: those at rest are asked to start, the others are let go on.
    pub go: Vec<VmId>,
    /// Those of them that go although somebody they wait for is not up, and who.
    pub late: Vec<(VmId, VmId)>,
    /// Those that have come to something: they are not to be started any more.
    pub settled: Vec<VmId>,
    /// Whom each of the others waits for.
    pub waiting: Vec<(VmId, VmId)>,
}

/// What is known beside the records.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// VMs whose turn has come already.
    pub gone: &'a BTreeSet<VmId>,
    /// VMs whose guest answers at its address.
    pub answering: &'a BTreeSet<VmId>,
    /// How long it has been waited, in milliseconds.
    pub waited_ms: u64,
}

/// Who is to be started next.
pub fn starts(host: &HostRecord, vms: &Vms<'_>, known: Known<'_>) -> Starts {
    let mut plan = Starts::default();
    let (settled, open): (Vec<_>, Vec<_>) = host
        .starting
        .iter()
        .partition(|starting| is_settled(starting, host, vms, known));
    plan.settled = settled.into_iter().map(|one| one.vm.clone()).collect();
    let priorities = priorities(vms);
    let priority = |id: &VmId| priorities.get(id).copied().unwrap_or_default();
    let highest = open.iter().max_by_key(|one| priority(&one.vm));
    for one in &open {
        if known.gone.contains(&one.vm) {
            continue;
        }
        let ahead = highest.filter(|first| priority(&first.vm) > priority(&one.vm));
        let Some(vm) = vms.get(&one.vm) else { continue };
        let missing = match ahead {
            Some(first) => Some((&first.vm, true)),
            None => missing(vm, host, vms, &open, known),
        };
        match missing {
            None => plan.go.push(one.vm.clone()),
            Some((other, comes)) if comes && known.waited_ms < PATIENCE_MS => {
                plan.waiting.push((one.vm.clone(), other.clone()));
            }
            Some((other, _)) => {
                plan.go.push(one.vm.clone());
                plan.late.push((one.vm.clone(), other.clone()));
            }
        }
    }
    // Who is asked first takes the first permit.
    plan.go
        .sort_by_key(|id| (std::cmp::Reverse(priority(id)), id.clone()));
    plan
}

/// Whether a VM of this boot has come to something, good or bad.
fn is_settled(starting: &Starting, host: &HostRecord, vms: &Vms<'_>, known: Known<'_>) -> bool {
    let Some(vm) = vms.get(&starting.vm) else {
        return true;
    };
    let gone = known.gone.contains(&starting.vm);
    match vm.phase {
        // One at rest that has not been asked is still to be; one that was on its
        // way has been stopped or has failed.
        Phase::Stopped | Phase::Failed => gone || starting.held,
        // What an earlier boot left is not known to be over before it was recovered.
        Phase::Running | Phase::Paused => is_of(vm, host),
        Phase::Backoff => gone,
        Phase::Stopping | Phase::Killing => is_of(vm, host) && vm.desired != Desired::Running,
        Phase::Claiming | Phase::Launching | Phase::Releasing | Phase::Unknown => false,
    }
}

fn is_of(vm: &VmRecord, host: &HostRecord) -> bool {
    vm.boot_id.as_ref() == Some(&host.boot_id)
}

/// The first VM that is waited for and not up, and whether it may still come.
fn missing<'a>(
    vm: &'a VmRecord,
    host: &HostRecord,
    vms: &Vms<'_>,
    open: &[&Starting],
    known: Known<'_>,
) -> Option<(&'a VmId, bool)> {
    vm.spec.start.depends_on.iter().find_map(|other| {
        // One that was deleted is not waited for.
        let dependency = vms.get(&other.vm)?;
        let runs = dependency.phase == Phase::Running && is_of(dependency, host);
        let up = match other.condition {
            Condition::Running => runs,
            Condition::Address => runs && known.answering.contains(&other.vm),
        };
        let comes = runs || open.iter().any(|one| one.vm == other.vm);
        (!up).then_some((&other.vm, comes))
    })
}

/// The VMs whose address somebody waits for.
pub fn asked_for_addresses<'a>(host: &HostRecord, vms: &Vms<'a>) -> BTreeSet<&'a VmId> {
    let waiting = host.starting.iter().filter_map(|one| vms.get(&one.vm));
    let all = waiting.flat_map(|vm| &vm.spec.start.depends_on);
    let asked = all.filter(|other| other.condition == Condition::Address);
    let running = asked.filter_map(|other| vms.get(&other.vm));
    running
        .filter(|vm| vm.phase == Phase::Running && is_of(vm, host))
        .map(|vm| &vm.id)
        .collect()
}

/// The VMs that a drain notes: what runs or is to run.
pub fn drained(host: &HostRecord, vms: &Vms<'_>) -> Vec<VmId> {
    let wanted = vms.values().filter(|vm| vm.desired == Desired::Running);
    let mut all: BTreeSet<&VmId> = wanted
        .filter(|vm| !vm.phase.is_rest())
        .map(|vm| &vm.id)
        .collect();
    all.extend(host.starting.iter().map(|starting| &starting.vm));
    all.into_iter().cloned().collect()
}

/// What a drain does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stops {
    /// Stop these: politely for so many milliseconds, or by force where that is 0.
    Stop(Vec<(VmId, u64)>),
    /// Nothing now: these are being stopped.
    Wait(Vec<VmId>),
    /// All are at rest.
    Done,
}

/// Who is to be stopped next. `waited_ms` is how long the drain has lasted.
pub fn stops(drain: &Drain, vms: &Vms<'_>, waited_ms: u64) -> Stops {
    let up: Vms<'_> = vms
        .iter()
        .filter(|(_, vm)| !vm.phase.is_rest())
        .map(|(id, vm)| (*id, *vm))
        .collect();
    if up.is_empty() {
        return Stops::Done;
    }
    let left = drain.timeout_ms.saturating_sub(waited_ms);
    if left == 0 {
        let forced = up.values().filter(|vm| can_be_forced(vm));
        return or_wait(forced.map(|vm| (vm.id.clone(), 0)).collect(), &up);
    }
    let priorities = priorities(vms);
    let lowest = up.keys().filter_map(|id| priorities.get(id)).min().copied();
    let needed: BTreeSet<&VmId> = up
        .values()
        .flat_map(|vm| &vm.spec.start.depends_on)
        .map(|other| &other.vm)
        .collect();
    let turn = up.values().filter(|vm| {
        vm.desired == Desired::Running
            && priorities.get(&vm.id).copied() == lowest
            && !needed.contains(&vm.id)
    });
    let polite: Vec<_> = turn.map(|vm| (vm.id.clone(), left.min(STOP_MS))).collect();
    let moves = !polite.is_empty() || up.values().any(|vm| vm.desired != Desired::Running);
    if moves {
        return or_wait(polite, &up);
    }
    // They wait for each other in a circle: all at once.
    let all = up.values().map(|vm| (vm.id.clone(), left.min(STOP_MS)));
    Stops::Stop(all.collect())
}

fn or_wait(stop: Vec<(VmId, u64)>, up: &Vms<'_>) -> Stops {
    if stop.is_empty() {
        return Stops::Wait(up.keys().map(|id| (*id).clone()).collect());
    }
    Stops::Stop(stop)
}

/// What is being ended by force already is not asked again.
fn can_be_forced(vm: &VmRecord) -> bool {
    !matches!(vm.phase, Phase::Killing | Phase::Releasing) || vm.desired == Desired::Running
}
