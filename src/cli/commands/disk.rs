//! `vman disk …`

use super::{object, some};
use crate::cli::{
    Session,
    args::{DiskCommand, DiskOptions, DiskSize},
    ask::Ask,
    error::CliError,
    view,
};
use serde_json::{Map, Value, json};

/// Attach, detach and resize wait for the guest, 10 s at most, before they answer.
const GUEST_PATIENCE_S: u64 = 10;

pub(in crate::cli) async fn run(
    command: DiskCommand,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    let act = |id: &str, action: &str| Ask::post(&["disks", id, action]).patience(GUEST_PATIENCE_S);
    match command {
        DiskCommand::List => session.list(&view::DISK, Ask::get(&["disks"])).await,
        DiskCommand::Create(new) => {
            let mut body = object([
                ("name", some(new.name.as_ref())),
                ("size", some(new.size.as_ref())),
                ("size_mib", some(new.size_mib.as_ref())),
                ("image", some(new.image.as_ref())),
                ("mount_point", some(new.mount_point.as_ref())),
                ("format", some(new.format.as_ref())),
            ]);
            body.extend(behaviour(&new.options));
            let ask = Ask::post(&["disks"]).json(Value::Object(body));
            session.one(&view::DISK, ask).await
        }
        DiskCommand::Info { id } => session.one(&view::DISK, Ask::get(&["disks", &id])).await,
        DiskCommand::Set { id, options } => {
            let body = Value::Object(behaviour(&options));
            let ask = Ask::patch(&["disks", &id]).json(body);
            session.one(&view::DISK, ask).await
        }
        DiskCommand::Delete { id } => {
            let ask = Ask::delete(&["disks", &id]);
            session.delete("disk", &id, ask).await
        }
        DiskCommand::Attach { id, vm, wait } => {
            let ask = act(&id, "attach").json(json!({ "vm_id": vm }));
            session.work(&view::DISK, ask, &wait).await
        }
        DiskCommand::Detach { id, wait } => {
            session.work(&view::DISK, act(&id, "detach"), &wait).await
        }
        DiskCommand::Resize { id, size, wait } => {
            let ask = act(&id, "resize").json(Value::Object(amount(&size)));
            session.work(&view::DISK, ask, &wait).await
        }
    }
}

fn behaviour(options: &DiskOptions) -> Map<String, Value> {
    object([
        ("cache", some(options.cache.as_ref())),
        ("discard", some(options.discard.as_ref())),
        ("read_only", some(options.read_only.as_ref())),
        ("serial", some(options.serial.as_ref())),
        ("iops", some(options.iops.as_ref())),
        ("iops_burst", some(options.iops_burst.as_ref())),
        ("bps", some(options.bps.as_ref())),
        ("bps_burst", some(options.bps_burst.as_ref())),
    ])
}

fn amount(size: &DiskSize) -> Map<String, Value> {
    object([
        ("size", some(size.size.as_ref())),
        ("size_mib", some(size.size_mib.as_ref())),
    ])
}
