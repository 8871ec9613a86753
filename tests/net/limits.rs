//! How fast a guest's network card may be, measured, and that it stays so whatever happens.

use crate::{
    console::Shell,
    support::{daemon::Daemon, wait_for},
    world::{BEYOND, SOON, World, can_make_networks, guests, wait_event, within},
};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

/// What is sent, in KiB: at the limit it takes some 8 s.
const AMOUNT_KIB: u32 = 4096;
/// The limit, in KiB/s.
const LIMIT_KIB: u32 = 512;
/// How much less than without a limit has to pass. A guest under TCG is a hundred times as fast.
const AT_LEAST: f64 = 2.0;

fn kib_per_s(took: Duration) -> f64 {
    f64::from(AMOUNT_KIB) / took.as_secs_f64()
}

/// Gives to whoever connects to port 81, takes from whoever connects to port 82 and tells how long
/// it took to come in.
fn serve(world: &World) -> Receiver<Duration> {
    let bytes = usize::try_from(AMOUNT_KIB << 10).unwrap();
    let listen = |port| within(&world.beyond, || TcpListener::bind((BEYOND, port)).unwrap());
    let (giving, taking) = (listen(81), listen(82));
    std::thread::spawn(move || {
        for stream in giving.incoming() {
            let _ = stream.unwrap().write_all(&vec![0; bytes]);
        }
    });
    let (told, times) = channel();
    std::thread::spawn(move || {
        for stream in taking.incoming() {
            let mut stream = stream.unwrap();
            let began = Instant::now();
            let mut there = 0;
            let mut piece = vec![0; 1 << 16];
            while there < bytes {
                match stream.read(&mut piece) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => there += n,
                }
            }
            if there < bytes || told.send(began.elapsed()).is_err() {
                return;
            }
        }
    });
    times
}

/// What the guest receives and sends, in KiB/s.
fn measure(guest: &mut Shell, times: &Receiver<Duration>) -> (f64, f64) {
    let began = Instant::now();
    let got = guest.ok(&format!("nc {BEYOND} 81 </dev/null | wc -c"));
    let received = kib_per_s(began.elapsed());
    assert_eq!(got.trim(), (AMOUNT_KIB << 10).to_string());
    guest.run(&format!(
        "dd if=/dev/zero bs=1024 count={AMOUNT_KIB} 2>/dev/null | nc {BEYOND} 82"
    ));
    let sent = kib_per_s(times.recv_timeout(SOON).unwrap());
    (received, sent)
}

fn limit(daemon: &Daemon, limits: &Value) -> Value {
    let change = json!({ "limits": limits });
    let answer = daemon.call("PATCH", "/vms/a/nics/nic0", &change);
    answer.expect(200)
}

/// The discipline at the root of a TAP with its rate in bytes a second; none where it is no `tbf`.
fn shaped(world: &World, tap: &str) -> Option<u64> {
    let list = world.in_host("tc -j qdisc show");
    let list: Value = serde_json::from_str(&list).unwrap();
    let mut all = list.as_array().unwrap().iter();
    let found = all.find(|one| one["dev"] == tap && one["kind"] == "tbf")?;
    found["options"]["rate"].as_u64()
}

#[test]
fn what_a_guest_receives_and_sends_is_limited_while_it_runs_and_free_again() {
    if !can_make_networks("what_a_guest_receives_and_sends_is_limited_while_it_runs_and_free_again")
    {
        return;
    }
    let world = World::new();
    let times = serve(&world);
    let daemon = world.daemon(&[]);
    daemon.guest_template("");
    guests(&daemon, &["a"]);
    daemon.wait_console("a", "VMAN-GUEST address eth0 ");
    let mut a = Shell::open(&daemon, "a");
    let (receives, sends) = measure(&mut a, &times);
    println!("without limits: receives {receives:.0} KiB/s, sends {sends:.0} KiB/s");

    let held = json!({"average": LIMIT_KIB, "burst": 128});
    let told = limit(&daemon, &json!({"inbound": held, "outbound": held}));
    assert_eq!(told["limits"]["outbound"], held);
    assert_eq!(told["limits_reason"], Value::Null);
    let (slowly, softly) = measure(&mut a, &times);
    println!("with {LIMIT_KIB} KiB/s: receives {slowly:.0} KiB/s, sends {softly:.0} KiB/s");
    // Bursts come on top.
    let most = f64::from(LIMIT_KIB) * 1.5;
    assert!(slowly < most, "{slowly} KiB/s received");
    assert!(softly < most, "{softly} KiB/s sent");
    assert!(receives > slowly * AT_LEAST && sends > softly * AT_LEAST);
    // It is a limit and no dead end.
    let least = f64::from(LIMIT_KIB) / 8.0;
    assert!(slowly > least && softly > least);

    assert_eq!(limit(&daemon, &json!({}))["limits"], Value::Null);
    let (receives, sends) = measure(&mut a, &times);
    println!("free again: receives {receives:.0} KiB/s, sends {sends:.0} KiB/s");
    assert!(receives > slowly * AT_LEAST && sends > softly * AT_LEAST);
    assert_eq!(daemon.get("/health")["status"], "ok");
}

