//! The conversation with one QEMU.
//!
//! Owns: the task that connects, follows events, reconnects, and tells the news in order. Must not:
//! decide anything, or believe an event for more than a hint: whatever an event says of the run
//! state, QEMU is asked. Only the pidfd says that a QEMU has ended; a lost monitor is reconnected to
//! and reported as deaf meanwhile.
//!
//! | the monitor | is told |
//! |---|---|
//! | answers (the first time, or again) | `Ready` |
//! | said something about the run state, and it differs | `RunState` |
//! | is lost for longer than [`GRACE`], or silent beyond its deadline | `Deaf`, once |
//! | and the process ended | `Exited`, the last |
//!
//! Look next: `host::qmp` for the protocol, `process.rs` for the pidfd.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::sleep;
use vman_actors::ports::{MachineError, MachineNews, NewsSink};
use vman_model::VmUuid;
use vman_model::vm::{ExitStatus, RunState};

use super::console::last_words;
use super::devices::DeviceEvent;
use super::hotplug;
use super::process::{Exit, Process};
use crate::host::cgroup;
use crate::host::qmp::{
    Client, CommandTimes, Connected, Deadlines, Event, Events, Incoming, QmpError, Request,
};

/// How long after a lost connection nothing is reported: a QEMU that exits closes its monitor some
/// milliseconds before the pidfd tells.
pub(super) const GRACE: Duration = Duration::from_millis(50);

/// How long to wait before connecting again, the first time and at most. QEMU takes a new client 1
/// to 9 ms after the old one has gone.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// How many of QEMU's last lines are told with its exit.
const LAST_LINES: usize = 10;

/// Events after which the run state may be another.
const STATE_EVENTS: &[&str] = &[
    "STOP",
    "RESUME",
    "SHUTDOWN",
    "POWERDOWN",
    "RESET",
    "SUSPEND",
    "SUSPEND_DISK",
    "WAKEUP",
    "WATCHDOG",
    "GUEST_PANICKED",
    "GUEST_CRASHLOADED",
    "BLOCK_IO_ERROR",
];

/// Whom the conversation is with and how it begins.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) socket: PathBuf,
    pub(super) uuid: VmUuid,
    /// Whether the guest is still to be let run.
    pub(super) fresh: bool,
    /// What is said to QEMU before its guest's first instruction.
    pub(super) first: Vec<Request>,
    pub(super) log: PathBuf,
    pub(super) banner: String,
    /// Which control groups it is in, one of which counts what was ended for memory.
    pub(super) groups: PathBuf,
    pub(super) deadlines: Deadlines,
    pub(super) times: Arc<CommandTimes>,
    /// The folder of disks' files.
    pub(super) disks: PathBuf,
}

/// What the conversation is asked to do at once.
pub(super) enum Nudge {
    Ping(oneshot::Sender<Result<(), MachineError>>),
    Suspect(String),
}

type Answers = Vec<Result<Value, QmpError>>;

/// Why a conversation ended.
enum Parting {
    /// The connection is gone: QEMU may be exiting.
    Lost(String),
    /// It does not answer.
    Silent(String),
}

/// What SIGKILL is, by which the kernel ends who has taken too much memory.
const SIGKILL: i32 = 9;

/// Who was killed, or ended unseen, may have been so for memory: the group's counter knows.
fn how_it_ended(exit: Exit, groups: &Path) -> ExitStatus {
    let killed = || {
        cgroup::oom_kills(groups)
            .ok()
            .flatten()
            .is_some_and(|kills| kills > 0)
    };
    match exit {
        Exit::Signal(SIGKILL) | Exit::Unknown if killed() => ExitStatus::OomKilled,
        Exit::Code(code) => ExitStatus::Code(code),
        Exit::Signal(signal) => ExitStatus::Signal(signal),
        Exit::Unknown => ExitStatus::Unknown,
    }
}

/// The conversation.
pub(super) struct Link {
    pub(super) setting: Setting,
    pub(super) news: NewsSink,
    pub(super) client: watch::Sender<Option<Client>>,
    pub(super) nudges: mpsc::Receiver<Nudge>,
    pub(super) devices: broadcast::Sender<DeviceEvent>,
    /// What was told last of the run state.
    pub(super) told: Option<RunState>,
    /// Whether it was told that nobody answers.
    pub(super) deaf: bool,
}

