//! What is asked of a disk and its VM together: attach, detach, resize.
//!
//! A command to the VM that has the disk, or is to have it; a free disk is grown
//! without one. Look next: `device_work.rs` for how the guest is waited for.

use super::{
    actions::request,
    begun_before,
    device_work::{Outcome, outcome},
    disks::{body, shown},
    not_found,
};
use crate::http::{
    dto::disk::{DiskBody, read_size},
    error::{ApiError, Code, ProblemBody},
    extract::{Id, Post, Query},
    idempotency::{Key, once},
    paging::json,
    state::HttpState,
};
use axum::{extract::State, http::StatusCode, response::Response};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;
use vman_actors::{
    disks::{DiskFault, LastSeen, check_growth},
    store::Versioned,
    vm::CommandError,
};
use vman_model::{
    DiskId, DiskRecord, OperationId, VmId,
    disk::{FIRST_DATA_SLOT, MAX_DATA_DISKS},
    vm::{Command, Phase, Refusal},
};

/// To which VM a disk is to be attached.
#[derive(ToSchema)]
#[allow(dead_code, reason = "its field is the document")]
pub(crate) struct AttachDisk {
    /// The VM.
    vm_id: String,
}

/// How large a disk is to be.
#[derive(ToSchema)]
#[allow(dead_code, reason = "its fields are the document")]
pub(crate) struct ResizeDisk {
    /// The new size in GiB.
    #[schema(minimum = 1, maximum = 65536)]
    size: Option<u64>,
    /// The new size in MiB, instead of `size`.
    #[schema(minimum = 1, maximum = 67_108_864)]
    size_mib: Option<u64>,
}

/// What was done to a disk.
#[derive(Serialize, ToSchema)]
pub(crate) struct DiskDone<'a> {
    /// `attached`, `detached` or `resized`.
    status: &'static str,
    /// The disk as it is now.
    disk: DiskBody<'a>,
}

fn row_of(state: &HttpState, id: &DiskId) -> Result<Arc<Versioned<DiskRecord>>, ApiError> {
    let row = state.inventory().disks.get(id).cloned();
    let row = row.filter(|row| shown(row));
    row.ok_or_else(|| not_found("disk", id).disk(id))
}

/// What a piece of work is answered with when it is done.
struct Work<'a> {
    state: &'a HttpState,
    disk: DiskId,
    status: &'static str,
}

impl Work<'_> {
    fn done(&self) -> Result<Response, ApiError> {
        let inventory = self.state.inventory();
        let row = inventory.disks.get(&self.disk);
        let row = row.ok_or_else(|| not_found("disk", &self.disk).disk(&self.disk))?;
        let done = DiskDone {
            status: self.status,
            disk: body(self.state, &inventory, row),
        };
        Ok(json(StatusCode::OK, &done))
    }

    /// Gives the command to the VM and waits for its operation.
    async fn command(
        &self,
        vm: &VmId,
        command: Command,
        post: &Post,
        key: Option<Key>,
    ) -> Result<Response, ApiError> {
        let request = request(self.state, post, key, command);
        let begun = self.state.handles().vms.command(vm, request).await;
        let operation = begun.map_err(|error| self.refused(vm, error))?;
        self.outcome(&operation.id).await
    }

    /// Does the work once under the request's key.
    async fn once<W>(
        &self,
        post: Post,
        work: impl FnOnce(Post, Option<Key>) -> W,
    ) -> Result<Response, ApiError>
    where
        W: Future<Output = Result<Response, ApiError>>,
    {
        let again = |answer| async { self.outcome(&begun_before(answer)?).await };
        once(self.state, post, again, work).await
    }

    async fn outcome(&self, id: &OperationId) -> Result<Response, ApiError> {
        let outcome = outcome(self.state, id, "guest_holds_disk").await;
        match outcome.map_err(|error| error.disk(&self.disk))? {
            Outcome::Done(_) => self.done(),
            Outcome::Open(response) => Ok(response),
        }
    }

    fn refused(&self, vm: &VmId, error: CommandError) -> ApiError {
        let told = match &error {
            CommandError::Refused(Refusal::NoFreeSlot) => no_free_slot(self.state, vm),
            CommandError::DiskTaken(_) => taken(self.state, &self.disk),
            CommandError::NotFound => not_found("VM", vm),
            _ => error.into(),
        };
        told.disk(&self.disk).vm(vm)
    }
}

