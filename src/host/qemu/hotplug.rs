//! Disks that come and go while a QEMU lives.
//!
//! Owns: the order of QMP commands for one disk, and their undoing. Must not: decide which disk goes
//! where, or keep a connection that its machine has given up.
//!
//! | work | is |
//! |---|---|
//! | plug | `blockdev-add`, `device_add` in one go; if the second fails, `blockdev-del` |
//! | unplug | `device_del`, `DEVICE_DELETED` awaited, `blockdev-del` |
//! | resize | `block_resize` |
//! | limit | `block_set_io_throttle` |
//!
//! Each may be repeated: where QEMU refuses a step, it is asked whether that was done before. With
//! native PCIe hot-plug (7.2) a slot that no guest has powered gives its device up at once; a guest
//! that stands still or does not listen keeps it, and may let go long after nobody waits any more.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Mutex as Turn, broadcast, mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};
use vman_actors::failpoint;
use vman_actors::ports::{BoxFuture, DiskAction, DiskError, DiskPlan, device_name, node_name};
use vman_model::vm::SeenDisk;
use vman_model::{DiskId, DiskLimits};

use super::cmdline::{disk_device, disk_node, file_node};
use super::machine::Nudge;
use crate::host::jail;
use crate::host::qmp::{Client, Event, QmpError};

/// How long a guest may take to let go of a disk. A guest that listens needs 90 ms (7.2, TCG).
const RELEASE_DEADLINE: Duration = Duration::from_secs(10);
/// A node is free a moment after its device is gone: how often, and how long apart, that is tried.
const CLOSE_TRIES: u32 = 200;
const CLOSE_PAUSE: Duration = Duration::from_millis(5);
/// Events kept for those who wait: one a disk, and there are eight.
const EVENTS: usize = 64;
const MIB: u64 = 1 << 20;

/// The devices of ours among all.
const DEVICE_PREFIX: &str = "dev-disk-";

/// What QEMU tells of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DeviceEvent {
    /// It has left the machine.
    Deleted(String),
    /// The guest said no.
    Refused(String),
}

impl DeviceEvent {
    pub(super) fn of(event: &Event) -> Option<Self> {
        let device = event.data.get("device")?.as_str()?.to_owned();
        match event.name.as_str() {
            "DEVICE_DELETED" => Some(Self::Deleted(device)),
            "DEVICE_UNPLUG_GUEST_ERROR" => Some(Self::Refused(device)),
            _ => None,
        }
    }

    /// The disk whose device has left the machine.
    pub(super) fn deleted_disk(&self) -> Option<DiskId> {
        match self {
            Self::Deleted(device) => disk_of_device(device),
            Self::Refused(_) => None,
        }
    }
}

fn disk_of_device(device: &str) -> Option<DiskId> {
    DiskId::parse(device.strip_prefix(DEVICE_PREFIX)?).ok()
}

type Turns = Arc<Mutex<HashMap<DiskId, Weak<Turn<()>>>>>;

/// The work on one machine's disks.
pub(super) struct Hotplug {
    client: watch::Receiver<Option<Client>>,
    nudges: mpsc::Sender<Nudge>,
    events: broadcast::Sender<DeviceEvent>,
    turns: Turns,
    within: Duration,
    owner: Owner,
}

/// Whose the files of disks are while they are plugged in.
#[derive(Clone)]
pub(super) struct Owner {
    /// The QEMU.
    pub(super) pid: u32,
    /// Where disks' files are.
    pub(super) disks: PathBuf,
}

impl Owner {
    /// The QEMU may run under a user of its own, which has to own what it opens.
    async fn hand(&self, path: PathBuf) -> Result<(), DiskError> {
        let pid = self.pid;
        // Whoever made the plan has just opened the file: this waits for no storage.
        if jail::has_disk(pid, &path).unwrap_or(false) {
            return Ok(());
        }
        let handed = tokio::task::spawn_blocking(move || jail::hand_disk(pid, &path)).await;
        let handed = handed.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        handed.map_err(|error| {
            DiskError::Refused(format!("its file cannot be handed to QEMU: {error}"))
        })
    }

    /// A QEMU that has let go of a disk shall not be able to open it again.
    async fn take(&self, disk: &DiskId) {
        let files = DISK_SUFFIXES.map(|suffix| self.disks.join(format!("{disk}.{suffix}")));
        let taken = tokio::task::spawn_blocking(move || {
            let mut there = files.iter().filter(|file| file.exists());
            there.try_for_each(|file| jail::take_disk(file))
        });
        if let Ok(Err(error)) = taken.await {
            tracing::warn!(disk_id = %disk, %error, "a disk's file cannot be taken back from QEMU's user");
        }
    }
}

