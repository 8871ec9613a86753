//! The committed document is the one that the code describes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{fs, path::PathBuf};

fn committed() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("openapi/vman.yaml")
}

#[test]
fn the_committed_document_is_what_the_code_describes() {
    let generated = vman::http::openapi_yaml();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        fs::write(committed(), generated).unwrap();
    }
    let on_disk = fs::read_to_string(committed()).unwrap_or_default();
    let differing = on_disk
        .lines()
        .zip(generated.lines())
        .position(|(a, b)| a != b);
    assert!(
        on_disk == generated,
        "openapi/vman.yaml differs from the code, first in line {}: write it anew with\n\
         UPDATE_OPENAPI=1 cargo test --test openapi",
        differing.map_or(
            on_disk.lines().count().min(generated.lines().count()),
            |line| line
        ) + 1
    );
}

#[test]
fn every_path_of_the_document_is_documented_with_its_refusals() {
    let document: serde_json::Value = serde_norway::from_str(vman::http::openapi_yaml()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 15, "{}", paths.len());
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            let place = format!("{method} {path}");
            assert!(operation["summary"].is_string(), "{place} has no summary");
            let responses = operation["responses"].as_object().unwrap();
            let probe = matches!(path.as_str(), "/live" | "/ready" | "/health");
            assert!(probe || responses.contains_key("default"), "{place}");
        }
    }
    let vm = &document["components"]["schemas"]["Vm"]["properties"];
    assert_eq!(vm["state"]["enum"][0], "stopped", "{}", vm["state"]);
    let upload = &document["paths"]["/images/{name}"]["put"]["requestBody"]["content"];
    assert_eq!(
        upload["application/octet-stream"]["schema"]["format"], "binary",
        "{upload}"
    );
    let request = &document["components"]["schemas"]["NewVm"];
    assert_eq!(request["additionalProperties"], false, "{request}");
}
