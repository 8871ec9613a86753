//! A guest that lies in IPv6 gets nothing through; its honest traffic flows.

use crate::{
    console::Shell,
    forgery::{Frame, framed, judge},
    support::skip,
    tools::{Offer, Spy, build, mac_of},
    world::{World, can_make_networks, guests},
};
use std::net::Ipv6Addr;
use vman_model::network::link_local;

const ICMP: u8 = 58;
const UDP: u8 = 17;
const NEIGHBOUR_SOLICIT: u8 = 135;
const NEIGHBOUR_ADVERT: u8 = 136;
const NONE: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const ALL: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const STRANGER: [u8; 6] = [0x52, 0x54, 0, 9, 9, 9];

/// A guest and those it could take for.
struct Cast {
    mac: [u8; 6],
    own: Ipv6Addr,
    local: Ipv6Addr,
    gateway: Ipv6Addr,
    gateway_local: Ipv6Addr,
    other: Ipv6Addr,
}

/// What a packet is called, who it is from, what kind of payload it has, and the payload.
type Said = (&'static str, Ipv6Addr, u8, Vec<u8>);

/// The version of IP, and a flow label of the packet's own.
fn mark(name: &str) -> [u8; 4] {
    let fold = |label: u32, byte| label.wrapping_mul(31).wrapping_add(u32::from(byte));
    let label = name.bytes().fold(7, fold) % (1 << 20);
    ((6 << 28) | label).to_be_bytes()
}

/// A packet to everybody; it begins with `mark`.
fn packet(from: Ipv6Addr, next: u8, payload: &[u8], mark: [u8; 4]) -> Vec<u8> {
    let mut packet = mark.to_vec();
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(from.octets());
    packet.extend(ALL.octets());
    packet.extend(payload);
    packet
}

fn udp(ports: (u16, u16)) -> Vec<u8> {
    let [from, to] = [ports.0, ports.1].map(u16::to_be_bytes);
    [from, to, [0, 8], [0, 0]].concat()
}

/// A message of this type about `target`, with options of 8 bytes each.
fn icmp(kind: u8, target: Option<Ipv6Addr>, options: &[[u8; 8]]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.map(|target| target.octets()).into_iter().flatten());
    message.extend(options.concat());
    message
}

/// An option that names a MAC address: of who asks, 1, or of who is told of, 2.
fn names(kind: u8, mac: [u8; 6]) -> [u8; 8] {
    let mut option = [kind, 1, 0, 0, 0, 0, 0, 0];
    option[2..].copy_from_slice(&mac);
    option
}

/// An extension header of 8 bytes before what is of the kind `next`.
fn after(next: u8, payload: &[u8]) -> Vec<u8> {
    // Padding of six bytes.
    [&[next, 0, 1, 4, 0, 0, 0, 0], payload].concat()
}

/// The only fragment of something: a host that tracks connections holds back one that lacks others.
fn fragment(next: u8, payload: &[u8]) -> Vec<u8> {
    [&[next, 0, 0, 0, 0, 0, 0, 7], payload].concat()
}

impl Cast {
    fn frame(&self, (name, from, next, payload): Said) -> Frame {
        let mark = mark(name);
        let bytes = framed(self.mac, 0x86dd, &packet(from, next, &payload, mark));
        let mark = mark.to_vec();
        Frame { name, mark, bytes }
    }

