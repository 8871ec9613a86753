//! The state as of one revision: immutable, shared, and cheap to derive the
//! next from (persistent maps). Every read of VMAN is answered from it.
//!
//! Must not: change anything. Look next: `apply.rs`, which makes the next of it and a change.

use super::memo::Memo;
use crate::ports::Table;
use imbl::{OrdMap, OrdSet, Vector};
use std::sync::Arc;
use vman_model::{
    DiskId, DiskRecord, Event, ForwardId, ForwardRecord, Guard, HostRecord, IdempotencyKey,
    IdempotencyRecord, ImageName, ImageRecord, LeaseId, LeaseRecord, OperationId, OperationRecord,
    Promise, Revision, TemplateName, TemplateRecord, TokenId, TokenName, TokenRecord, VmId,
    vm::VmRecord,
};

/// The one row of [`Table::Host`].
pub(super) const HOST_KEY: &[u8] = b"host";

/// A record with the revision of its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The change that wrote it.
    pub revision: Revision,
    /// The record.
    pub value: T,
    /// What readers have derived from it.
    pub memo: Memo,
}

impl<T> Versioned<T> {
    /// A record as a change has written it.
    pub fn new(revision: Revision, value: T) -> Self {
        let memo = Memo::default();
        Self {
            revision,
            value,
            memo,
        }
    }
}

/// A row that could not be read and was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// `table/key`.
    pub row: String,
    /// Why.
    pub error: String,
}

/// What a commit answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The revision of the change.
    pub revision: Revision,
}

pub(super) type Rows<K, V> = OrdMap<K, Arc<Versioned<V>>>;

/// Everything, as of one revision.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The last change.
    pub revision: Revision,
    /// Templates by name.
    pub templates: Rows<TemplateName, TemplateRecord>,
    /// VMs by id.
    pub vms: Rows<VmId, VmRecord>,
    /// Their MAC addresses.
    pub(super) macs: OrdSet<[u8; 6]>,
    /// The users that their QEMUs run as, and whose each is.
    pub(super) user_ids: OrdSet<(u32, VmId)>,
    /// What is promised to VMs, in all.
    pub promised: Promise,
    /// Disks by id.
    pub disks: Rows<DiskId, DiskRecord>,
    /// Images by name.
    pub images: Rows<ImageName, ImageRecord>,
    /// Operations by id; ids sort by the time they were made.
    pub operations: Rows<OperationId, OperationRecord>,
    /// Leases by address.
    pub leases: Rows<LeaseId, LeaseRecord>,
    /// The same by VM and network card.
    pub(super) leases_of: OrdMap<(VmId, u8), LeaseId>,
    /// Forwarded ports by id.
    pub forwards: Rows<ForwardId, ForwardRecord>,
    /// Bearer tokens by their public part.
    pub tokens: Rows<TokenId, TokenRecord>,
    /// What is durable about the host; none before the first daemon wrote it.
    pub host: Option<Arc<Versioned<HostRecord>>>,
    /// Remembered keys.
    pub idempotency: OrdMap<IdempotencyKey, Arc<IdempotencyRecord>>,
    /// The same keys in the order they came, for forgetting.
    pub(super) key_order: Vector<IdempotencyKey>,
    /// The last events, oldest first.
    pub recent_events: Vector<Arc<Event>>,
    /// Rows set aside.
    pub quarantined: Vector<Quarantined>,
}

impl Inventory {
    /// The first guard that does not hold.
    pub(super) fn violated(&self, guards: &[Guard]) -> Option<Guard> {
        guards.iter().find(|guard| !self.holds(guard)).cloned()
    }

    fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::TemplateAbsent(name) => !self.templates.contains_key(name),
            Guard::TemplatePresent(name) => self.templates.contains_key(name),
            Guard::TemplateUnused(name) => self.vms_of_template(name).next().is_none(),
            Guard::VmAbsent(id) => !self.vms.contains_key(id),
            Guard::VmsBelow(limit) => self.vms.len() < *limit,
            Guard::Room(asked, allowance) => allowance.admits(self.promised, *asked),
            Guard::VmRevision(id, revision) => {
                self.vms.get(id).is_some_and(|vm| vm.revision == *revision)
            }
            Guard::DiskAbsent(id) => !self.disks.contains_key(id),
            Guard::DiskFree(id) => self.disks.get(id).is_some_and(|disk| disk.value.is_free()),
            Guard::DiskRevision(id, revision) => {
                let disk = self.disks.get(id);
                disk.is_some_and(|disk| disk.revision == *revision)
            }
            Guard::ImageAbsent(name) => !self.images.contains_key(name),
            Guard::ImagePresent(name) => self.images.contains_key(name),
            Guard::ImageUnused(name) => self.users_of_image(name).is_empty(),
            Guard::VmPresent(id) => self.vms.contains_key(id),
            Guard::AddressFree(id) => !self.leases.contains_key(id),
            Guard::AddressHeld(id, vm, nic) => {
                let lease = self.leases.get(id).map(|row| &row.value);
                lease.is_some_and(|lease| lease.vm_id == *vm && lease.nic == *nic)
            }
            Guard::MacFree(mac) => !self.has_mac(*mac),
            Guard::ForwardAbsent(id) => !self.forwards.contains_key(id),
            Guard::ForwardPresent(id) => self.forwards.contains_key(id),
            Guard::KeyUnused(key) => !self.idempotency.contains_key(key),
            Guard::TokenAbsent(name) => self.token_named(name).is_none(),
            Guard::TokenPresent(id) => self.tokens.contains_key(id),
            Guard::TokensBelow(limit) => self.tokens.len() < *limit,
        }
    }

    /// The recent events after a revision. A group of changes is never larger than
    /// what is remembered of them.
    pub(super) fn events_after(&self, since: Revision) -> impl Iterator<Item = &Arc<Event>> {
        let recent = &self.recent_events;
        let first = recent
            .binary_search_by(|event| event.revision.cmp(&Revision(since.0.saturating_add(1))))
            .unwrap_or_else(|place| place);
        // By place: to skip would walk over all that is older.
        (first..recent.len()).filter_map(|place| recent.get(place))
    }

    /// Nothing, as of a revision.
    pub(crate) fn empty_at(revision: Revision) -> Self {
        Self {
            revision,
            ..Self::default()
        }
    }

    /// How many records there are, by table.
    pub fn counts(&self) -> Vec<(&'static str, usize)> {
        [
            (Table::Templates, self.templates.len()),
            (Table::Images, self.images.len()),
            (Table::Disks, self.disks.len()),
            (Table::Vms, self.vms.len()),
            (Table::Leases, self.leases.len()),
            (Table::Forwards, self.forwards.len()),
            (Table::Tokens, self.tokens.len()),
            (Table::Operations, self.operations.len()),
        ]
        .map(|(table, count)| (table.as_str(), count))
        .into()
    }

    /// The token of a name.
    pub fn token_named(&self, name: &TokenName) -> Option<&Arc<Versioned<TokenRecord>>> {
        self.tokens.values().find(|row| row.value.name == *name)
    }

    /// The VMs made from a template.
    pub fn vms_of_template<'a>(
        &'a self,
        name: &'a TemplateName,
    ) -> impl Iterator<Item = &'a VmId> + 'a {
        self.vms
            .iter()
            .filter(move |(_, vm)| vm.value.spec.template == *name)
            .map(|(id, _)| id)
    }

    /// Whether a VM has this MAC address.
    pub fn has_mac(&self, mac: [u8; 6]) -> bool {
        self.macs.contains(&mac)
    }

    /// The user ids that the claims of other VMs hold.
    pub fn user_ids_of_others<'a>(&'a self, vm: &'a VmId) -> impl Iterator<Item = u32> + 'a {
        let others = self.user_ids.iter().filter(move |(_, of)| of != vm);
        others.map(|(user, _)| *user)
    }

    /// The lease of a VM's network card, from 0.
    pub fn lease_of(&self, vm: &VmId, nic: u8) -> Option<&Arc<Versioned<LeaseRecord>>> {
        let id = self.leases_of.get(&(vm.clone(), nic))?;
        self.leases.get(id)
    }

    /// All leases of a VM.
    pub fn leases_of(&self, vm: &VmId) -> impl Iterator<Item = &LeaseId> {
        self.leases_of
            .range((vm.clone(), 0)..=(vm.clone(), u8::MAX))
            .map(|(_, id)| id)
    }

    /// The ports of the host that lead into a VM.
    pub fn forwards_of<'a>(&'a self, vm: &'a VmId) -> impl Iterator<Item = &'a ForwardId> + 'a {
        let all = self.forwards.iter();
        all.filter(move |(_, forward)| forward.value.vm_id == *vm)
            .map(|(id, _)| id)
    }

    /// What keeps an image from being deleted, in words (`vm web-1`, `disk d`).
    pub fn users_of_image(&self, name: &ImageName) -> Vec<String> {
        let disks = self
            .disks
            .iter()
            .filter(|(_, disk)| disk.value.image.as_ref() == Some(name))
            .map(|(id, _)| format!("disk {id}"));
        let vms = self
            .vms
            .iter()
            .filter(|(_, vm)| vm.value.spec.size.uses_image(name))
            .map(|(id, _)| format!("vm {id}"));
        let templates = self
            .templates
            .iter()
            .filter(|(_, template)| template.value.size.uses_image(name))
            .map(|(id, _)| format!("template {id}"));
        disks.chain(vms).chain(templates).collect()
    }
}

/// Events sort by revision.
pub(super) fn event_key(revision: Revision) -> Vec<u8> {
    revision.0.to_be_bytes().to_vec()
}
