//! What every route has at hand. Made once by the daemon's composition.

use super::{
    auth::Access,
    bearer::TokenUses,
    frames::Frames,
    idempotency::KeysInFlight,
    kept::KeptLists,
    metrics::{HttpMeters, MetricsSources},
};
use crate::telemetry::LogReader;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use vman_actors::{Handles, ports::HostProbe, store::Inventory, vm::RecoveryProgress};
use vman_model::ImageName;

/// How far the daemon's start has come.
#[derive(Clone)]
pub struct Readiness {
    /// True from the moment recovery is done.
    pub done: watch::Receiver<bool>,
    /// How many VMs are still looked for.
    pub recovery: RecoveryProgress,
}

/// Bounds on what clients may ask.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests under way at once.
    pub max_inflight: usize,
    /// Changes whose handlers run at the same moment; that they wait does not count.
    pub changes_at_once: usize,
    /// Bytes of a JSON body.
    pub max_body: usize,
    /// Bytes of an uploaded image.
    pub max_image: u64,
    /// How long an upload may pause between two pieces, in seconds.
    pub upload_idle_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_inflight: 1_024,
            changes_at_once: 1,
            max_body: 1 << 20,
            max_image: 1 << 40,
            upload_idle_s: 30,
        }
    }
}

/// Looks at the storage path; the sentence says what is wrong with it.
pub type StorageCheck = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the HTTP front end is made from.
pub struct HttpSettings {
    /// The tree.
    pub handles: Handles,
    /// How far the start has come.
    pub readiness: Readiness,
    /// What the host has, as probed at start.
    pub probe: HostProbe,
    /// Looks at the storage path, for health.
    pub storage_check: StorageCheck,
    /// Who may call.
    pub access: Access,
    /// Bounds.
    pub limits: Limits,
    /// The image that new VMs boot from when nothing else is said.
    pub default_boot_disk: Option<ImageName>,
    /// What the metrics are made from besides the tree.
    pub metrics: MetricsSources,
    /// Reads the daemon's log.
    pub log: LogReader,
    /// Cancelled when the daemon stops: streams and long waits end at once.
    pub shutdown: CancellationToken,
}

/// What every route has at hand.
#[derive(Clone)]
pub struct HttpState(Arc<Shared>);

/// The inside of [`HttpState`].
pub struct Shared {
    /// What it was made from.
    pub settings: HttpSettings,
    /// A permit for each request under way.
    pub(crate) inflight: Arc<Semaphore>,
    /// Turns of those who change something.
    pub(crate) turns: Arc<Semaphore>,
    /// A permit for each request that waits or streams: at most half of all, so
    /// that those who wait never lock out those who ask.
    pub(crate) waiting: Arc<Semaphore>,
    /// One look at the storage path at a time: where it hangs, looks would pile up.
    pub(crate) storage_look: Arc<Semaphore>,
    /// Idempotency keys of requests under way.
    pub(crate) keys: KeysInFlight,
    /// Lists of VMs as they were written last.
    pub(crate) vm_lists: KeptLists,
    /// Events as they are sent to streams.
    pub(crate) frames: Frames,
    /// What is counted here.
    pub(crate) meters: HttpMeters,
    /// Which tokens' uses were recorded.
    pub(crate) token_uses: TokenUses,
}

impl HttpState {
    /// From the daemon's parts.
    pub fn new(settings: HttpSettings) -> Self {
        let inflight = settings
            .limits
            .max_inflight
            .clamp(2, Semaphore::MAX_PERMITS);
        Self(Arc::new(Shared {
            inflight: Arc::new(Semaphore::new(inflight)),
            turns: Arc::new(Semaphore::new(settings.limits.changes_at_once.max(1))),
            waiting: Arc::new(Semaphore::new(inflight / 2)),
            storage_look: Arc::new(Semaphore::new(1)),
            keys: KeysInFlight::default(),
            vm_lists: KeptLists::default(),
            frames: Frames::default(),
            meters: HttpMeters::default(),
            token_uses: TokenUses::default(),
            settings,
        }))
    }

    /// The tree.
    pub fn handles(&self) -> &Handles {
        &self.0.settings.handles
    }

    /// The state as of the last commit.
    pub fn inventory(&self) -> Arc<Inventory> {
        self.handles().store.inventory()
    }
}

impl std::ops::Deref for HttpState {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}
