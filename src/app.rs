//! Composition: makes the real adapters, starts the tree and the listeners in
//! order, and stops them in order.
//!
//! Must not: decide anything. Look next: `vman_actors::root` for the tree.

mod figures;
pub mod front;
mod listeners;
mod networks;
pub mod offline;
mod reload;
mod systemd;
mod tls;
pub mod upgrade;

pub use reload::Reread;

use crate::{
    config::{Config, ObserverPolicy},
    host::{
        capacity,
        clock::SystemClock,
        descriptors,
        dirs::{StorageLock, StorageLockError},
        disks::HostDisks,
        folders::HostFolders,
        groups,
        images::HostImages,
        jail::ToolJail,
        manifests::HostManifests,
        net::tap::Taps,
        qemu::{QemuHost, QemuSettings, layout::Layout, samples::Samples},
        qmp::{CommandTimes, Deadlines},
        store_redb::RedbStorage,
    },
    http::{self, Access, HttpSettings, HttpState, Listeners, LocalCallers, Readiness},
    telemetry::LogControl,
};
use futures_util::StreamExt;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vman_actors::observer::DriftSettings;
use vman_actors::ports::Clock;
use vman_actors::{Handles, Ports, StartError, Tree, TreeSettings};
use vman_model::{
    Allowance, Capacity, Cause, Change, EventDraft, EventKind, ImageName, Origin, Subject,
};

/// How long the tree may take to stop after the last request was answered.
const TREE_STOP: Duration = Duration::from_secs(2);

/// What `main` made before the daemon, and the daemon uses.
pub struct Outer {
    /// The running log.
    pub log: LogControl,
    /// Reads the configuration again.
    pub reread: Reread,
    /// The threads that requests are answered on.
    pub front: tokio::runtime::Handle,
}

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Another daemon holds the storage path, or it cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageLockError),
    /// Something the daemon needs could not be had.
    #[error("cannot {what}: {error}")]
    Start {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A listener could not be had.
    #[error(transparent)]
    Listen(#[from] listeners::ListenError),
    /// A bridge was asked for and cannot be had.
    #[error("no bridge for the VMs: {0}; VMAN_NETWORK_MODE=auto falls back to user mode")]
    Network(String),
    /// TLS was asked for and cannot be had.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The tree did not start.
    #[error(transparent)]
    Tree(#[from] StartError),
    /// The tree gave up. Guests keep running.
    #[error("the supervision tree gave up: {0}")]
    GaveUp(String),
}

impl AppError {
    /// The process's exit code: 4 where another daemon holds the storage (a
    /// restart would meet it again), else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            AppError::Storage(StorageLockError::Held { .. }) => 4,
            _ => 1,
        }
    }
}

fn start_error(what: &'static str) -> impl FnOnce(io::Error) -> AppError {
    move |error| AppError::Start { what, error }
}

