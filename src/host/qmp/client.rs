//! One connection to one monitor.
//!
//! Owns: the socket, a reader and a writer task, deadlines. Must not: reconnect, interpret events,
//! or believe that QEMU answers. Commands may be given to [`Client::connect_and`] so that they are
//! on their way before the greeting is: a launch then costs one round trip.
//!
//! A connection accepts commands from any number of callers; replies are told apart by id, and ids
//! start from a random base because a reply to a previous client's command can arrive first. Look
//! next: `pending.rs` for correlation, `events.rs` for what comes unasked.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use qapi_qmp::QmpCommand;
use serde_json::{Map, Value};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use vman_actors::{
    failpoint::{self, Side},
    meters::{Family, Histogram},
};

use super::error::{Lost, QmpError};
use super::events::{EventQueue, Events};
use super::pending::{Answer, Pending};
use super::tasks::{Counters, Counts, Line, Shared, read, write};
use super::wire::Greeting;

/// How long commands took, by command and how they ended (`ok`, `refused`, `failed`).
pub type CommandTimes = Family<Histogram, 2>;

/// How many commands may wait for a reply. The actors ask one or two at a time; more means that QEMU
/// hangs and that asking more does not help.
pub const MAX_IN_FLIGHT: usize = 32;

/// How long a connection may take to be of use.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// To connect. A listening socket answers at once, whatever QEMU does.
    pub connect: Duration,
    /// From there to the greeting, which a second client of a monitor never gets.
    pub greeting: Duration,
    /// From there to the answers to the first commands.
    pub command: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let command = Duration::from_secs(10);
        Self {
            connect: Duration::from_secs(1),
            greeting: Duration::from_secs(5),
            command,
        }
    }
}

/// A command to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Its name, `query-status`.
    pub execute: String,
    /// Its arguments, an object.
    pub arguments: Option<Value>,
}

impl Request {
    /// A command without arguments.
    pub fn new(execute: impl Into<String>) -> Self {
        Self {
            execute: execute.into(),
            arguments: None,
        }
    }

    /// The same with arguments.
    #[must_use]
    pub fn with(mut self, arguments: Value) -> Self {
        self.arguments = Some(arguments);
        self
    }
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    lines: mpsc::Sender<Line>,
    permits: Semaphore,
    tasks: [AbortHandle; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.close(Lost::Local);
    }
}

/// The commanding half of a connection. Clones share it; it closes with the last of them.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
    times: Option<Arc<CommandTimes>>,
}

/// A connection that has been greeted.
#[derive(Debug)]
pub struct Connected {
    /// For commands.
    pub client: Client,
    /// What comes unasked.
    pub events: Events,
    /// What QEMU said of itself.
    pub greeting: Greeting,
    /// The answers to the first commands, in their order.
    pub answers: Vec<Result<Value, QmpError>>,
}

/// Forgets a command whose caller went away.
struct Waiting<'a> {
    pending: &'a Pending,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pending.forget(self.id);
    }
}

impl Client {
    /// Connects to the monitor at `socket` and makes it ready for commands.
    pub async fn connect(socket: &Path, deadlines: Deadlines) -> Result<(Self, Events), QmpError> {
        let connected = Self::connect_and(socket, &[], deadlines).await?;
        Ok((connected.client, connected.events))
    }

    /// The same, with the first commands sent together with the connection's set-up. A socket path
    /// may be longer than `sun_path` allows.
    ///
    /// # Errors
    /// After [`QmpError::NoGreeting`] the commands may yet run: give only such as may be repeated.
    pub async fn connect_and(
        socket: &Path,
        first: &[Request],
        deadlines: Deadlines,
    ) -> Result<Connected, QmpError> {
        let until = Instant::now() + deadlines.connect;
        let stream = match timeout_at(until, connect_beneath(socket)).await {
            Ok(stream) => stream.map_err(QmpError::Unreachable)?,
            Err(_) => return Err(QmpError::Unreachable(io::ErrorKind::TimedOut.into())),
        };
        Self::converse(stream, first, deadlines).await
    }

