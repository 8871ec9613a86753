//! `vman template …`

use super::{object, some};
use crate::cli::{
    Session,
    args::{Size, TemplateCommand},
    ask::Ask,
    error::CliError,
    view,
};
use serde_json::{Map, Value};

pub(in crate::cli) async fn run(
    command: TemplateCommand,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    match command {
        TemplateCommand::List => {
            session
                .list(&view::TEMPLATE, Ask::get(&["templates"]))
                .await
        }
        TemplateCommand::Create { name, size: flags } => {
            let mut body = size(&flags);
            body.insert("name".to_owned(), name.into());
            let ask = Ask::post(&["templates"]).json(Value::Object(body));
            session.one(&view::TEMPLATE, ask).await
        }
        TemplateCommand::Info { name } => {
            let ask = Ask::get(&["templates", &name]);
            session.one(&view::TEMPLATE, ask).await
        }
        TemplateCommand::Delete { name } => {
            let ask = Ask::delete(&["templates", &name]);
            session.delete("template", &name, ask).await
        }
    }
}

/// What a template and a VM say in the same words. Nothing is judged here: the daemon tells all faults at once.
pub(super) fn size(size: &Size) -> Map<String, Value> {
    let boot = size.kernel.as_ref().map(|kernel| {
        Value::Object(object([
            ("kernel", Some(kernel.clone().into())),
            ("initrd", some(size.initrd.as_ref())),
            ("cmdline", some(size.cmdline.as_ref())),
        ]))
    });
    let labels = (!size.labels.is_empty()).then(|| {
        let labels = size.labels.iter().cloned();
        Value::Object(labels.map(|(key, value)| (key, value.into())).collect())
    });
    object([
        ("cpu_count", some(size.cpus.as_ref())),
        ("ram_amount", some(size.ram.as_ref())),
        ("ram_mib", some(size.ram_mib.as_ref())),
        ("image", some(size.image.as_ref())),
        ("boot", boot),
        ("firmware", some(size.firmware.as_ref())),
        ("disk_gib", some(size.disk_gib.as_ref())),
        ("labels", labels),
    ])
}
