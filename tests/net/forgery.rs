//! A guest that lies gets nothing through; its honest traffic flows.

use crate::{
    console::Shell,
    support::{skip, wait_for},
    tools::{Offer, Spy, build, mac_of},
    world::{SOON, World, can_make_networks, guests},
};
use std::net::Ipv4Addr;

/// A frame, and the bytes by which it is known when it has come out.
#[derive(Clone)]
pub struct Frame {
    pub name: &'static str,
    pub mark: Vec<u8>,
    pub bytes: Vec<u8>,
}

impl Frame {
    fn is_among(&self, frames: &[Vec<u8>]) -> bool {
        let bears = |frame: &Vec<u8>| {
            let mut parts = frame.windows(self.mark.len());
            parts.any(|part| part == self.mark)
        };
        frames.iter().any(bears)
    }
}

/// Sends all of it from the guest: every truth has to come out of the bridge, and no lie. Answers
/// all that has come out.
pub fn judge(
    shell: &mut Shell,
    spy: &Spy,
    truths: &[Frame],
    lies: &[Frame],
    last: &Frame,
) -> Vec<Vec<u8>> {
    for frame in truths.iter().chain(lies).chain([last]) {
        let hex: Vec<_> = frame
            .bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        shell.ok(&format!("/tmp/forger eth0 {}", hex.concat()));
    }
    let mut seen = Vec::new();
    // What was sent before it has arrived when this has.
    wait_for(last.name, SOON, || {
        seen.extend(spy.frames());
        last.is_among(&seen).then_some(())
    });
    let lost = truths.iter().filter(|frame| !frame.is_among(&seen));
    let lost: Vec<_> = lost.map(|frame| frame.name).collect();
    assert!(lost.is_empty(), "was lost: {lost:?}");
    let through = lies.iter().filter(|frame| frame.is_among(&seen));
    let through: Vec<_> = through.map(|frame| frame.name).collect();
    assert!(
        through.is_empty(),
        "of {} got through: {through:?}",
        lies.len()
    );
    seen
}

const EVERYBODY: [u8; 6] = [0xff; 6];

struct Frames {
    mac: [u8; 6],
    address: Ipv4Addr,
}

impl Frames {
    fn ethernet(&self, kind: u16, payload: &[u8]) -> Vec<u8> {
        framed(self.mac, kind, payload)
    }

    /// An IPv4 packet with a UDP datagram to everybody.
    fn udp(from: Ipv4Addr, ports: (u16, u16), mark: &str) -> Vec<u8> {
        let length = |extra: usize| u16::try_from(mark.len() + extra).unwrap().to_be_bytes();
        let mut ip = vec![0x45, 0];
        ip.extend(length(28));
        ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
        ip.extend(from.octets());
        ip.extend([255; 4]);
        let sum: u32 = ip
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let check = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        ip.extend(ports.0.to_be_bytes());
        ip.extend(ports.1.to_be_bytes());
        ip.extend(length(8));
        ip.extend([0, 0]);
        ip.extend(mark.as_bytes());
        ip
    }

