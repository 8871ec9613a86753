//! Every operation there is, as the crash matrix goes through them: what is
//! there before, how it is asked for, and what tells that it was done.

use super::daemon::{DELETE, Daemon, RESTART, STOP, STOP_BY_FORCE, origin, size, spec, vm};
use crate::{
    disks::NewDisk,
    fakes::{FakeHost, Launch, Powerdown, plain_bridge},
    network::NewForward,
    ports::LaunchError,
    root::Handles,
    templates, tokens,
    vm::{CommandRequest, NewVm, WantedNic},
};
use core::net::Ipv4Addr;
use std::{collections::BTreeSet, time::Duration};
use vman_model::{
    DiskFormat, DiskId, DiskOptions, ForwardRecord, ImageKind, ImageName, NetworkName, Pool,
    Protocol, RestartMode, RestartPolicy, TapName, TemplateName, TemplateRecord, TokenId,
    TokenName, TokenRecord, TokenScope, UnixMs,
    drift::{FileKind, Room, SeenFile},
    network::LinkState,
    vm::{Command, CommandContext, ExitStatus, NetworkKind, RunState},
};

macro_rules! operations {
    ($($name:ident),* $(,)?) => {
        /// An operation, or something that happens to a VM.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Operation { $($name),* }

        impl Operation {
            pub(super) const ALL: &'static [Operation] = &[$(Operation::$name),*];
        }
    };
}

operations! {
    CreateVm, Start, StopPolitely, StopAfterDeadline, StopByForce, Restart, Pause, Resume, Reset,
    DeleteStopped, DeleteRunning, StartThatFails, StopInBackoff,
    CreateDisk, CloneDisk, AttachToStopped, AttachToRunning, DetachFromStopped,
    DetachFromRunning, ResizeFree, ResizeAttached, LimitDisk, AttachNic, DetachNic, SetLink, DeleteDisk,
    PutImage, DeleteImage, CreateTemplate, DeleteTemplate,
    CreateToken, UseToken, RevokeToken, CreateForward, DeleteForward,
    CreateUserForward, DeleteUserForward,
    GuestPowersOff, QemuIsKilled, TapIsLost, FileIsOrphaned,
}

/// A host with a bridge, where everything that can be held is held.
pub(super) fn host() -> FakeHost {
    bridged(FakeHost::in_step(1))
}

pub(super) fn bridged(host: FakeHost) -> FakeHost {
    let at = |last| Ipv4Addr::new(10, 0, 0, last);
    let pool = Pool::new(at(0), 24, at(1)).expect("a subnet with its first address");
    host.bridge(plain_bridge(pool));
    host
}

pub(super) fn disk(id: &str) -> DiskId {
    DiskId::parse(id).unwrap()
}

pub(super) fn image(name: &str) -> ImageName {
    ImageName::parse(name).unwrap()
}

fn token(name: &str) -> TokenName {
    TokenName::parse(name).unwrap()
}

pub(super) fn new_disk(id: &str, from: Option<&str>) -> NewDisk {
    NewDisk {
        id: Some(disk(id)),
        size_mib: from.is_none().then_some(16),
        format: DiskFormat::Qcow2,
        image: from.map(image),
        wished_letter: None,
        options: DiskOptions::default(),
        origin: origin(),
        idempotency: None,
    }
}

fn context(on: &Handles) -> CommandContext {
    CommandContext {
        operation: on.vms.new_operation_id(),
        origin: origin(),
    }
}

pub(super) async fn command(on: &Handles, id: &str, command: Command) -> bool {
    let request = CommandRequest {
        command,
        context: context(on),
        if_revision: None,
        idempotency: None,
    };
    on.vms.command(&vm(id), request).await.is_ok()
}

pub(super) async fn put_image(on: &Handles, name: &str) -> bool {
    let Ok(mut upload) = on.disks.begin_upload(image(name), ImageKind::Disk).await else {
        return false;
    };
    let bytes = bytes::Bytes::from(vec![0; 4096]);
    upload.write(bytes).await.is_ok() && upload.finish(None, origin(), on.clock.now()).await.is_ok()
}