/// How disks' files end.
const DISK_SUFFIXES: [&str; 2] = ["qcow2", "raw"];

impl Hotplug {
    pub(super) fn new(
        client: watch::Receiver<Option<Client>>,
        nudges: mpsc::Sender<Nudge>,
        within: Duration,
        owner: Owner,
    ) -> Self {
        Self {
            owner,
            client,
            nudges,
            events: broadcast::channel(EVENTS).0,
            turns: Arc::default(),
            within,
        }
    }

    /// Where the conversation tells what it hears.
    pub(super) fn events(&self) -> broadcast::Sender<DeviceEvent> {
        self.events.clone()
    }

    fn turn(&self, disk: &DiskId) -> Arc<Turn<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(disk).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(Turn::new(()));
        turns.insert(disk.clone(), Arc::downgrade(&turn));
        turn
    }

    /// Begins a piece of work. It ends with the connection it began on.
    pub(super) fn begin(&self, action: DiskAction) -> BoxFuture<'static, Result<(), DiskError>> {
        let Some(disk) = disk_of(&action) else {
            return Box::pin(async { Err(refused("its device has no disk's name")) });
        };
        let turn = self.turn(&disk);
        let (mut connection, within) = (self.client.clone(), self.within);
        let client = connection.borrow_and_update().clone();
        let (nudges, heard) = (self.nudges.clone(), self.events.subscribe());
        let owner = self.owner.clone();
        Box::pin(async move {
            let Some(client) = client else {
                return Err(refused("there is no QMP connection"));
            };
            let work = Work {
                owner,
                client,
                within,
                disk,
            };
            let done = async {
                let _turn = turn.lock().await;
                work.run(action, heard).await
            };
            tokio::select! {
                done = done => {
                    if let Err(DiskError::Unknown(why)) = &done {
                        // A full queue of nudges says the same already.
                        let _ = nudges.try_send(Nudge::Suspect(why.clone()));
                    }
                    done
                }
                // What was answered is answered: lost is only what comes after.
                _ = connection.changed() => {
                    Err(DiskError::Unknown("the connection was lost".to_owned()))
                }
            }
        })
    }
}

fn disk_of(action: &DiskAction) -> Option<DiskId> {
    match action {
        DiskAction::Plug(plan) => disk_of_device(&plan.device),
        DiskAction::Unplug(disk) | DiskAction::Resize(disk, _) | DiskAction::Limit(disk, _) => {
            Some(disk.clone())
        }
    }
}

fn refused(why: &str) -> DiskError {
    DiskError::Refused(why.to_owned())
}

/// The arguments of `block_set_io_throttle`. All six rates have to be said; 0 is none.
pub(super) fn throttle(device: &str, limits: &DiskLimits) -> Value {
    let mut arguments = json!({
        "id": device,
        "iops": limits.iops, "iops_rd": 0, "iops_wr": 0,
        "bps": limits.bps, "bps_rd": 0, "bps_wr": 0,
    });
    for (name, burst) in [
        ("iops_max", limits.iops_burst),
        ("bps_max", limits.bps_burst),
    ] {
        if burst > 0 {
            arguments[name] = burst.into();
        }
    }
    arguments
}

/// One piece of work.
struct Work {
    owner: Owner,
    client: Client,
    within: Duration,
    disk: DiskId,
}

/// What became of one command.
enum Answer {
    Done,
    /// QEMU said no.
    No(String),
}

impl Work {
    async fn run(
        &self,
        action: DiskAction,
        heard: broadcast::Receiver<DeviceEvent>,
    ) -> Result<(), DiskError> {
        match action {
            DiskAction::Plug(plan) => self.plug(&plan).await,
            DiskAction::Unplug(_) => self.unplug(heard).await,
            DiskAction::Resize(_, size_mib) => self.resize(size_mib).await,
            DiskAction::Limit(_, limits) => self.limit(&limits).await,
        }
    }

    async fn ask(&self, command: &str, arguments: Value) -> Result<Answer, DiskError> {
        match self
            .client
            .execute(command, Some(arguments), self.within)
            .await
        {
            Ok(_) => Ok(Answer::Done),
            Err(QmpError::Refused { desc, .. }) => Ok(Answer::No(desc)),
            Err(error) => Err(DiskError::Unknown(error.to_string())),
        }
    }

