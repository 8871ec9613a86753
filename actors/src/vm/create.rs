//! Making a VM: one commit of its record and its root disk's. Files come at its
//! first start, so that a VM that was answered is only rows, and a VM that was
//! not leaves nothing.

use super::handle::VmsHandle;
use crate::{
    network::{
        LeaseError,
        leases::{self, Card, MAX_CHOICES},
    },
    ports::Clock,
    store::StoreError,
};
use core::net::Ipv4Addr;
use std::fmt::Write as _;
use vman_model::{
    Cause, Change, DiskFile, DiskFormat, DiskId, DiskOptions, DiskRecord, EventDraft, EventKind,
    Guard, IdempotencyRecord, ImageKind, ImageName, Incarnation, LeaseRecord, NetworkName,
    OperationId, Origin, Subject, VmId, VmUuid, Write,
    change::IdempotentAnswer,
    network::{LinkState, NicLimits, mac_address},
    restart::RestartHistory,
    vm::{Desired, Phase, Reason, VmRecord, VmSpec},
};

/// What a VM is made from.
#[derive(Clone, Debug)]
pub struct NewVm {
    /// Its id; generated if it is not given.
    pub id: Option<VmId>,
    /// What it shall be: its template's values and what the request overrides.
    pub spec: VmSpec,
    /// The network its first card is connected to.
    pub network: NetworkName,
    /// The address it shall have; one is chosen if it is not said.
    pub address: Option<Ipv4Addr>,
    /// How fast its first network card may be.
    pub limits: NicLimits,
    /// Who asks.
    pub origin: Origin,
    /// The client's key with the fingerprint of its request.
    pub idempotency: Option<(vman_model::IdempotencyKey, [u8; 32])>,
}

/// Why a VM was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The name is taken.
    #[error("a VM named {0} exists")]
    Exists(VmId),
    /// The id of its root disk is taken by another disk.
    #[error("a disk named {0} exists")]
    DiskExists(DiskId),
    /// Its template was deleted meanwhile.
    #[error("no template named {0}")]
    NoTemplate(vman_model::TemplateName),
    /// An image it names is not there or of another kind.
    #[error("{field}: no {kind} image named {name}")]
    NoImage {
        /// The field that names it.
        field: &'static str,
        /// The kind it must be.
        kind: &'static str,
        /// Its name.
        name: ImageName,
    },
    /// The root disk is smaller than the image it is a clone of.
    #[error(
        "disk_gib: the root disk of {disk_mib} MiB is smaller than its image {name} of {image_mib} MiB"
    )]
    DiskTooSmall {
        /// The size asked for.
        disk_mib: u64,
        /// The image.
        name: ImageName,
        /// Its size, rounded up.
        image_mib: u64,
    },
    /// There are as many VMs as the configuration allows.
    #[error("there are {0} VMs already, which is the configured limit (VMAN_MAX_VMS)")]
    TooMany(usize),
    /// It was given no address.
    #[error(transparent)]
    Address(#[from] LeaseError),
    /// The idempotency key was used meanwhile.
    #[error("the idempotency key was used meanwhile")]
    KeyInUse,
    /// The store.
    #[error(transparent)]
    Store(StoreError),
}

const MIB: u64 = 1 << 20;
/// How many MAC addresses are tried: with a million VMs each is taken with a chance of 1 in 4000.
const MAX_MACS: u32 = 64;

impl VmsHandle {
    /// Makes a VM. `Ok` means that it is durable.
    pub async fn create(&self, new: NewVm) -> Result<VmId, CreateError> {
        let uuid = VmUuid::from_random(self.clock.random());
        let id = new.id.clone().unwrap_or_else(|| generated_id(uuid));
        for _ in 0..MAX_CHOICES {
            let change = self.creation(&id, uuid, &new)?;
            match self.store.commit(change).await {
                Ok(_) => return Ok(id),
                // Two VMs chose one address or MAC at the same moment: choose again.
                Err(StoreError::Conflict(Guard::AddressFree(_) | Guard::MacFree(_))) => {}
                Err(error) => return Err(refused(error)),
            }
        }
        Err(CreateError::Store(StoreError::Busy))
    }

