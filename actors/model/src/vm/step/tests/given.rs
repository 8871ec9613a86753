//! Records, moments and inputs: plain ones to write a history with, and
//! strategies for arbitrary ones.

use crate::{
    event::Origin,
    ids::{
        BootId, DiskId, Incarnation, NetworkName, OperationId, RequestId, TemplateName, VmId,
        VmUuid,
    },
    network::{LeaseRecord, LinkState, MAX_NICS, NewNic, lease_id},
    operation::OperationKind,
    power::StartSpec,
    restart::{RestartBudget, RestartHistory, RestartMode, RestartPolicy},
    time::UnixMs,
    vm::{
        messages::{
            Command, CommandContext, DiskOutcome, ExitStatus, Fact, Input, Moment, QmpAction,
            RunState, SeenDisk, Timer,
        },
        phase::{Desired, Phase},
        record::{
            Claim, Confinement, Ending, OpenOperation, ProcessIdentity, Reason, StopIntent,
            VmRecord,
        },
        spec::{Firmware, IoErrorPolicy, NetworkKind, Resources, VmSize, VmSpec},
    },
};
use core::net::Ipv4Addr;
use proptest::prelude::*;

pub(super) const POLITE: StopIntent = StopIntent {
    force: false,
    timeout_ms: 30_000,
};
pub(super) const STOP: Command = Command::Stop {
    force: false,
    timeout_ms: 30_000,
};
pub(super) const FORCED_STOP: Command = Command::Stop {
    force: true,
    timeout_ms: 0,
};
pub(super) const RESTART: Command = Command::Restart {
    force: false,
    timeout_ms: 30_000,
};
pub(super) const DELETE: Command = Command::Delete {
    keep_root_disk: false,
};

pub(super) fn operation(n: u64) -> OperationId {
    OperationId::parse(&format!("op-{n}")).expect("letters and digits are a valid id")
}

pub(super) fn boot(n: u64) -> BootId {
    BootId::parse(&format!("boot-{n}")).expect("letters and digits are a valid id")
}

pub(super) fn moment(now: u64, boot_number: u64) -> Moment {
    Moment {
        now: UnixMs(now),
        boot_id: boot(boot_number),
    }
}

pub(super) fn context(n: u64) -> CommandContext {
    CommandContext {
        operation: operation(n),
        origin: Origin::Request {
            request_id: RequestId::parse("r").expect("a letter is a valid id"),
            principal: "local:0".to_owned(),
            remote: None,
        },
    }
}

pub(super) fn identity(pid: u32) -> ProcessIdentity {
    ProcessIdentity {
        pid,
        start_time: 7,
        boot_id: boot(1),
    }
}

/// A VM as it is when it was just made.
pub(crate) fn new_vm(mode: RestartMode, budget: RestartBudget) -> VmRecord {
    VmRecord {
        id: VmId::parse("vm").expect("letters are a valid id"),
        uuid: VmUuid([7; 16]),
        spec: VmSpec {
            template: TemplateName::parse("small").expect("letters are a valid name"),
            size: VmSize {
                cpu_count: 1,
                ram_mib: 128,
                image: None,
                boot: None,
                firmware: Firmware::Bios,
                disk_mib: None,
                labels: std::collections::BTreeMap::new(),
            },
            restart: RestartPolicy { mode, budget },
            io_error: IoErrorPolicy::default(),
            start: StartSpec::default(),
            resources: Resources::default(),
        },
        mac: [2, 0, 0, 0, 0, 1],
        root_disk: None,
        created_at: UnixMs(0),
        desired: Desired::Stopped,
        phase: Phase::Stopped,
        phase_since: UnixMs(0),
        reason: Reason::Created,
        detail: String::new(),
        incarnation: Incarnation(0),
        boot_id: None,
        process: None,
        started_at: None,
        claim: None,
        ending: None,
        stop: None,
        restarting: false,
        unresponsive: false,
        restarts: RestartHistory::default(),
        backoff_ms: 0,
        operations: Vec::new(),
        last_event: None,
        disks: Vec::new(),
        failed_disk: None,
        failed_for_space: false,
        paused_by_user: false,
        link: LinkState::Up,
        nics: Vec::new(),
        network: NetworkName::default(),
    }
}

