//! The state as of one revision: immutable, shared, and cheap to derive the
//! next from (persistent maps). Every read of VMAN is answered from it.
//!
//! `apply` is the one place where guards are checked and retention is kept.

use super::{
    codec::{self, Kind},
    memo::Memo,
};
use crate::ports::{Row, RowBatch, Table};
use imbl::{OrdMap, OrdSet, Vector};
use serde::Serialize;
use std::sync::Arc;
use vman_model::{
    Change, DiskId, DiskRecord, Event, ForwardId, ForwardRecord, Guard, HostRecord, IdempotencyKey,
    IdempotencyRecord, ImageName, ImageRecord, LeaseId, LeaseRecord, OperationId, OperationRecord,
    Promise, Revision, TemplateName, TemplateRecord, TokenId, TokenName, TokenRecord, UnixMs, VmId,
    Write, vm::VmRecord,
};

/// Finished operations kept; the oldest are forgotten first.
pub(super) const MAX_OPERATIONS: usize = 10_000;
/// How long an idempotency key is remembered, in milliseconds (a day).
pub(super) const IDEMPOTENCY_MS: u64 = 24 * 3_600 * 1_000;
/// Revisions for which events are kept on disk.
pub(super) const MAX_EVENTS: u64 = 100_000;
/// Events kept in memory for streams that are up to date.
pub(super) const RECENT_EVENTS: usize = 1_024;
/// The one row of [`Table::Host`].
pub(super) const HOST_KEY: &[u8] = b"host";
/// Forgotten rows per change: keeps a commit's cost bounded.
const MAX_PRUNED: usize = 4;

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