    /// All that is committed together when a VM is made.
    fn creation(&self, id: &VmId, uuid: VmUuid, new: &NewVm) -> Result<Change, CreateError> {
        let disk = self.root_disk(id, &new.spec)?;
        let images = self.check_images(&new.spec)?;
        let mut record = self.record(id, uuid, new.spec.clone(), disk.as_ref());
        record.network = new.network.clone();
        let mut change = Change {
            guards: vec![
                Guard::VmAbsent(id.clone()),
                Guard::TemplatePresent(record.spec.template.clone()),
                Guard::VmsBelow(self.max_vms),
                Guard::MacFree(record.mac),
            ],
            writes: Vec::new(),
            event: Some(self.event(id, new.spec.size.ram_mib, new.origin.clone())),
        };
        change
            .guards
            .extend(images.into_iter().map(Guard::ImagePresent));
        if let Some(lease) = self.lease(&record, new)? {
            change.guards.push(Guard::AddressFree(lease.id.clone()));
            change.writes.push(Write::PutLease(lease));
        }
        if let Some(disk) = disk {
            change.guards.push(Guard::DiskAbsent(disk.id.clone()));
            change.writes.push(Write::PutDisk(disk));
        }
        if let Some((key, fingerprint)) = new.idempotency.clone() {
            change.guards.push(Guard::KeyUnused(key.clone()));
            change.writes.push(Write::PutIdempotency(IdempotencyRecord {
                key,
                fingerprint,
                answer: IdempotentAnswer::Vm(id.clone()),
                created_at: self.clock.now(),
            }));
        }
        change.writes.push(Write::PutVm(Box::new(record)));
        Ok(change)
    }

    /// The address it will hold until it is deleted, where addresses are ours to give.
    fn lease(&self, record: &VmRecord, new: &NewVm) -> Result<Option<LeaseRecord>, CreateError> {
        let inventory = self.store.inventory();
        if inventory.vms.contains_key(&record.id) {
            // Its name is taken, which says more than that no address is free.
            return Err(CreateError::Exists(record.id.clone()));
        }
        let card = Card {
            vm: &record.id,
            nic: 0,
            mac: record.mac,
            network: &record.network,
            limits: new.limits,
        };
        let now = self.clock.now();
        let lease = leases::wanted(&inventory, &self.networks, card, new.address, now)?;
        Ok(lease)
    }

    /// The MAC address of a new card: derived from its VM's id, unless another has it.
    pub(super) fn free_mac(&self, id: &VmId, nic: u8) -> [u8; 6] {
        let inventory = self.store.inventory();
        (0..MAX_MACS)
            .map(|attempt| mac_address(id, nic, attempt))
            .find(|mac| !inventory.has_mac(*mac))
            .unwrap_or_else(|| mac_address(id, nic, 0))
    }

    fn image_of_kind(
        &self,
        field: &'static str,
        name: &ImageName,
        kind: ImageKind,
    ) -> Result<vman_model::ImageRecord, CreateError> {
        let inventory = self.store.inventory();
        let image = inventory
            .images
            .get(name)
            .filter(|image| image.value.kind == kind);
        image
            .map(|image| image.value.clone())
            .ok_or_else(|| CreateError::NoImage {
                field,
                kind: kind.as_str(),
                name: name.clone(),
            })
    }

    /// Every image that the VM boots is there and of its kind.
    fn check_images(&self, spec: &VmSpec) -> Result<Vec<ImageName>, CreateError> {
        let mut names = Vec::new();
        if let Some(name) = &spec.size.image {
            names.push(self.image_of_kind("image", name, ImageKind::Disk)?.name);
        }
        if let Some(boot) = &spec.size.boot {
            names.push(
                self.image_of_kind("boot.kernel", &boot.kernel, ImageKind::Kernel)?
                    .name,
            );
            if let Some(initrd) = &boot.initrd {
                names.push(
                    self.image_of_kind("boot.initrd", initrd, ImageKind::Initrd)?
                        .name,
                );
            }
        }
        Ok(names)
    }

