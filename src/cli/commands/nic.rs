//! `vman nic …`

use super::{object, some};
use crate::cli::{
    Session,
    args::{Limits, NicCommand},
    ask::Ask,
    error::CliError,
    view,
    wait::Outcome,
};
use serde_json::{Value, json};

/// Attach and detach wait for the guest, 10 s at most, before they answer.
const GUEST_PATIENCE_S: u64 = 10;

pub(in crate::cli) async fn run(
    command: NicCommand,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    match command {
        NicCommand::List { vm } => {
            session
                .list(&view::NIC, Ask::get(&["vms", &vm, "nics"]))
                .await
        }
        NicCommand::Attach {
            vm,
            network,
            address,
            down,
            wait,
        } => {
            let link = down.then(|| "down".to_owned());
            let body = object([
                ("network", some(network.as_ref())),
                ("address", some(address.as_ref())),
                ("link", some(link.as_ref())),
            ]);
            let ask = Ask::post(&["vms", &vm, "nics"]).json(Value::Object(body));
            let ask = ask.patience(GUEST_PATIENCE_S);
            session.work(&view::NIC, ask, &wait).await
        }
        NicCommand::Detach { vm, nic, wait } => {
            let ask = Ask::delete(&["vms", &vm, "nics", &nic]).patience(GUEST_PATIENCE_S);
            match session.ask_and_wait(&ask, &wait).await? {
                Outcome::GoesOn(operation) => {
                    view::OPERATION.one(&operation, session.format, session.terminal)
                }
                Outcome::Done(_) => {
                    session.done(&format!("network card {nic} of {vm} is detached"), &nic)
                }
            }
        }
        NicCommand::Link {
            vm,
            nic,
            link,
            wait,
        } => {
            let ask = Ask::patch(&["vms", &vm, "nics", &nic]).json(json!({ "link": link }));
            session.work(&view::NIC, ask, &wait).await
        }
        NicCommand::Limit {
            vm,
            nic,
            limits,
            wait,
        } => {
            let ask = Ask::patch(&["vms", &vm, "nics", &nic]).json(limits_body(&limits));
            session.work(&view::NIC, ask, &wait).await
        }
    }
}

fn limits_body(limits: &Limits) -> Value {
    let inbound = limits.inbound.map(|average| {
        json!({"average": average, "peak": limits.inbound_peak, "burst": limits.inbound_burst})
    });
    let outbound = limits
        .outbound
        .map(|average| json!({"average": average, "burst": limits.outbound_burst}));
    json!({"limits": {"inbound": inbound, "outbound": outbound}})
}
