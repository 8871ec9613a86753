//! How many descriptors this process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one and answers what it is now. The usual soft limit of 1024
/// is for programs that use select(2); each connection and each QEMU needs some.
pub fn raise_limit() -> Option<u64> {
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: found.maximum,
        maximum: found.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => found.maximum,
        // It then stays as it was, which is enough for less.
        Err(_) => found.current,
    }
}
