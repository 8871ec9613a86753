//! The walls between the rooms that Cargo cannot build: who may import what,
//! and that the map in `docs/architecture.md` names real files.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
};
use vman_model::drift::DriftClass;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            out.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            out.push(path);
        }
    }
    out
}

/// Lines of code, without comments, that hold any of `words`.
fn offences(text: &str, words: &[&str]) -> Vec<String> {
    let code = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.filter(|(_, line)| words.iter().any(|word| line.contains(word)))
        .map(|(number, line)| format!("{}: {}", number + 1, line.trim()))
        .collect()
}

/// A room, and what its files may not name.
const WALLS: &[(&str, &[&str])] = &[
    (
        "src/host",
        &[
            "ractor",
            "axum",
            "utoipa",
            "crate::http",
            "crate::cli",
            "crate::app",
        ],
    ),
    (
        "src/http",
        &[
            "ractor",
            "redb",
            "rustix::process",
            "crate::host",
            "crate::cli",
            "crate::app",
        ],
    ),
    (
        "src/cli",
        &[
            "ractor",
            "redb",
            "vman_actors",
            "axum",
            "crate::host",
            "crate::http",
            "crate::app",
        ],
    ),
    (
        "actors/src",
        &[
            "redb",
            "axum",
            "rustix",
            "std::fs",
            "std::process",
            "std::net",
            "tokio::fs",
            "tokio::process",
            "tokio::net",
        ],
    ),
    (
        "actors/model/src",
        &[
            "tokio",
            "ractor",
            "std::fs",
            "std::process",
            "std::net",
            "std::time",
            "std::env",
            "SystemTime",
            "Instant::now",
            "rand::",
        ],
    ),
];

fn broken_walls(walls: &[(&str, &[&str])]) -> Vec<String> {
    let mut out = Vec::new();
    for (room, forbidden) in walls {
        for file in rust_files(&root().join(room)) {
            let text = fs::read_to_string(&file).unwrap();
            for offence in offences(&text, forbidden) {
                out.push(format!(
                    "{}:{offence}",
                    file.strip_prefix(root()).unwrap().display()
                ));
            }
        }
    }
    out
}

#[test]
fn no_room_reaches_through_a_wall() {
    let broken = broken_walls(WALLS);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_wall_check_sees_an_import_where_there_is_one() {
    // `src/host` does use rustix: a wall against it must be reported.
    assert!(!broken_walls(&[("src/host", &["rustix"])]).is_empty());
    assert_eq!(
        offences("use axum::Router;\n// axum", &["axum"]),
        ["1: use axum::Router;"]
    );
}

#[test]
fn unsafe_code_lives_only_under_src_host() {
    for room in ["src", "actors/src", "actors/model/src"] {
        for file in rust_files(&root().join(room)) {
            let name = file.strip_prefix(root()).unwrap().display().to_string();
            let found = offences(
                &fs::read_to_string(&file).unwrap(),
                &["unsafe {", "unsafe fn"],
            );
            assert!(
                name.starts_with("src/host") || found.is_empty(),
                "{name}: {found:?}"
            );
        }
    }
}

/// The paths that the map names: words in code quotes that look like paths.
fn named_paths(text: &str) -> Vec<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| {
            let roots = [
                "src/", "actors/", "tests/", "contrib/", "docs/", "openapi/", "benches/",
            ];
            roots.iter().any(|root| word.starts_with(root))
        })
        .filter(|word| !word.contains([' ', '*', '{', '<', ':']))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_map_names_real_files() {
    for document in rust_docs() {
        let text = fs::read_to_string(&document).unwrap();
        for path in named_paths(&text) {
            assert!(
                root().join(&path).exists(),
                "{} names {path}, which is not there",
                document.display()
            );
        }
    }
}

fn rust_docs() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs"))
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let mut docs: Vec<_> = docs
        .filter(|path| path.extension().is_some_and(|ext| ext == "md"))
        .collect();
    docs.push(root().join("README.md"));
    docs
}

#[test]
fn the_map_has_every_folder_of_code() {
    let map = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    for room in ["src", "actors/src", "actors/model/src"] {
        for entry in fs::read_dir(root().join(room)).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            assert!(
                map.contains(&name),
                "docs/architecture.md does not name {name}"
            );
        }
    }
}

/// The names in the table of faults that look like a test's: `a_sentence_with_underscores`.
fn tests_named_in(page: &str) -> Vec<String> {
    let words = page.split('`').skip(1).step_by(2);
    let is_name = |word: &&str| {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        word.matches('_').count() >= 3 && word.chars().all(letters)
    };
    words.filter(is_name).map(str::to_owned).collect()
}

#[test]
fn every_test_named_in_the_table_of_faults_exists() {
    let page = fs::read_to_string(root().join("docs/testing.md")).unwrap();
    let named = tests_named_in(&page);
    assert!(named.len() > 40, "the table is found: {}", named.len());
    let mut sources = String::new();
    for folder in ["src", "actors", "tests"] {
        for file in rust_files(&root().join(folder)) {
            sources.push_str(&fs::read_to_string(file).unwrap());
        }
    }
    for name in named {
        let there = sources.contains(&format!("fn {name}("));
        assert!(
            there,
            "docs/testing.md names a test that is not there: {name}"
        );
    }
}

/// The classes and the tests of the rows under a heading of a page.
fn rows_under(page: &str, heading: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let (_, section) = page.split_once(heading).expect("the heading");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    rows.filter_map(|row| {
        let mut cells = row.split('|').skip(1);
        let classes = cells.next()?.split(',').map(|word| word.trim().to_owned());
        Some((classes.collect(), tests_named_in(cells.next()?)))
    })
    .collect()
}

/// The text of a test, up to the next one.
fn source_of(test: &str, folders: &[&str]) -> Option<String> {
    let files = folders
        .iter()
        .flat_map(|name| rust_files(&root().join(name)));
    let mut texts = files.map(|file| fs::read_to_string(file).unwrap());
    texts.find_map(|text| {
        let (_, rest) = text.split_once(&format!("fn {test}("))?;
        Some(rest.split("#[test]").next()?.to_owned())
    })
}

#[test]
fn every_class_of_drift_is_produced_on_a_real_host() {
    let page = fs::read_to_string(root().join("docs/testing.md")).unwrap();
    let rows = rows_under(&page, "## Drift on a real host\n");
    for class in DriftClass::ALL.iter().map(|class| class.as_str()) {
        let row = rows
            .iter()
            .find(|(classes, _)| classes.iter().any(|of| of == class));
        let (_, tests) = row.unwrap_or_else(|| panic!("no test on a real host for {class}"));
        let quoted = format!("\"{class}\"");
        let produces = |test: &String| {
            source_of(test, &["tests/qemu", "tests/net"]).is_some_and(|text| text.contains(&quoted))
        };
        assert!(
            tests.iter().any(produces),
            "{class}: none of {tests:?} names it"
        );
    }
}
