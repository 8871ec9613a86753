//! The host's groups, as far as files name them.
//!
//! Only `/etc/group` is read: a group from a directory service is not seen, and the socket then
//! stays root's own.

use std::fs;

/// The id of a group named in `/etc/group`.
pub fn group_id(name: &str) -> Option<u32> {
    find(&fs::read_to_string("/etc/group").ok()?, name)
}

fn find(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let text = "root:x:0:\nvman2:x:7:\nvman:x:104:alice,bob\nbroken\n";
        assert_eq!(find(text, "vman"), Some(104));
        assert_eq!(find(text, "vm"), None);
        assert_eq!(find(text, "broken"), None);
    }
}
