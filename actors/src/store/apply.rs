//! A change applied to the inventory: the next inventory, and the rows that make it durable.
//!
//! [`Inventory::apply`] is the one place where guards are checked and retention is kept.

use super::{
    codec::{self, Kind},
    inventory::{HOST_KEY, Inventory, Rows, Versioned, event_key},
};
use crate::ports::{Row, RowBatch, Table};
use serde::Serialize;
use std::sync::Arc;
use vman_model::{
    Change, DiskId, DiskRecord, Event, Guard, IdempotencyRecord, LeaseId, Promise, Revision,
    UnixMs, VmId, Write, vm::VmRecord,
};

/// Finished operations kept; the oldest are forgotten first.
pub(super) const MAX_OPERATIONS: usize = 10_000;
/// How long an idempotency key is remembered, in milliseconds (a day).
pub(super) const IDEMPOTENCY_MS: u64 = 24 * 3_600 * 1_000;
/// Revisions for which events are kept on disk.
pub(super) const MAX_EVENTS: u64 = 100_000;
/// Events kept in memory for streams that are up to date.
pub(super) const RECENT_EVENTS: usize = 1_024;
/// Forgotten rows per change: keeps a commit's cost bounded.
const MAX_PRUNED: usize = 4;

impl Inventory {
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
                self.index_user_id(&key, value.user_id());
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
                self.index_user_id(&id, None);
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

    /// The user of a VM's QEMU is what its next record says.
    fn index_user_id(&mut self, id: &VmId, next: Option<u32>) {
        let held = self.vms.get(id).and_then(|vm| vm.value.user_id());
        if held == next {
            return;
        }
        if let Some(user) = held {
            self.user_ids.remove(&(user, id.clone()));
        }
        if let Some(user) = next {
            self.user_ids.insert((user, id.clone()));
        }
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