    /// An ARP answer that says that `address` is at `mac`, to everybody.
    fn arp(mac: [u8; 6], address: Ipv4Addr, mark: &str) -> Vec<u8> {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 2];
        arp.extend(mac);
        arp.extend(address.octets());
        arp.extend(EVERYBODY);
        arp.extend(address.octets());
        arp.extend(mark.as_bytes());
        arp
    }

    fn router_advertisement(mark: &str) -> Vec<u8> {
        let size = u16::try_from(16 + mark.len()).unwrap();
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(size.to_be_bytes());
        packet.extend([58, 255, 0xfe, 0x80]);
        packet.extend([0; 13]);
        packet.extend([9, 0xff, 2]);
        packet.extend([0; 12]);
        packet.extend([0, 1, 134, 0, 0, 0, 64, 0, 7, 8]);
        packet.extend([0; 8]);
        packet.extend(mark.as_bytes());
        packet
    }

    fn tagged(&self, kind: u16, mark: &str) -> Vec<u8> {
        let mut tag = vec![0, 5, 8, 0];
        tag.extend(Self::udp(self.address, (9, 9), mark));
        self.ethernet(kind, &tag)
    }

    /// What a lying guest sends: what it is, and the frame.
    fn forgeries(&self) -> Vec<(&'static str, Vec<u8>)> {
        let gateway = Ipv4Addr::new(192, 168, 100, 1);
        let other = Ipv4Addr::new(192, 168, 100, 250);
        let stranger = [0x52, 0x54, 0, 9, 9, 9];
        let honest = |mark| Self::udp(self.address, (9, 9), mark);
        vec![
            ("LIE-MAC", framed(stranger, 0x0800, &honest("LIE-MAC"))),
            (
                "LIE-IP",
                self.ethernet(0x0800, &Self::udp(other, (9, 9), "LIE-IP")),
            ),
            (
                "LIE-GW-IP",
                self.ethernet(0x0800, &Self::udp(gateway, (9, 9), "LIE-GW-IP")),
            ),
            (
                "LIE-ARP-GW",
                self.ethernet(0x0806, &Self::arp(self.mac, gateway, "LIE-ARP-GW")),
            ),
            (
                "LIE-ARP-MAC",
                self.ethernet(0x0806, &Self::arp(stranger, self.address, "LIE-ARP-MAC")),
            ),
            (
                "LIE-DHCP",
                self.ethernet(0x0800, &Self::udp(self.address, (67, 68), "LIE-DHCP")),
            ),
            (
                "LIE-DHCP-GW",
                self.ethernet(0x0800, &Self::udp(gateway, (67, 68), "LIE-DHCP-GW")),
            ),
            (
                "LIE-RA",
                self.ethernet(0x86dd, &Self::router_advertisement("LIE-RA")),
            ),
            ("LIE-VLAN", self.tagged(0x8100, "LIE-VLAN")),
            ("LIE-QINQ", self.tagged(0x88a8, "LIE-QINQ")),
            (
                "LIE-OTHER",
                self.ethernet(0x88b5, b"LIE-OTHER and some more to fill it"),
            ),
        ]
    }
}

/// A frame that bears its name.
fn named((name, bytes): (&'static str, Vec<u8>)) -> Frame {
    let mark = name.as_bytes().to_vec();
    Frame { name, mark, bytes }
}

pub fn framed(mac: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = EVERYBODY.to_vec();
    frame.extend(mac);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

#[test]
fn a_guest_that_forges_gets_nothing_through_and_its_honest_frames_pass() {
    const NAME: &str = "a_guest_that_forges_gets_nothing_through_and_its_honest_frames_pass";
    if !can_make_networks(NAME) {
        return;
    }
    let world = World::new();
    let daemon = world.daemon(&[]);
    let Some(program) = build("forger", daemon.folder()) else {
        return skip(NAME, "rustc cannot build a static program here");
    };
    daemon.guest_template("");
    let address = guests(&daemon, &["a"]).remove(0);
    daemon.wait_console("a", "VMAN-GUEST address eth0 ");
    let mut shell = Shell::open(&daemon, "a");
    Offer::new(&world, &[program]).give(&mut shell);
    let spy = Spy::new(&world);
    let frames = Frames {
        mac: mac_of(&daemon, "a"),
        address: address.parse().unwrap(),
    };
    let honest = |mark| frames.ethernet(0x0800, &Frames::udp(frames.address, (9, 9), mark));
    let truth = Frames::arp(frames.mac, frames.address, "TRUTH-ARP");
    let truths = [
        ("TRUTH-FIRST", honest("TRUTH-FIRST")),
        ("TRUTH-ARP", frames.ethernet(0x0806, &truth)),
    ];
    let lies: Vec<_> = frames.forgeries().into_iter().map(named).collect();
    let last = named(("TRUTH-LAST", honest("TRUTH-LAST")));
    judge(&mut shell, &spy, &truths.map(named), &lies, &last);

    // Neither do the guest's own tools get further when it takes another address or MAC.
    shell.ok("ip addr add 192.168.100.251/24 dev eth0");
    assert_ne!(
        shell
            .run("ping -c 1 -W 1 -I 192.168.100.251 192.168.100.1")
            .0,
        0
    );
    shell.ok("ping -c 1 -W 5 192.168.100.1");
    // The API of the host is none of its business, wherever it listens.
    assert_ne!(shell.run("nc -w 2 192.168.100.1 8000 </dev/null").0, 0);
}
