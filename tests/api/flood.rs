//! Many who say little, and many who ask much, at the same time.

use crate::support::{Api, PATIENCE};
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, timeout},
};
use vman::{
    host::descriptors,
    http::{Bounds, Listeners, serve_within},
};

const SLOW: usize = 5_000;
const REQUESTS: usize = 2_000;
/// As long as the daemon's own: who finds the queue full tries again a second later.
const BACKLOG: u32 = 4_096;
/// Both ends of every connection are in this process.
const DESCRIPTORS: u64 = 2 * (SLOW + REQUESTS) as u64 + 200;

async fn ask(address: std::net::SocketAddr, path: &str) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    status.ok_or_else(|| std::io::Error::other(format!("no answer: {answer:?}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_thousands_of_slow_clients_every_request_is_answered_and_so_is_live() {
    let name = "among_thousands_of_slow_clients_every_request_is_answered_and_so_is_live";
    let limit = descriptors::raise_limit();
    if limit.is_some_and(|limit| limit < DESCRIPTORS) {
        return skip(
            name,
            &format!("needs {DESCRIPTORS} descriptors, may have {limit:?}"),
        );
    }
    let api = Api::start().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(BACKLOG).unwrap();
    let address = listener.local_addr().unwrap();
    let listeners = Listeners {
        tcp: Some(listener),
        ..Listeners::default()
    };
    let stop = api.shutdown.clone();
    let server = serve_within(
        listeners,
        api.router.clone(),
        stop.clone(),
        Bounds::default(),
    );
    let server = tokio::spawn(server);
    let mut slow = JoinSet::new();
    for _ in 0..SLOW {
        let mut stream = timeout(PATIENCE, TcpStream::connect(address))
            .await
            .expect("to be let in")
            .unwrap();
        slow.spawn(async move {
            let said = b"GET /vms HTTP/1.1\r\nX-Slow: "
                .iter()
                .chain(std::iter::repeat(&b'a'));
            for byte in said {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    let mut asked = JoinSet::new();
    for _ in 0..REQUESTS {
        asked.spawn(timeout(PATIENCE, ask(address, "/vms")));
    }
    let mut took = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        let answer = timeout(PATIENCE, ask(address, "/live")).await;
        assert_eq!(answer.expect("/live in time").unwrap(), 200);
        took.push(began.elapsed());
    }
    let mut seen = BTreeMap::<u16, usize>::new();
    while let Some(answer) = asked.join_next().await {
        let status = answer.unwrap().expect("an answer in time").unwrap();
        *seen.entry(status).or_default() += 1;
    }
    took.sort();
    println!(
        "/live: median {:?}, worst {:?}; /vms: {seen:?}",
        took[25], took[49]
    );
    assert!(
        seen.keys().all(|status| matches!(status, 200 | 429 | 503)),
        "{seen:?}"
    );
    assert_eq!(seen.values().sum::<usize>(), REQUESTS, "none is lost");
    slow.abort_all();
    stop.cancel();
    timeout(PATIENCE, server).await.expect("the end").unwrap();
}

/// Says so aloud, and counts where a runner asks for it.
fn skip(name: &str, why: &str) {
    eprintln!("SKIPPED {name}: {why}");
    if let Some(file) = std::env::var_os("VMAN_TEST_SKIPS") {
        use std::io::Write;
        let mut file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(file)
            .unwrap();
        writeln!(file, "{name}: {why}").unwrap();
    }
}