    async fn seen(&self) -> Result<SeenDisk, DiskError> {
        let unknown = |error: QmpError| DiskError::Unknown(error.to_string());
        let all = disks(&self.client, self.within).await.map_err(unknown)?;
        let found = all.into_iter().find(|seen| seen.disk == self.disk);
        Ok(found.unwrap_or(SeenDisk {
            disk: self.disk.clone(),
            device: false,
            node: false,
        }))
    }

    async fn plug(&self, plan: &DiskPlan) -> Result<(), DiskError> {
        let impossible =
            |error: super::cmdline::CmdlineError| DiskError::Refused(error.to_string());
        let node = disk_node(plan).map_err(impossible)?;
        let device = disk_device(plan).map_err(impossible)?;
        self.owner.hand(plan.path.clone()).await?;
        // Both at once, in this order: a device whose node was refused is refused as well.
        let (opened, added) = tokio::join!(
            self.ask("blockdev-add", node),
            self.ask("device_add", device)
        );
        let refusals = [opened?, added?].map(|answer| match answer {
            Answer::Done => None,
            Answer::No(why) => Some(why),
        });
        if let Some(why) = refusals.into_iter().flatten().next() {
            // Or it was plugged in before.
            let seen = self.seen().await?;
            if !seen.device {
                if seen.node {
                    self.close().await?;
                }
                return Err(DiskError::Refused(why));
            }
        }
        failpoint::hit("attach.device");
        if plan.options.limits.any() {
            self.limit(&plan.options.limits).await?;
        }
        Ok(())
    }

    async fn unplug(&self, heard: broadcast::Receiver<DeviceEvent>) -> Result<(), DiskError> {
        let device = device_name(&self.disk);
        if let Answer::No(why) = self.ask("device_del", json!({"id": device})).await? {
            // It is gone already, or it is asked for already and the guest has not answered.
            if self.seen().await?.device {
                tracing::debug!(disk_id = %self.disk, why, "QEMU asks the guest already");
                self.wait_for_guest(heard, &device).await?;
            }
        } else {
            failpoint::hit("detach.asked");
            self.wait_for_guest(heard, &device).await?;
        }
        failpoint::hit("detach.released");
        self.close().await?;
        self.owner.take(&self.disk).await;
        failpoint::hit("detach.closed");
        Ok(())
    }

    async fn wait_for_guest(
        &self,
        mut heard: broadcast::Receiver<DeviceEvent>,
        device: &str,
    ) -> Result<(), DiskError> {
        let until = Instant::now() + RELEASE_DEADLINE;
        loop {
            match timeout_at(until, heard.recv()).await {
                Ok(Ok(DeviceEvent::Deleted(gone))) if gone == device => return Ok(()),
                Ok(Ok(DeviceEvent::Refused(kept))) if kept == device => {
                    return Err(DiskError::Held(
                        "the guest refused to let go of the disk; it is still attached".to_owned(),
                    ));
                }
                Ok(Ok(_)) => {}
                Ok(Err(broadcast::error::RecvError::Lagged(_))) => {
                    if !self.seen().await?.device {
                        return Ok(());
                    }
                }
                Ok(Err(broadcast::error::RecvError::Closed)) => {
                    return Err(DiskError::Unknown("the machine is gone".to_owned()));
                }
                Err(_) if !self.seen().await?.device => return Ok(()),
                Err(_) => {
                    let seconds = RELEASE_DEADLINE.as_secs();
                    return Err(DiskError::Held(format!(
                        "the guest did not let go of the disk within {seconds} s; it is still \
                         attached: try again when the guest runs and listens"
                    )));
                }
            }
        }
    }

    /// Closes the file. The device is gone, or was never there.
    async fn close(&self) -> Result<(), DiskError> {
        let node = json!({"node-name": node_name(&self.disk)});
        for _ in 0..CLOSE_TRIES {
            let Answer::No(why) = self.ask("blockdev-del", node.clone()).await? else {
                return Ok(());
            };
            let seen = self.seen().await?;
            if !seen.node {
                return Ok(());
            }
            if seen.device {
                return Err(DiskError::Refused(why));
            }
            sleep(CLOSE_PAUSE).await;
        }
        Err(DiskError::Unknown("its file stays open".to_owned()))
    }