    fn root_disk(&self, id: &VmId, spec: &VmSpec) -> Result<Option<DiskRecord>, CreateError> {
        let image_mib = match &spec.size.image {
            Some(name) => {
                let image = self.image_of_kind("image", name, ImageKind::Disk)?;
                Some((name, image.virtual_size.div_ceil(MIB)))
            }
            None => None,
        };
        let size_mib = match (spec.size.disk_mib, image_mib) {
            (None, None) => return Ok(None),
            (None, Some((_, image_mib))) => image_mib,
            (Some(disk_mib), Some((name, image_mib))) if disk_mib < image_mib => {
                let name = name.clone();
                return Err(CreateError::DiskTooSmall {
                    disk_mib,
                    name,
                    image_mib,
                });
            }
            (Some(disk_mib), _) => disk_mib,
        };
        Ok(Some(DiskRecord {
            id: root_disk_id(id),
            size_mib,
            format: DiskFormat::Qcow2,
            image: spec.size.image.clone(),
            vm_id: Some(id.clone()),
            root: true,
            created_at: self.clock.now(),
            options: DiskOptions::default(),
            file: DiskFile::OnDemand,
            wished_letter: None,
        }))
    }

    fn record(&self, id: &VmId, uuid: VmUuid, spec: VmSpec, disk: Option<&DiskRecord>) -> VmRecord {
        let now = self.clock.now();
        VmRecord {
            id: id.clone(),
            uuid,
            spec,
            mac: self.free_mac(id, 0),
            root_disk: disk.map(|disk| disk.id.clone()),
            created_at: now,
            desired: Desired::Stopped,
            phase: Phase::Stopped,
            phase_since: now,
            reason: Reason::Created,
            detail: "made and never started".to_owned(),
            incarnation: Incarnation::default(),
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

    fn event(&self, id: &VmId, ram_mib: u64, origin: Origin) -> EventDraft {
        EventDraft {
            to: Some(Phase::Stopped),
            reason: Some(Reason::Created),
            ..EventDraft::new(
                self.clock.now(),
                Subject::Vm(id.clone()),
                EventKind::VmCreated,
                format!("VM {id} was made with {ram_mib} MiB of memory"),
                Cause::new(origin, "create"),
            )
        }
    }
}

fn generated_id(uuid: VmUuid) -> VmId {
    VmId::parse(&format!("vm-{}", &uuid.to_string()[..13])).expect("hex and hyphens are an id")
}

/// A VM's root disk is named after it; the longest names leave no room for more.
fn root_disk_id(id: &VmId) -> DiskId {
    let long = format!("{id}-root");
    DiskId::parse(&long).unwrap_or_else(|_| {
        DiskId::parse(&format!("{}-root", &id.as_str()[..58])).expect("58 and 5 characters fit")
    })
}

fn refused(error: StoreError) -> CreateError {
    match error {
        StoreError::Conflict(Guard::VmAbsent(id)) => CreateError::Exists(id),
        StoreError::Conflict(Guard::DiskAbsent(id)) => CreateError::DiskExists(id),
        StoreError::Conflict(Guard::TemplatePresent(name)) => CreateError::NoTemplate(name),
        StoreError::Conflict(Guard::VmsBelow(limit)) => CreateError::TooMany(limit),
        StoreError::Conflict(Guard::KeyUnused(_)) => CreateError::KeyInUse,
        StoreError::Conflict(Guard::ImagePresent(name)) => CreateError::NoImage {
            field: "image",
            kind: "usable",
            name,
        },
        error => CreateError::Store(error),
    }
}

/// An id that sorts by the time it was made.
pub(super) fn operation_id(clock: &dyn Clock) -> OperationId {
    let mut id = format!("op-{:012x}-", clock.now().0);
    for byte in &clock.random()[..6] {
        let _ = write!(id, "{byte:02x}");
    }
    OperationId::parse(&id).expect("hex and hyphens are an id")
}