impl Link {
    pub(super) async fn run(mut self, process: Process) {
        let exit = tokio::select! {
            biased;
            exit = process.exited() => exit,
            never = self.talk() => match never {},
        };
        self.client.send_replace(None);
        let (log, banner) = (self.setting.log.clone(), self.setting.banner.clone());
        let groups = self.setting.groups.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let words = last_words(&log, &banner, LAST_LINES);
            (words, how_it_ended(exit, &groups))
        });
        let (stderr, status) = looked
            .await
            .unwrap_or_else(|_| (String::new(), ExitStatus::Unknown));
        self.news.tell(MachineNews::Exited { status, stderr });
    }

    async fn talk(&mut self) -> Infallible {
        let mut backoff = BACKOFF.0;
        loop {
            // In a box, which is gone when it is done: this task lives as long as the VM runs.
            let parting = match Box::pin(self.connect()).await {
                Ok(mut connected) => {
                    backoff = BACKOFF.0;
                    let parting = self
                        .converse(&connected.client, &mut connected.events)
                        .await;
                    self.client.send_replace(None);
                    parting
                }
                Err(parting) => parting,
            };
            self.part(parting).await;
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Reports what has to be reported, and answers those who asked in vain.
    async fn part(&mut self, parting: Parting) {
        let answer = match &parting {
            Parting::Lost(_) => MachineError::Disconnected,
            Parting::Silent(_) => MachineError::Timeout(millis(self.setting.deadlines.command)),
        };
        while let Ok(nudge) = self.nudges.try_recv() {
            if let Nudge::Ping(reply) = nudge {
                let _ = reply.send(Err(answer.clone()));
            }
        }
        let why = match parting {
            Parting::Silent(why) => why,
            Parting::Lost(why) => {
                sleep(GRACE).await;
                why
            }
        };
        if !std::mem::replace(&mut self.deaf, true) {
            self.news.tell(MachineNews::Deaf(why));
        }
    }

    /// Connects and finds out how the machine stands, in one round trip.
    async fn connect(&mut self) -> Result<Connected, Parting> {
        // Once only: what became of a `cont` whose answer was lost, the state tells.
        let fresh = std::mem::take(&mut self.setting.fresh);
        let first = if fresh {
            // Nothing beside it: the guest's first instructions compete with the monitor.
            let first = std::mem::take(&mut self.setting.first).into_iter();
            first.chain([Request::new("cont")]).collect()
        } else {
            vec![Request::new("query-uuid"), Request::new("query-status")]
        };
        let (socket, deadlines) = (&self.setting.socket, self.setting.deadlines);
        let connected = Client::connect_and(socket, &first, deadlines).await;
        let mut connected = connected.map_err(|error| parting(&error))?;
        connected.client = connected.client.timed(Arc::clone(&self.setting.times));
        let answers = std::mem::take(&mut connected.answers);
        let state = if fresh {
            let_run(answers)
        } else {
            self.recognise(answers)
        }?;
        self.client.send_replace(Some(connected.client.clone()));
        self.ready(state);
        Ok(connected)
    }

    /// The state of a QEMU that was asked who it is and how it is.
    fn recognise(&self, answers: Answers) -> Result<RunState, Parting> {
        let mut known = answers
            .into_iter()
            .map(|answer| answer.map_err(|error| parting(&error)));
        let mut next = || known.next().unwrap_or(Ok(Value::Null));
        let (uuid, status) = (next()?, next()?);
        let uuid = uuid
            .get("UUID")
            .and_then(Value::as_str)
            .and_then(VmUuid::parse);
        if uuid != Some(self.setting.uuid) {
            let why = "the monitor belongs to another virtual machine";
            return Err(Parting::Silent(why.to_owned()));
        }
        Ok(run_state(&status))
    }

    fn ready(&mut self, state: RunState) {
        (self.told, self.deaf) = (Some(state), false);
        self.news.tell(MachineNews::Ready(state));
    }

    async fn converse(&mut self, client: &Client, events: &mut Events) -> Parting {
        loop {
            let heard = tokio::select! {
                incoming = events.next() => match incoming {
                    Some(Incoming::Event(event)) => self.hear(client, &event).await,
                    Some(Incoming::Missed(_)) => self.refresh(client).await,
                    Some(Incoming::Lost(why)) => Err(Parting::Lost(why.to_string())),
                    None => Err(Parting::Lost("the monitor is gone".to_owned())),
                },
                Some(nudge) = self.nudges.recv() => self.nudged(client, nudge).await,
            };
            if let Err(parting) = heard {
                return parting;
            }
        }
    }

    async fn hear(&mut self, client: &Client, event: &Event) -> Result<(), Parting> {
        if event.name == "RESET" && event.data.get("guest") == Some(&Value::Bool(true)) {
            self.news.tell(MachineNews::GuestReset);
        }
        if let Some(device) = DeviceEvent::of(event) {
            if let DeviceEvent::Deleted(name) = &device
                && let Some(disk) = hotplug::disk_of_device(name)
            {
                self.news.tell(MachineNews::DiskLetGo(disk));
            }
            // Nobody may be waiting for it.
            let _ = self.devices.send(device);
        }
        if event.name == "BLOCK_IO_ERROR" {
            self.io_error(client, event).await?;
        }
        // Each start brings one that tells what its `cont` has told.
        let known = event.name == "RESUME" && self.told == Some(RunState::Running);
        if !known && STATE_EVENTS.contains(&event.name.as_str()) {
            self.refresh(client).await?;
        }
        Ok(())
    }

    /// Tells which disk it was before the run state tells that the CPUs stand still.
    async fn io_error(&mut self, client: &Client, event: &Event) -> Result<(), Parting> {
        let text = |field: &str| {
            event
                .data
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        if text("action") != "stop" {
            return Ok(());
        }
        let within = self.setting.deadlines.command;
        let disk = hotplug::disk_of_node(client, text("node-name"), within).await;
        if let Some(disk) = disk.map_err(|error| parting(&error))? {
            self.news.tell(MachineNews::DiskFailed {
                disk,
                no_space: event.data.get("nospace") == Some(&Value::Bool(true)),
                detail: format!("{} failed: {}", text("operation"), text("reason")),
            });
        }
        Ok(())
    }

    async fn nudged(&mut self, client: &Client, nudge: Nudge) -> Result<(), Parting> {
        let reply = match nudge {
            Nudge::Suspect(why) => return Err(Parting::Silent(why)),
            Nudge::Ping(reply) => reply,
        };
        let within = self.setting.deadlines.command;
        match client.execute("query-status", None, within).await {
            Ok(status) => {
                self.ready(run_state(&status));
                let _ = reply.send(Ok(()));
                Ok(())
            }
            Err(error) => {
                let parting = parting(&error);
                let _ = reply.send(Err(told(error, within)));
                Err(parting)
            }
        }
    }

    async fn refresh(&mut self, client: &Client) -> Result<(), Parting> {
        let status = client
            .execute("query-status", None, self.setting.deadlines.command)
            .await;
        let state = run_state(&status.map_err(|error| parting(&error))?);
        if self.told.replace(state) != Some(state) {
            self.news.tell(MachineNews::RunState(state));
        }
        Ok(())
    }
}

pub(super) fn told(error: QmpError, within: Duration) -> MachineError {
    match error {
        QmpError::Refused { desc, .. } => MachineError::Refused(desc),
        QmpError::Busy { .. } | QmpError::NotSent { .. } | QmpError::NoAnswer { .. } => {
            MachineError::Timeout(millis(within))
        }
        // It was done; only its answer is odd. None of the commands here returns anything.
        QmpError::Unexpected { source, .. } | QmpError::Arguments { source, .. } => {
            MachineError::Refused(source.to_string())
        }
        QmpError::Unreachable(_) | QmpError::NoGreeting(_) | QmpError::Lost { .. } => {
            MachineError::Disconnected
        }
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The state of a new QEMU that was told to run its guest. One that refused is where it was.
fn let_run(answers: Answers) -> Result<RunState, Parting> {
    match answers.into_iter().next_back() {
        Some(Err(QmpError::Refused { .. })) => Ok(RunState::Prelaunch),
        Some(Err(error)) => Err(parting(&error)),
        Some(Ok(_)) | None => Ok(RunState::Running),
    }
}

fn parting(error: &QmpError) -> Parting {
    match error {
        QmpError::Lost { .. } | QmpError::Unreachable(_) => Parting::Lost(error.to_string()),
        _ => Parting::Silent(error.to_string()),
    }
}

/// QEMU's words for its state in ours. A word of a later QEMU counts by whether the CPUs run.
fn run_state(status: &Value) -> RunState {
    let word = status
        .get("status")
        .and_then(Value::as_str)
        .unwrap_or_default();
    match word {
        "running" => RunState::Running,
        "prelaunch" | "preconfig" => RunState::Prelaunch,
        "shutdown" => RunState::Shutdown,
        "guest-panicked" => RunState::GuestPanicked,
        "io-error" => RunState::IoError,
        "internal-error" => RunState::InternalError,
        _ if status.get("running") == Some(&Value::Bool(true)) => RunState::Running,
        _ => RunState::Paused,
    }
}
