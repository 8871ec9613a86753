//! A StateStore alone on a storage in memory, and records to put into it.

use crate::{
    fakes::{FakeClock, FakeHost, MemoryStorage},
    mailbox::{self, ActorRef},
    store::{Committed, StateStore, StoreArguments, StoreError, StoreHandle, StoreMsg, StoreSlot},
};
use ractor::SpawnErr;
use std::{sync::Arc, time::Duration};
use tokio::{task::JoinHandle, time::Instant};
use vman_model::{
    BootId, Cause, Change, DiskCache, DiskFile, DiskFormat, DiskId, DiskLimits, DiskOptions,
    DiskRecord, Event, EventDraft, EventKind, ForwardRecord, Guard, IdempotencyKey,
    IdempotencyRecord, ImageFormat, ImageKind, ImageName, ImageRecord, Incarnation, LeaseId,
    LeaseRecord, NetworkName, OperationId, OperationKind, OperationRecord, OperationStatus, Origin,
    Problem, Protocol, RequestId, RestartHistory, RestartPolicy, Revision, Subject, TemplateName,
    TemplateRecord, TokenId, TokenName, TokenRecord, TokenScope, UnixMs, VmId, VmUuid, Write,
    change::IdempotentAnswer,
    network::{Limit, LinkState, Nic, NicLimits, NicState},
    power::{Condition, Dependency, Drain, HostRecord, StartSpec, Starting},
    vm::{
        AttachState, Attachment, BootSpec, Claim, Confinement, Desired, Ending, Firmware,
        IoErrorPolicy, Measure, NetworkKind, NicClaim, OpenOperation, Phase, ProcessIdentity,
        Reason, Resources, StopIntent, VmRecord, VmSize, VmSpec,
    },
};

pub(super) struct Store {
    pub(super) storage: MemoryStorage,
    pub(super) clock: FakeClock,
    pub(super) slot: Arc<StoreSlot>,
    pub(super) handle: StoreHandle,
    pub(super) actor: ActorRef<StoreMsg>,
}

impl Store {
    pub(super) async fn start() -> Self {
        Self::start_on(MemoryStorage::new()).await.unwrap()
    }

    pub(super) async fn start_on(storage: MemoryStorage) -> Result<Self, SpawnErr> {
        let clock = FakeHost::new().clock().clone();
        Self::start_with(storage, clock, Arc::default()).await
    }

    async fn start_with(
        storage: MemoryStorage,
        clock: FakeClock,
        slot: Arc<StoreSlot>,
    ) -> Result<Self, SpawnErr> {
        let arguments = StoreArguments {
            storage: Arc::new(storage.clone()),
            clock: Arc::new(clock.clone()),
            slot: slot.clone(),
        };
        let (actor, _) = mailbox::spawn(StateStore, arguments, Arc::default()).await?;
        let handle = StoreHandle::new(slot.clone(), Arc::new(storage.clone()));
        Ok(Self {
            storage,
            clock,
            slot,
            handle,
            actor,
        })
    }

    /// The actor's successor, on the same seat.
    pub(super) async fn successor(&self) -> Self {
        let (storage, clock) = (self.storage.clone(), self.clock.clone());
        Self::start_with(storage, clock, self.slot.clone())
            .await
            .unwrap()
    }

    /// Gives a change to the store; what comes later comes after it.
    pub(super) fn send(&self, change: Change) -> JoinHandle<Result<Committed, StoreError>> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let sent = self.actor.cast(StoreMsg::Commit(Box::new(change), reply));
        sent.expect("the store lives");
        let lost = |_| Err(StoreError::Unknown("lost".to_owned()));
        tokio::spawn(async move { answer.await.unwrap_or_else(lost) })
    }

    pub(super) async fn until_dead(&self) {
        until("the store has died", || self.slot.actor.get().is_none()).await;
    }
}

pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(in crate::store) fn template(name: &str) -> TemplateRecord {
    TemplateRecord {
        name: TemplateName::parse(name).unwrap(),
        size: size(),
        created_at: UnixMs(1_700_000_000_000),
    }
}

/// Makes a template, with its event.
pub(super) fn make(name: &str) -> Change {
    let template = template(name);
    Change {
        guards: vec![Guard::TemplateAbsent(template.name.clone())],
        event: Some(event().what),
        writes: vec![Write::PutTemplate(template)],
    }
}