/// Tells which disks have the slots.
fn no_free_slot(state: &HttpState, vm: &VmId) -> ApiError {
    let inventory = state.inventory();
    let vm_row = inventory.vms.get(vm);
    let held = vm_row.iter().flat_map(|row| &row.value.disks);
    let held: Vec<_> = held
        .map(|held| format!("{} in {}", held.disk, held.slot))
        .collect();
    let last = FIRST_DATA_SLOT + MAX_DATA_DISKS - 1;
    let detail = format!(
        "VM {vm} has no free slot for another disk: its {MAX_DATA_DISKS} slots, {FIRST_DATA_SLOT} to \
         {last}, are taken ({}); detach one first",
        held.join(", ")
    );
    ApiError::new(Code::NoFreeDiskSlot, detail)
}

/// Somebody was first.
fn taken(state: &HttpState, disk: &DiskId) -> ApiError {
    let inventory = state.inventory();
    match inventory.disks.get(disk).map(|row| row.value.vm_id.clone()) {
        None => not_found("disk", disk),
        Some(None) => DiskFault::Busy(disk.clone()).into(),
        Some(Some(vm)) => DiskFault::Attached {
            disk: disk.clone(),
            vm,
        }
        .into(),
    }
}

/// Refuses a disk whose file is gone.
async fn file_there(state: &HttpState, disk: &DiskRecord, vm: &VmId) -> Result<(), ApiError> {
    let disks = &state.handles().disks;
    let inventory = state.inventory();
    let vm_row = inventory.vms.get(vm);
    let live = vm_row.is_some_and(|row| row.value.process.is_some());
    // A QEMU that lives opens the file in a moment, and nothing is lost if it was there a moment ago.
    if !(live && matches!(disks.seen(&disk.id), LastSeen::File(_))) {
        disks.look_now(disk).await;
    }
    if !disks.seen(&disk.id).is_lost(disk) {
        return Ok(());
    }
    let detail = format!(
        "the file of disk {} is gone: restore it, or delete the disk",
        disk.id
    );
    let error = ApiError::new(Code::DiskFileMissing, detail);
    Err(error.disk(&disk.id).vm(vm))
}

