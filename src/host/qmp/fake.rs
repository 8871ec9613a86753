//! A monitor that does what a test tells it to, however wrong.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::client::{Client, Connected, Deadlines, Request};
use super::error::QmpError;

/// Longer than anything here takes, shorter than a test runner's patience.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": "fake"}, "capabilities": []}}"#;

pub(in crate::host) struct FakeQmp {
    lines: Lines<BufReader<OwnedReadHalf>>,
    pub(super) socket: OwnedWriteHalf,
}

impl FakeQmp {
    pub(super) fn pair() -> (UnixStream, Self) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let (reading, socket) = theirs.into_split();
        (
            ours,
            Self {
                lines: BufReader::new(reading).lines(),
                socket,
            },
        )
    }

    /// A client that has been greeted by this server.
    pub(in crate::host) async fn connected() -> (Connected, Self) {
        let (ours, mut server) = Self::pair();
        let client = tokio::spawn(begin(ours, &[]));
        server.greet().await;
        let connected = client
            .await
            .expect("the client does not panic")
            .expect("a connection");
        (connected, server)
    }

    pub(super) async fn greet(&mut self) {
        self.say(GREETING).await;
        let capabilities = self.hear().await;
        assert_eq!(capabilities["execute"], "qmp_capabilities");
        self.answer(&capabilities["id"], &json!({})).await;
    }

    pub(super) async fn say(&mut self, line: &str) {
        self.shout(format!("{line}\r\n").as_bytes()).await;
    }

    pub(super) async fn shout(&mut self, bytes: &[u8]) {
        // A client that has gone is what some tests are about.
        let _ = self.socket.write_all(bytes).await;
    }

    pub(in crate::host) async fn answer(&mut self, id: &Value, value: &Value) {
        self.say(&json!({"return": value, "id": id}).to_string())
            .await;
    }

    pub(in crate::host) async fn hear(&mut self) -> Value {
        let line = timeout(PATIENCE, self.lines.next_line())
            .await
            .expect("a line in time");
        serde_json::from_str(&line.expect("a line").expect("not the end")).expect("json")
    }
}

pub(super) fn short() -> Deadlines {
    Deadlines {
        connect: PATIENCE,
        greeting: PATIENCE,
        command: PATIENCE,
    }
}

pub(super) async fn begin(
    stream: UnixStream,
    first: &'static [&'static str],
) -> Result<Connected, QmpError> {
    let first: Vec<_> = first.iter().map(|name| Request::new(*name)).collect();
    Client::converse(stream, &first, short()).await
}