pub(super) async fn make_token(on: &Handles) -> bool {
    let record = TokenRecord {
        id: TokenId::parse("abcdefghijkl").unwrap(),
        name: token("t"),
        scope: TokenScope::Read,
        hash: [0; 32],
        created_at: on.clock.now(),
        expires_at: None,
        last_used_at: None,
    };
    tokens::create(&on.store, record, origin()).await.is_ok()
}

pub(super) async fn make_template(on: &Handles) -> bool {
    let record = TemplateRecord {
        name: TemplateName::parse("other").unwrap(),
        size: size(),
        created_at: on.clock.now(),
    };
    templates::create(&on.store, record, origin(), None)
        .await
        .is_ok()
}

pub(super) async fn forward(on: &Handles, to: &str) -> bool {
    let new = NewForward {
        vm: vm(to),
        protocol: Protocol::Tcp,
        host_port: 2222,
        guest_port: 22,
        origin: origin(),
        idempotency: None,
    };
    on.network.forward(new).await.is_ok()
}

pub(super) async fn create(on: &Handles, id: &str, restart: RestartPolicy) -> bool {
    let new = NewVm {
        id: Some(vm(id)),
        spec: spec(restart),
        network: NetworkName::default(),
        address: None,
        limits: vman_model::network::NicLimits::default(),
        origin: origin(),
        idempotency: None,
    };
    on.vms.create(new).await.is_ok()
}

pub(super) fn on_failure() -> RestartPolicy {
    let mut policy = RestartPolicy {
        mode: RestartMode::OnFailure,
        ..RestartPolicy::default()
    };
    policy.budget.backoff_ms = 50;
    policy
}

impl Operation {
    /// Where it happens: on a bridge, unless it is about user mode.
    pub(super) fn host(self) -> FakeHost {
        match self {
            Self::CreateUserForward | Self::DeleteUserForward => FakeHost::in_step(1),
            _ => host(),
        }
    }

    /// What is there before. `keeper` runs and is never touched.
    pub(super) async fn given(self, daemon: &Daemon) {
        use Operation as O;
        daemon.running("keeper").await;
        let (on, host) = (daemon.on(), &daemon.host);
        match self {
            O::CreateVm | O::CreateDisk | O::PutImage | O::CreateTemplate | O::CreateToken => {}
            O::Start | O::DeleteStopped | O::CreateForward => drop(daemon.create("a").await),
            O::StopPolitely
            | O::StopByForce
            | O::Restart
            | O::Pause
            | O::Reset
            | O::DeleteRunning
            | O::GuestPowersOff
            | O::TapIsLost
            | O::AttachNic
            | O::SetLink
            | O::CreateUserForward => {
                daemon.running("a").await;
            }
            O::DeleteUserForward => {
                daemon.running("a").await;
                assert!(forward(on, "a").await);
            }
            O::DetachNic => {
                daemon.running("a").await;
                assert!(attach_nic(on, "a").await);
            }
            O::StopAfterDeadline => {
                host.script_vm(&vm("a"), |script| {
                    script.powerdown = Powerdown::Ignored;
                    script.terminate_takes = None;
                });
                daemon.running("a").await;
            }
            O::Resume => {
                let id = daemon.running("a").await;
                daemon.done(&id, Command::Pause).await;
            }
            O::StartThatFails => {
                daemon.create("a").await;
                host.script_vm(&vm("a"), |script| {
                    script.launch = Launch::Fails(LaunchError::Spawn("scripted".to_owned()));
                });
            }
            O::StopInBackoff => {
                let mut policy = on_failure();
                policy.budget.backoff_ms = 3_600_000;
                policy.budget.backoff_max_ms = 3_600_000;
                assert!(create(on, "a", policy).await);
                daemon.done(&vm("a"), Command::Start).await;
                host.die(&vm("a"), ExitStatus::Signal(9), "");
                daemon
                    .until_phase(&vm("a"), vman_model::vm::Phase::Backoff)
                    .await;
            }
            O::QemuIsKilled => {
                assert!(create(on, "a", on_failure()).await);
                daemon.done(&vm("a"), Command::Start).await;
            }
            O::CloneDisk | O::DeleteImage => assert!(put_image(on, "i").await),
            O::ResizeFree | O::DeleteDisk => self.with_disk(daemon).await,
            O::AttachToStopped => {
                daemon.create("a").await;
                self.with_disk(daemon).await;
            }
            O::AttachToRunning => {
                daemon.running("a").await;
                self.with_disk(daemon).await;
            }
            O::DetachFromStopped => {
                let id = daemon.create("a").await;
                self.with_disk(daemon).await;
                daemon.done(&id, attach()).await;
            }
            O::DetachFromRunning | O::ResizeAttached | O::LimitDisk => {
                let id = daemon.running("a").await;
                self.with_disk(daemon).await;
                daemon.done(&id, attach()).await;
            }
            O::DeleteTemplate => assert!(make_template(on).await),
            O::UseToken | O::RevokeToken => assert!(make_token(on).await),
            O::DeleteForward => {
                daemon.create("a").await;
                assert!(forward(on, "a").await);
            }
            O::FileIsOrphaned => host.stray(
                Room::Disks,
                SeenFile {
                    name: "orphan.qcow2".to_owned(),
                    kind: FileKind::File,
                    bytes: 1,
                    age_ms: 1_000_000_000,
                },
            ),
        }
        daemon.pass(Duration::from_millis(200)).await;
    }