    async fn resize(&self, size_mib: u64) -> Result<(), DiskError> {
        let arguments = json!({
            "node-name": node_name(&self.disk),
            "size": size_mib.saturating_mul(MIB),
        });
        match self.ask("block_resize", arguments).await? {
            Answer::Done => {
                failpoint::hit("resize.done");
                Ok(())
            }
            Answer::No(why) => Err(DiskError::Refused(why)),
        }
    }

    async fn limit(&self, limits: &DiskLimits) -> Result<(), DiskError> {
        let arguments = throttle(&device_name(&self.disk), limits);
        match self.ask("block_set_io_throttle", arguments).await? {
            Answer::Done => Ok(()),
            Answer::No(why) => Err(DiskError::Refused(why)),
        }
    }
}

/// Which disks of ours a QEMU has, by its devices and its block nodes.
pub(super) async fn disks(client: &Client, within: Duration) -> Result<Vec<SeenDisk>, QmpError> {
    let path = json!({"path": "/machine/peripheral"});
    let flat = json!({"flat": true});
    let (devices, nodes) = tokio::join!(
        client.execute("qom-list", Some(path), within),
        client.execute("query-named-block-nodes", Some(flat), within),
    );
    let mut seen: Vec<SeenDisk> = Vec::new();
    let mut note = |disk: DiskId, device: bool| {
        let known = seen.iter().position(|seen| seen.disk == disk);
        let at = known.unwrap_or_else(|| {
            seen.push(SeenDisk {
                disk,
                device: false,
                node: false,
            });
            seen.len() - 1
        });
        if device {
            seen[at].device = true;
        } else {
            seen[at].node = true;
        }
    };
    for entry in devices?.as_array().into_iter().flatten() {
        let name = entry.get("name").and_then(Value::as_str);
        if let Some(disk) = name.and_then(disk_of_device) {
            note(disk, true);
        }
    }
    for node in nodes?.as_array().into_iter().flatten() {
        if let Some((_, disk)) = named_disk(node) {
            note(disk, false);
        }
    }
    Ok(seen)
}

/// The disk of a block node, told by the file it has open.
fn named_disk(node: &Value) -> Option<(&str, DiskId)> {
    let name = node.get("node-name")?.as_str()?;
    if !name.starts_with("disk-") && !name.starts_with("disk_") {
        return None;
    }
    let file = node.get("file").and_then(Value::as_str).map(Path::new);
    let stem = file
        .and_then(Path::file_stem)
        .and_then(|stem| stem.to_str());
    let by_file = stem.and_then(|stem| DiskId::parse(stem).ok());
    let ours = by_file.filter(|disk| node_name(disk) == name);
    let by_name = || DiskId::parse(name.strip_prefix("disk-")?).ok();
    ours.or_else(by_name).map(|disk| (name, disk))
}

/// The disk of a block node that QEMU names.
pub(super) async fn disk_of_node(
    client: &Client,
    node: &str,
    within: Duration,
) -> Result<Option<DiskId>, QmpError> {
    let flat = json!({"flat": true});
    let nodes = client
        .execute("query-named-block-nodes", Some(flat), within)
        .await?;
    let nodes = nodes.as_array().into_iter().flatten();
    let found = nodes
        .filter_map(named_disk)
        .find(|(name, _)| *name == node || node == file_node(name));
    Ok(found.map(|(_, disk)| disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_tells_its_disk_also_where_its_name_is_a_number() {
        let long = DiskId::parse(&"x".repeat(60)).unwrap();
        let name = node_name(&long);
        assert!(name.len() <= 31, "{name}");
        let node = json!({"node-name": name, "file": format!("/s/disks/{long}.qcow2")});
        assert_eq!(named_disk(&node).unwrap().1, long);
        let short = json!({"node-name": "disk-a.b", "file": "json:{}"});
        assert_eq!(named_disk(&short).unwrap().1.as_str(), "a.b");
        assert!(named_disk(&json!({"node-name": "file-a", "file": "/s/a"})).is_none());
    }

    #[test]
    fn every_rate_is_said_and_a_burst_only_where_there_is_one() {
        let limits = DiskLimits {
            iops: 100,
            bps_burst: 7,
            ..DiskLimits::default()
        };
        let said = throttle("dev-disk-a", &limits);
        assert_eq!((&said["iops"], &said["bps"]), (&json!(100), &json!(0)));
        assert_eq!(said["bps_max"], 7);
        assert!(said.get("iops_max").is_none());
    }
}
