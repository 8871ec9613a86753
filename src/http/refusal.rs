//! What the actors' errors become in the API. One place, so that the same
//! refusal has the same code wherever it is met.

use super::error::{ApiError, Code};
use vman_actors::{
    disks::{DiskFault, ImageError},
    network::{ForwardError, LeaseError, LimitError, MAX_FORWARDS},
    ports::{FileError, HostError, LoadError, NO_LIMITS},
    power::PowerError,
    store::StoreError,
    templates::TemplateError,
    vm::{CommandError, CreateError, NicError},
};
use vman_model::{Guard, vm::Refusal};

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (code, advice) = match refusal {
            Refusal::AlreadyRunning => (
                Code::AlreadyRunning,
                "the VM runs already or is starting: there is nothing to start; use restart to start it anew",
            ),
            Refusal::NotRunning => (Code::NotRunning, "the VM does not run: start it first"),
            Refusal::BeingStopped => (
                Code::BeingStopped,
                "the VM is being stopped: wait until it is stopped, or stop it with force=true",
            ),
            Refusal::AlreadyPaused => (
                Code::AlreadyPaused,
                "the VM is paused already: resume lets it go on",
            ),
            Refusal::NotPaused => (
                Code::NotPaused,
                "the VM is not paused: there is nothing to resume",
            ),
            Refusal::BeingDeleted => (
                Code::BeingDeleted,
                "the VM is being deleted: it takes no more commands",
            ),
            Refusal::OperationInProgress => (
                Code::OperationInProgress,
                "another operation on the VM is under way: wait for it and try again",
            ),
            Refusal::Recovering => (
                Code::Recovering,
                "the daemon has just started and is looking for the VM's QEMU: try again in a moment",
            ),
            Refusal::NoFreeSlot => (
                Code::NoFreeDiskSlot,
                "all slots of the VM for disks are taken: detach a disk first",
            ),
            Refusal::DiskAttached => (Code::DiskAttached, "the disk is attached to the VM already"),
            Refusal::DiskNotAttached => (
                Code::DiskNotAttached,
                "the disk is not attached to the VM: there is nothing to do",
            ),
            Refusal::RootDisk => (
                Code::DiskIsRoot,
                "the disk is the VM's root disk: it goes with the VM (DELETE with keep_root_disk=true spares it)",
            ),
            Refusal::NoFreeNicSlot => (
                Code::NoFreeNicSlot,
                "all slots of the VM for network cards are taken: detach a card first",
            ),
            Refusal::NicNotAttached => (
                Code::NicNotAttached,
                "the VM has no such network card: GET /vms/{id}/nics lists those it has",
            ),
            Refusal::FirstNic => (
                Code::NicIsFirst,
                "the network card is the VM's first, which stays: PATCH its link to down to cut it off",
            ),
        };
        let error = ApiError::new(code, advice);
        if refusal == Refusal::Recovering {
            return error.retry_after(1);
        }
        error
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSpace => ApiError::new(
                Code::StorageFull,
                "the storage is full, nothing was changed: free space under the storage path and try again",
            ),
            StoreError::ReadOnly => ApiError::new(
                Code::StorageReadOnly,
                "the storage is read-only, nothing was changed: remount it writable and try again",
            ),
            StoreError::Busy => ApiError::new(
                Code::Overloaded,
                "too many changes wait to be written, nothing was changed: try again in a moment",
            ),
            StoreError::Unavailable => ApiError::new(
                Code::Unavailable,
                "the store is being restarted, nothing was changed: try again in a moment",
            ),
            StoreError::Refused(why) => ApiError::new(
                Code::HostFailed,
                format!("the store refused the change, nothing was changed: {why}"),
            ),
            StoreError::Unknown(_) => outcome_unknown(),
            StoreError::Conflict(guard) => ApiError::new(
                Code::Unavailable,
                format!("it changed at the same moment ({guard:?}), nothing was done: try again"),
            ),
        }
    }
}

fn outcome_unknown() -> ApiError {
    ApiError::new(
        Code::OutcomeUnknown,
        "it is unknown whether this was carried out: look with GET, or repeat it with the same Idempotency-Key",
    )
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Refused(refusal) => refusal.into(),
            CommandError::NotFound => ApiError::new(Code::NotFound, "there is no such VM"),
            CommandError::Stale => stale("VM"),
            CommandError::KeyInUse => key_in_flight(),
            CommandError::DiskTaken(id) => ApiError::new(
                Code::DiskBusy,
                format!("disk {id} was taken or deleted at the same moment, nothing was done: GET it and decide anew"),
            )
            .disk(id),
            CommandError::HostDraining => ApiError::new(
                Code::HostDraining,
                "VMs are not started because the host is to go down: POST /host/actions/resume if it stays up",
            ),
            CommandError::AddressTaken => ApiError::new(
                Code::AddressInUse,
                "every address that was chosen was taken at the same moment, nothing was done: try again",
            ),
            CommandError::TooMany => ApiError::new(
                Code::TooManyCommands,
                "too many commands wait for this VM, this one was not taken: try again in a moment",
            ),
            CommandError::Quarantined => ApiError::new(
                Code::VmQuarantined,
                "the VM's actor failed too often and is left alone for a while, its guest runs on: \
                 the daemon's log says why",
            )
            .retry_after(30),
            CommandError::Unavailable | CommandError::Retired => ApiError::new(
                Code::Unavailable,
                "the VM's actor is being restarted, the command was not taken: try again in a moment",
            ),
            CommandError::NoRoom(sum) => ApiError::new(
                Code::HostExhausted,
                format!(
                    "the host has no room for this VM: {sum}. Stop another VM, make this one smaller, \
                     or raise VMAN_MEMORY_OVERCOMMIT or VMAN_CPU_OVERCOMMIT"
                ),
            ),
            CommandError::Store(error) => error.into(),
            CommandError::Unknown => outcome_unknown(),
        }
    }
}

