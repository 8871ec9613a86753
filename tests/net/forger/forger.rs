//! Sends one raw Ethernet frame: `forger eth0 <hex of the frame>`, several times so that none is
//! lost by chance. Built as a static program and run inside a guest by `tests/net`.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};

#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol: u16,
    index: c_int,
    hardware: u16,
    kind: u8,
    length: u8,
    address: [u8; 8],
}

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn if_nametoindex(name: *const c_char) -> c_uint;
    fn sendto(
        socket: c_int,
        buffer: *const c_void,
        length: usize,
        flags: c_int,
        to: *const LinkAddress,
        to_length: c_uint,
    ) -> isize;
    fn usleep(micros: c_uint) -> c_int;
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let (name, hex) = (CString::new(words[1].as_str()).unwrap(), &words[2]);
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let frame: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    unsafe {
        // AF_PACKET, SOCK_RAW
        let raw = socket(17, 3, 0);
        assert!(raw >= 0, "no raw socket");
        let to = LinkAddress {
            family: 17,
            protocol: 0,
            index: if_nametoindex(name.as_ptr()) as c_int,
            hardware: 0,
            kind: 0,
            length: 6,
            address: [0; 8],
        };
        for _ in 0..3 {
            let sent = sendto(raw, frame.as_ptr().cast(), frame.len(), 0, &to, 20);
            assert_eq!(sent, frame.len() as isize, "not sent");
            usleep(20_000);
        }
    }
}
