//! The traits through which the tree acts on the world. Adapters live in the
//! daemon's `src/host`; scripted fakes in `crate::fakes`. Each port has one
//! contract suite that runs against both.
//!
//! Futures are boxed because the ports are used as trait objects; none of these
//! calls is hot enough for that to matter beside a process or a disk.

pub mod clock;
#[cfg(any(test, feature = "fakes"))]
pub mod contract;
pub mod files;
pub mod folders;
pub mod hypervisor;
pub mod manifests;
pub mod network;
pub mod storage;

pub use clock::Clock;
pub use files::{DiskFiles, FileError, ImageFiles, NewDiskFile, SeenFile, StagedImage, Upload};
pub use folders::Folders;
pub use futures_util::future::BoxFuture;
pub use hypervisor::{
    AdoptPlan, Adoption, BootFiles, Bounds, ConsoleTail, DiskAction, DiskError, DiskPlan,
    FoundProcess, HostError, HostProbe, Hypervisor, LaunchError, LaunchPlan, Machine,
    MachineAction, MachineError, MachineNews, NewsSink, NicAction, NicPlan, PortForward,
    device_name, node_name,
};
pub use manifests::{FoundManifest, ManifestChange, ManifestFiles, ManifestName};
pub use network::{
    BridgeFacts, ForeignLink, Ipv6, NO_LIMITS, Network, NetworkError, NetworkFacts, NetworkSurvey,
    NicRequest, NicWish, SeenBridge, SeenTap, Settled, Traffic, Unlimited,
};
pub use storage::{CommitError, KeptCopy, LoadError, Row, RowBatch, Storage, Table};