/// It has changed since the revision that the client named.
pub(crate) fn stale(what: &str) -> ApiError {
    let detail = format!(
        "the {what} has changed since the revision in If-Match: GET it again and decide anew"
    );
    ApiError::new(Code::Stale, detail)
}

/// The same key came twice at once.
pub(crate) fn key_in_flight() -> ApiError {
    ApiError::new(
        Code::KeyInFlight,
        "a request with this Idempotency-Key is under way: repeat it in a moment",
    )
    .retry_after(1)
}

impl From<PowerError> for ApiError {
    fn from(error: PowerError) -> Self {
        match error {
            PowerError::NotDrained => ApiError::new(
                Code::HostNotDrained,
                "the host is not drained: there is nothing to resume",
            ),
            PowerError::Draining => ApiError::new(
                Code::HostDraining,
                "VMs are still being stopped: wait for the drain's operation, then resume",
            ),
            PowerError::KeyInUse => key_in_flight(),
            PowerError::Unavailable => ApiError::new(
                Code::Unavailable,
                "the part that drains is being restarted: try again in a moment",
            ),
            PowerError::Store(error) => error.into(),
        }
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Exists(id) => ApiError::new(
                Code::VmExists,
                format!("a VM named {id} exists: choose another name, or delete it first"),
            )
            .vm(id),
            CreateError::DiskExists(id) => ApiError::new(
                Code::DiskExists,
                format!("a disk named {id} exists, which is the name of the root disk: choose another name"),
            )
            .disk(id),
            CreateError::NoTemplate(name) => unknown_template(name),
            CreateError::NoImage { field, kind, name } => ApiError::field(
                field,
                format!("there is no {kind} image named {name}: upload it with PUT /images/{name}"),
            ),
            CreateError::DiskTooSmall {
                disk_mib,
                name,
                image_mib,
            } => ApiError::field(
                "disk_gib",
                format!("{disk_mib} MiB is smaller than the image {name} of {image_mib} MiB"),
            ),
            CreateError::TooMany(limit) => ApiError::new(
                Code::VmLimitReached,
                format!("there are {limit} VMs, the configured limit: delete one, or raise VMAN_MAX_VMS"),
            ),
            CreateError::Address(error) => error.into(),
            CreateError::KeyInUse => key_in_flight(),
            CreateError::Store(error) => error.into(),
        }
    }
}

fn no_limits() -> ApiError {
    ApiError::field("limits", format!("{NO_LIMITS}; leave them out"))
}

impl From<LimitError> for ApiError {
    fn from(error: LimitError) -> Self {
        match error {
            LimitError::NotBridged(..) => no_limits(),
            LimitError::Store(error) => error.into(),
        }
    }
}

impl From<NicError> for ApiError {
    fn from(error: NicError) -> Self {
        match error {
            NicError::Address(error) => error.into(),
            NicError::Command(error) => error.into(),
        }
    }
}

impl From<LeaseError> for ApiError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Exhausted(size) => ApiError::new(
                Code::AddressesExhausted,
                format!(
                    "all {size} addresses of the network are held: delete a VM, or configure a larger subnet"
                ),
            ),
            LeaseError::Outside(address) => ApiError::field(
                "address",
                format!("{address} is not an address that guests of this network can have"),
            ),
            LeaseError::NoLimits => no_limits(),
            LeaseError::NotOurs => ApiError::field(
                "address",
                "VMs are not connected to a bridge here, so this host gives no addresses: leave it out",
            ),
            LeaseError::NoNetwork(name, known) => {
                let detail = format!("there is no network named {name}: there is {known}");
                ApiError::new(Code::UnknownNetwork, detail).of_field("network")
            }
            LeaseError::Taken(address, vm) => ApiError::new(
                Code::AddressInUse,
                format!("{address} is held by VM {vm}: choose another, or leave it out"),
            )
            .vm(vm),
        }
    }
}

