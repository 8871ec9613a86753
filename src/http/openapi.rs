//! The API's document, generated from the routes, and the page that shows it.

use super::{error::ERROR_CODES, metrics, routes, state::HttpState};
use axum::{
    Router,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use std::{fmt::Write as _, sync::LazyLock};
use utoipa::{OpenApi, openapi};
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::{Config, SwaggerUi};
use vman_model::vm::Phase;

/// What the page may load: itself. It needs inline styles.
const DOCS_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

#[derive(OpenApi)]
#[openapi(
    info(title = "VMAN", description = "Supervises QEMU virtual machines on a Linux host."),
    tags(
        (name = "vms", description = "Virtual machines"),
        (name = "templates", description = "Named sizes that VMs are made from"),
        (name = "images", description = "Files that VMs boot or clone"),
        (name = "disks", description = "Disks, free and attached"),
        (name = "operations", description = "Pieces of long work"),
        (name = "events", description = "What happened, and why"),
        (name = "network", description = "How VMs are connected"),
        (name = "observer", description = "Differences between the records and the host"),
        (name = "store", description = "The file that holds all records"),
        (name = "tokens", description = "Who may call over TCP"),
        (name = "host", description = "What comes up and goes down with the host"),
        (name = "health", description = "Whether the daemon lives, is ready, and is well"),
    )
)]
struct ApiDoc;

fn documented() -> OpenApiRouter<HttpState> {
    use routes::{
        actions, console, disk_work, disks, events, health, host, images, logs, network, nics,
        observer, operations, power, store, templates, tokens, vms,
    };
    OpenApiRouter::with_openapi(ApiDoc::openapi())
        .routes(routes!(vms::list_vms, vms::create_vm))
        .routes(routes!(vms::get_vm, vms::change_vm, vms::delete_vm))
        .routes(routes!(vms::explain_vm))
        .routes(routes!(actions::act_on_vm))
        .routes(routes!(console::get_console))
        .routes(routes!(logs::get_logs))
        .routes(routes!(nics::list_nics, nics::attach_nic))
        .routes(routes!(nics::get_nic, nics::detach_nic, nics::change_nic))
        .routes(routes!(
            templates::list_templates,
            templates::create_template
        ))
        .routes(routes!(templates::get_template, templates::delete_template))
        .routes(routes!(images::list_images))
        .routes(routes!(
            images::get_image,
            images::put_image,
            images::delete_image
        ))
        .routes(routes!(disks::list_disks, disks::create_disk))
        .routes(routes!(
            disks::get_disk,
            disks::delete_disk,
            disks::change_disk
        ))
        .routes(routes!(disk_work::attach_disk))
        .routes(routes!(disk_work::detach_disk))
        .routes(routes!(disk_work::resize_disk))
        .routes(routes!(operations::list_operations))
        .routes(routes!(
            operations::get_operation,
            operations::cancel_operation
        ))
        .routes(routes!(operations::wait_operation))
        .routes(routes!(events::get_events))
        .routes(routes!(network::get_network_config))
        .routes(routes!(network::list_leases))
        .routes(routes!(network::list_forwards, network::create_forward))
        .routes(routes!(network::get_forward, network::delete_forward))
        .routes(routes!(power::get_host))
        .routes(routes!(power::drain_host))
        .routes(routes!(power::resume_host))
        .routes(routes!(observer::get_observer))
        .routes(routes!(observer::check_now))
        .routes(routes!(store::backup_store))
        .routes(routes!(store::check_store))
        .routes(routes!(store::export_store))
        .routes(routes!(tokens::list_tokens, tokens::create_token))
        .routes(routes!(tokens::revoke_token))
        .routes(routes!(health::health))
        .routes(routes!(host::capacity))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(metrics::metrics))
}

fn document(mut api: openapi::OpenApi) -> openapi::OpenApi {
    let mut text = "Supervises QEMU virtual machines on a Linux host.\n\n\
        Errors are RFC 9457 problems with a stable `code`:\n\n| code | status | meaning |\n|---|---|---|\n"
        .to_owned();
    for (code, status, meaning) in ERROR_CODES {
        let _ = writeln!(text, "| `{code}` | {status} | {meaning} |");
    }
    api.info.description = Some(text);
    close_requests(&mut api);
    name_words(&mut api);
    super::parameters::bound(&mut api);
    api
}

