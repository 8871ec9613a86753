//! Long random lives on the simulated host: users, guests, QEMUs, the daemon
//! and the host do what they like; then the faults end, and everything that was
//! asked for has to come to its end.

use crate::vm::step::turn::is_device_work;

use super::{
    given::{budgets, commands, disk, modes, new_vm},
    host::World,
    oracle::Wish,
    table::ARROWS,
};
use crate::restart::{RestartBudget, RestartMode};
use crate::vm::{
    messages::{Command, ExitStatus, RunState},
    phase::{Desired, Phase},
    record::Reason,
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use std::collections::BTreeSet;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Act {
    Command(Command),
    /// One of the things under way happens; the flags: it fails, it is told twice.
    Progress(usize, bool, bool),
    /// So many things under way go well.
    Flow(usize),
    Timer(usize),
    Crash,
    /// The daemon dies within the next step, at its n-th point.
    Fuse(usize),
    Reboot,
    Guest(RunState),
    Reset,
    QemuDies(ExitStatus),
    Deafen,
    Heal,
    GuestListens(bool),
    GuestComesUp(RunState),
    Pass(u64),
    ClockBack(u64),
}

fn acts() -> impl Strategy<Value = Act> {
    let guest = prop::sample::select(vec![
        RunState::Shutdown,
        RunState::GuestPanicked,
        RunState::IoError,
        RunState::InternalError,
        RunState::Paused,
        RunState::Running,
    ]);
    let deaths = prop::sample::select(vec![
        ExitStatus::Code(1),
        ExitStatus::Signal(11),
        ExitStatus::OomKilled,
        ExitStatus::Unknown,
    ]);
    prop_oneof![
        10 => commands().prop_map(Act::Command),
        10 => Just(Act::Command(Command::Start)),
        3 => Just(Act::Command(Command::Resume)),
        30 => (any::<usize>(), prop::bool::weighted(0.15), prop::bool::weighted(0.2))
            .prop_map(|(which, fail, again)| Act::Progress(which, fail, again)),
        20 => (1..12_usize).prop_map(Act::Flow),
        5 => any::<usize>().prop_map(Act::Timer),
        2 => Just(Act::Crash),
        3 => (0..4_usize).prop_map(Act::Fuse),
        1 => Just(Act::Reboot),
        4 => guest.clone().prop_map(Act::Guest),
        1 => Just(Act::Reset),
        2 => deaths.prop_map(Act::QemuDies),
        2 => Just(Act::Deafen),
        2 => Just(Act::Heal),
        1 => any::<bool>().prop_map(Act::GuestListens),
        1 => guest.clone().prop_map(Act::GuestComesUp),
        2 => (1..100_000_u64).prop_map(Act::Pass),
        1 => (1..1_000_000_u64).prop_map(Act::ClockBack),
    ]
}

/// The restart policy of a new VM, what happens to it, whether the clock may be set back, and whether
/// deaf QEMUs are healed in the end.
type Life = ((RestartMode, RestartBudget), Vec<Act>, bool, bool);

fn lives(length: usize) -> impl Strategy<Value = Life> {
    let acts = prop::collection::vec(acts(), 1..length);
    ((modes(), budgets()), acts, any::<bool>(), any::<bool>())
}

fn happen(world: &mut World, act: Act, jumps: bool) {
    match act {
        Act::Command(command) => world.command(command),
        Act::Progress(which, fail, again) => world.progress(which, fail, again),
        Act::Flow(count) => (0..count).for_each(|n| world.progress(n, false, false)),
        Act::Timer(which) => world.fire(which),
        Act::Crash => world.crash(),
        Act::Fuse(n) => world.fuse = Some(n),
        Act::Reboot => world.reboot(),
        Act::Guest(state) if world.may_become(state) => world.becomes(state),
        Act::Guest(_) => {}
        Act::Reset => world.guest_resets(),
        Act::QemuDies(status) => world.die(status),
        Act::Deafen => world.deafen(),
        Act::Heal => world.heal(),
        Act::GuestListens(listens) => world.polite_guest = listens,
        Act::GuestComesUp(state) => world.comes_up = state,
        Act::Pass(ms) => world.now += ms,
        Act::ClockBack(ms) if jumps => {
            world.oracle.clock_jumped = true;
            world.now = world.now.saturating_sub(ms);
        }
        Act::ClockBack(_) => {}
    }
}

fn live(((mode, budget), acts, jumps, heals): Life) -> World {
    let mut world = World::new(new_vm(mode, budget));
    for act in acts {
        happen(&mut world, act, jumps);
    }
    if heals {
        world.heal();
    }
    world.settle();
    world
}

/// What was asked for has come to its end.
fn ends_well(world: &World) {
    let stays_deaf = world.qemu.as_ref().is_some_and(|q| q.deaf);
    let record = &world.record;
    match (world.oracle.wish, record.phase) {
        (Wish::Erase, _) => assert!(world.erased, "a delete ends in {record:#?}"),
        (Wish::Stop, Phase::Stopped) => assert!(world.qemu.is_none()),
        (Wish::Run, Phase::Running | Phase::Paused) => {
            let qemu = world.qemu.as_ref().expect("it runs");
            if !stays_deaf {
                assert_eq!(qemu.nics, record.links().collect(), "its cards");
            }
            assert!(record.claim.is_some() && record.process.is_some());
            assert_eq!(record.desired, Desired::Running);
        }
        (Wish::Run, Phase::Failed) => assert_eq!(record.desired, Desired::Running),
        (Wish::Run, Phase::Stopped) => {
            assert_eq!(record.reason, Reason::GuestShutdown);
            assert_eq!(record.desired, Desired::Stopped);
        }
        (Wish::Run, Phase::Unknown) => assert!(stays_deaf && record.unresponsive),
        (wish, _) => panic!("{wish:?} ends in {record:#?}"),
    }
    // What became of work on a device is not known before QEMU answers again.
    let waits = |op: &crate::vm::OpenOperation| stays_deaf && is_device_work(op.kind);
    let open = world
        .oracle
        .operations
        .values()
        .filter(|ended| !**ended)
        .count();
    let waiting = record.operations.iter().filter(|op| waits(op)).count();
    assert_eq!(
        open, waiting,
        "an operation stays open: {:#?}",
        record.operations
    );
}

fn any_life_ends_well(cases: u32, length: usize) {
    let config = ProptestConfig {
        cases,
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(life in lives(length))| {
        ends_well(&live(life));
    });
}

#[test]
fn whatever_happens_what_was_asked_for_ends_well() {
    any_life_ends_well(20_000, 120);
}

#[test]
fn a_very_long_life_ends_well() {
    any_life_ends_well(300, 4_000);
}

#[test]
#[ignore = "runs for minutes: the same walks a hundred times as often"]
fn whatever_happens_for_long_what_was_asked_for_ends_well() {
    any_life_ends_well(2_000_000, 120);
    any_life_ends_well(30_000, 4_000);
}

/// A life that went wrong once: the pause was answered when the guest had been let go on for space.
#[test]
fn a_guest_is_not_let_go_on_for_space_behind_a_pause_that_is_under_way() {
    let attach = Command::AttachDisk {
        disk: disk(1),
        letter: None,
    };
    let life = vec![
        Act::GuestComesUp(RunState::IoError),
        Act::Command(Command::Start),
        Act::Flow(7),
        Act::Guest(RunState::Running),
        Act::Flow(4),
        Act::Command(attach),
        Act::Guest(RunState::IoError),
        Act::Command(Command::Pause),
        Act::Flow(2),
        Act::Timer(1),
        Act::Flow(4),
        Act::Flow(1),
        Act::Flow(5),
    ];
    let policy = (RestartMode::Never, RestartBudget::default());
    ends_well(&live((policy, life, false, false)));
}

/// Otherwise the walks above would prove little.
#[test]
fn the_walks_go_along_every_arrow_of_the_table() {
    let mut runner = TestRunner::deterministic();
    let mut missing: BTreeSet<(Phase, Phase)> = ARROWS
        .iter()
        .flat_map(|(from, to)| to.iter().map(move |to| (*from, *to)))
        .collect();
    for _ in 0..6_000 {
        let life = lives(120)
            .new_tree(&mut runner)
            .expect("lives are never rejected");
        for arrow in live(life.current()).oracle.arrows {
            missing.remove(&arrow);
        }
        if missing.is_empty() {
            return;
        }
    }
    panic!("never walked: {missing:?}");
}
