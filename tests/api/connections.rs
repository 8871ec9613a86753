//! Real connections: accepted, bounded, drained.

use crate::support::{Api, IMAGE, PATIENCE};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::JoinHandle,
};
use vman::http::{Bounds, Listeners, serve_within};

struct Served {
    api: Api,
    folder: tempfile::TempDir,
    tcp: std::net::SocketAddr,
    server: JoinHandle<()>,
}

async fn served(bounds: Bounds) -> Served {
    let api = Api::start().await;
    let folder = tempfile::tempdir().unwrap();
    let unix = UnixListener::bind(folder.path().join("s")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = listener.local_addr().unwrap();
    let listeners = Listeners {
        tcp: Some(listener),
        unix: Some(unix),
        tls: None,
    };
    let server = tokio::spawn(serve_within(
        listeners,
        api.router.clone(),
        api.shutdown.clone(),
        bounds,
    ));
    Served {
        api,
        folder,
        tcp,
        server,
    }
}

impl Served {
    async fn unix(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("s"))
            .await
            .unwrap()
    }
}

async fn exchange(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    request: &str,
) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    read_all(stream).await
}

async fn read_all(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("the end of the connection")
        .ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn the_socket_knows_its_caller_and_tcp_checks_the_host() {
    let served = served(Bounds::default()).await;
    let mut unix = served.unix().await;
    let answer = exchange(
        &mut unix,
        "GET /vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut tcp = TcpStream::connect(served.tcp).await.unwrap();
    let answer = exchange(
        &mut tcp,
        "GET /vms HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("forbidden_host"),
        "{answer}"
    );
    let mut tcp = TcpStream::connect(served.tcp).await.unwrap();
    let request = format!(
        "GET /vms HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        served.tcp
    );
    assert!(
        exchange(&mut tcp, &request)
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn a_client_that_hangs_up_in_the_middle_of_an_upload_leaves_nothing() {
    let served = served(Bounds::default()).await;
    let mut unix = served.unix().await;
    let head =
        "PUT /images/torn?kind=kernel HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf";
    unix.write_all(head.as_bytes()).await.unwrap();
    unix.shutdown().await.unwrap();
    let answer = read_all(&mut unix).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
    drop(unix);
    // The name is free as soon as the daemon has seen the end.
    let retry = async {
        loop {
            let again = served
                .api
                .send("PUT", "/images/torn", &[], axum::body::Body::from(IMAGE))
                .await;
            if again.status == 201 {
                break;
            }
            again.problem(409, "image_being_uploaded");
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, retry)
        .await
        .expect("the name to be free");
}

#[tokio::test]
async fn a_large_refused_body_still_gets_its_answer() {
    let served = served(Bounds::default()).await;
    let stream = TcpStream::connect(served.tcp).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let size = 8 << 20;
    let head = format!(
        "POST /vms HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    );
    let sending = async {
        writer.write_all(head.as_bytes()).await.unwrap();
        // A client that only reads when it has sent everything must get that far.
        writer.write_all(&vec![b' '; size]).await.unwrap();
    };
    let ((), answer) = tokio::join!(sending, read_all(&mut reader));
    assert!(
        answer.starts_with("HTTP/1.1 413") && answer.contains("too_large"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_client_that_never_sends_its_headers_is_cut() {
    let bounds = Bounds {
        header_timeout: Duration::from_millis(50),
        ..Bounds::default()
    };
    let served = served(bounds).await;
    let mut slow = served.unix().await;
    slow.write_all(b"GET /vms HT").await.unwrap();
    read_all(&mut slow).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let bounds = Bounds {
        write_timeout: Duration::from_millis(50),
        ..Bounds::default()
    };
    let served = served(bounds).await;
    let mut lazy = served.unix().await;
    // Answers of the document, until no buffer takes another; then the daemon hangs up.
    let request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n";
    let flooding = async { while lazy.write_all(request).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, flooding)
        .await
        .expect("the connection to be cut");
}

#[tokio::test]
async fn a_request_under_way_is_finished_when_the_daemon_stops_and_streams_end() {
    let served = served(Bounds::default()).await;
    let mut stream = served.unix().await;
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    let mut half = served.unix().await;
    let request = format!(
        "POST /templates HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        BODY.len()
    );
    half.write_all(request.as_bytes()).await.unwrap();
    // Told to go on: the handler reads the body, so the request is under way.
    let mut go_on = [0; 25];
    half.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    served.api.shutdown.cancel();
    read_all(&mut stream).await;
    let answer = exchange(&mut half, BODY).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    tokio::time::timeout(PATIENCE, served.server)
        .await
        .expect("the server to end")
        .unwrap();
    assert!(
        TcpStream::connect(served.tcp).await.is_err(),
        "no more is accepted"
    );
}

const BODY: &str = "{\"name\":\"t\",\"cpu_count\":1,\"ram_mib\":64}";

#[tokio::test]
async fn a_request_that_does_not_end_is_cut_when_the_drain_is_over() {
    let bounds = Bounds {
        drain: Duration::from_millis(50),
        ..Bounds::default()
    };
    let served = served(bounds).await;
    let mut stuck = served.unix().await;
    let head = "POST /templates HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{";
    stuck.write_all(head.as_bytes()).await.unwrap();
    served.api.shutdown.cancel();
    tokio::time::timeout(PATIENCE, served.server)
        .await
        .expect("the server to end")
        .unwrap();
}

#[tokio::test]
async fn a_flood_of_connections_over_tcp_does_not_lock_out_the_socket() {
    let bounds = Bounds {
        max_connections: 2,
        ..Bounds::default()
    };
    let served = served(bounds).await;
    let mut flood = Vec::new();
    for _ in 0..20 {
        flood.push(TcpStream::connect(served.tcp).await.unwrap());
    }
    let mut unix = served.unix().await;
    let answer = exchange(
        &mut unix,
        "GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
