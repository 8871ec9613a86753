//! Programs that run inside a guest, and what is heard of the guest.

use crate::{
    console::Shell,
    support::daemon::Daemon,
    world::{BEYOND, World, run, within},
};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use std::{
    io::{Read, Write},
    net::TcpListener,
    num::NonZeroU32,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
};

/// Builds `tests/net/<name>/<name>.rs` as a program that needs nothing of the guest's; none where
/// there is no compiler for that.
pub fn build(name: &str, folder: &Path) -> Option<PathBuf> {
    let root = env!("CARGO_MANIFEST_DIR");
    let program = folder.join(name);
    let flags = [
        "--edition=2024",
        "-O",
        "-Ctarget-feature=+crt-static",
        "-Cpanic=abort",
    ];
    let built = Command::new("rustc")
        .args(flags)
        .args(["-Cstrip=symbols", "-o"])
        .arg(&program)
        .arg(format!("{root}/tests/net/{name}/{name}.rs"))
        .output();
    built
        .is_ok_and(|built| built.status.success())
        .then_some(program)
}

/// Programs that guests can have, over their network.
pub struct Offer(Vec<PathBuf>);

impl Offer {
    pub fn new(world: &World, programs: &[PathBuf]) -> Self {
        let listener = within(&world.beyond, || TcpListener::bind((BEYOND, 81)).unwrap());
        let all = programs.to_vec();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut number = [0];
                if stream.read_exact(&mut number).is_ok()
                    && let Some(program) = all.get(usize::from(number[0] - b'0'))
                {
                    let _ = stream.write_all(&std::fs::read(program).unwrap());
                }
            }
        });
        Self(programs.to_vec())
    }

    /// They are in the guest's `/tmp` then.
    pub fn give(&self, shell: &mut Shell) {
        for (number, program) in self.0.iter().enumerate() {
            let size = std::fs::metadata(program).unwrap().len();
            let name = program.file_name().unwrap().to_str().unwrap();
            shell.soon(&format!(
                "echo {number} | nc {BEYOND} 81 >/tmp/{name}; [ $(wc -c </tmp/{name}) = {size} ]"
            ));
            shell.ok(&format!("chmod +x /tmp/{name}"));
        }
    }
}

/// Hears every frame that comes out of the bridge's port `spy`, or of the host.
pub struct Spy(OwnedFd);

impl Spy {
    pub fn new(world: &World) -> Self {
        let (host, beyond) = (&world.host, &world.beyond);
        for line in [
            format!("ip -n {host} link add spy0 type veth peer name spy1 netns {beyond}"),
            format!("ip -n {host} link set spy0 master br-t up"),
            format!("ip -n {beyond} link set spy1 up"),
        ] {
            run(&line);
        }
        within(&world.beyond, || {
            // All protocols, in network order.
            let all = Protocol::from_raw(NonZeroU32::new(u32::from(3_u16.to_be())).unwrap());
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Self(socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(all)).unwrap())
        })
    }

    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut frame = [0_u8; 2048];
        while let Ok((size, _)) = recv(&self.0, &mut frame, RecvFlags::empty()) {
            frames.push(frame[..size].to_vec());
        }
        frames
    }
}

pub fn mac_of(daemon: &Daemon, vm: &str) -> [u8; 6] {
    let vm = daemon.vm(vm);
    let mac = vm["mac"].as_str().unwrap().split(':');
    let bytes: Vec<u8> = mac
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}