type Rows<K, V> = OrdMap<K, Arc<Versioned<V>>>;

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

    /// The state after `change`, and the rows that make it durable; or the guard
    /// that does not hold.
    pub(crate) fn apply(
        &self,
        change: Change,
        now: UnixMs,
    ) -> Result<(Inventory, RowBatch), Guard> {
        if let Some(guard) = self.violated(&change.guards) {
            return Err(guard);
        }
        let mut next = self.clone();
        next.revision = Revision(self.revision.0 + 1);
        let mut rows = Vec::with_capacity(change.writes.len() + 3);
        let tells = change.event.is_some();
        for write in change.writes {
            next.write(write, tells, &mut rows);
        }
        if let Some(what) = change.event {
            next.tell(
                Event {
                    revision: next.revision,
                    what,
                },
                &mut rows,
            );
        }
        next.forget(now, &mut rows);
        Ok((next, rows))
    }

    fn write(&mut self, write: Write, tells: bool, rows: &mut RowBatch) {
        let revision = self.revision;
        match write {
            Write::PutTemplate(value) => {
                let key = value.name.clone();
                put(
                    &mut self.templates,
                    Table::Templates,
                    Kind::Template,
                    key,
                    revision,
                    value,
                    rows,
                );
            }
            Write::EraseTemplate(name) => {
                erase(&mut self.templates, Table::Templates, &name, rows);
            }
            Write::PutVm(mut value) => {
                if tells {
                    value.last_event = Some(revision);
                }
                let key = value.id.clone();
                self.index_macs(&key, Some(&value));
                self.promise(&key, Promise::to(&value));
                put(
                    &mut self.vms,
                    Table::Vms,
                    Kind::Vm,
                    key,
                    revision,
                    *value,
                    rows,
                );
            }
            Write::EraseVm(id) => {
                self.index_macs(&id, None);
                self.promise(&id, Promise::default());
                erase(&mut self.vms, Table::Vms, &id, rows);
            }
            Write::PutDisk(value) => {
                let key = value.id.clone();
                put(
                    &mut self.disks,
                    Table::Disks,
                    Kind::Disk,
                    key,
                    revision,
                    value,
                    rows,
                );
            }
            Write::EraseDisk(id) => erase(&mut self.disks, Table::Disks, &id, rows),
            Write::AssignDisk(id, vm_id) => self.change_disk(&id, rows, |disk| disk.vm_id = vm_id),
            Write::SizeDisk(id, size_mib) => {
                self.change_disk(&id, rows, |disk| disk.size_mib = size_mib);
            }
            Write::FreeDisk(id) => self.change_disk(&id, rows, |disk| {
                (disk.vm_id, disk.root) = (None, false);
            }),
            Write::PutImage(value) => {
                let key = value.name.clone();
                put(
                    &mut self.images,
                    Table::Images,
                    Kind::Image,
                    key,
                    revision,
                    value,
                    rows,
                );
            }
            Write::EraseImage(name) => erase(&mut self.images, Table::Images, &name, rows),
            Write::PutLease(value) => {
                let key = value.id.clone();
                self.leases_of
                    .insert((value.vm_id.clone(), value.nic), key.clone());
                let (table, kind) = (Table::Leases, Kind::Lease);
                put(&mut self.leases, table, kind, key, revision, value, rows);
            }
            Write::EraseLease(id) => self.erase_lease(&id, rows),
            Write::DisconnectVm(vm) => {
                for id in self.leases_of(&vm).cloned().collect::<Vec<_>>() {
                    self.erase_lease(&id, rows);
                }
                for id in self.forwards_of(&vm).cloned().collect::<Vec<_>>() {
                    erase(&mut self.forwards, Table::Forwards, &id, rows);
                }
            }
            Write::PutForward(value) => {
                let key = value.id.clone();
                let (table, kind) = (Table::Forwards, Kind::Forward);
                put(&mut self.forwards, table, kind, key, revision, value, rows);
            }
            Write::EraseForward(id) => erase(&mut self.forwards, Table::Forwards, &id, rows),
            Write::PutOperation(value) => {
                let key = value.id.clone();
                let (table, kind) = (Table::Operations, Kind::Operation);
                put(
                    &mut self.operations,
                    table,
                    kind,
                    key,
                    revision,
                    value,
                    rows,
                );
            }
            Write::PutToken(value) => {
                let key = value.id.clone();
                put(
                    &mut self.tokens,
                    Table::Tokens,
                    Kind::Token,
                    key,
                    revision,
                    value,
                    rows,
                );
            }
            Write::PutHost(value) => {
                let value = *value;
                rows.push(Row {
                    table: Table::Host,
                    key: HOST_KEY.to_vec(),
                    value: Some(codec::encode(Kind::Host, &(revision, &value))),
                });
                self.host = Some(Arc::new(Versioned::new(revision, value)));
            }
            Write::EraseToken(id) => erase(&mut self.tokens, Table::Tokens, &id, rows),
            Write::PutIdempotency(value) => {
                rows.push(Row {
                    table: Table::Idempotency,
                    key: value.key.as_str().into(),
                    value: Some(codec::encode(Kind::Idempotency, &value)),
                });
                self.key_order.push_back(value.key.clone());
                self.idempotency.insert(value.key.clone(), Arc::new(value));
            }
        }
    }

    /// Keeps the sum: what this VM had is taken from it, what it has from now on is added.
    fn promise(&mut self, vm: &VmId, now: Promise) {
        let before = self.vms.get(vm).map(|row| Promise::to(&row.value));
        let others = self.promised.minus(before.unwrap_or_default());
        self.promised = others.plus(now);
    }

    /// The MAC addresses of a VM are what its next record says.
    fn index_macs(&mut self, id: &VmId, next: Option<&VmRecord>) {
        let macs = |vm: Option<&VmRecord>| -> Vec<_> {
            let macs = vm.into_iter().flat_map(VmRecord::macs);
            macs.map(|(_, mac)| mac).collect()
        };
        let (held, wanted) = (macs(self.vms.get(id).map(|vm| &vm.value)), macs(next));
        if held == wanted {
            return;
        }
        for mac in held {
            self.macs.remove(&mac);
        }
        self.macs.extend(wanted);
    }

    /// Changes a row as it is now; one that is not there stays away.
    fn change_disk(
        &mut self,
        id: &DiskId,
        rows: &mut RowBatch,
        change: impl FnOnce(&mut DiskRecord),
    ) {
        let Some(mut disk) = self.disks.get(id).map(|disk| disk.value.clone()) else {
            return;
        };
        change(&mut disk);
        let (table, kind) = (Table::Disks, Kind::Disk);
        let revision = self.revision;
        put(
            &mut self.disks,
            table,
            kind,
            id.clone(),
            revision,
            disk,
            rows,
        );
    }

    fn erase_lease(&mut self, id: &LeaseId, rows: &mut RowBatch) {
        if let Some(lease) = self.leases.get(id) {
            let lease = &lease.value;
            self.leases_of.remove(&(lease.vm_id.clone(), lease.nic));
        }
        erase(&mut self.leases, Table::Leases, id, rows);
    }

    fn tell(&mut self, event: Event, rows: &mut RowBatch) {
        rows.push(Row {
            table: Table::Events,
            key: event_key(event.revision),
            value: Some(codec::encode(Kind::Event, &event)),
        });
        self.recent_events.push_back(Arc::new(event));
        if self.recent_events.len() > RECENT_EVENTS {
            self.recent_events.pop_front();
        }
    }

    /// Keeps the bounded tables bounded, a few rows at a time.
    fn forget(&mut self, now: UnixMs, rows: &mut RowBatch) {
        if let Some(old) = self.revision.0.checked_sub(MAX_EVENTS) {
            let key = event_key(Revision(old));
            rows.push(Row {
                table: Table::Events,
                key,
                value: None,
            });
        }
        for _ in 0..MAX_PRUNED {
            let Some(key) = self.key_order.front().cloned() else {
                break;
            };
            let stale = |row: &Arc<IdempotencyRecord>| now.since(row.created_at) > IDEMPOTENCY_MS;
            if !self.idempotency.get(&key).is_none_or(stale) {
                break;
            }
            self.key_order.pop_front();
            self.idempotency.remove(&key);
            let key = key.as_str().into();
            rows.push(Row {
                table: Table::Idempotency,
                key,
                value: None,
            });
        }
        if self.operations.len() > MAX_OPERATIONS {
            let old: Vec<_> = self
                .operations
                .values()
                .take(MAX_PRUNED * 4)
                .filter(|op| op.value.status.is_end())
                .take(MAX_PRUNED)
                .map(|op| op.value.id.clone())
                .collect();
            for id in old {
                erase(&mut self.operations, Table::Operations, &id, rows);
            }
        }
    }
}

/// Events sort by revision.
pub(super) fn event_key(revision: Revision) -> Vec<u8> {
    revision.0.to_be_bytes().to_vec()
}

fn put<K: Ord + Clone + AsRef<str>, V: Serialize + Clone>(
    map: &mut Rows<K, V>,
    table: Table,
    kind: Kind,
    key: K,
    revision: Revision,
    value: V,
    rows: &mut RowBatch,
) {
    let bytes = codec::encode(kind, &(revision, &value));
    rows.push(Row {
        table,
        key: key.as_ref().into(),
        value: Some(bytes),
    });
    map.insert(key, Arc::new(Versioned::new(revision, value)));
}

fn erase<K: Ord + Clone + AsRef<str>, V: Clone>(
    map: &mut Rows<K, V>,
    table: Table,
    key: &K,
    rows: &mut RowBatch,
) {
    map.remove(key);
    rows.push(Row {
        table,
        key: key.as_ref().into(),
        value: None,
    });
}