    async fn with_disk(self, daemon: &Daemon) {
        let clock = daemon.on().clock.clone();
        let made = daemon
            .on()
            .disks
            .create_disk(new_disk("d", None), clock)
            .await;
        assert_eq!(made, Ok(disk("d")), "{self:?}");
    }

    /// Asks for it, or has it happen; whether that was answered with yes.
    pub(super) async fn ask(self, on: Handles, host: FakeHost) -> bool {
        use Operation as O;
        let now = on.clock.now();
        match self {
            O::CreateVm => create(&on, "a", RestartPolicy::default()).await,
            O::Start | O::StartThatFails => command(&on, "a", Command::Start).await,
            O::StopPolitely | O::StopInBackoff => command(&on, "a", STOP).await,
            O::StopAfterDeadline => {
                let stop = Command::Stop {
                    force: false,
                    timeout_ms: 200,
                };
                command(&on, "a", stop).await
            }
            O::StopByForce => command(&on, "a", STOP_BY_FORCE).await,
            O::Restart => command(&on, "a", RESTART).await,
            O::Pause => command(&on, "a", Command::Pause).await,
            O::Resume => command(&on, "a", Command::Resume).await,
            O::Reset => command(&on, "a", Command::Reset).await,
            O::DeleteStopped | O::DeleteRunning => command(&on, "a", DELETE).await,
            O::CreateDisk => make_disk(&on, None).await,
            O::CloneDisk => make_disk(&on, Some("i")).await,
            O::AttachToStopped | O::AttachToRunning => command(&on, "a", attach()).await,
            O::DetachFromStopped | O::DetachFromRunning => {
                command(&on, "a", Command::DetachDisk(disk("d"))).await
            }
            O::ResizeFree => on
                .disks
                .resize_disk(&disk("d"), 32, origin(), now)
                .await
                .is_ok(),
            O::ResizeAttached => {
                let resize = Command::ResizeDisk {
                    disk: disk("d"),
                    from_mib: 16,
                    size_mib: 32,
                };
                command(&on, "a", resize).await
            }
            O::LimitDisk => {
                let limit = |options: &mut DiskOptions| options.limits.iops = 100;
                let changed = on.disks.change_disk(&disk("d"), limit, origin(), now).await;
                on.vms.limit_disk(&vm("a"), disk("d"));
                changed.is_ok()
            }
            O::AttachNic => attach_nic(&on, "a").await,
            O::DetachNic => command(&on, "a", Command::DetachNic(1)).await,
            O::SetLink => {
                let down = Command::SetLink {
                    nic: 0,
                    link: LinkState::Down,
                };
                command(&on, "a", down).await
            }
            O::DeleteDisk => on.disks.delete_disk(disk("d"), origin(), now).await.is_ok(),
            O::PutImage => put_image(&on, "i").await,
            O::DeleteImage => on
                .disks
                .delete_image(image("i"), origin(), now)
                .await
                .is_ok(),
            O::CreateTemplate => make_template(&on).await,
            O::DeleteTemplate => {
                let name = TemplateName::parse("other").unwrap();
                templates::delete(&on.store, name, origin(), now)
                    .await
                    .is_ok()
            }
            O::CreateToken => make_token(&on).await,
            O::UseToken => {
                let id = TokenId::parse("abcdefghijkl").unwrap();
                tokens::used(&on.store, &id, UnixMs(1)).await.is_ok()
            }
            O::RevokeToken => tokens::revoke(&on.store, token("t"), origin(), now)
                .await
                .is_ok(),
            O::CreateForward | O::CreateUserForward => forward(&on, "a").await,
            O::DeleteForward | O::DeleteUserForward => {
                let id = ForwardRecord::id_of(Protocol::Tcp, 2222);
                on.network.unforward(&id, origin()).await.is_ok()
            }
            O::GuestPowersOff => {
                host.guest(&vm("a"), RunState::Shutdown);
                true
            }
            O::QemuIsKilled => {
                host.die(&vm("a"), ExitStatus::Signal(9), "");
                true
            }
            O::TapIsLost => {
                host.meddle("a TAP is gone", vec![TapName::of(&vm("a"), 0)]);
                true
            }
            O::FileIsOrphaned => on.observer.check().await.is_some(),
        }
    }

