//! VMs in the API.

use super::{
    Mac, Shown, Time,
    limits::{LimitsBody, read_limits},
    power::{DependencyBody, NewDependency, StartFields, check_start, dependencies},
    size::{BootBody, SizeFields, gib},
};
use crate::http::{
    error::ApiError, extract::Post, fields::Fields, refusal::unknown_template, state::HttpState,
};
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;
use vman_actors::{
    ports::NetworkFacts,
    store::{Inventory, Versioned},
    vm::NewVm,
};
use vman_model::{
    ImageName, RestartBudget, RestartMode, RestartPolicy, TemplateName, VmUuid,
    power::StartSpec,
    restart::MAX_RESTARTS,
    vm::{
        Firmware, IoErrorPolicy, NetworkKind, Resources, VmRecord, VmSize, VmSpec,
        spec::{MAX_CPU_QUOTA, MAX_WEIGHT},
    },
};

/// The longest window of a restart budget, in seconds (30 days).
const MAX_WINDOW_S: u32 = 30 * 24 * 3_600;
/// The longest delay before a restart, in milliseconds (an hour).
const MAX_BACKOFF_MS: u32 = 3_600_000;

/// The size a VM has, under its template's name.
#[derive(Serialize, ToSchema)]
#[schema(as = VmTemplate)]
pub(crate) struct VmTemplateBody<'a> {
    /// The template it was made from.
    name: &'a str,
    /// Virtual CPUs.
    cpu_count: u32,
    /// Memory in GiB, rounded up.
    ram_amount: u64,
    /// Memory in MiB.
    ram_mib: u64,
}

/// When a VM is started again by itself.
#[derive(Serialize, ToSchema)]
#[schema(as = Restart)]
pub(crate) struct RestartBody {
    /// `never`, `on-failure` or `always`.
    policy: &'static str,
    /// Restarts within the window before the VM is given up.
    max_restarts: u32,
    /// The window, in seconds.
    window_s: u32,
    /// The first delay, in milliseconds; it doubles.
    backoff_ms: u32,
    /// The longest delay, in milliseconds.
    backoff_max_ms: u32,
    /// Restarts that count against the budget now.
    count: usize,
    /// All restarts by policy since the VM was made.
    total: u64,
}

/// A disk of a VM.
#[derive(Serialize, ToSchema)]
#[schema(as = VmDisk)]
pub(crate) struct VmDiskBody<'a> {
    /// The disk.
    id: &'a str,
    /// The device name the guest has for it; none where it has let go of it.
    mount_point: Option<String>,
}

/// A VM.
#[derive(Serialize, ToSchema)]
#[schema(as = Vm)]
pub(crate) struct VmBody<'a> {
    /// Its id: the name its user gave it, or a generated one.
    id: &'a str,
    /// The UUID its QEMU carries.
    #[schema(value_type = String)]
    uuid: Shown<VmUuid>,
    /// Its size and the template it came from.
    vm_template: VmTemplateBody<'a>,
    /// `stopped`, `starting`, `running`, `paused`, `stopping` or `error`.
    state: &'static str,
    /// Why it is in this state, in a stable word.
    reason: &'static str,
    /// The same in a sentence.
    detail: &'a str,
    /// Where it is, more finely than `state`.
    phase: &'static str,
    /// When it came there.
    #[schema(value_type = String, format = DateTime)]
    phase_since: Time,
    /// What the user wants: `running`, `stopped` or `deleted`.
    desired: &'static str,
    /// Whether QMP does not answer although the process lives.
    unresponsive: bool,
    /// The address of its guest, where it is known; on a bridge it is kept while the VM is stopped.
    local_ip: Option<String>,
    /// Its IPv6 address beside that; none where its network has no IPv6.
    local_ip6: Option<String>,
    /// The network its first card is connected to.
    network: &'a str,
    /// Its MAC address.
    #[schema(value_type = String)]
    mac: Shown<Mac>,
    /// How it is connected while it runs: `bridge`, `user` or `none`.
    network_mode: Option<&'static str>,
    /// Why it is not on a bridge although one was welcome.
    network_reason: Option<&'a str>,
    /// The present or last life of its QEMU; 0 if it was never started.
    incarnation: u64,
    /// What confines its QEMU (`own_user`, `landlock`); empty while it has none.
    confinement: Vec<&'static str>,
    /// The process id of its QEMU.
    pid: Option<u32>,
    /// Since when its guest runs.
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Time>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// `bios` or `uefi`.
    firmware: &'static str,
    /// The disk image its root disk is a clone of.
    image: Option<&'a str>,
    /// Direct kernel boot.
    boot: Option<BootBody<'a>>,
    /// Its disks, the root disk first.
    disks: Vec<VmDiskBody<'a>>,
    /// When it is started again by itself.
    restart: RestartBody,
    /// What follows when its storage is full: `resume` or `hold`.
    io_error: &'static str,
    /// Its share of the processors where they are short; none: 100 for each of its CPUs.
    cpu_weight: Option<u16>,
    /// Processor time at most, in percent of one processor; none: no limit.
    cpu_quota: Option<u32>,
    /// Its share of the disks where they are short; none: what others have.
    io_weight: Option<u16>,
    /// Whether it is started when the host was booted.
    autostart: bool,
    /// VMs of a higher priority are started first and stopped last.
    priority: u32,
    /// The VMs it waits for when it is started with the host.
    depends_on: Vec<DependencyBody<'a>>,
    /// Labels, for the user's own use.
    labels: &'a BTreeMap<String, String>,
    /// The operation under way.
    operation: Option<&'a str>,
    /// The revision of its last change, as in `ETag`.
    revision: u64,
}