    /// The same over a socket that is connected already.
    pub async fn converse(
        stream: UnixStream,
        first: &[Request],
        deadlines: Deadlines,
    ) -> Result<Connected, QmpError> {
        let (client, events, greeted) = Self::start(stream);
        let shared = Arc::clone(&client.inner.shared);
        let mut requests = vec![Request::new("qmp_capabilities")];
        requests.extend_from_slice(first);
        let (line, waiters) = client.prepare(&requests)?;
        // The queue is empty and the permits are all there: this is its first line.
        if client.inner.lines.try_send(line).is_err() {
            return Err(lost("qmp_capabilities", false, Lost::Local));
        }
        let until = Instant::now() + deadlines.greeting;
        let greeting = match timeout_at(until, greeted).await {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(_)) => return Err(lost("qmp_capabilities", true, Lost::Closed)),
            Err(_) => return Err(QmpError::NoGreeting(deadlines.greeting)),
        };
        let until = Instant::now() + deadlines.command;
        let mut answers = Vec::with_capacity(waiters.len());
        for ((id, receiver), request) in waiters.into_iter().zip(&requests) {
            let waiting = Waiting {
                pending: &shared.pending,
                id,
            };
            let command = &request.execute;
            answers.push(wait_for(waiting, receiver, command, until, deadlines.command).await);
        }
        answers.remove(0)?;
        Ok(Connected {
            client,
            events,
            greeting,
            answers,
        })
    }

    fn start(stream: UnixStream) -> (Self, Events, oneshot::Receiver<Greeting>) {
        // The base is below 2^52 so that no JSON implementation on the way rounds it.
        let first_id = getrandom::u64().unwrap_or_default() >> 12;
        let shared = Arc::new(Shared {
            pending: Pending::new(first_id),
            events: Arc::new(EventQueue::default()),
            counts: Counts::default(),
        });
        let (reading, writing) = stream.into_split();
        let (greeting, greeted) = oneshot::channel();
        // Commands that were given up may wait here beside those that were not.
        let (lines, queue) = mpsc::channel(2 * MAX_IN_FLIGHT);
        let reader = tokio::spawn(read(reading, Arc::clone(&shared), greeting));
        let writer = tokio::spawn(write(writing, Arc::clone(&shared), queue));
        let tasks = [reader.abort_handle(), writer.abort_handle()];
        let events = Events {
            queue: Arc::clone(&shared.events),
        };
        let permits = Semaphore::new(MAX_IN_FLIGHT);
        let inner = Arc::new(Inner {
            shared,
            lines,
            permits,
            tasks,
        });
        (Self { inner, times: None }, events, greeted)
    }

    /// The same connection, its commands' times counted.
    #[must_use]
    pub fn timed(mut self, times: Arc<CommandTimes>) -> Self {
        self.times = Some(times);
        self
    }

    /// Runs a command and waits at most `within` for its answer.
    pub async fn execute(
        &self,
        command: &str,
        arguments: Option<Value>,
        within: Duration,
    ) -> Result<Value, QmpError> {
        self.execute_with(command, arguments, None, within).await
    }

    /// Gives QEMU a descriptor under a name, for `netdev_add` and the like.
    pub async fn give(
        &self,
        name: &str,
        descriptor: OwnedFd,
        within: Duration,
    ) -> Result<(), QmpError> {
        let arguments = serde_json::json!({"fdname": name});
        let given = self.execute_with("getfd", Some(arguments), Some(descriptor), within);
        given.await.map(drop)
    }

    async fn execute_with(
        &self,
        command: &str,
        arguments: Option<Value>,
        descriptor: Option<OwnedFd>,
        within: Duration,
    ) -> Result<Value, QmpError> {
        let began = Instant::now();
        failpoint::hit("qmp", command, Side::Before);
        let answer = self.ask(command, arguments, descriptor, within).await;
        failpoint::hit("qmp", command, Side::After);
        if let Some(times) = &self.times {
            let end = match &answer {
                Ok(_) => "ok",
                Err(QmpError::Refused { .. }) => "refused",
                Err(_) => "failed",
            };
            times.with([command, end]).observe(began.elapsed());
        }
        answer
    }

    async fn ask(
        &self,
        command: &str,
        arguments: Option<Value>,
        descriptor: Option<OwnedFd>,
        within: Duration,
    ) -> Result<Value, QmpError> {
        let until = Instant::now() + within;
        let busy = || QmpError::Busy {
            command: command.to_owned(),
        };
        let permit = timeout_at(until, self.inner.permits.acquire()).await;
        let _permit = permit.map_err(|_| busy())?.map_err(|_| busy())?;
        let request = Request {
            execute: command.to_owned(),
            arguments,
        };
        let (mut line, mut waiters) = self.prepare(std::slice::from_ref(&request))?;
        line.descriptor = descriptor;
        let Some((id, receiver)) = waiters.pop() else {
            return Err(busy());
        };
        let waiting = Waiting {
            pending: &self.inner.shared.pending,
            id,
        };
        match self.inner.lines.try_send(line) {
            Ok(()) => wait_for(waiting, receiver, command, until, within).await,
            Err(mpsc::error::TrySendError::Full(_)) => Err(busy()),
            // The writer ended a moment ago; the table knows why.
            Err(mpsc::error::TrySendError::Closed(_)) => {
                wait_for(waiting, receiver, command, until, within).await
            }
        }
    }

    /// Runs a command of `qapi-qmp`, its types included. Some of them do not fit what QEMU 7.2
    /// answers (`query-blockstats`, `query-machines`, `query-migrate-capabilities`): use
    /// [`Client::execute`] for those.
    pub async fn run<C: QmpCommand>(
        &self,
        command: &C,
        within: Duration,
    ) -> Result<C::Ok, QmpError> {
        let arguments = serde_json::to_value(command).map_err(|source| QmpError::Arguments {
            command: C::NAME.to_owned(),
            source,
        })?;
        let value = self.execute(C::NAME, Some(arguments), within).await?;
        serde_json::from_value(value).map_err(|source| QmpError::Unexpected {
            command: C::NAME.to_owned(),
            source,
        })
    }

    /// What went by so far.
    pub fn counters(&self) -> Counters {
        self.inner.shared.counts.now()
    }

    #[expect(clippy::type_complexity, reason = "a pair used twice, next to here")]
    fn prepare(
        &self,
        requests: &[Request],
    ) -> Result<(Line, Vec<(u64, oneshot::Receiver<Answer>)>), QmpError> {
        let mut line = Line {
            ids: Vec::new(),
            bytes: Vec::new(),
            descriptor: None,
        };
        let mut waiters = Vec::with_capacity(requests.len());
        for Request { execute, arguments } in requests {
            let registered = self.inner.shared.pending.register();
            let (id, receiver) = registered.map_err(|why| lost(execute, false, why))?;
            let mut fields = Map::new();
            fields.insert("execute".into(), execute.as_str().into());
            if let Some(arguments) = arguments {
                fields.insert("arguments".into(), arguments.clone());
            }
            fields.insert("id".into(), id.into());
            line.bytes
                .extend_from_slice(Value::Object(fields).to_string().as_bytes());
            line.bytes.push(b'\n');
            line.ids.push(id);
            waiters.push((id, receiver));
        }
        Ok((line, waiters))
    }
}

