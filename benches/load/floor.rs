//! The floor of an HTTP figure: the same web framework with nothing behind it, in a
//! process of its own, answering the same number of bytes to whatever is asked.
//!
//! The program starts itself again for that, told by an environment variable.

use super::Target;
use axum::{Router, http::header};
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

const BYTES: &str = "VMAN_BENCH_FLOOR_BYTES";

/// Serves as a floor if this process was started as one.
pub(crate) fn serve_if_asked() -> bool {
    let Some(bytes) = std::env::var(BYTES).ok().and_then(|n| n.parse().ok()) else {
        return false;
    };
    let body = axum::body::Bytes::from(vec![b'x'; bytes]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        let answer = move || async move { ([(header::CONTENT_TYPE, "application/json")], body) };
        let router: Router = Router::new().fallback(answer);
        axum::serve(
            axum::serve::ListenerExt::tap_io(listener, |io| {
                let _ = io.set_nodelay(true);
            }),
            router,
        )
        .await
        .unwrap();
    });
    true
}

/// A floor that runs until it is dropped.
pub(crate) struct Floor {
    child: Child,
    pub target: Target,
}

impl Floor {
    /// One that answers so many bytes.
    pub(crate) fn answering(bytes: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(BYTES, bytes.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let target = Target::Tcp(line.trim().parse().unwrap());
        Self { child, target }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