fn size() -> VmSize {
    let image = |name| ImageName::parse(name).unwrap();
    VmSize {
        cpu_count: 2,
        ram_mib: 2_048,
        image: Some(image("debian-13")),
        boot: Some(BootSpec {
            kernel: image("vmlinuz"),
            initrd: Some(image("initrd.img")),
            cmdline: "console=ttyS0".to_owned(),
        }),
        firmware: Firmware::Uefi,
        disk_mib: Some(10_240),
        labels: [("tier".to_owned(), "web".to_owned())].into(),
    }
}

pub(in crate::store) fn vm() -> VmRecord {
    let identity = ProcessIdentity {
        pid: 4_711,
        start_time: 123_456,
        boot_id: BootId::parse("boot-1").unwrap(),
    };
    let nic = NicClaim {
        nic: 0,
        kind: NetworkKind::User,
        mac: [0x52, 0x56, 1, 2, 3, 4],
        address: Some("10.0.2.15".to_owned()),
    };
    let disk = DiskId::parse("web-1-root").unwrap();
    VmRecord {
        id: VmId::parse("web-1").unwrap(),
        uuid: VmUuid([7; 16]),
        spec: VmSpec {
            template: TemplateName::parse("small").unwrap(),
            size: size(),
            restart: RestartPolicy::default(),
            io_error: IoErrorPolicy::Hold,
            start: StartSpec {
                autostart: true,
                priority: 7,
                depends_on: vec![Dependency {
                    vm: VmId::parse("db-1").unwrap(),
                    condition: Condition::Address,
                }],
            },
            resources: Resources {
                cpu_weight: Some(300),
                cpu_quota: Some(150),
                io_weight: None,
            },
        },
        mac: nic.mac,
        root_disk: Some(disk.clone()),
        created_at: UnixMs(1_700_000_000_000),
        desired: Desired::Erased {
            keep_root_disk: true,
        },
        phase: Phase::Killing,
        phase_since: UnixMs(1_700_000_000_500),
        reason: Reason::User,
        detail: "delete was asked for".to_owned(),
        incarnation: Incarnation(3),
        boot_id: Some(identity.boot_id.clone()),
        process: Some(identity),
        started_at: Some(UnixMs(1_700_000_000_100)),
        claim: Some(Claim {
            disks: vec![disk],
            nics: vec![nic],
            confinement: Confinement {
                uid: Some(70_001),
                measures: vec![Measure::OwnUser, Measure::Seccomp],
            },
        }),
        ending: Some(Ending {
            reason: Reason::User,
            detail: "delete was asked for".to_owned(),
        }),
        stop: Some(StopIntent {
            force: true,
            timeout_ms: 30_000,
        }),
        restarting: false,
        unresponsive: true,
        restarts: RestartHistory {
            recent: vec![UnixMs(5), UnixMs(6)],
            total: 9,
        },
        backoff_ms: 250,
        operations: vec![OpenOperation {
            id: OperationId::parse("op-1").unwrap(),
            kind: OperationKind::VmDelete,
            created_at: UnixMs(1_700_000_000_400),
            request_id: Some(RequestId::parse("r-1").unwrap()),
            disk: Some(DiskId::parse("data-1").unwrap()),
            size_before_mib: Some(1_024),
            nic: Some(1),
        }],
        last_event: Some(Revision(41)),
        disks: vec![Attachment {
            disk: DiskId::parse("data-1").unwrap(),
            slot: 4,
            letter: b'b',
            state: AttachState::Unplugging(OperationId::parse("op-1").unwrap()),
        }],
        failed_disk: Some(DiskId::parse("data-1").unwrap()),
        failed_for_space: true,
        paused_by_user: true,
        link: LinkState::Down,
        nics: vec![Nic {
            number: 1,
            mac: [0x52, 0x56, 9, 9, 9, 9],
            link: LinkState::Up,
            state: NicState::Plugging,
            network: NetworkName::parse("lab").unwrap(),
        }],
        network: NetworkName::default(),
    }
}

pub(in crate::store) fn disk() -> DiskRecord {
    DiskRecord {
        id: DiskId::parse("web-1-root").unwrap(),
        size_mib: 10_240,
        format: DiskFormat::Qcow2,
        image: Some(ImageName::parse("debian-13").unwrap()),
        vm_id: Some(VmId::parse("web-1").unwrap()),
        root: true,
        created_at: UnixMs(1_700_000_000_000),
        options: DiskOptions {
            cache: DiskCache::None,
            keep_discarded: true,
            read_only: true,
            serial: Some("s-1".to_owned()),
            limits: DiskLimits {
                iops: 100,
                iops_burst: 200,
                bps: 1_000,
                bps_burst: 2_000,
            },
        },
        file: DiskFile::Made,
        wished_letter: Some(b'c'),
    }
}

