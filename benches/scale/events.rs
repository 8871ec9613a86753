//! One change told to many event streams.

use super::{fleet::Fleet, report::Report};
use crate::load::{Target, request};
use hdrhistogram::Histogram;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

const CLIENTS: usize = 1_000;
/// Clients that never read.
const SLEEPERS: usize = 50;
const CHANGES: usize = 100;
/// Between two changes: each is told before the next.
const PAUSE: Duration = Duration::from_millis(50);

/// When each client has heard of each revision.
type Heard = Arc<Mutex<Vec<(u64, Instant)>>>;

pub(crate) fn measure(report: &mut Report) {
    let fleet = Fleet::simulated(&[("VMAN_MAX_INFLIGHT", "4096")]);
    let heard = Heard::default();
    let ready = Arc::new(Notify::new());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (told, listening) = (Arc::clone(&heard), Arc::clone(&ready));
    let Target::Tcp(address) = fleet.target.clone() else {
        unreachable!("a fleet listens on TCP");
    };
    let mut ask = Vec::new();
    request(&mut ask, "GET", "/events", &fleet.headers, b"");
    let ask: Arc<[u8]> = ask.into();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let listener = thread::spawn(move || {
        runtime.block_on(async move {
            let mut open = Vec::new();
            for n in 0..CLIENTS + SLEEPERS {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(&ask).await.unwrap();
                let mut head = [0; 16];
                stream.read_exact(&mut head).await.unwrap();
                assert!(
                    head.starts_with(b"HTTP/1.1 200"),
                    "{:?}",
                    String::from_utf8_lossy(&head)
                );
                if n < CLIENTS {
                    tokio::spawn(listen(stream, Arc::clone(&told)));
                } else {
                    open.push(stream);
                }
            }
            listening.notify_one();
            let _ = stopped.await;
        });
    });
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(ready.notified());
    let mut sent = BTreeMap::new();
    let spent = fleet.cost(|| {
        let mut connection = fleet.connect();
        for n in 0..CHANGES {
            let mut out = Vec::new();
            let body = format!("{{\"name\":\"t{n}\",\"cpu_count\":1,\"ram_mib\":64}}");
            fleet.post(&mut out, "/templates", &body);
            let began = Instant::now();
            assert_eq!(connection.exchange(&out).unwrap(), 201);
            let made: serde_json::Value = serde_json::from_slice(connection.body()).unwrap();
            sent.insert(made["revision"].as_u64().unwrap(), (began, Instant::now()));
            thread::sleep(PAUSE);
        }
        thread::sleep(Duration::from_secs(1));
    });
    let _ = stop.send(());
    listener.join().unwrap();
    let [mut whole, mut after] =
        [(); 2].map(|()| Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).unwrap());
    for (revision, at) in heard.lock().unwrap().iter() {
        if let Some((began, answered)) = sent.get(revision) {
            let us =
                |since: &Instant| u64::try_from(at.duration_since(*since).as_micros()).unwrap();
            whole.saturating_record(us(began).max(1));
            after.saturating_record(us(answered).max(1));
        }
    }
    assert_eq!(whole.len(), (CLIENTS * CHANGES) as u64, "events that came");
    let ms = |histogram: &Histogram<u64>, quantile| {
        #[allow(clippy::cast_precision_loss)]
        let us = histogram.value_at_quantile(quantile) as f64;
        us / 1_000.0
    };
    report.row(
        format!("one change to {CLIENTS} event streams, {SLEEPERS} more that never read"),
        format!(
            "p99 {:.1} ms from the request on, {:.1} ms after it was answered ({:.1} ms of CPU a change)",
            ms(&whole, 0.99),
            ms(&after, 0.99),
            spent.as_secs_f64() * 1_000.0 / CHANGES as f64
        ),
        "p99 below 100 ms",
    );
}

/// Notes the revision of each event.
async fn listen(mut stream: TcpStream, heard: Heard) {
    let (mut buffer, mut text) = ([0; 4_096], Vec::new());
    while let Ok(more @ 1..) = stream.read(&mut buffer).await {
        let now = Instant::now();
        text.extend_from_slice(&buffer[..more]);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let id = line.strip_prefix(b"id: ").or(line.strip_prefix(b"id:"));
            let id = id.and_then(|id| std::str::from_utf8(id).ok()?.trim().parse().ok());
            if let Some(revision) = id {
                heard.lock().unwrap().push((revision, now));
            }
        }
    }
}