/// Runs the daemon until it is told to stop. Guests outlive it in every case.
pub async fn run(mut config: Config, outer: Outer) -> Result<(), AppError> {
    let began = Instant::now();
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(start_error("hear signals"))?;
    let descriptors = descriptors::raise_limit();
    tracing::debug!(?descriptors, "the limit of descriptors is raised");
    let lock = StorageLock::acquire(&config.storage.path)?;
    let tls = config.http.tls.as_ref().map(tls::acceptor).transpose()?;
    let listeners = {
        // What is accepted is watched where its listener is.
        let _front = outer.front.enter();
        Listeners {
            tls,
            ..listeners::bind(&config)?
        }
    };
    let times = Arc::new(CommandTimes::default());
    let samples = Arc::new(Samples::default());
    let host = host(&config)?;
    let metrics = figures::sources(outer.log.clone(), times.clone(), samples.clone(), host);
    let ports = ports(&config, &lock, times, &samples).await?;
    #[cfg(feature = "failpoints")]
    let ports = match vman_actors::failpoint::process() {
        Some(process) => vman_actors::failpoint::watched(ports, process),
        None => ports,
    };
    let hypervisor = ports.hypervisor.clone();
    let settings = settings(&config, allowance(&config, host));
    let (tree, probe) = tokio::join!(Tree::start(ports, &settings), hypervisor.probe());
    let tree = tree?;
    tracing::info!(
        event = "daemon.starting",
        storage = %config.storage.path.display(),
        accelerator = probe.accelerator,
        "VMAN {} is starting", env!("CARGO_PKG_VERSION")
    );

    let (ready, readiness) = watch::channel(false);
    let shutdown = CancellationToken::new();
    let state = HttpState::new(HttpSettings {
        handles: tree.handles.clone(),
        readiness: Readiness {
            done: readiness,
            recovery: tree.recovery.clone(),
        },
        probe,
        storage_check: storage_check(&lock),
        access: access(&config),
        limits: http::Limits {
            max_inflight: config.http.max_inflight as usize,
            changes_at_once: outer.front.metrics().num_workers() / 2,
            max_image: config.limits.image_max_bytes,
            ..http::Limits::default()
        },
        default_boot_disk: default_boot_disk(&config),
        metrics: metrics.clone(),
        log: outer.log.reader(),
        shutdown: shutdown.clone(),
    });
    let server = outer.front.spawn(http::serve(
        listeners,
        state,
        shutdown.clone(),
        config.limits.shutdown_timeout,
    ));
    let (handles, recovery) = (tree.handles.clone(), tree.recovery.clone());
    let recovered = tokio::spawn(async move {
        announce(handles, recovery, ready, || {
            // Set once: nobody else does.
            let _ = metrics.recovery.set(began.elapsed());
        })
        .await;
    });
    let watchdog = tokio::spawn(systemd::feed_watchdog(tree.pulse(), outer.front.clone()));

    let again = || reload::reload(&mut config, &outer.reread, &outer.log);
    let ended = until_told(&mut signals, tree.gave_up.clone(), again).await;
    systemd::stopping();
    recovered.abort();
    watchdog.abort();
    shutdown.cancel();
    let _ = server.await;
    if tokio::time::timeout(TREE_STOP, tree.stop()).await.is_err() {
        tracing::warn!(
            "an actor did not stop in time; what it was doing is resolved at the next start"
        );
    }
    tracing::info!(
        event = "daemon.stopped",
        "VMAN has stopped; guests keep running"
    );
    drop(lock);
    ended
}

/// Waits for a signal to stop, or for the tree to give up.
async fn until_told(
    signals: &mut Signals,
    mut gave_up: watch::Receiver<Option<String>>,
    mut reload: impl FnMut(),
) -> Result<(), AppError> {
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Some(SIGHUP) => reload(),
                Some(signal) => {
                    tracing::info!(signal, "VMAN was told to stop");
                    return Ok(());
                }
                None => return Ok(()),
            },
            why = gave_up.wait_for(Option::is_some) => {
                let why = why.map(|why| why.clone().unwrap_or_default());
                return Err(AppError::GaveUp(why.unwrap_or_default()));
            }
        }
    }
}

/// Tells that recovery is done: to clients, to systemd, in the event log.
async fn announce(
    handles: Handles,
    mut recovery: vman_actors::vm::RecoveryProgress,
    ready: watch::Sender<bool>,
    recovered: impl FnOnce(),
) {
    recovery.done().await;
    recovered();
    ready.send_replace(true);
    systemd::ready();
    let vms = handles.store.inventory().vms.len();
    systemd::status(&format!("{vms} VMs were known when recovery was done"));
    let event = EventDraft::new(
        handles.clock.now(),
        Subject::Daemon,
        EventKind::DaemonReady,
        format!("the daemon is ready, {vms} VMs are known"),
        Cause::new(Origin::Daemon, "recovered"),
    );
    if let Err(error) = handles
        .store
        .commit(Change {
            event: Some(event),
            ..Change::default()
        })
        .await
    {
        tracing::warn!(%error, "cannot record that the daemon is ready");
    }
}

/// What the host has for VMs; none of a simulated one.
fn host(config: &Config) -> Result<Option<Capacity>, AppError> {
    if config.qemu.dry_run {
        return Ok(None);
    }
    let host = capacity::look().map_err(start_error("find out how much memory there is"))?;
    Ok(Some(host))
}