    fn truths(&self) -> Vec<Frame> {
        let own = names(1, self.mac);
        let dad = [14, 1, 1, 2, 3, 4, 5, 6];
        let told = names(2, self.mac);
        let solicit = |target, options: &[_]| icmp(NEIGHBOUR_SOLICIT, Some(target), options);
        let advert = |target, options: &[_]| icmp(NEIGHBOUR_ADVERT, Some(target), options);
        [
            ("T-UDP", self.own, UDP, udp((9, 9))),
            ("T-LOCAL", self.local, UDP, udp((9, 9))),
            ("T-ECHO", self.own, ICMP, icmp(128, None, &[])),
            ("T-NS", self.own, ICMP, solicit(self.gateway, &[own])),
            ("T-NS-BARE", self.own, ICMP, solicit(self.gateway, &[])),
            ("T-NA", self.own, ICMP, advert(self.own, &[told])),
            ("T-NA-LOCAL", self.local, ICMP, advert(self.local, &[])),
            ("T-DAD", NONE, ICMP, solicit(self.own, &[])),
            ("T-DAD-NONCE", NONE, ICMP, solicit(self.local, &[dad])),
            ("T-RS", self.local, ICMP, icmp(133, None, &[own])),
            ("T-RS-NOBODY", NONE, ICMP, icmp(133, None, &[])),
            ("T-MLD", self.local, 0, after(ICMP, &icmp(143, None, &[]))),
            ("T-FRAG", self.own, 44, fragment(UDP, &udp((9, 9)))),
            (
                "T-FRAG-ECHO",
                self.own,
                44,
                fragment(ICMP, &icmp(128, None, &[])),
            ),
        ]
        .map(|said| self.frame(said))
        .into()
    }

    /// Addresses that are not the guest's, and a MAC address that is not.
    fn false_names(&self) -> Vec<Frame> {
        let stranger = link_local(STRANGER);
        let outside = "2001:db8::66".parse().unwrap();
        let mut lies: Vec<Frame> = [
            ("L-OTHER", self.other),
            ("L-GW", self.gateway),
            ("L-LOCAL-GW", self.gateway_local),
            ("L-STRANGER", stranger),
            ("L-OUTSIDE", outside),
            ("L-NOBODY", NONE),
        ]
        .map(|(name, from)| self.frame((name, from, UDP, udp((9, 9)))))
        .into();
        let honest = |name| packet(self.own, UDP, &udp((9, 9)), mark(name));
        let tagged = [&[0, 5, 0x86, 0xdd], honest("L-VLAN").as_slice()].concat();
        let others = [
            ("L-MAC", framed(STRANGER, 0x86dd, &honest("L-MAC"))),
            ("L-VLAN", framed(self.mac, 0x8100, &tagged)),
        ];
        lies.extend(others.map(|(name, bytes)| Frame {
            name,
            mark: mark(name).to_vec(),
            bytes,
        }));
        lies
    }

    /// Untrue words about neighbours.
    fn false_neighbours(&self) -> Vec<Frame> {
        let (asks, told) = (names(1, self.mac), names(2, self.mac));
        let (asks_false, told_false) = (names(1, STRANGER), names(2, STRANGER));
        let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
        let solicit = |target, options: &[_]| icmp(NEIGHBOUR_SOLICIT, Some(target), options);
        let advert = |target, options: &[_]| icmp(NEIGHBOUR_ADVERT, Some(target), options);
        [
            ("L-NA-GW", self.own, advert(self.gateway, &[told])),
            ("L-NA-BARE-GW", self.own, advert(self.gateway, &[])),
            (
                "L-NA-LOCAL-GW",
                self.local,
                advert(self.gateway_local, &[told]),
            ),
            ("L-NA-OTHER", self.own, advert(self.other, &[told])),
            ("L-NA-MAC", self.own, advert(self.own, &[told_false])),
            ("L-NA-TWO", self.own, advert(self.own, &[told, told_false])),
            (
                "L-NA-HIDDEN",
                self.own,
                advert(self.own, &[nonce, told_false]),
            ),
            ("L-NS-MAC", self.own, solicit(self.gateway, &[asks_false])),
            (
                "L-NS-TWO",
                self.own,
                solicit(self.gateway, &[asks, asks_false]),
            ),
            ("L-DAD-OTHER", NONE, solicit(self.other, &[])),
            ("L-DAD-GW", NONE, solicit(self.gateway, &[nonce])),
            ("L-DAD-MAC", NONE, solicit(self.own, &[asks_false])),
            ("L-RS-MAC", self.local, icmp(133, None, &[asks_false])),
            ("L-RS-TWO", self.local, icmp(133, None, &[asks, asks_false])),
            ("L-RS-NOBODY", NONE, icmp(133, None, &[asks_false])),
        ]
        .map(|(name, from, payload)| self.frame((name, from, ICMP, payload)))
        .into()
    }

