//! The client against monitors that misbehave, and against a real one.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::client::{Client, Deadlines, MAX_IN_FLIGHT, Request};
use super::error::{Lost, QmpError};
use super::events::{Incoming, MAX_WAITING};
use super::fake::{FakeQmp, PATIENCE, begin, short};

const SOON: Duration = Duration::from_millis(50);

fn ask(client: &Client, within: Duration) -> tokio::task::JoinHandle<Result<Value, QmpError>> {
    let client = client.clone();
    tokio::spawn(async move { client.execute("query-status", None, within).await })
}

#[tokio::test]
async fn a_monitor_that_never_greets_meets_the_deadline() {
    let (ours, _server) = FakeQmp::pair();
    let deadlines = Deadlines {
        greeting: SOON,
        ..short()
    };
    let error = Client::converse(ours, &[], deadlines)
        .await
        .expect_err("no greeting");
    assert!(matches!(error, QmpError::NoGreeting(_)), "{error}");
    assert!(error.may_have_run());
}

#[tokio::test]
async fn a_monitor_that_closes_at_once_is_lost_and_not_awaited() {
    let (ours, server) = FakeQmp::pair();
    drop(server);
    let error = begin(ours, &[]).await.expect_err("nobody there");
    assert!(error.is_lost(), "{error}");
}

#[tokio::test]
async fn first_commands_are_sent_before_the_greeting_came() {
    let (ours, mut server) = FakeQmp::pair();
    let client = tokio::spawn(begin(ours, &["query-status", "cont"]));
    let heard = [
        server.hear().await,
        server.hear().await,
        server.hear().await,
    ];
    assert_eq!(heard[2]["execute"], "cont");
    server.say(super::fake::GREETING).await;
    for command in &heard {
        server
            .answer(&command["id"], &json!({"of": command["execute"]}))
            .await;
    }
    let connected = client.await.expect("no panic").expect("connected");
    assert_eq!(connected.greeting.version, "7.2.0");
    let answers: Vec<_> = connected
        .answers
        .into_iter()
        .map(|answer| answer.expect("ok"))
        .collect();
    assert_eq!(
        answers,
        [json!({"of": "query-status"}), json!({"of": "cont"})]
    );
}

#[tokio::test]
async fn a_refused_first_command_is_told_apart_from_a_lost_connection() {
    let (ours, mut server) = FakeQmp::pair();
    let client = tokio::spawn(begin(ours, &["cont"]));
    server.greet().await;
    let id = server.hear().await["id"].clone();
    let error = json!({"error": {"class": "GenericError", "desc": "no lock"}, "id": id});
    server.say(&error.to_string()).await;
    let answers = client.await.expect("no panic").expect("connected").answers;
    assert!(matches!(&answers[..], [Err(QmpError::Refused { desc, .. })] if desc == "no lock"));
}

#[tokio::test]
async fn replies_out_of_order_reach_those_who_asked() {
    let (connected, mut server) = FakeQmp::connected().await;
    let first = ask(&connected.client, PATIENCE);
    let first_id = server.hear().await["id"].clone();
    let second = ask(&connected.client, PATIENCE);
    let second_id = server.hear().await["id"].clone();
    server.answer(&second_id, &json!(2)).await;
    assert_eq!(
        second.await.expect("no panic").expect("an answer"),
        json!(2)
    );
    server.answer(&first_id, &json!(1)).await;
    assert_eq!(first.await.expect("no panic").expect("an answer"), json!(1));
}

#[tokio::test]
async fn a_reply_given_twice_and_one_to_a_stranger_are_counted_and_dropped() {
    let (connected, mut server) = FakeQmp::connected().await;
    let asked = ask(&connected.client, PATIENCE);
    let id = server.hear().await["id"].clone();
    let next = json!(id.as_u64().expect("a number") + 1);
    server
        .answer(&json!(3), &json!("a previous client's"))
        .await;
    server
        .answer(&json!("odd"), &json!("not even a number"))
        .await;
    server
        .answer(&next, &json!("for a command not sent yet"))
        .await;
    server.answer(&id, &json!("right")).await;
    server.answer(&id, &json!("again")).await;
    assert_eq!(asked.await.expect("no panic").expect("an answer"), "right");
    let asked = ask(&connected.client, PATIENCE);
    let id = server.hear().await["id"].clone();
    server.answer(&id, &json!("in step")).await;
    assert_eq!(
        asked.await.expect("no panic").expect("an answer"),
        "in step"
    );
    assert_eq!(connected.client.counters().unknown_ids, 4);
}