pub(in crate::store) fn image() -> ImageRecord {
    ImageRecord {
        name: ImageName::parse("debian-13").unwrap(),
        kind: ImageKind::Disk,
        format: ImageFormat::Qcow2,
        file_size: 300_000_000,
        virtual_size: 2 << 30,
        sha256: "ab".repeat(32),
        created_at: UnixMs(1_700_000_000_000),
    }
}

pub(in crate::store) fn operation(id: &str) -> OperationRecord {
    OperationRecord {
        id: OperationId::parse(id).unwrap(),
        kind: OperationKind::VmStart,
        vm_id: Some(VmId::parse("web-1").unwrap()),
        disk_id: None,
        nic: Some(1),
        status: OperationStatus::Failed,
        step: "launching".to_owned(),
        progress: 40,
        created_at: UnixMs(1_700_000_000_000),
        finished_at: Some(UnixMs(1_700_000_000_900)),
        error: Some(Problem::new("start_failed", "no such device")),
        request_id: None,
    }
}

pub(in crate::store) fn lease() -> LeaseRecord {
    LeaseRecord {
        id: LeaseId::parse("10.0.0.7").unwrap(),
        vm_id: VmId::parse("web-1").unwrap(),
        nic: 0,
        address: core::net::Ipv4Addr::new(10, 0, 0, 7),
        mac: [0x52, 0x56, 1, 2, 3, 4],
        fixed: true,
        limits: NicLimits {
            inbound: Some(Limit::new(2_000, Some(9_000), Some(500))),
            outbound: None,
        },
        created_at: UnixMs(1_700_000_000_000),
        network: NetworkName::default(),
    }
}

pub(in crate::store) fn forward() -> ForwardRecord {
    ForwardRecord {
        id: ForwardRecord::id_of(Protocol::Udp, 8080),
        vm_id: VmId::parse("web-1").unwrap(),
        protocol: Protocol::Udp,
        host_port: 8080,
        guest_port: 80,
        created_at: UnixMs(1_700_000_000_000),
    }
}

pub(in crate::store) fn event() -> Event {
    Event {
        revision: Revision(42),
        what: EventDraft {
            at: UnixMs(1_700_000_000_000),
            subject: Subject::Vm(VmId::parse("web-1").unwrap()),
            kind: EventKind::VmPhaseChanged,
            from: Some(Phase::Running),
            to: Some(Phase::Stopping),
            reason: Some(Reason::User),
            detail: "the guest was asked to power off".to_owned(),
            incarnation: Some(Incarnation(3)),
            operation: Some(OperationId::parse("op-1").unwrap()),
            cause: Cause {
                origin: Origin::Request {
                    request_id: RequestId::parse("r-1").unwrap(),
                    principal: "local:0".to_owned(),
                    remote: Some([192, 0, 2, 7].into()),
                },
                input: "stop".to_owned(),
                led_by: Some(Revision(40)),
            },
            previous: Some(Revision(41)),
        },
    }
}

pub(super) fn key(name: &str, created_at: UnixMs) -> IdempotencyRecord {
    IdempotencyRecord {
        key: IdempotencyKey::parse(name).unwrap(),
        fingerprint: [9; 32],
        answer: IdempotentAnswer::Operation(OperationId::parse("op-1").unwrap()),
        created_at,
    }
}

pub(in crate::store) fn token() -> TokenRecord {
    TokenRecord {
        id: TokenId::parse("0a1b2c3d4e5f6071").unwrap(),
        name: TokenName::parse("ci").unwrap(),
        scope: TokenScope::Admin,
        hash: [5; 32],
        created_at: UnixMs(1_700_000_000_000),
        expires_at: Some(UnixMs(1_800_000_000_000)),
        last_used_at: None,
    }
}

pub(super) fn host() -> HostRecord {
    let vm = VmId::parse("web-1").unwrap();
    HostRecord {
        boot_id: BootId::parse("boot-1").unwrap(),
        starting: vec![Starting {
            vm: vm.clone(),
            held: true,
        }],
        drain: Some(Drain {
            since: UnixMs(1_700_000_000_000),
            timeout_ms: 120_000,
            operation: OperationId::parse("op-1").unwrap(),
            origin: Origin::Daemon,
            vms: vec![vm],
            done: true,
        }),
    }
}