impl<'a> VmBody<'a> {
    pub(crate) fn of(
        row: &'a Versioned<VmRecord>,
        inventory: &Inventory,
        facts: &'a NetworkFacts,
    ) -> Self {
        let vm = &row.value;
        let size = &vm.spec.size;
        let nic = vm.claim.as_ref().and_then(|claim| claim.nics.first());
        let operation = vm.operations.last();
        Self {
            id: vm.id.as_str(),
            uuid: Shown(vm.uuid),
            vm_template: VmTemplateBody {
                name: vm.spec.template.as_str(),
                cpu_count: size.cpu_count,
                ram_amount: gib(size.ram_mib),
                ram_mib: size.ram_mib,
            },
            state: vm.state().as_str(),
            reason: vm.reason.as_str(),
            detail: &vm.detail,
            phase: vm.phase.as_str(),
            phase_since: Time(vm.phase_since),
            desired: vm.desired.as_str(),
            unresponsive: vm.unresponsive,
            local_ip: local_ip(vm, inventory),
            local_ip6: inventory
                .lease_of(&vm.id, 0)
                .and_then(|lease| facts.address6(&lease.value))
                .map(|address| address.to_string()),
            network: vm.network.as_str(),
            mac: Shown(Mac(vm.mac)),
            network_mode: nic.map(|nic| nic.kind.as_str()),
            network_reason: nic.and_then(|nic| network_reason(nic.kind, facts)),
            incarnation: vm.incarnation.0,
            confinement: confinement(vm),
            pid: vm.process.as_ref().map(|process| process.pid),
            started_at: vm.started_at.map(Time),
            created_at: Time(vm.created_at),
            firmware: size.firmware.as_str(),
            image: size.image.as_ref().map(ImageName::as_str),
            boot: size.boot.as_ref().map(BootBody::of),
            disks: disks(vm),
            restart: restart(vm),
            io_error: vm.spec.io_error.as_str(),
            cpu_weight: vm.spec.resources.cpu_weight,
            cpu_quota: vm.spec.resources.cpu_quota,
            io_weight: vm.spec.resources.io_weight,
            autostart: vm.spec.start.autostart,
            priority: vm.spec.start.priority,
            depends_on: dependencies(&vm.spec.start),
            labels: &size.labels,
            operation: operation.map(|operation| operation.id.as_str()),
            revision: row.revision.0,
        }
    }
}

/// A VM's JSON, written once for each revision of it.
pub(crate) fn vm_json(
    state: &HttpState,
    inventory: &Inventory,
    row: &Versioned<VmRecord>,
) -> serde_json::Result<Bytes> {
    // Its lease is a row of its own. How VMs are connected stays as it is while the
    // daemon lives.
    let lease = inventory.lease_of(&row.value.id, 0);
    let besides = lease.map(|lease| lease.revision).unwrap_or_default();
    row.memo.get(besides, || {
        let facts = state.handles().network.facts();
        let body = serde_json::to_vec(&VmBody::of(row, inventory, &facts))?;
        // Without the room that it grew into: it is kept.
        Ok(Bytes::from(body.into_boxed_slice()))
    })
}

fn local_ip(vm: &VmRecord, inventory: &Inventory) -> Option<String> {
    let nic = vm.claim.as_ref().and_then(|claim| claim.nics.first());
    let lease = || inventory.lease_of(&vm.id, 0);
    nic.and_then(|nic| nic.address.clone())
        .or_else(|| lease().map(|lease| lease.value.address.to_string()))
}