#[test]
fn limits_are_there_from_the_start_on_and_after_everything_that_is_healed() {
    if !can_make_networks("limits_are_there_from_the_start_on_and_after_everything_that_is_healed")
    {
        return;
    }
    let world = World::new();
    let mut daemon = world.daemon(&[]);
    daemon.guest_template("");
    let limits = json!({"inbound": {"average": 1000}, "outbound": {"average": 2000}});
    let vm = json!({"template_name": "guest", "name": "a", "limits": limits});
    daemon.post("/vms", &vm).expect(201);
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    let tap = world.taps().remove(0);
    assert_eq!(shaped(&world, &tap), Some(1_024_000));
    let limited = || {
        let rules = world.in_host("nft list table bridge vman-br-t");
        rules.contains("rate over 2000 kbytes/second")
    };
    assert!(limited());
    daemon.wait_console("a", "VMAN-GUEST address eth0 ");

    world.in_host(&format!("tc qdisc del dev {tap} root"));
    wait_event(&daemon, "network.healed", "the limits of 1 network cards");
    assert_eq!(shaped(&world, &tap), Some(1_024_000));

    world.in_host(&format!("ip link del {tap}"));
    wait_event(
        &daemon,
        "network.healed",
        "was deleted by somebody: its network card",
    );
    wait_for("the new TAP to be limited", SOON, || shaped(&world, &tap));

    // What was changed while no daemon was there is put right by the next one.
    daemon.kill();
    world.in_host(&format!("tc qdisc del dev {tap} root"));
    daemon.serve();
    wait_for("the TAP to be limited again", SOON, || shaped(&world, &tap));
    assert!(limited());
    assert_eq!(
        daemon.get("/vms/a/nics/nic0")["limits"]["inbound"]["average"],
        1000
    );

    // And a daemon that dies between the record and the host.
    limit(&daemon, &json!({"inbound": {"average": 3000}}));
    assert_eq!(shaped(&world, &tap), Some(3_072_000));
    wait_for("the rules to follow", SOON, || (!limited()).then_some(()));
    limit(&daemon, &json!({}));
    daemon.kill();
    daemon.serve();
    wait_for("the limit to be gone", SOON, || {
        shaped(&world, &tap).is_none().then_some(())
    });
    assert_eq!(daemon.act("a", "stop?force=true")["status"], "succeeded");
    wait_for("no TAP to be left", SOON, || {
        world.taps().is_empty().then_some(())
    });
}

#[test]
fn limits_hold_on_a_further_network_and_over_the_daemons_death() {
    if !can_make_networks("limits_hold_on_a_further_network_and_over_the_daemons_death") {
        return;
    }
    let world = World::new();
    let times = serve(&world);
    let mut daemon = world.unstarted(&[]);
    daemon.configure("[network.lab]\nbridge = \"br-lab\"\nsubnet = \"10.9.0.0/24\"\n");
    daemon.serve();
    daemon.guest_template("");
    let held = json!({"average": LIMIT_KIB, "burst": 128});
    let limits = json!({"inbound": held, "outbound": held});
    let vm = json!({"template_name": "guest", "name": "a", "network": "lab", "limits": limits});
    daemon.post("/vms", &vm).expect(201);
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    daemon.wait_console("a", "VMAN-GUEST address eth0 10.9.0.");
    let tap = world.taps().remove(0);
    assert_eq!(world.on("br-lab"), std::slice::from_ref(&tap));
    let rate = u64::from(LIMIT_KIB) << 10;
    assert_eq!(shaped(&world, &tap), Some(rate));
    let mut a = Shell::open(&daemon, "a");
    let most = f64::from(LIMIT_KIB) * 1.5;
    let (received, sent) = measure(&mut a, &times);
    println!("on a further network: receives {received:.0} KiB/s, sends {sent:.0} KiB/s");
    assert!(
        received < most && sent < most,
        "{received} and {sent} KiB/s"
    );

    // What was undone while no daemon was there, on the TAP and in the rules, is done again.
    daemon.kill();
    world.in_host(&format!("tc qdisc del dev {tap} root"));
    world.in_host("nft delete table bridge vman-br-lab");
    daemon.serve();
    wait_for("the TAP to be limited again", SOON, || shaped(&world, &tap));
    let (received, sent) = measure(&mut a, &times);
    assert!(
        received < most && sent < most,
        "{received} and {sent} KiB/s"
    );

    limit(&daemon, &json!({}));
    let free = wait_for("the limits to be lifted", SOON * 3, || {
        let (received, sent) = measure(&mut a, &times);
        (received > most * AT_LEAST && sent > most * AT_LEAST).then_some((received, sent))
    });
    println!("free again: {free:?}");
}