pub(super) const REASONS: [Reason; 13] = [
    Reason::Created,
    Reason::User,
    Reason::GuestShutdown,
    Reason::GuestPanic,
    Reason::QemuExit,
    Reason::QemuSignal,
    Reason::Oom,
    Reason::HostReboot,
    Reason::IoError,
    Reason::CrashLoop,
    Reason::StartFailed,
    Reason::RestartPolicy,
    Reason::InternalError,
];
pub(super) const RUN_STATES: [RunState; 7] = [
    RunState::Running,
    RunState::Paused,
    RunState::Prelaunch,
    RunState::Shutdown,
    RunState::GuestPanicked,
    RunState::IoError,
    RunState::InternalError,
];
const TIMERS: [Timer; 7] = [
    Timer::LaunchDeadline,
    Timer::PowerdownAgain,
    Timer::StopDeadline,
    Timer::KillAgain,
    Timer::ReleaseAgain,
    Timer::BackoffDue,
    Timer::SpaceAgain,
];
const KINDS: [OperationKind; 7] = [
    OperationKind::VmStart,
    OperationKind::VmStop,
    OperationKind::VmRestart,
    OperationKind::VmPause,
    OperationKind::VmResume,
    OperationKind::VmReset,
    OperationKind::VmDelete,
];

/// Every command, in both of its manners where it has two.
pub(super) fn all_commands() -> Vec<Command> {
    vec![
        Command::Start,
        STOP,
        FORCED_STOP,
        Command::Stop {
            force: false,
            timeout_ms: 0,
        },
        RESTART,
        Command::Restart {
            force: true,
            timeout_ms: 0,
        },
        Command::Pause,
        Command::Resume,
        Command::Reset,
        Command::SetStart(StartSpec {
            autostart: true,
            ..StartSpec::default()
        }),
        DELETE,
        Command::Delete {
            keep_root_disk: true,
        },
        Command::AttachDisk {
            disk: disk(1),
            letter: None,
        },
        Command::AttachDisk {
            disk: disk(2),
            letter: Some(b'd'),
        },
        Command::DetachDisk(disk(1)),
        Command::DetachDisk(disk(2)),
        Command::ResizeDisk {
            disk: disk(1),
            from_mib: 1,
            size_mib: 2,
        },
        Command::AttachNic(Box::new(nic(1))),
        Command::AttachNic(Box::new(nic(2))),
        Command::AttachNic(Box::new(nic(MAX_NICS))),
        Command::DetachNic(0),
        Command::DetachNic(1),
        Command::DetachNic(2),
        Command::SetLink {
            nic: 0,
            link: LinkState::Down,
        },
        Command::SetLink {
            nic: 1,
            link: LinkState::Down,
        },
        Command::SetLink {
            nic: 1,
            link: LinkState::Up,
        },
    ]
}

/// Every kind of fact, with every run state, exit, timer and answer.
pub(super) fn all_facts() -> Vec<Fact> {
    let detail = || "why".to_owned();
    let mut facts = vec![
        Fact::Claimed(claim()),
        Fact::ClaimDenied { detail: detail() },
        Fact::Spawned(identity(1)),
        Fact::LaunchFailed { detail: detail() },
        Fact::GuestReset,
        Fact::Deaf { detail: detail() },
        Fact::Found(identity(2)),
        Fact::Gone,
        Fact::Released { erased: false },
        Fact::Released { erased: true },
        Fact::ReleaseFailed { detail: detail() },
    ];
    for state in RUN_STATES {
        facts.extend([Fact::Ready(state), Fact::RunStateChanged(state)]);
    }
    for status in [
        ExitStatus::Code(0),
        ExitStatus::Code(1),
        ExitStatus::Signal(9),
        ExitStatus::OomKilled,
        ExitStatus::Unknown,
        ExitStatus::NeverSpawned,
    ] {
        facts.push(Fact::Exited {
            status,
            stderr: detail(),
        });
    }
    for timer in TIMERS {
        facts.push(Fact::TimerDue(timer));
    }
    for action in [QmpAction::Pause, QmpAction::Resume, QmpAction::Reset] {
        for (number, error) in [(0, None), (1, None), (0, Some(detail())), (99, None)] {
            facts.push(Fact::ActionDone {
                operation: operation(number),
                action,
                error,
            });
        }
    }
    facts.extend(disk_facts());
    facts.extend(nic_facts());
    facts
}

