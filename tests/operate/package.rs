//! What a package is made from: manual and completions from the program itself.

use std::{collections::BTreeSet, fs, process::Command};

fn vman(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_vman"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_manual_has_a_page_for_each_command_that_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    vman(&["man", folder.path().to_str().unwrap()]);
    let pages: BTreeSet<String> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let help = vman(&["--help"]);
    let commands = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|word| !word.is_empty() && *word != "help");
    let commands: Vec<_> = commands.collect();
    assert!(
        commands.contains(&"vm") && !commands.contains(&"man"),
        "{commands:?}"
    );
    for command in commands {
        assert!(
            pages.contains(&format!("vman-{command}.1")),
            "{command}: {pages:?}"
        );
    }
    let start = fs::read_to_string(folder.path().join("vman-vm-start.1")).unwrap();
    assert!(start.starts_with(".ie") || start.contains(".TH"), "{start}");
}

#[test]
fn completions_are_made_for_each_shell() {
    for (shell, word) in [
        ("bash", "_vman"),
        ("zsh", "#compdef vman"),
        ("fish", "complete -c vman"),
    ] {
        assert!(vman(&["completion", shell]).contains(word), "{shell}");
    }
}

#[test]
fn the_changelog_of_the_package_is_of_this_version() {
    let path = format!("{}/contrib/debian/changelog", env!("CARGO_MANIFEST_DIR"));
    let first = fs::read_to_string(path)
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .to_owned();
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        first.starts_with(&format!("vman ({version}-1) ")),
        "{first}"
    );
}