/// How much may be promised: of a simulated host, all that is asked for.
fn allowance(config: &Config, host: Option<Capacity>) -> Allowance {
    let allowance = host.map_or_else(Allowance::default, |host| {
        Allowance::of(host, config.admission.overcommit())
    });
    tracing::debug!(?host, ?allowance, "this much may be promised to VMs");
    allowance
}

fn settings(config: &Config, allowance: Allowance) -> TreeSettings {
    TreeSettings {
        max_vms: config.limits.max_vms as usize,
        max_launches: config.limits.max_launches as usize,
        allowance,
        observer_interval: config.observer.interval,
        drift: DriftSettings {
            repair: config.observer.policy == ObserverPolicy::Repair,
            grace: config.observer.grace,
            retention: config.observer.trash_retention,
        },
    }
}

/// The real adapters, or the simulated host for a dry run.
async fn ports(
    config: &Config,
    lock: &StorageLock,
    times: Arc<CommandTimes>,
    samples: &Arc<Samples>,
) -> Result<Ports, AppError> {
    let dirs = lock.dirs();
    let clock = SystemClock::new().map_err(start_error("read the clock and the boot id"))?;
    if config.qemu.dry_run {
        tracing::warn!("VMAN_OPERATOR_DRY_RUN: VMs are simulated, nothing runs");
        let seed = clock.random();
        let seed = u64::from_ne_bytes(seed[..8].try_into().expect("16 bytes hold 8"));
        let simulated = vman_actors::fakes::FakeHost::simulated(seed).ports();
        // A file of its own: what is simulated is never told of real VMs.
        let storage = Arc::new(RedbStorage::new(dirs.simulated_store_file()));
        return Ok(Ports {
            storage,
            ..simulated
        });
    }
    let storage = Arc::new(RedbStorage::new(dirs.store_file()).with_witnesses(dirs.manifests()));
    let layout = Layout {
        runtime: config.storage.runtime.clone(),
        storage: config.storage.path.clone(),
    };
    let taps = Arc::new(Taps::default());
    let network = networks::open(config, dirs, taps.clone(), clock.random()).await?;
    let qemu_img = Arc::new(ToolJail::new(config.jail.mode, config.qemu.img.clone()));
    Ok(Ports {
        storage,
        folders: Arc::new(HostFolders::new(dirs, config.storage.runtime.clone())),
        manifests: Arc::new(HostManifests::new(dirs)),
        hypervisor: Arc::new(
            QemuHost::new(QemuSettings {
                binary: config.qemu.binary.clone(),
                qemu_img: qemu_img.clone(),
                accel: config.qemu.accel,
                layout,
                jail: config.jail,
                deadlines: Deadlines::default(),
                taps,
            })
            .timed(times)
            .sampled(samples),
        ),
        disks: Arc::new(
            HostDisks::new(dirs, Some(qemu_img)).map_err(start_error("open the disks folder"))?,
        ),
        images: Arc::new(
            HostImages::new(dirs, config.limits.image_max_bytes)
                .map_err(start_error("open the images folder"))?,
        ),
        network,
        clock: Arc::new(clock),
    })
}

fn default_boot_disk(config: &Config) -> Option<ImageName> {
    // Validated with the rest of the configuration.
    config
        .qemu
        .default_boot_disk
        .as_deref()
        .and_then(|name| ImageName::parse(name).ok())
}

fn access(config: &Config) -> Access {
    let access = Access {
        hosts: config.http.hosts.clone(),
        ..Access::new(config.http.auth)
    };
    access.with_local(LocalCallers {
        own_uid: rustix::process::geteuid().as_raw(),
        group: groups::group_id(listeners::GROUP),
        members: groups::members(listeners::GROUP),
    })
}

fn storage_check(lock: &StorageLock) -> http::StorageCheck {
    let root = lock.dirs().root().to_owned();
    Arc::new(move || crate::host::dirs::check_writable(&root))
}