fn disk_facts() -> Vec<Fact> {
    let why = || "why".to_owned();
    let seen = |device, node| SeenDisk {
        disk: disk(1),
        device,
        node,
    };
    let mut facts = vec![
        Fact::DiskLetGo(disk(1)),
        Fact::SpaceSeen { available: 0 },
        Fact::SpaceSeen {
            available: u64::MAX,
        },
        Fact::DisksSeen(Vec::new()),
        Fact::DisksSeen(vec![seen(true, true)]),
        Fact::DisksSeen(vec![seen(false, true)]),
    ];
    for no_space in [false, true] {
        facts.push(Fact::DiskFailed {
            disk: disk(1),
            no_space,
            detail: why(),
        });
    }
    for number in [0, 99] {
        for outcome in [
            DiskOutcome::Done,
            DiskOutcome::Refused(why()),
            DiskOutcome::Held(why()),
        ] {
            facts.push(Fact::DiskDone {
                operation: operation(number),
                disk: disk(1),
                outcome,
            });
        }
    }
    facts
}

fn nic_facts() -> Vec<Fact> {
    let why = || "why".to_owned();
    let mut facts = Vec::new();
    for number in [0, 99] {
        for outcome in [
            DiskOutcome::Done,
            DiskOutcome::Refused(why()),
            DiskOutcome::Held(why()),
        ] {
            facts.push(Fact::NicDone {
                operation: operation(number),
                nic: 1,
                outcome,
            });
        }
    }
    facts
}

/// A further network card with an address.
pub(super) fn nic(number: u8) -> NewNic {
    let address = Ipv4Addr::new(10, 0, 0, number);
    NewNic {
        number,
        mac: [2, 0, 0, 0, 1, number],
        link: LinkState::Up,
        network: NetworkName::default(),
        kind: NetworkKind::Bridge,
        lease: Some(LeaseRecord {
            id: lease_id(address),
            vm_id: VmId::parse("vm").expect("letters are a valid id"),
            nic: number,
            address,
            mac: [2, 0, 0, 0, 1, number],
            fixed: false,
            limits: crate::network::NicLimits::default(),
            created_at: UnixMs(0),
            network: NetworkName::default(),
        }),
    }
}

/// A data disk.
pub(super) fn disk(n: u8) -> DiskId {
    DiskId::parse(&format!("disk-{n}")).expect("letters and digits are a valid id")
}

/// Every input that an incarnation can be told; commands under a new id.
pub(super) fn all_inputs(incarnation: Incarnation) -> Vec<Input> {
    let commands = all_commands()
        .into_iter()
        .map(|c| Input::Command(c, context(1_000)));
    let facts = all_facts().into_iter().map(|f| Input::Fact(incarnation, f));
    commands.chain(facts).chain([Input::Recover]).collect()
}

fn claim() -> Claim {
    Claim {
        disks: vec![DiskId::parse("root").expect("letters are a valid id")],
        nics: Vec::new(),
        confinement: Confinement::default(),
    }
}

pub(super) fn desires() -> impl Strategy<Value = Desired> {
    prop_oneof![
        3 => Just(Desired::Running),
        2 => Just(Desired::Stopped),
        1 => any::<bool>().prop_map(|keep_root_disk| Desired::Erased { keep_root_disk }),
    ]
}