#[tokio::test]
async fn garbage_and_errors_without_id_harm_nobody() {
    let (connected, mut server) = FakeQmp::connected().await;
    let asked = ask(&connected.client, PATIENCE);
    let id = server.hear().await["id"].clone();
    server.say("\u{0}\u{1}garbage").await;
    server.shout(b"\xff\xfe\n").await;
    server.say(&"[".repeat(100_000)).await;
    server.shout(&vec![b'y'; 5 * 1024 * 1024]).await;
    server.say("").await;
    server
        .say(r#"{"error": {"class": "GenericError", "desc": "JSON parse error"}}"#)
        .await;
    server.answer(&id, &json!("still here")).await;
    assert_eq!(
        asked.await.expect("no panic").expect("an answer"),
        "still here"
    );
    let counters = connected.client.counters();
    assert_eq!((counters.garbage, counters.anonymous_errors), (4, 1));
}

#[tokio::test]
async fn a_late_reply_is_dropped_and_the_next_command_is_answered() {
    let (connected, mut server) = FakeQmp::connected().await;
    let late = ask(&connected.client, SOON);
    let id = server.hear().await["id"].clone();
    let error = late.await.expect("no panic").expect_err("too late");
    assert!(matches!(error, QmpError::NoAnswer { .. }), "{error}");
    assert!(error.may_have_run());
    server.answer(&id, &json!("late")).await;
    let asked = ask(&connected.client, PATIENCE);
    let id = server.hear().await["id"].clone();
    server.answer(&id, &json!("in time")).await;
    assert_eq!(
        asked.await.expect("no panic").expect("an answer"),
        "in time"
    );
    assert_eq!(connected.client.counters().unknown_ids, 1);
}

#[tokio::test]
async fn a_monitor_that_takes_no_bytes_makes_callers_busy_and_not_the_memory_full() {
    let (connected, _server) = FakeQmp::connected().await;
    let (client, padding) = (connected.client, json!({"x": "z".repeat(256 * 1024)}));
    let error = client
        .execute("stuck", Some(padding), SOON)
        .await
        .expect_err("stuck");
    assert!(error.may_have_run(), "part of it was written: {error}");
    let mut certain = 0;
    for _ in 0..4 * MAX_IN_FLIGHT {
        let error = client
            .execute("query-status", None, Duration::from_millis(1))
            .await;
        let error = error.expect_err("no answer");
        assert!(
            matches!(error, QmpError::NotSent { .. } | QmpError::Busy { .. }),
            "{error}"
        );
        certain += u32::from(!error.may_have_run());
    }
    assert_eq!(certain, u32::try_from(4 * MAX_IN_FLIGHT).expect("small"));
}

#[tokio::test]
async fn more_commands_than_allowed_wait_for_their_turn() {
    let (connected, mut server) = FakeQmp::connected().await;
    let asked: Vec<_> = (0..2 * MAX_IN_FLIGHT)
        .map(|_| ask(&connected.client, PATIENCE))
        .collect();
    let mut ids = Vec::new();
    for _ in 0..MAX_IN_FLIGHT {
        ids.push(server.hear().await["id"].clone());
    }
    for _ in 0..MAX_IN_FLIGHT {
        let id = ids.pop().expect("an id");
        server.answer(&id, &json!(1)).await;
        ids.insert(0, server.hear().await["id"].clone());
    }
    for id in &ids {
        server.answer(id, &json!(1)).await;
    }
    for task in asked {
        task.await.expect("no panic").expect("an answer");
    }
}

#[tokio::test]
async fn a_storm_of_events_is_coalesced_and_replies_get_through() {
    let (mut connected, mut server) = FakeQmp::connected().await;
    let mut storm = String::new();
    for index in 0..100_000 {
        let line = json!({"event": "BLOCK_IO_ERROR", "data": {"device": "root", "n": index}});
        storm += &line.to_string();
        storm += "\n";
    }
    storm += r#"{"event": "STOP"}"#;
    storm += "\n";
    let shouting = tokio::spawn(async move {
        server.shout(storm.as_bytes()).await;
        server
    });
    let mut server = shouting.await.expect("no panic");
    let asked = ask(&connected.client, PATIENCE);
    let id = server.hear().await["id"].clone();
    server.answer(&id, &json!("through")).await;
    assert_eq!(
        asked.await.expect("no panic").expect("an answer"),
        "through"
    );
    assert_eq!(connected.client.counters().events, 100_001);
    let Some(Incoming::Event(error)) = connected.events.next().await else {
        panic!("an event")
    };
    assert_eq!(
        (&error.data["n"], error.coalesced),
        (&json!(99_999), 99_999)
    );
    let Some(Incoming::Event(stop)) = connected.events.next().await else {
        panic!("an event")
    };
    assert_eq!(stop.name, "STOP");
    const { assert!(MAX_WAITING < 100_000) };
}

#[tokio::test]
async fn a_connection_that_ends_frees_all_who_wait_and_ends_the_events() {
    let (mut connected, mut server) = FakeQmp::connected().await;
    let asked = ask(&connected.client, PATIENCE);
    server.hear().await;
    server
        .say(r#"{"event": "SHUTDOWN", "data": {"guest": true}}"#)
        .await;
    server.socket.shutdown().await.expect("half-closed");
    let error = asked.await.expect("no panic").expect_err("lost");
    assert!(
        matches!(
            error,
            QmpError::Lost {
                sent: true,
                why: Lost::Closed,
                ..
            }
        ),
        "{error}"
    );
    let error = connected
        .client
        .execute("cont", None, PATIENCE)
        .await
        .expect_err("lost");
    assert!(
        matches!(error, QmpError::Lost { sent: false, .. }),
        "{error}"
    );
    let Some(Incoming::Event(_)) = connected.events.next().await else {
        panic!("an event")
    };
    assert_eq!(
        connected.events.next().await,
        Some(Incoming::Lost(Lost::Closed))
    );
    assert_eq!(connected.events.next().await, None);
}

#[tokio::test]
async fn the_last_client_that_goes_ends_the_events() {
    let (mut connected, _server) = FakeQmp::connected().await;
    drop(connected.client);
    let last = timeout(PATIENCE, connected.events.next())
        .await
        .expect("in time");
    assert_eq!(last, Some(Incoming::Lost(Lost::Local)));
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing_behind() {
    let (connected, mut server) = FakeQmp::connected().await;
    let asked = ask(&connected.client, PATIENCE);
    let id = server.hear().await["id"].clone();
    asked.abort();
    assert!(asked.await.expect_err("aborted").is_cancelled());
    server.answer(&id, &json!({})).await;
    let asked = ask(&connected.client, PATIENCE);
    let id = server.hear().await["id"].clone();
    server.answer(&id, &json!("next")).await;
    assert_eq!(asked.await.expect("no panic").expect("an answer"), "next");
    assert_eq!(connected.client.counters().unknown_ids, 1);
}

#[tokio::test]
async fn a_real_qemu_is_greeted_commanded_and_followed_in_one_round_trip() {
    let directory = tempfile::tempdir().expect("a directory");
    // Longer than a socket address may be.
    let directory = directory.path().join("long".repeat(40));
    std::fs::create_dir(&directory).expect("a directory");
    let socket = directory.join("qmp.sock");
    let listener = crate::host::qemu::sockets::listen(&socket).expect("a socket");
    let Some(mut qemu) = crate::host::qemu::testing::bare(&listener) else {
        return;
    };
    drop(listener);
    let first = [Request::new("query-status"), Request::new("cont")];
    let mut connected = Client::connect_and(&socket, &first, short())
        .await
        .expect("connected");
    assert!(
        connected.greeting.version.contains('.'),
        "{:?}",
        connected.greeting
    );
    assert_eq!(
        connected.answers[0].as_ref().expect("a status")["status"],
        "prelaunch"
    );
    connected.answers[1].as_ref().expect("it runs");
    let status = connected
        .client
        .run(&qapi_qmp::query_status {}, PATIENCE)
        .await
        .expect("a status");
    assert!(status.running);
    let error = connected
        .client
        .execute("no-such", None, PATIENCE)
        .await
        .expect_err("refused");
    assert!(matches!(&error, QmpError::Refused { class, .. } if class == "CommandNotFound"));
    let schema = connected
        .client
        .execute("query-qmp-schema", None, PATIENCE)
        .await;
    assert!(
        schema
            .expect("the longest answer")
            .as_array()
            .is_some_and(|all| all.len() > 100)
    );

    // A second client is not greeted while the first is there.
    let deadlines = Deadlines {
        greeting: SOON,
        ..short()
    };
    let error = Client::connect(&socket, deadlines).await.expect_err("held");
    assert!(matches!(error, QmpError::NoGreeting(_)), "{error}");

    let stop = connected.client.run(&qapi_qmp::stop {}, PATIENCE).await;
    stop.expect("it stops");
    connected
        .client
        .execute("quit", None, PATIENCE)
        .await
        .expect("it quits");
    let mut names = Vec::new();
    loop {
        match timeout(PATIENCE, connected.events.next())
            .await
            .expect("in time")
        {
            Some(Incoming::Event(event)) => names.push(event.name),
            Some(Incoming::Missed(_)) => panic!("nothing was missed"),
            Some(Incoming::Lost(_)) | None => break,
        }
    }
    assert_eq!(names, ["RESUME", "STOP", "SHUTDOWN"]);
    assert!(qemu.wait().expect("it exits").success());
}
