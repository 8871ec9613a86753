//! Asks for an IPv6 address by DHCP (RFC 8415) and says it: `dhcp6 eth0`. Built as a static program
//! and run inside a guest by `tests/net`, as busybox has no such client.
//!
//! It names itself by a number that says nothing of its MAC address, as many systems do.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::Duration;

const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const REPLY: u8 = 7;

const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDRESS: u16 = 5;
const ELAPSED: u16 = 8;
const DNS_SERVERS: u16 = 23;

const TRANSACTION: [u8; 3] = [1, 2, 3];
const TRIES: u32 = 10;

fn option(code: u16, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap();
    [&code.to_be_bytes()[..], &length.to_be_bytes(), body].concat()
}

/// The body of the first option of this code.
fn find(mut options: &[u8], code: u16) -> Option<&[u8]> {
    while options.len() >= 4 {
        let number = |at: usize| u16::from_be_bytes([options[at], options[at + 1]]);
        let end = 4 + usize::from(number(2));
        let body = options.get(4..end)?;
        if number(0) == code {
            return Some(body);
        }
        options = &options[end..];
    }
    None
}

fn address(bytes: &[u8]) -> Ipv6Addr {
    Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[..16]).unwrap())
}

/// The options of the answer of this kind, asked for until it comes.
fn ask(socket: &UdpSocket, to: SocketAddrV6, message: &[u8], kind: u8) -> Vec<u8> {
    for _ in 0..TRIES {
        socket.send_to(message, to).expect("cannot send");
        let mut answer = [0; 1500];
        while let Ok(size) = socket.recv(&mut answer) {
            if answer[0] == kind && answer[1..4] == TRANSACTION {
                return answer[4..size].to_vec();
            }
        }
    }
    panic!("no answer of kind {kind}");
}

fn main() {
    let link = std::env::args().nth(1).unwrap();
    let index = std::fs::read_to_string(format!("/sys/class/net/{link}/ifindex")).unwrap();
    let index = index.trim().parse().unwrap();
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 546)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let servers = SocketAddrV6::new("ff02::1:2".parse().unwrap(), 547, 0, index);

    // DUID-UUID.
    let own = option(CLIENT_ID, &[[0, 4].as_slice(), &[7; 16]].concat());
    let identity = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let head = |kind| [[kind].as_slice(), &TRANSACTION].concat();
    let waited = option(ELAPSED, &[0, 0]);
    let solicit = [
        head(SOLICIT),
        own.clone(),
        waited.clone(),
        option(IA_NA, &identity),
    ]
    .concat();
    let offer = ask(&socket, servers, &solicit, ADVERTISE);
    let server = option(
        SERVER_ID,
        find(&offer, SERVER_ID).expect("a server without a name"),
    );
    let wish = option(IA_NA, find(&offer, IA_NA).expect("no address is offered"));
    let request = [head(REQUEST), own, server, waited, wish].concat();
    let reply = ask(&socket, servers, &request, REPLY);
    let given = find(&reply, IA_NA).and_then(|given| find(&given[12..], IA_ADDRESS));
    println!("address {}", address(given.expect("no address is given")));
    for server in find(&reply, DNS_SERVERS)
        .unwrap_or_default()
        .chunks_exact(16)
    {
        println!("dns {}", address(server));
    }
}