pub(super) fn modes() -> impl Strategy<Value = RestartMode> {
    prop::sample::select(vec![
        RestartMode::Never,
        RestartMode::OnFailure,
        RestartMode::Always,
    ])
}

pub(super) fn budgets() -> impl Strategy<Value = RestartBudget> {
    (any::<bool>(), 0..4_u32, 1..600_u32, any::<u32>()).prop_map(
        |(usual, max_restarts, window_s, backoff_ms)| {
            if usual {
                return RestartBudget::default();
            }
            RestartBudget {
                max_restarts,
                window_s,
                backoff_ms,
                backoff_max_ms: 60_000,
            }
        },
    )
}

/// Numbers, the dangerous ones above all.
fn extremes() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), Just(0), Just(1), Just(u64::MAX)]
}

pub(super) fn intents() -> impl Strategy<Value = StopIntent> {
    (any::<bool>(), extremes()).prop_map(|(force, timeout_ms)| StopIntent { force, timeout_ms })
}

fn operations() -> impl Strategy<Value = Vec<OpenOperation>> {
    prop::collection::vec(prop::sample::select(KINDS.to_vec()), 0..3).prop_map(|kinds| {
        let open = |(n, kind)| OpenOperation {
            id: operation(n),
            kind,
            created_at: UnixMs(1),
            request_id: None,
            disk: None,
            size_before_mib: None,
            nic: None,
        };
        (0..).zip(kinds).map(open).collect()
    })
}

/// Any record, reachable or not, but for this: a VM at rest or in Backoff holds
/// nothing, which is an invariant of its own that `step` may build on.
pub(crate) fn records() -> impl Strategy<Value = VmRecord> {
    let place = (
        desires(),
        prop::sample::select(Phase::ALL.to_vec()),
        prop::sample::select(REASONS.to_vec()),
        prop_oneof![0..4_u64, Just(u64::MAX / 2)],
        prop::option::of(0..3_u64),
        prop::option::of(1..9_u32),
    );
    let life = (
        prop::option::of(any::<u64>()),
        any::<bool>(),
        prop::option::of(prop::sample::select(REASONS.to_vec())),
        prop::option::of(intents()),
        any::<bool>(),
        any::<bool>(),
    );
    let policy = (
        modes(),
        budgets(),
        prop::collection::vec(extremes(), 0..8),
        extremes(),
        operations(),
    );
    (place, life, policy).prop_map(|(place, life, policy)| {
        let (mode, budget, recent, backoff_ms, operations) = policy;
        let mut record = new_vm(mode, budget);
        record.restarts.recent = recent.into_iter().map(UnixMs).collect();
        record.backoff_ms = backoff_ms;
        (record.desired, record.phase, record.reason, ..) = place;
        record.incarnation = Incarnation(place.3);
        if matches!(
            record.phase,
            Phase::Stopped | Phase::Failed | Phase::Backoff
        ) {
            return record;
        }
        record.operations = operations;
        record.boot_id = place.4.map(boot);
        record.process = place.5.map(identity);
        record.started_at = life.0.map(UnixMs);
        record.claim = life.1.then(claim);
        record.ending = life.2.map(|reason| Ending {
            reason,
            detail: "ends".to_owned(),
        });
        (record.stop, record.restarting, record.unresponsive) = (life.3, life.4, life.5);
        record
    })
}

pub(super) fn commands() -> impl Strategy<Value = Command> {
    prop::sample::select(all_commands())
}

pub(super) fn timers() -> impl Strategy<Value = Timer> {
    prop::sample::select(TIMERS.to_vec())
}

pub(super) fn facts() -> impl Strategy<Value = Fact> {
    prop::sample::select(all_facts())
}

pub(super) fn moments() -> impl Strategy<Value = Moment> {
    (extremes(), 0..3_u64).prop_map(|(now, boot_number)| moment(now, boot_number))
}