fn network_reason(kind: NetworkKind, facts: &NetworkFacts) -> Option<&str> {
    let reason = facts.reason.as_deref();
    reason.filter(|_| kind == NetworkKind::User)
}

fn disks(vm: &VmRecord) -> Vec<VmDiskBody<'_>> {
    let root = vm.root_disk.iter().map(|id| VmDiskBody {
        id: id.as_str(),
        mount_point: Some(super::disk::mount_point(b'a')),
    });
    let data = vm.disks.iter().map(|held| VmDiskBody {
        id: held.disk.as_str(),
        mount_point: super::disk::name_of(held),
    });
    root.chain(data).collect()
}

fn confinement(vm: &VmRecord) -> Vec<&'static str> {
    let claim = vm.claim.iter();
    let measures = claim.flat_map(|claim| &claim.confinement.measures);
    measures.map(|measure| measure.as_str()).collect()
}

fn restart(vm: &VmRecord) -> RestartBody {
    let RestartPolicy { mode, budget } = vm.spec.restart;
    RestartBody {
        policy: mode.as_str(),
        max_restarts: budget.max_restarts,
        window_s: budget.window_s,
        backoff_ms: budget.backoff_ms,
        backoff_max_ms: budget.backoff_max_ms,
        count: vm.restarts.recent.len(),
        total: vm.restarts.total,
    }
}

/// When a VM is to be started again by itself.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "its fields are the document; `read_restart` reads them one by one"
)]
pub(crate) struct NewRestart {
    /// `never` (the default), `on-failure` or `always`.
    policy: Option<String>,
    /// Restarts within the window before the VM is given up; 5 by default.
    #[schema(minimum = 0, maximum = 100)]
    max_restarts: Option<u32>,
    /// The window in seconds; 600 by default.
    #[schema(minimum = 1, maximum = 2_592_000)]
    window_s: Option<u32>,
    /// The first delay in milliseconds; 1000 by default.
    #[schema(minimum = 0, maximum = 3_600_000)]
    backoff_ms: Option<u32>,
    /// The longest delay in milliseconds; 60000 by default.
    #[schema(minimum = 0, maximum = 3_600_000)]
    backoff_max_ms: Option<u32>,
}

/// A VM to be made. What is not said is taken from the template.
#[derive(ToSchema)]
#[schema(as = NewVm)]
#[allow(
    dead_code,
    reason = "its fields are the document; `read_vm` reads them one by one"
)]
pub(crate) struct NewVmBody {
    /// The template it is made from.
    template_name: String,
    /// Its id; generated if it is not given.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    name: Option<String>,
    /// Virtual CPUs.
    #[schema(minimum = 1, maximum = 255)]
    cpu_count: Option<u32>,
    /// Memory in GiB.
    #[schema(minimum = 1, maximum = 16384)]
    ram_amount: Option<u64>,
    /// Memory in MiB, instead of `ram_amount`.
    #[schema(minimum = 1, maximum = 16_777_216)]
    ram_mib: Option<u64>,
    /// The disk image its root disk is a clone of.
    image: Option<String>,
    /// Direct kernel boot.
    #[schema(value_type = Option<BootBody<'static>>)]
    boot: (),
    /// `bios` or `uefi`.
    firmware: Option<String>,
    /// The size of the root disk in GiB; the image's own size by default.
    #[schema(minimum = 1, maximum = 65536)]
    disk_gib: Option<u64>,
    /// Labels: at most 64, values of at most 255 bytes. They replace the template's.
    labels: Option<BTreeMap<String, String>>,
    /// The network its first card is connected to; `default` by default.
    network: Option<String>,
    /// The IPv4 address it shall have, one of the network's subnet; one is chosen by default.
    #[schema(format = Ipv4)]
    address: Option<String>,
    /// How fast its first network card may be; without limits by default. Only on a bridge.
    limits: Option<LimitsBody>,
    /// When it is started again by itself.
    restart: Option<NewRestart>,
    /// What follows when its storage is full: `resume` (the default) as soon as there is space
    /// again, or `hold`.
    io_error: Option<String>,
    /// Its share of the processors where they are short; 100 for each of its CPUs by default.
    #[schema(minimum = 1, maximum = 10_000)]
    cpu_weight: Option<u16>,
    /// Processor time at most, in percent of one processor (150: one and a half); no limit by
    /// default.
    #[schema(minimum = 1, maximum = 100_000)]
    cpu_quota: Option<u32>,
    /// Its share of the disks where they are short, where the host can; 100 by default.
    #[schema(minimum = 1, maximum = 10_000)]
    io_weight: Option<u16>,
    /// Whether it is started when the host was booted; false by default.
    autostart: Option<bool>,
    /// VMs of a higher priority are started first and stopped last; 0 by default.
    #[schema(minimum = 0, maximum = 1000)]
    priority: Option<u32>,
    /// The VMs it waits for when it is started with the host; at most 16.
    #[schema(max_items = 16)]
    depends_on: Option<Vec<NewDependency>>,
}

