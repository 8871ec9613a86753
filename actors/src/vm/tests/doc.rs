//! The page about supervision names constants and files as they are.

const PAGE: &str = include_str!("../../../../docs/supervision.md");
const FILES: [(&str, &str); 6] = [
    ("actors/src/root.rs", include_str!("../../root.rs")),
    (
        "actors/src/vm/supervisor.rs",
        include_str!("../supervisor.rs"),
    ),
    ("actors/src/vm/mod.rs", include_str!("../mod.rs")),
    ("actors/src/vm/handle.rs", include_str!("../handle.rs")),
    ("actors/src/vm/job.rs", include_str!("../job.rs")),
    (
        "actors/src/observer/mod.rs",
        include_str!("../../observer/mod.rs"),
    ),
];

#[test]
fn the_page_about_supervision_names_constants_that_are_where_it_says() {
    let mut checked = 0;
    for line in PAGE.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let (names, file) = (cells.next().unwrap(), cells.next().unwrap());
        let named = FILES
            .iter()
            .find(|(name, _)| *name == file.trim_matches('`'));
        let (_, code) = named.unwrap_or_else(|| panic!("{file} is not known here"));
        for name in names.split(", ").map(|name| name.trim_matches('`')) {
            let defined = format!("const {name}: ");
            assert!(code.contains(&defined), "no {name} in {file}");
            checked += 1;
        }
    }
    assert!(checked >= 10, "the table of constants is gone");
}
