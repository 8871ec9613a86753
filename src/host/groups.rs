//! The host's groups, as far as files name them.
//!
//! Only `/etc/group` is read: a group from a directory service is not seen, and the socket then
//! stays root's own.

use std::{collections::BTreeSet, fs};

/// The id of a group named in `/etc/group`.
pub fn group_id(name: &str) -> Option<u32> {
    find(&fs::read_to_string("/etc/group").ok()?, name)
}

/// The ids of the users that `/etc/group` lists as members of a group. Users whose primary group it
/// is are not among them; the kernel tells those by their gid.
pub fn members(name: &str) -> BTreeSet<u32> {
    let (Ok(groups), Ok(users)) = (
        fs::read_to_string("/etc/group"),
        fs::read_to_string("/etc/passwd"),
    ) else {
        return BTreeSet::new();
    };
    find_members(&groups, &users, name)
}

fn find_members(groups: &str, users: &str, name: &str) -> BTreeSet<u32> {
    let line = groups
        .lines()
        .find(|line| line.split(':').next() == Some(name));
    let listed = line
        .and_then(|line| line.split(':').nth(3))
        .unwrap_or_default();
    // passwd(5) has the id where group(5) has its own.
    listed
        .split(',')
        .filter_map(|user| find(users, user))
        .collect()
}

fn find(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::{BTreeSet, find, find_members};

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let text = "root:x:0:\nvman2:x:7:\nvman:x:104:alice,bob\nbroken\n";
        assert_eq!(find(text, "vman"), Some(104));
        assert_eq!(find(text, "vm"), None);
        assert_eq!(find(text, "broken"), None);
    }

    #[test]
    fn the_members_of_a_group_are_told_by_their_ids() {
        let groups = "vman:x:104:alice,nobody-here,bob\nempty:x:105:\n";
        let users = "alice:x:1000:1000::/home/alice:/bin/sh\nbob:x:1001:100::/:/bin/sh\n";
        assert_eq!(
            find_members(groups, users, "vman"),
            BTreeSet::from([1000, 1001])
        );
        assert_eq!(find_members(groups, users, "empty"), BTreeSet::new());
        assert_eq!(find_members(groups, users, "none"), BTreeSet::new());
    }
}