impl From<ForwardError> for ApiError {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::NoNetwork => ApiError::new(
                Code::NoNetwork,
                "VMs have no network on this host (VMAN_NETWORK_MODE=none), so no port can lead into one",
            ),
            ForwardError::NoVm(id) => {
                ApiError::field("vm_id", format!("there is no VM named {id}")).vm(id)
            }
            ForwardError::Exists(id) => ApiError::new(
                Code::ForwardExists,
                format!(
                    "{id} of the host leads into a VM already: DELETE /network/forwards/{id} first"
                ),
            ),
            ForwardError::NotFound(id) => {
                ApiError::new(Code::NotFound, format!("there is no forward named {id}"))
            }
            ForwardError::TooMany => ApiError::new(
                Code::ForwardExists,
                format!("there are {MAX_FORWARDS} forwards, which is the limit: delete one"),
            ),
            ForwardError::KeyInUse => key_in_flight(),
            ForwardError::Store(error) => error.into(),
        }
    }
}

/// The original answers 400 for it.
pub(crate) fn unknown_template(name: impl std::fmt::Display) -> ApiError {
    let detail = format!(
        "there is no template named {name}: GET /templates lists them, POST /templates makes one"
    );
    ApiError::new(Code::UnknownTemplate, detail).of_field("template_name")
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        match error {
            TemplateError::Exists(name) => ApiError::new(
                Code::TemplateExists,
                format!("a template named {name} exists: choose another name, or delete it first"),
            ),
            TemplateError::NoImage(name) => ApiError::field(
                "image",
                format!("there is no image named {name}: upload it with PUT /images/{name}"),
            ),
            TemplateError::NotFound(name) => {
                ApiError::new(Code::NotFound, format!("there is no template named {name}"))
            }
            TemplateError::InUse { .. } => {
                ApiError::new(Code::TemplateInUse, format!("{error}: delete them first"))
            }
            TemplateError::KeyInUse => key_in_flight(),
            TemplateError::Store(error) => error.into(),
        }
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::File(error) => error.into(),
            ImageError::Store(StoreError::Conflict(Guard::ImageAbsent(name))) => {
                ImageError::Exists(name).into()
            }
            ImageError::Store(error) => error.into(),
            ImageError::Exists(_) => ApiError::new(Code::ImageExists, error.to_string()),
            ImageError::BeingUploaded(_) => ApiError::new(
                Code::ImageBeingUploaded,
                format!("{error}: wait for it, or choose another name"),
            ),
            ImageError::NotFound(_) => ApiError::new(Code::NotFound, error.to_string()),
            ImageError::InUse { .. } => ApiError::new(
                Code::ImageInUse,
                format!("{error}: delete what uses it first"),
            ),
        }
    }
}

impl From<DiskFault> for ApiError {
    fn from(fault: DiskFault) -> Self {
        match fault {
            DiskFault::Exists(id) => ApiError::new(
                Code::DiskExists,
                format!("a disk named {id} exists: choose another name, or delete it first"),
            )
            .disk(id),
            DiskFault::NotFound(id) => {
                ApiError::new(Code::NotFound, format!("there is no disk named {id}")).disk(id)
            }
            DiskFault::Attached { disk, vm } => ApiError::new(
                Code::DiskAttached,
                format!("disk {disk} is attached to VM {vm}: detach it first"),
            )
            .disk(disk)
            .vm(vm),
            DiskFault::Busy(id) => ApiError::new(
                Code::DiskBusy,
                format!("disk {id} is being made, deleted or changed: try again in a moment"),
            )
            .disk(id),
            DiskFault::NoImage(name) => ApiError::field(
                "image",
                format!(
                    "there is no disk image named {name}: upload it with PUT /images/{name}?kind=disk"
                ),
            ),
            DiskFault::NoSize => ApiError::field("size", "is required where no image is given"),
            DiskFault::TooSmall { .. } => {
                ApiError::field("size", format!("{fault}: disks only grow"))
            }
            DiskFault::KeyInUse => key_in_flight(),
            DiskFault::File(FileError::Refused(why)) => ApiError::field("image", why),
            DiskFault::File(error) => error.into(),
            DiskFault::Store(error) => error.into(),
        }
    }
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::NoSpace { .. } => ApiError::new(
                Code::StorageFull,
                format!("{error}: nothing was kept; free space and try again"),
            ),
            FileError::Refused(why) => ApiError::new(Code::ImageRefused, why),
            FileError::TooLarge { limit } => too_large(limit),
            FileError::Checksum { .. } => ApiError::new(
                Code::ChecksumMismatch,
                format!("{error}; nothing was kept: upload it again"),
            ),
            FileError::NoTool(_) | FileError::Io { .. } => {
                ApiError::new(Code::HostFailed, error.to_string())
            }
        }
    }
}

/// The body is larger than this path takes.
pub(crate) fn too_large(limit: u64) -> ApiError {
    let detail = format!("the body is larger than the limit of {limit} bytes; nothing was kept");
    ApiError::new(Code::TooLarge, detail)
}

impl From<HostError> for ApiError {
    fn from(error: HostError) -> Self {
        ApiError::new(Code::HostFailed, error.to_string())
    }
}

impl From<LoadError> for ApiError {
    fn from(error: LoadError) -> Self {
        ApiError::new(Code::HostFailed, error.to_string())
    }
}
