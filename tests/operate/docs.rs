//! The documents: what they tell is there, and what they show works.

use crate::support::daemon::Daemon;
use std::{
    fmt::Write as _,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};
use vman::http::ERROR_CODES;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    for folder in ["docs", "docs/decisions"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        let files = entries.map(|entry| entry.unwrap().path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|of| of == "md")));
    }
    pages
}

#[test]
fn every_error_code_is_documented_with_its_status_and_meaning() {
    let mut wanted = "# Errors\n\nEvery refusal is `application/problem+json` (RFC 9457): `code` is stable and meant for programs, `detail` says what happened and what to do, `instance` is the request's id, by which the log tells more. `errors` names wrong fields, all at once. With 429 and 503 comes `Retry-After`.\n\nThis page is made from the code (`UPDATE_DOCS=1 cargo test --test operate`).\n\n| code | status | meaning |\n|---|---|---|\n".to_owned();
    for (code, status, meaning) in ERROR_CODES {
        let _ = writeln!(wanted, "| `{code}` | {status} | {meaning} |");
    }
    let file = root().join("docs/errors.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, &wanted).unwrap();
    }
    let written = fs::read_to_string(file).unwrap();
    assert_eq!(written, wanted, "UPDATE_DOCS=1 writes it anew");
}

#[test]
fn every_link_leads_somewhere_and_every_page_is_on_the_map() {
    let map = fs::read_to_string(root().join("docs/README.md")).unwrap();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let links = text.split("](").skip(1);
        let links = links.filter_map(|rest| Some(rest.split_once(')')?.0));
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let file = link.split('#').next().unwrap();
            let target = page.parent().unwrap().join(file);
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
        }
        let in_docs = page.parent() == Some(&root().join("docs"));
        let name = page.file_name().unwrap().to_str().unwrap();
        if in_docs && name != "README.md" {
            assert!(
                map.contains(&format!("]({name})")),
                "docs/README.md lacks {name}"
            );
        }
    }
}

/// Runs a script in an empty folder beside a simulated daemon.
fn run(daemon: &Daemon, script: &str) {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_vman"));
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("sh")
        .args(["-euxc", script])
        .env(
            "PATH",
            format!("{}:{path}", program.parent().unwrap().display()),
        )
        .env("VMAN_SOCKET", daemon.socket())
        .env("HOME", folder.path())
        .env_remove("VMAN_URL")
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// The blocks of a page that are marked `sh`.
fn blocks_of(page: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("docs").join(page)).unwrap();
    let blocks = text.split("```sh\n").skip(1);
    blocks
        .map(|rest| rest.split_once("```").unwrap().0.to_owned())
        .collect()
}

#[test]
fn the_examples_of_the_api_guide_run_as_they_stand() {
    let blocks = blocks_of("api-guide.md");
    assert!(blocks.len() >= 9, "{blocks:?}");
    let daemon = Daemon::start_with(&[("VMAN_OPERATOR_DRY_RUN", "1")]);
    run(&daemon, &blocks.concat());
    for list in ["/vms", "/disks", "/templates", "/images"] {
        assert_eq!(daemon.get(list).as_array().unwrap().len(), 0, "{list}");
    }
}

#[test]
fn the_quick_start_runs_as_it_stands() {
    let blocks = blocks_of("quick-start.md");
    assert!(blocks.len() >= 5, "{blocks:?}");
    let daemon = Daemon::start_with(&[("VMAN_OPERATOR_DRY_RUN", "1")]);
    run(&daemon, &blocks.concat());
    let left = daemon.get("/vms");
    assert_eq!(left.as_array().unwrap().len(), 0, "{left}");
}

#[test]
fn the_calls_of_the_readme_work_as_they_stand() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let used = text.split("## Use it").nth(1).unwrap();
    let calls: String = used
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .fold(String::new(), |all, line| format!("{all}{line}\n"));
    assert!(calls.matches("curl ").count() >= 6, "{calls}");
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let daemon = Daemon::start_with(&[
        ("VMAN_OPERATOR_DRY_RUN", "1"),
        ("VMAN_AUTH", "none"),
        ("VMAN_LISTEN", &format!("127.0.0.1:{port}")),
    ]);
    let calls = calls.replace("localhost:8000", &format!("localhost:{port}"));
    // A refusal shall be seen.
    let calls = calls.replace("curl ", "curl -sS --fail-with-body ");
    run(&daemon, &calls);
    assert_eq!(daemon.get("/vms").as_array().unwrap().len(), 0);
}
