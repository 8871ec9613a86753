//! What the document says of parameters beyond their type: bounds, words and forms.
//!
//! Said here by name, once, because the same parameter means the same on every path. Must not: be
//! looser than the reading code; a client that keeps to it is not refused for it.

use super::{routes::actions::MAX_STOP_TIMEOUT_S, waiting::MAX_WAIT_S};
use crate::telemetry::MAX_RECORDS;
use utoipa::{
    Number,
    openapi::{
        OpenApi, RefOr, Schema,
        path::{Operation, Parameter, PathItem},
        schema::{Object, SchemaType},
    },
};

/// Ids and names that users give.
const NAME: &str = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$";
/// Keys: visible ASCII.
const KEY: &str = "^[!-~]{1,128}$";
/// How long ago, or a time in UTC.
const SINCE: &str = "^([0-9]{1,5}[smhd]|20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z)$";
const ACTIONS: &[&str] = &["start", "stop", "restart", "pause", "resume", "reset"];

/// Says the bounds of every parameter.
pub(super) fn bound(api: &mut OpenApi) {
    for (path, item) in &mut api.paths.paths {
        for operation in operations(item) {
            for parameter in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(parameter) = parameter {
                    say(path, parameter);
                }
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        item.get.as_mut(),
        item.put.as_mut(),
        item.post.as_mut(),
        item.delete.as_mut(),
        item.patch.as_mut(),
    ]
    .into_iter()
    .flatten()
}

fn say(path: &str, parameter: &mut Parameter) {
    let Some(RefOr::T(Schema::Object(object))) = &mut parameter.schema else {
        return;
    };
    match parameter.name.as_str() {
        "limit" => numbers(object, Number::UInt(1), Number::UInt(1_000)),
        // Of a stop; that of a wait is as long as any wait.
        "timeout_s" if path.ends_with("/{action}") => {
            numbers(
                object,
                Number::Float(0.0),
                Number::Float(MAX_STOP_TIMEOUT_S),
            );
        }
        "wait_s" | "timeout_s" => numbers(object, Number::Float(0.0), Number::Float(MAX_WAIT_S)),
        "since" if path.ends_with("/logs") => object.pattern = Some(SINCE.to_owned()),
        "lines" => numbers(object, Number::UInt(1), Number::UInt(MAX_RECORDS)),
        "since" => object.minimum = Some(Number::UInt(0)),
        "id" | "name" => object.pattern = Some(NAME.to_owned()),
        "Idempotency-Key" => object.pattern = Some(KEY.to_owned()),
        "cursor" => object.min_length = Some(1),
        "action" => words(object, ACTIONS),
        "kind" => words(object, &["disk", "kernel", "initrd"]),
        "X-Checksum-SHA256" => object.pattern = Some("^[0-9A-Fa-f]{64}$".to_owned()),
        _ => {}
    }
}

fn numbers(object: &mut Object, least: Number, most: Number) {
    object.minimum = Some(least);
    object.maximum = Some(most);
}

fn words(object: &mut Object, known: &[&str]) {
    let mut values: Vec<_> = known.iter().map(|word| serde_json::json!(word)).collect();
    if matches!(object.schema_type, SchemaType::Array(_)) {
        values.push(serde_json::Value::Null);
    }
    object.enum_values = Some(values);
}
