//! Composition: makes the real adapters, starts the tree and the listeners in
//! order, and stops them in order.
//!
//! Must not: decide anything. Look next: `vman_actors::root` for the tree.

mod listeners;
mod tls;

use crate::{
    config::{Config, NetworkMode},
    host::{
        clock::SystemClock,
        descriptors,
        dirs::{StorageLock, StorageLockError},
        disks::HostDisks,
        groups,
        images::HostImages,
        net::UserNetwork,
        qemu::{QemuHost, QemuSettings, layout::Layout},
        qmp::Deadlines,
        store_redb::RedbStorage,
    },
    http::{self, Access, HttpSettings, HttpState, Listeners, LocalCallers, Readiness},
};
use futures_util::StreamExt;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use std::{io, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vman_actors::ports::Clock;
use vman_actors::{Handles, Ports, StartError, Tree, TreeSettings};
use vman_model::{
    Cause, Change, EventDraft, EventKind, ImageName, Origin, Subject, vm::NetworkKind,
};

/// How long the tree may take to stop after the last request was answered.
const TREE_STOP: Duration = Duration::from_secs(2);

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
pub async fn run(config: Config) -> Result<(), AppError> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(start_error("hear signals"))?;
    let descriptors = descriptors::raise_limit();
    tracing::debug!(?descriptors, "the limit of descriptors is raised");
    let lock = StorageLock::acquire(&config.storage.path)?;
    let tls = config.http.tls.as_ref().map(tls::acceptor).transpose()?;
    let listeners = Listeners {
        tls,
        ..listeners::bind(&config)?
    };
    let ports = ports(&config, &lock)?;
    let hypervisor = ports.hypervisor.clone();
    let settings = settings(&config);
    let (tree, probe) = tokio::join!(Tree::start(ports, &settings), hypervisor.probe());
    let tree = tree?;
    tracing::info!(
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
            max_image: config.limits.image_max_bytes,
            ..http::Limits::default()
        },
        default_boot_disk: default_boot_disk(&config),
        shutdown: shutdown.clone(),
    });
    let server = tokio::spawn(http::serve(
        listeners,
        state,
        shutdown.clone(),
        config.limits.shutdown_timeout,
    ));
    let recovered = tokio::spawn(announce(tree.handles.clone(), tree.recovery.clone(), ready));

    let ended = until_told(&mut signals, tree.gave_up.clone()).await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    recovered.abort();
    shutdown.cancel();
    let _ = server.await;
    if tokio::time::timeout(TREE_STOP, tree.stop()).await.is_err() {
        tracing::warn!(
            "an actor did not stop in time; what it was doing is resolved at the next start"
        );
    }
    tracing::info!("VMAN has stopped; guests keep running");
    drop(lock);
    ended
}

/// Waits for a signal to stop, or for the tree to give up.
async fn until_told(
    signals: &mut Signals,
    mut gave_up: watch::Receiver<Option<String>>,
) -> Result<(), AppError> {
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Some(SIGHUP) => {
                    tracing::warn!("SIGHUP: the configuration is read at start only; restart VMAN");
                }
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
) {
    recovery.done().await;
    ready.send_replace(true);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let vms = handles.store.inventory().vms.len();
    tracing::info!(vms, "VMAN is ready");
    let event = EventDraft {
        at: handles.clock.now(),
        subject: Subject::Daemon,
        kind: EventKind::DaemonReady,
        from: None,
        to: None,
        reason: None,
        detail: format!("the daemon is ready, {vms} VMs are known"),
        incarnation: None,
        operation: None,
        cause: Cause {
            origin: Origin::Daemon,
            input: "recovered".to_owned(),
            led_by: None,
        },
        previous: None,
    };
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

fn settings(config: &Config) -> TreeSettings {
    TreeSettings {
        max_vms: config.limits.max_vms as usize,
        max_launches: config.limits.max_launches as usize,
        observer_interval: config.observer.interval,
    }
}

/// The real adapters, or the simulated host for a dry run.
fn ports(config: &Config, lock: &StorageLock) -> Result<Ports, AppError> {
    let dirs = lock.dirs();
    if config.qemu.dry_run {
        tracing::warn!("VMAN_OPERATOR_DRY_RUN: VMs are simulated, nothing runs");
        let seed = SystemClock::new()
            .map_err(start_error("read the clock"))?
            .random();
        let seed = u64::from_ne_bytes(seed[..8].try_into().expect("16 bytes hold 8"));
        let simulated = vman_actors::fakes::FakeHost::simulated(seed).ports();
        // A file of its own: what is simulated is never told of real VMs.
        let storage = Arc::new(RedbStorage::new(dirs.simulated_store_file()));
        return Ok(Ports {
            storage,
            ..simulated
        });
    }
    let storage = Arc::new(RedbStorage::new(dirs.store_file()));
    let layout = Layout {
        runtime: config.storage.runtime.clone(),
        storage: config.storage.path.clone(),
    };
    let network = match config.network.mode {
        NetworkMode::None => NetworkKind::None,
        NetworkMode::Auto | NetworkMode::Bridge | NetworkMode::User => NetworkKind::User,
    };
    Ok(Ports {
        storage,
        hypervisor: Arc::new(QemuHost::new(QemuSettings {
            binary: config.qemu.binary.clone(),
            qemu_img: config.qemu.img.clone(),
            accel: config.qemu.accel,
            layout,
            jail: config.jail,
            deadlines: Deadlines::default(),
        })),
        disks: Arc::new(
            HostDisks::new(dirs, Some(config.qemu.img.clone()))
                .map_err(start_error("open the disks folder"))?,
        ),
        images: Arc::new(
            HostImages::new(dirs, config.limits.image_max_bytes)
                .map_err(start_error("open the images folder"))?,
        ),
        network: Arc::new(UserNetwork::new(network)),
        clock: Arc::new(SystemClock::new().map_err(start_error("read the clock and the boot id"))?),
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
    Access::new(config.http.auth).with_local(LocalCallers {
        own_uid: rustix::process::geteuid().as_raw(),
        group: groups::group_id(listeners::GROUP),
        members: groups::members(listeners::GROUP),
    })
}

fn storage_check(lock: &StorageLock) -> http::StorageCheck {
    let root = lock.dirs().root().to_owned();
    Arc::new(move || crate::host::dirs::check_writable(&root))
}
