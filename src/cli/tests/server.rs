//! A tiny daemon for tests: answers as a closure says, and remembers what it was asked.

use crate::{
    cli::{Args, Terminal, run_on},
    config::Environment,
};
use bytes::Bytes;
use clap::Parser as _;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

/// What was asked.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) headers: hyper::HeaderMap,
    pub(super) body: Bytes,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What is answered.
pub(super) enum Reply {
    Json(u16, Value),
    /// With a header.
    With(u16, Value, &'static str, String),
    Raw(&'static str, Vec<u8>),
    HangUp,
}

/// The daemon, and everything it was asked.
pub(super) struct Daemon {
    directory: tempfile::TempDir,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
    tcp: std::net::SocketAddr,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a command did.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) code: u8,
    pub(super) out: String,
    pub(super) err: String,
}

/// A buffer that two can hold.
#[derive(Clone, Default)]
pub(super) struct Buffer {
    pub(super) bytes: Arc<Mutex<Vec<u8>>>,
    /// After so many writes the reader has gone.
    pub(super) writes_left: Option<Arc<Mutex<u32>>>,
}

impl Buffer {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(left) = &self.writes_left {
            let mut left = left.lock().unwrap();
            *left = left.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        }
        self.bytes.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Daemon {
    /// A daemon on a UNIX socket and on a TCP port.
    pub(super) async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(directory.path().join("s")).unwrap();
        let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = port.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            loop {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => {
                        tokio::spawn(serve(stream, log, answer));
                    }
                    Ok((stream, _)) = port.accept() => {
                        tokio::spawn(serve(stream, log, answer));
                    }
                }
            }
        });
        Self {
            directory,
            seen,
            task,
            tcp,
        }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The request lines so far.
    pub(super) fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }

    pub(super) fn tcp_url(&self) -> String {
        format!("http://{}", self.tcp)
    }

    /// Runs a command against this daemon, into pipes.
    pub(super) async fn run(&self, line: &[&str]) -> Ran {
        self.run_on(line, |_| {}).await
    }

    /// Runs a command on a terminal of this kind.
    pub(super) async fn run_on(&self, line: &[&str], change: impl FnOnce(&mut Terminal)) -> Ran {
        let socket = self.directory.path().join("s");
        let socket = socket.to_str().unwrap();
        let line: Vec<&str> = line.iter().copied().chain(["--socket", socket]).collect();
        run_in(&line, &Environment::default(), Buffer::default(), change).await
    }
}

/// Runs a command line with this environment.
pub(super) async fn run_in(
    line: &[&str],
    environment: &Environment,
    out: Buffer,
    change: impl FnOnce(&mut Terminal),
) -> Ran {
    let err = Buffer::default();
    let mut terminal = Terminal::buffers(Box::new(out.clone()), Box::new(err.clone()));
    change(&mut terminal);
    let args = Args::try_parse_from(["vman"].iter().chain(line)).unwrap();
    let code = run_on(args, environment, &mut terminal).await;
    Ran {
        code,
        out: out.text(),
        err: err.text(),
    }
}

async fn serve<S>(
    stream: S,
    log: Arc<Mutex<Vec<Seen>>>,
    answer: Arc<impl Fn(&Seen) -> Reply + Send + Sync + 'static>,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
        async move {
            let (head, body) = request.into_parts();
            let seen = Seen {
                line: format!("{} {}", head.method, head.uri),
                headers: head.headers,
                body: body.collect().await.map_err(io::Error::other)?.to_bytes(),
            };
            log.lock().unwrap().push(seen.clone());
            reply(answer(&seen))
        }
    });
    // A client that hangs up is no matter here.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn reply(reply: Reply) -> io::Result<Response<Full<Bytes>>> {
    let response = match reply {
        Reply::HangUp => return Err(io::ErrorKind::ConnectionReset.into()),
        Reply::Raw(kind, bytes) => Response::builder()
            .header("content-type", kind)
            .body(Full::from(bytes)),
        Reply::Json(204, _) => Response::builder().status(204).body(Full::default()),
        Reply::Json(status, value) => Response::builder()
            .status(status)
            .body(Full::from(value.to_string())),
        Reply::With(status, value, name, content) => Response::builder()
            .status(status)
            .header(name, content)
            .body(Full::from(value.to_string())),
    };
    Ok(response.unwrap())
}