/// Attach a disk to a VM
///
/// To a running VM it is plugged in at once; a stopped one has it from its next start on.
#[utoipa::path(
    post, path = "/disks/{id}/attach", tag = "disks",
    params(
        ("id" = String, Path, description = "The disk"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key and body gives the same answer again"),
    ),
    request_body(content = AttachDisk, example = json!({"vm_id": "web-1"})),
    responses(
        (status = 200, description = "Attached", body = DiskDone<'static>),
        (status = 202, description = "QEMU has not answered yet", body = crate::http::dto::operation::OperationBody<'static>),
        (status = "default", description = "Refused; 409 where it is attached already or no slot is free", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn attach_disk(
    State(state): State<HttpState>,
    Id(id): Id<DiskId>,
    mut post: Post,
) -> Result<Response, ApiError> {
    Query::of(&post.uri)?.finish()?;
    let mut fields = post.fields();
    fields.require("vm_id");
    let vm: Option<VmId> = fields.name("vm_id");
    fields.finish()?;
    let vm = vm.ok_or_else(|| ApiError::field("vm_id", "is required"))?;
    let state = &state;
    let work = &Work {
        state,
        disk: id.clone(),
        status: "attached",
    };
    work.once(post, |post, key| async move {
        let row = row_of(state, &id)?;
        if !state.inventory().vms.contains_key(&vm) {
            return Err(not_found("VM", &vm).vm(&vm).disk(&id));
        }
        if row.value.vm_id.is_some() {
            return Err(taken(state, &id));
        }
        file_there(state, &row.value, &vm).await?;
        let command = Command::AttachDisk {
            disk: id,
            letter: row.value.wished_letter,
        };
        work.command(&vm, command, &post, key).await
    })
    .await
}

/// Detach a disk from its VM
///
/// A running guest is asked to let go of it; until it has, the disk stays attached.
#[utoipa::path(
    post, path = "/disks/{id}/detach", tag = "disks",
    params(
        ("id" = String, Path, description = "The disk"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key gives the same answer again"),
    ),
    responses(
        (status = 200, description = "Detached", body = DiskDone<'static>),
        (status = 202, description = "The guest has not let go of it; try again later", body = crate::http::dto::operation::OperationBody<'static>),
        (status = "default", description = "Refused; 409 where it is not attached", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn detach_disk(
    State(state): State<HttpState>,
    Id(id): Id<DiskId>,
    mut post: Post,
) -> Result<Response, ApiError> {
    Query::of(&post.uri)?.finish()?;
    post.fields().finish()?;
    let state = &state;
    let work = &Work {
        state,
        disk: id.clone(),
        status: "detached",
    };
    work.once(post, |post, key| async move {
        let row = row_of(state, &id)?;
        let Some(vm) = row.value.vm_id.clone() else {
            let detail = format!("disk {id} is not attached to any VM: there is nothing to detach");
            return Err(ApiError::new(Code::DiskNotAttached, detail).disk(&id));
        };
        work.command(&vm, Command::DetachDisk(id), &post, key).await
    })
    .await
}

/// Grow a disk
///
/// A running guest sees the new size at once.
#[utoipa::path(
    post, path = "/disks/{id}/resize", tag = "disks",
    params(
        ("id" = String, Path, description = "The disk"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key and body gives the same answer again"),
    ),
    request_body(content = ResizeDisk, example = json!({"size": 2})),
    responses(
        (status = 200, description = "Grown", body = DiskDone<'static>),
        (status = 202, description = "QEMU has not answered yet", body = crate::http::dto::operation::OperationBody<'static>),
        (status = "default", description = "Refused; 422 where it would shrink", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn resize_disk(
    State(state): State<HttpState>,
    Id(id): Id<DiskId>,
    mut post: Post,
) -> Result<Response, ApiError> {
    Query::of(&post.uri)?.finish()?;
    let mut fields = post.fields();
    if !fields.has("size_mib") {
        fields.require("size");
    }
    let size_mib = read_size(&mut fields);
    fields.finish()?;
    let size_mib = size_mib.ok_or_else(|| ApiError::field("size", "is required"))?;
    let state = &state;
    let work = &Work {
        state,
        disk: id.clone(),
        status: "resized",
    };
    work.once(post, |post, key| async move {
        let row = row_of(state, &id)?;
        let disk = &row.value;
        check_growth(disk, size_mib).map_err(|fault| ApiError::from(fault).disk(&id))?;
        if disk.size_mib == size_mib {
            return work.done();
        }
        let handles = state.handles();
        let Some(vm) = disk.vm_id.clone() else {
            let (origin, now) = (post.caller.origin(), handles.clock.now());
            handles
                .disks
                .resize_disk(&id, size_mib, origin, now)
                .await?;
            return work.done();
        };
        let from_mib = disk.size_mib;
        let command = Command::ResizeDisk {
            disk: id.clone(),
            from_mib,
            size_mib,
        };
        let rests = state.inventory().vms.get(&vm).is_some_and(|vm| {
            let phase = vm.value.phase;
            phase.is_rest() || phase == Phase::Backoff
        });
        let answer = work.command(&vm, command, &post, key).await?;
        if rests && answer.status() == StatusCode::OK {
            // Before its next use it would be grown anyway; done now, a full storage is told now.
            handles.disks.grow_file(&id, from_mib).await?;
        }
        Ok(answer)
    })
    .await
}
