//! What comes up and goes down with the host, in the API.

use super::Time;
use crate::http::{error::ApiError, fields::Fields, state::HttpState};
use serde::Serialize;
use utoipa::ToSchema;
use vman_model::{
    BootId, HostRecord, VmId,
    power::{Condition, Dependency, MAX_DEPENDENCIES, MAX_PRIORITY, StartSpec, circle},
};

/// The host's boot and drain.
#[derive(Serialize, ToSchema)]
#[schema(as = Host)]
pub(crate) struct PowerBody {
    /// The kernel's id of the present boot.
    boot_id: String,
    /// Whether VMs are kept from being started because the host is to go down.
    draining: bool,
    /// The drain, if there is one.
    drain: Option<DrainBody>,
    /// The VMs that are still to be started since the boot or the resume.
    starting: Vec<String>,
}

/// A drain.
#[derive(Serialize, ToSchema)]
#[schema(as = Drain)]
pub(crate) struct DrainBody {
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    since: Time,
    /// Whether all VMs are at rest, or given up.
    done: bool,
    /// The operation that tells of it.
    operation_id: String,
    /// The VMs that are started again by the next boot or a resume.
    vms: Vec<String>,
}

/// How a drain is done. It may be given in the query instead.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "its fields are the document; the route reads them one by one"
)]
pub(crate) struct DrainOptions {
    /// How long guests have in all until force is used, in seconds, 0 to 3600; 120 by default.
    timeout_s: Option<f64>,
}

fn names<'a>(vms: impl IntoIterator<Item = &'a VmId>) -> Vec<String> {
    vms.into_iter().map(ToString::to_string).collect()
}

impl PowerBody {
    pub(crate) fn of(host: Option<HostRecord>, boot_id: &BootId) -> Self {
        let drain = host.as_ref().and_then(|host| host.drain.as_ref());
        let starting = host.iter().flat_map(|host| &host.starting);
        Self {
            boot_id: boot_id.to_string(),
            draining: drain.is_some(),
            starting: names(starting.map(|starting| &starting.vm)),
            drain: drain.map(|drain| DrainBody {
                since: Time(drain.since),
                done: drain.done,
                operation_id: drain.operation.to_string(),
                vms: names(&drain.vms),
            }),
        }
    }
}

/// A VM that has to be up before another is started.
#[derive(Serialize, ToSchema)]
#[schema(as = Dependency)]
pub(crate) struct DependencyBody<'a> {
    /// The other VM.
    vm: &'a str,
    /// What is waited for: `running` (the default), or `address`: its guest answers at its address.
    condition: &'static str,
}

/// A VM that has to be up before another is started, as it is asked for.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "its fields are the document; `StartFields` reads them one by one"
)]
pub(crate) struct NewDependency {
    /// The other VM.
    vm: String,
    /// What is waited for: `running` (the default), or `address`: its guest answers at its address.
    condition: Option<String>,
}

/// What is changed of a VM. What is not said stays.
#[derive(ToSchema)]
#[schema(as = VmChange)]
#[allow(
    dead_code,
    reason = "its fields are the document; `StartFields` reads them one by one"
)]
pub(crate) struct VmChangeBody {
    /// Whether it is started when the host was booted.
    autostart: Option<bool>,
    /// VMs of a higher priority are started first and stopped last.
    #[schema(minimum = 0, maximum = 1000)]
    priority: Option<u32>,
    /// The VMs it waits for when it is started with the host, in place of those there are.
    #[schema(max_items = 16)]
    depends_on: Option<Vec<NewDependency>>,
}

/// Whom a VM waits for.
pub(crate) fn dependencies(start: &StartSpec) -> Vec<DependencyBody<'_>> {
    let all = start.depends_on.iter();
    all.map(|other| DependencyBody {
        vm: other.vm.as_str(),
        condition: other.condition.as_str(),
    })
    .collect()
}

/// What is said of a VM's start with the host. What is not said stays.
#[derive(Default)]
pub(crate) struct StartFields {
    autostart: Option<bool>,
    priority: Option<u32>,
    depends_on: Option<Vec<Dependency>>,
}

impl StartFields {
    pub(crate) fn read(fields: &mut Fields) -> Self {
        let conditions = Condition::ALL.map(|condition| (condition.as_str(), condition));
        let depends_on = fields.objects("depends_on", MAX_DEPENDENCIES, |fields| {
            fields.require("vm");
            let vm = fields.name("vm");
            let condition = fields.word("condition", &conditions).unwrap_or_default();
            Some(Dependency { vm: vm?, condition })
        });
        Self {
            autostart: fields.boolean("autostart"),
            priority: fields.whole_u32("priority", 0..=MAX_PRIORITY),
            depends_on,
        }
    }

    /// `before` with what was said.
    pub(crate) fn over(self, before: &StartSpec) -> StartSpec {
        StartSpec {
            autostart: self.autostart.unwrap_or(before.autostart),
            priority: self.priority.unwrap_or(before.priority),
            depends_on: self.depends_on.unwrap_or_else(|| before.depends_on.clone()),
        }
    }
}

/// Whom `vm` would wait for is there, each once, and does not wait for `vm`.
pub(crate) fn check_start(
    state: &HttpState,
    vm: Option<&VmId>,
    start: &StartSpec,
) -> Result<(), ApiError> {
    let inventory = state.inventory();
    for (n, other) in start.depends_on.iter().enumerate() {
        let wrong = |detail: String| ApiError::field(&format!("depends_on[{n}].vm"), detail);
        if start.depends_on[..n].iter().any(|one| one.vm == other.vm) {
            return Err(wrong(format!("{} is named twice", other.vm)));
        }
        if Some(&other.vm) != vm && !inventory.vms.contains_key(&other.vm) {
            return Err(wrong(format!("there is no VM named {}", other.vm)));
        }
    }
    let Some(vm) = vm else { return Ok(()) };
    let others = |id: &VmId| inventory.vms.get(id).map(|row| &row.value.spec.start);
    match circle(vm, &start.depends_on, others) {
        None => Ok(()),
        Some(way) => {
            let way = names(&way).join(" waits for ");
            let detail = format!("closes a circle: {way} waits for {vm}");
            Err(ApiError::field("depends_on", detail))
        }
    }
}