    /// Whether a yes means that it is done for good, and not that it was begun.
    pub(super) fn answers_when_done(self) -> bool {
        use Operation as O;
        matches!(
            self,
            O::CreateVm
                | O::CreateDisk
                | O::CloneDisk
                | O::ResizeFree
                | O::DeleteDisk
                | O::PutImage
                | O::DeleteImage
                | O::CreateTemplate
                | O::DeleteTemplate
                | O::CreateToken
                | O::RevokeToken
                | O::CreateForward
                | O::DeleteForward
                | O::CreateUserForward
                | O::DeleteUserForward
        )
    }
}

/// Gives a VM a second card; it needs no third.
pub(super) async fn attach_nic(on: &Handles, id: &str) -> bool {
    let inventory = on.store.inventory();
    let row = inventory.vms.get(&vm(id));
    if row.is_none_or(|row| !row.value.nics.is_empty()) {
        return false;
    }
    let wanted = WantedNic {
        kind: NetworkKind::Bridge,
        network: NetworkName::default(),
        address: None,
        limits: vman_model::network::NicLimits::default(),
        link: LinkState::Up,
        context: context(on),
        idempotency: None,
    };
    on.vms.attach_nic(&vm(id), wanted).await.is_ok()
}

fn attach() -> Command {
    Command::AttachDisk {
        disk: disk("d"),
        letter: None,
    }
}

async fn make_disk(on: &Handles, from: Option<&str>) -> bool {
    let new = new_disk("new", from);
    on.disks.create_disk(new, on.clock.clone()).await.is_ok()
}

/// What a user would say there is: two hosts on which it is the same are the
/// same to him.
pub(super) fn summary(daemon: &Daemon) -> BTreeSet<String> {
    let inventory = daemon.on().store.inventory();
    let mut all = BTreeSet::new();
    for vm in inventory.vms.values().map(|row| &row.value) {
        let disks: Vec<_> = vm.disks.iter().map(|held| &held.disk).collect();
        let nics: Vec<_> = vm.links().collect();
        let plugged = daemon.host.nics_of(&vm.id);
        let ports = daemon.host.ports_of(&vm.id);
        let (id, phase) = (&vm.id, vm.phase);
        all.insert(format!(
            "vm {id} {phase:?} {disks:?} {nics:?} {plugged:?} {ports:?}"
        ));
    }
    for disk in inventory.disks.values().map(|row| &row.value) {
        let (id, size, vm, limit) = (
            &disk.id,
            disk.size_mib,
            &disk.vm_id,
            disk.options.limits.iops,
        );
        all.insert(format!("disk {id} {size} {vm:?} {limit} {:?}", disk.file));
    }
    all.extend(inventory.images.keys().map(|name| format!("image {name}")));
    all.extend(
        inventory
            .templates
            .keys()
            .map(|name| format!("template {name}")),
    );
    let tokens = inventory.tokens.values();
    all.extend(tokens.map(|row| {
        let used = row.value.last_used_at.is_some();
        format!("token {} {used}", row.value.name)
    }));
    all.extend(inventory.forwards.keys().map(|id| format!("forward {id}")));
    all.extend(
        daemon
            .host
            .trash()
            .iter()
            .map(|what| format!("trash {what:?}")),
    );
    all
}
