//! What lies in our folders, and the trash folder. Looked at by the Observer.

use super::{BoxFuture, HostError};
use std::time::Duration;
use vman_model::{
    drift::{Room, SeenFiles},
    vm::ProcessIdentity,
};

/// The folders below the storage and the run-time path.
pub trait Folders: Send + Sync + 'static {
    /// Lists the folders once. None where there is nothing to be seen (a
    /// simulated host whose files do not outlive it).
    fn look(&self) -> BoxFuture<'static, Result<Option<SeenFiles>, HostError>>;

    /// Whether a process has a file below our folders open. One that is gone
    /// has none.
    fn holds_ours(&self, process: ProcessIdentity) -> BoxFuture<'static, Result<bool, HostError>>;

    /// Puts a file or folder away: into the trash folder, or where it holds
    /// only sockets, for good. `Ok(false)`: it is not there any more, or was
    /// written to within `grace`.
    fn put_away(
        &self,
        room: Room,
        name: String,
        grace: Duration,
    ) -> BoxFuture<'static, Result<bool, HostError>>;

    /// Deletes what has been in the trash folder for longer than `retention`;
    /// answers how much that was.
    fn empty_trash(&self, retention: Duration) -> BoxFuture<'static, Result<usize, HostError>>;
}