    /// What only a router or a server says, openly and behind other headers.
    fn false_offices(&self) -> Vec<Frame> {
        let advert = icmp(134, Some(NONE), &[]);
        let redirect = icmp(137, Some(self.gateway), &[]);
        let offer = udp((547, 546));
        let hidden = |next| fragment(next, &after(ICMP, &advert));
        [
            ("L-RA", self.local, ICMP, advert.clone()),
            ("L-RA-OPTIONS", self.local, 60, after(ICMP, &advert)),
            ("L-RA-HOPS", self.local, 0, after(ICMP, &advert)),
            ("L-RA-ROUTING", self.local, 43, after(ICMP, &advert)),
            ("L-RA-FRAG", self.local, 44, fragment(ICMP, &advert)),
            ("L-RA-FRAG-OPTIONS", self.local, 44, hidden(60)),
            ("L-RA-NOBODY", NONE, ICMP, advert),
            ("L-REDIRECT", self.local, ICMP, redirect),
            (
                "L-QUERY",
                self.local,
                0,
                after(ICMP, &icmp(130, Some(NONE), &[])),
            ),
            ("L-DHCP", self.local, UDP, offer.clone()),
            ("L-DHCP-FRAG", self.local, 44, fragment(UDP, &offer)),
            ("L-DHCP-OPTIONS", self.local, 60, after(UDP, &offer)),
            ("L-RENUMBER", self.local, ICMP, icmp(138, None, &[])),
        ]
        .map(|said| self.frame(said))
        .into()
    }
}

#[test]
fn a_guest_that_forges_ipv6_gets_nothing_through_and_its_honest_frames_pass() {
    const NAME: &str = "a_guest_that_forges_ipv6_gets_nothing_through_and_its_honest_frames_pass";
    if !can_make_networks(NAME) {
        return;
    }
    let world = World::new();
    // Who listens is the uplink, whether or not the kernel has tags for it.
    let daemon = world.daemon(&[("VMAN_IPV6", "1"), ("VMAN_UPLINK", "spy0")]);
    let Some(program) = build("forger", daemon.folder()) else {
        return skip(NAME, "rustc cannot build a static program here");
    };
    daemon.guest_template("");
    daemon.tiny_vms(&["other"]);
    guests(&daemon, &["a"]);
    daemon.wait_console("a", "VMAN-GUEST address eth0 ");
    let mut shell = Shell::open(&daemon, "a");
    Offer::new(&world, &[program]).give(&mut shell);
    let mac = mac_of(&daemon, "a");
    let address = |told: &serde_json::Value| told.as_str().unwrap().parse().unwrap();
    let bridge = world.in_host("cat /sys/class/net/br-t/address");
    let bridge: Vec<u8> = bridge
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let cast = Cast {
        mac,
        own: address(&daemon.vm("a")["local_ip6"]),
        local: link_local(mac),
        gateway: address(&daemon.get("/network/config")["gateway6"]),
        gateway_local: link_local(bridge.try_into().unwrap()),
        other: address(&daemon.vm("other")["local_ip6"]),
    };
    let lies = [
        cast.false_names(),
        cast.false_neighbours(),
        cast.false_offices(),
    ];
    let spy = Spy::new(&world);
    let last = cast.frame(("T-LAST", cast.own, UDP, udp((9, 9))));
    let heard = judge(&mut shell, &spy, &cast.truths(), &lies.concat(), &last);
    // The host's own advertisements are for guests: no other host in their VLAN shall believe them.
    let advertised =
        |frame: &&Vec<u8>| frame[12..14] == [0x86, 0xdd] && frame[20] == ICMP && frame[54] == 134;
    assert_eq!(heard.iter().filter(advertised).count(), 0);

    // Neither do the guest's own tools get further when it takes another address.
    shell.ok("ip -6 addr add fd00:1:2:3::4/64 dev eth0");
    let ping = format!("ping6 -c 1 -W 2 -I fd00:1:2:3::4 {}", cast.gateway);
    assert_ne!(shell.run(&format!("sleep 3; {ping}")).0, 0);
}
