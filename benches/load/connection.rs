//! One connection of a client that reuses its buffers: what it costs is small beside
//! what it measures.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

/// How long an answer may take before the connection is given up.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where the server listens.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Writes a request with the headers that every server wants.
pub(crate) fn request(out: &mut Vec<u8>, method: &str, path: &str, headers: &str, body: &[u8]) {
    let mut head = String::with_capacity(256);
    let _ = write!(
        head,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}"
    );
    if !body.is_empty() {
        let _ = write!(
            head,
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
    }
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
}

trait Both: Read + Write + Send {}
impl<T: Read + Write + Send> Both for T {}

/// A connection that is kept.
pub(crate) struct Connection {
    stream: Box<dyn Both>,
    buffer: Vec<u8>,
    filled: usize,
    body: std::ops::Range<usize>,
}

impl Connection {
    pub(crate) fn open(target: &Target) -> io::Result<Self> {
        let stream: Box<dyn Both> = match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
        };
        Ok(Self {
            stream,
            buffer: vec![0; 256 * 1024],
            filled: 0,
            body: 0..0,
        })
    }

    /// The body of the last answer.
    pub(crate) fn body(&self) -> &[u8] {
        &self.buffer[self.body.clone()]
    }

    /// Sends a request and reads its answer; answers the status.
    pub(crate) fn exchange(&mut self, request: &[u8]) -> io::Result<u16> {
        self.stream.write_all(request)?;
        self.filled = 0;
        let head = loop {
            self.read_more()?;
            let seen = &self.buffer[..self.filled];
            if let Some(end) = find(seen, b"\r\n\r\n") {
                break end + 4;
            }
        };
        let (status, length) = parse(&self.buffer[..head])?;
        self.body = head..head + length;
        while self.filled < self.body.end {
            self.read_more()?;
        }
        Ok(status)
    }

    fn read_more(&mut self) -> io::Result<()> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(2 * self.filled, 0);
        }
        match self.stream.read(&mut self.buffer[self.filled..])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            more => {
                self.filled += more;
                Ok(())
            }
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The status, and the length of the body.
fn parse(head: &[u8]) -> io::Result<(u16, usize)> {
    let bad = || io::Error::other("not an HTTP answer with a length");
    let head = std::str::from_utf8(head).map_err(|_| bad())?;
    let status: u16 = head
        .get(9..12)
        .and_then(|status| status.parse().ok())
        .ok_or_else(bad)?;
    let of_length = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    };
    match head.lines().find_map(of_length) {
        Some(length) => Ok((status, length)),
        None if matches!(status, 204 | 304) => Ok((status, 0)),
        None => Err(bad()),
    }
}
