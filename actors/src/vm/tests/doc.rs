//! The page about supervision names constants and files as they are.

use std::path::Path;

#[test]
fn the_page_about_supervision_names_constants_that_are_where_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/supervision.md")).unwrap();
    let mut checked = 0;
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let (names, file) = (cells.next().unwrap(), cells.next().unwrap());
        let code = std::fs::read_to_string(root.join(file.trim_matches('`'))).unwrap();
        for name in names.split(", ").map(|name| name.trim_matches('`')) {
            let defined = format!("const {name}: ");
            assert!(code.contains(&defined), "no {name} in {file}");
            checked += 1;
        }
    }
    assert!(checked >= 10, "the table of constants is gone");
}