fn lost(command: &str, sent: bool, why: Lost) -> QmpError {
    QmpError::Lost {
        command: command.to_owned(),
        sent,
        why,
    }
}

async fn wait_for(
    waiting: Waiting<'_>,
    receiver: oneshot::Receiver<Answer>,
    command: &str,
    until: Instant,
    within: Duration,
) -> Result<Value, QmpError> {
    match timeout_at(until, receiver).await {
        Ok(Ok(Answer::Return(value))) => Ok(value),
        Ok(Ok(Answer::Error { class, desc })) => Err(QmpError::Refused {
            command: command.to_owned(),
            class,
            desc,
        }),
        Ok(Ok(Answer::Lost { sent, why })) => Err(lost(command, sent, why)),
        Ok(Err(_)) => Err(lost(command, true, Lost::Local)),
        Err(_) => {
            let command = command.to_owned();
            Err(if waiting.pending.forget(waiting.id) {
                QmpError::NoAnswer {
                    command,
                    after: within,
                }
            } else {
                QmpError::NotSent {
                    command,
                    after: within,
                }
            })
        }
    }
}

/// Connects through the socket's directory, so that the length of its path does not matter.
async fn connect_beneath(socket: &Path) -> io::Result<UnixStream> {
    let beneath = crate::host::qemu::sockets::Beneath::of(socket)?;
    UnixStream::connect(beneath.path()).await
}