/// Reads a [`NewVmBody`].
pub(crate) fn read_vm(state: &HttpState, post: &mut Post) -> Result<NewVm, ApiError> {
    let origin = post.caller.origin();
    let mut fields = post.fields();
    fields.require("template_name");
    let template: Option<TemplateName> = fields.name("template_name");
    let id = fields.name("name");
    let said = SizeFields::read(&mut fields);
    said.check_images(state, &mut fields);
    let network = fields.name("network");
    let address = fields.address("address");
    let limits = read_limits(&mut fields);
    let restart = fields.object("restart", |fields| Some(read_restart(fields)));
    let policies = [IoErrorPolicy::Resume, IoErrorPolicy::Hold];
    let io_error = fields.word(
        "io_error",
        &policies.map(|policy| (policy.as_str(), policy)),
    );
    let resources = read_resources(&mut fields);
    let start = StartFields::read(&mut fields).over(&StartSpec::default());
    let known = template.map(|name| {
        let row = state.inventory().templates.get(&name).cloned();
        row.ok_or_else(|| unknown_template(name))
    });
    let size = match &known {
        Some(Ok(row)) => Some(with_default_boot(state, said.over(&row.value.size))),
        Some(Err(_)) | None => None,
    };
    if let Some(size) = &size {
        check_boots(size, &mut fields);
    }
    fields.finish()?;
    let (Some(template), Some(size)) = (known.transpose()?, size) else {
        return Err(ApiError::field("template_name", "is required"));
    };
    check_start(state, id.as_ref(), &start)?;
    Ok(NewVm {
        id,
        spec: VmSpec {
            template: template.value.name.clone(),
            size,
            restart: restart.unwrap_or_default(),
            io_error: io_error.unwrap_or_default(),
            start,
            resources,
        },
        network: network.unwrap_or_default(),
        address,
        limits: limits.unwrap_or_default(),
        origin,
        idempotency: None,
    })
}

/// `VMAN_DEFAULT_BOOT_DISK`, when nothing else is said.
fn with_default_boot(state: &HttpState, mut size: VmSize) -> VmSize {
    let says_nothing = size.image.is_none() && size.boot.is_none() && size.disk_mib.is_none();
    if says_nothing {
        size.image.clone_from(&state.settings.default_boot_disk);
    }
    size
}

fn check_boots(size: &VmSize, fields: &mut Fields) {
    if size.firmware == Firmware::Uefi && size.image.is_none() && size.boot.is_none() {
        fields.wrong(
            "firmware",
            "uefi needs something to boot: give image or boot",
        );
    }
}

fn read_resources(fields: &mut Fields) -> Resources {
    let mut weight = |name: &str| {
        let said = fields.whole_u32(name, 1..=MAX_WEIGHT.into());
        said.and_then(|weight| u16::try_from(weight).ok())
    };
    Resources {
        cpu_weight: weight("cpu_weight"),
        io_weight: weight("io_weight"),
        cpu_quota: fields.whole_u32("cpu_quota", 1..=MAX_CPU_QUOTA),
    }
}

fn read_restart(fields: &mut Fields) -> RestartPolicy {
    let modes = [
        RestartMode::Never,
        RestartMode::OnFailure,
        RestartMode::Always,
    ];
    let words = modes.map(|mode| (mode.as_str(), mode));
    let default = RestartBudget::default();
    let mode = fields.word("policy", &words).unwrap_or_default();
    let mut number = |name: &str, low: u32, high: u32, default: u32| {
        fields.whole_u32(name, low..=high).unwrap_or(default)
    };
    let budget = RestartBudget {
        max_restarts: number("max_restarts", 0, MAX_RESTARTS, default.max_restarts),
        window_s: number("window_s", 1, MAX_WINDOW_S, default.window_s),
        backoff_ms: number("backoff_ms", 0, MAX_BACKOFF_MS, default.backoff_ms),
        backoff_max_ms: number("backoff_max_ms", 0, MAX_BACKOFF_MS, default.backoff_max_ms),
    };
    RestartPolicy { mode, budget }
}
