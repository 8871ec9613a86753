//! VMAN.
fn main() {}
