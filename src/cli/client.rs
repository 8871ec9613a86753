//! HTTP/1.1 to the daemon, one connection a request.
//!
//! Owns deadlines, the idempotency key and the retry. Must not know what an answer means. A request is repeated only
//! where that is harmless: GET, and POST under one `Idempotency-Key`.

use super::{
    ask::{ANSWER_DEADLINE, Ask},
    error::{CliError, Problem},
    target::Target,
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, Limited, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderMap, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{io, time::Duration};
use tokio::time::timeout;

/// A daemon on this host answers a connection at once; over a network this covers a few lost packets.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// 10,000 VMs in one list are about 20 MB.
const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// Tries in all, when the connection is lost.
const TRIES: u32 = 3;

pub(super) type Body = BoxBody<Bytes, io::Error>;

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// 200, 201, 202 or 204.
    pub status: StatusCode,
    /// The body; null where there was none.
    pub value: Value,
    /// Where a list goes on: path and query.
    pub next: Option<String>,
}

/// Speaks to one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    target: Target,
    authorization: Option<HeaderValue>,
}

impl Client {
    /// A client of the daemon at `target`; over TCP with a token.
    pub fn new(target: Target, token: Option<&str>) -> Result<Self, CliError> {
        let authorization = token.map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                CliError::Usage("VMAN_TOKEN holds characters that no token has".to_owned())
            })?;
            value.set_sensitive(true);
            Ok::<_, CliError>(value)
        });
        Ok(Self {
            target,
            authorization: authorization.transpose()?,
        })
    }

    /// Where it speaks to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Asks and reads the whole answer.
    pub async fn ask(&self, ask: &Ask) -> Result<Answer, CliError> {
        let response = self.open(ask).await?;
        self.finish(response, ask.changing()).await
    }

    /// Asks and answers the array over all of its pages.
    pub async fn list(&self, ask: &Ask) -> Result<Vec<Value>, CliError> {
        let mut page = ask.clone();
        let mut all = Vec::new();
        loop {
            let answer = self.ask(&page).await?;
            let Value::Array(mut items) = answer.value else {
                return Err(self.garbled("a list was expected"));
            };
            let empty = items.is_empty();
            all.append(&mut items);
            match answer.next {
                // An empty page that says there is more would never end.
                Some(next) if !empty => {
                    page.path = next;
                    page.query.clear();
                }
                _ => return Ok(all),
            }
        }
    }

    /// Asks and answers the head, the body still to come. Repeats where that is harmless.
    pub async fn open(&self, ask: &Ask) -> Result<Response<Incoming>, CliError> {
        let mut tried = 0;
        loop {
            tried += 1;
            let body = match &ask.json {
                Some(json) => full(json.to_string()),
                None => empty(),
            };
            match self.once(ask, body).await {
                Err(CliError::Interrupted { .. }) if ask.repeatable() && tried < TRIES => {
                    tokio::time::sleep(Duration::from_millis(200 * u64::from(tried))).await;
                }
                // A lost connection followed by a refused one is a daemon that restarts.
                Err(CliError::Unreachable { .. }) if tried > 1 && tried < TRIES => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Asks once, with a body that cannot be made again.
    pub async fn upload(&self, ask: &Ask, body: Body) -> Result<Answer, CliError> {
        let response = self.once(ask, body).await?;
        self.finish(response, true).await
    }

    async fn once(&self, ask: &Ask, body: Body) -> Result<Response<Incoming>, CliError> {
        let request = self.request(ask, body)?;
        let lost = |cause: String| CliError::Interrupted {
            target: self.target.to_string(),
            cause,
            changing: ask.changing(),
        };
        let connected = timeout(CONNECT_DEADLINE, self.connect()).await;
        let mut sender = connected
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|cause| CliError::Unreachable {
                target: self.target.to_string(),
                cause,
            })?;
        let sent = if ask.method == Method::PUT {
            // An upload takes as long as it takes; its progress is on the screen.
            sender.send_request(request).await
        } else {
            match timeout(ask.patience, sender.send_request(request)).await {
                Ok(sent) => sent,
                Err(_) => return Err(lost("no answer in time".to_owned())),
            }
        };
        sent.map_err(|error| lost(chain(&error)))
    }

    fn request(&self, ask: &Ask, body: Body) -> Result<Request<Body>, CliError> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(ask.target())
            .header(header::HOST, self.target.host())
            .header(header::ACCEPT, ask.accept)
            .header(
                header::USER_AGENT,
                concat!("vman/", env!("CARGO_PKG_VERSION")),
            );
        if ask.json.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        request
            .body(body)
            .map_err(|error| CliError::Usage(format!("no request can be made of this: {error}")))
    }

    async fn connect(&self) -> io::Result<http1::SendRequest<Body>> {
        match &self.target {
            Target::Unix(path) => handshake(tokio::net::UnixStream::connect(path).await?).await,
            Target::Tcp { host, port } => {
                let stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                handshake(stream).await
            }
        }
    }

    async fn finish(
        &self,
        response: Response<Incoming>,
        changing: bool,
    ) -> Result<Answer, CliError> {
        let status = response.status();
        let next = next_page(response.headers());
        let retry = response.headers().get(header::RETRY_AFTER);
        let retry = retry.and_then(|value| value.to_str().ok().map(str::to_owned));
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        let collected = timeout(ANSWER_DEADLINE, body.collect()).await;
        let lost = |cause: String| CliError::Interrupted {
            target: self.target.to_string(),
            cause,
            changing,
        };
        let bytes = match collected {
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(error)) => return Err(lost(chain(error.as_ref()))),
            Err(_) => return Err(lost("the answer stopped in the middle".to_owned())),
        };
        let parsed: Result<Value, _> = serde_json::from_slice(&bytes);
        if !status.is_success() {
            let body = parsed.unwrap_or(Value::Null);
            return Err(CliError::Refused(Box::new(Problem::read(
                status.as_u16(),
                &body,
                retry,
            ))));
        }
        let value = match parsed {
            Ok(value) => value,
            Err(_) if bytes.is_empty() => Value::Null,
            Err(error) => return Err(self.garbled(&error.to_string())),
        };
        Ok(Answer {
            status,
            value,
            next,
        })
    }

    /// The head of a streamed answer is checked as a whole answer would be.
    pub async fn stream(&self, ask: &Ask) -> Result<Response<Incoming>, CliError> {
        let response = self.open(ask).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        match self.finish(response, false).await {
            Err(error) => Err(error),
            Ok(_) => Err(self.garbled("a failure without a failure's status")),
        }
    }

    pub(super) fn garbled(&self, cause: &str) -> CliError {
        CliError::Garbled {
            target: self.target.to_string(),
            cause: cause.to_owned(),
        }
    }
}

async fn handshake<S>(stream: S) -> io::Result<http1::SendRequest<Body>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // It ends with the answer's body, and its error is also the request's.
    tokio::spawn(connection);
    Ok(sender)
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed()
}

/// An error with its sources; hyper's own text alone says little.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(header::LINK).iter();
    let links = links.filter_map(|value| value.to_str().ok());
    let next = links
        .flat_map(|link| link.split(','))
        .filter_map(|link| link.split_once(';'))
        .find(|(_, parameters)| {
            let parameters = parameters.replace('"', "");
            parameters.split(';').any(|one| one.trim() == "rel=next")
        })
        .map(|(link, _)| link.trim().trim_matches(['<', '>']).to_owned());
    // Only a path: a list never goes on at another host.
    next.filter(|next| next.starts_with('/') && !next.starts_with("//"))
}