/// What is sent to VMAN is refused where it has unknown fields: the document
/// says so.
fn close_requests(api: &mut openapi::OpenApi) {
    use openapi::{RefOr, Schema, schema::AdditionalProperties};
    let Some(components) = &mut api.components else {
        return;
    };
    for name in [
        "Boot",
        "NewTemplate",
        "NewToken",
        "NewVm",
        "NewRestart",
        "ActionOptions",
        "NewDisk",
        "DiskChange",
        "AttachDisk",
        "ResizeDisk",
        "DrainOptions",
        "VmChange",
    ] {
        if let Some(RefOr::T(Schema::Object(object))) = components.schemas.get_mut(name) {
            object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        }
    }
}

/// Fields that hold one of a few words, and the words.
fn words() -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    let firmware = vec!["bios", "uefi"];
    let policies = vec!["never", "on-failure", "always"];
    let phases: Vec<_> = Phase::ALL.iter().map(|phase| phase.as_str()).collect();
    let statuses = vec!["pending", "running", "succeeded", "failed", "cancelled"];
    let states = vec![
        "stopped", "starting", "running", "paused", "stopping", "error",
    ];
    vec![
        ("Vm", "state", states),
        ("Vm", "desired", vec!["running", "stopped", "deleted"]),
        ("Vm", "phase", phases),
        ("Vm", "firmware", firmware.clone()),
        ("Template", "firmware", firmware.clone()),
        ("NewVm", "firmware", firmware.clone()),
        ("NewTemplate", "firmware", firmware),
        ("Restart", "policy", policies.clone()),
        ("NewRestart", "policy", policies),
        ("Operation", "status", statuses),
        ("Image", "kind", vec!["disk", "kernel", "initrd"]),
        ("Image", "format", vec!["raw", "qcow2"]),
        ("Disk", "state", vec!["available", "attached", "error"]),
        ("Token", "scope", vec!["read", "admin"]),
        ("NewToken", "scope", vec!["read", "admin"]),
        ("Health", "status", vec!["ok", "degraded"]),
    ]
}

fn name_words(api: &mut openapi::OpenApi) {
    use openapi::{RefOr, Schema, schema::SchemaType};
    let Some(components) = &mut api.components else {
        return;
    };
    for (schema, field, words) in words() {
        let Some(RefOr::T(Schema::Object(object))) = components.schemas.get_mut(schema) else {
            continue;
        };
        if let Some(RefOr::T(Schema::Object(field))) = object.properties.get_mut(field) {
            let mut values: Vec<_> = words.into_iter().map(serde_json::Value::from).collect();
            if matches!(field.schema_type, SchemaType::Array(_)) {
                values.push(serde_json::Value::Null);
            }
            field.enum_values = Some(values);
        }
    }
}

struct Documents {
    json: String,
    yaml: String,
}

static DOCUMENTS: LazyLock<Documents> = LazyLock::new(|| {
    let (_, api) = documented().split_for_parts();
    let api = document(api);
    Documents {
        json: serde_json::to_string_pretty(&api).unwrap_or_default(),
        yaml: serde_norway::to_string(&api).unwrap_or_default(),
    }
});

/// The API's document in YAML, as it is committed under `openapi/`.
pub fn openapi_yaml() -> &'static str {
    &DOCUMENTS.yaml
}

fn text(kind: &'static str, body: &'static str) -> Response {
    (
        [(header::CONTENT_TYPE, HeaderValue::from_static(kind))],
        body,
    )
        .into_response()
}

/// Every route of the API, the document and its page.
pub(super) fn routes() -> Router<HttpState> {
    let (api, _) = documented().split_for_parts();
    api.route(
        "/openapi.json",
        get(|| async { text("application/json", &DOCUMENTS.json) }),
    )
    .route(
        "/openapi.yaml",
        get(|| async { text("application/yaml", &DOCUMENTS.yaml) }),
    )
    .merge(docs())
}

fn docs() -> Router<HttpState> {
    // "none": the page would otherwise ask a validator on the internet.
    let config = Config::from("/openapi.json").validator_url("none");
    let page: Router<HttpState> = SwaggerUi::new("/docs").config(config).into();
    page.layer(axum::middleware::map_response(
        |mut response: Response| async {
            let policy = HeaderValue::from_static(DOCS_POLICY);
            response
                .headers_mut()
                .insert(header::CONTENT_SECURITY_POLICY, policy);
            response
        },
    ))
}
