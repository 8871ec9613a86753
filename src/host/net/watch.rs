//! Hears when somebody changes links, addresses or the firewall.
//!
//! The kernel's notices are not read for what they say: any of them means "look again", and what is
//! there is then asked for. So a notice that was lost (the kernel says so) costs nothing.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Links, queueing disciplines and addresses: RTMGRP_LINK, RTMGRP_TC, RTMGRP_IPV4_IFADDR,
/// RTMGRP_IPV6_IFADDR.
const LINKS: u32 = 0x1 | 0x8 | 0x10 | 0x100;
/// The firewall: the group NFNLGRP_NFTABLES, 7, as a bit.
const RULES: u32 = 1 << 6;

/// What may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    Links,
    Rules,
    /// `dnsmasq` has ended.
    Names,
}

/// Tells of changes as long as the receiver is there.
pub(super) fn watch(to: &mpsc::Sender<Notice>) -> io::Result<()> {
    listen(None, LINKS, Notice::Links, to.clone())?;
    listen(Some(NETFILTER), RULES, Notice::Rules, to.clone())
}

fn listen(
    protocol: Option<Protocol>,
    groups: u32,
    notice: Notice,
    to: mpsc::Sender<Notice>,
) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // No protocol is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    let socket = register(socket)?;
    tokio::spawn(async move {
        while heard(&socket).await.is_ok() {
            // A full queue says the same already.
            if let Err(mpsc::error::TrySendError::Closed(_)) = to.try_send(notice) {
                return;
            }
        }
        tracing::error!(?notice, "the kernel's notices cannot be heard any more");
    });
    Ok(())
}

#[allow(unsafe_code)]
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the AsyncFd owns the descriptor, so it stays open and the same until it is gone.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Waits for notices and takes all that are there.
async fn heard(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = vec![0_u8; 32 * 1024];
    let mut any = false;
    loop {
        let mut ready = socket.readable().await?;
        loop {
            match recv(socket.get_ref(), buffer.as_mut_slice(), RecvFlags::empty()) {
                // Too many to be kept: some were lost.
                Ok(_) | Err(Errno::NOBUFS) => any = true,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        if any {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    use std::{process::Command, time::Duration};

    /// What is done to a host's network, and what is to be told of it.
    const CHANGES: [(&str, Notice); 6] = [
        ("ip link add br-x type bridge", Notice::Links),
        ("ip addr add 10.9.0.1/24 dev lo", Notice::Links),
        ("ip addr add fd00::1/64 dev lo", Notice::Links),
        ("ip -6 addr flush dev lo", Notice::Links),
        ("tc qdisc add dev lo root pfifo", Notice::Links),
        ("nft add table inet x", Notice::Rules),
    ];

    /// A network of this thread's own. Whether it may have one.
    #[allow(unsafe_code)]
    fn alone() -> bool {
        // SAFETY: no descriptor is shared or given up by a network of one's own.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.is_ok()
    }

    fn run(command: &str) {
        let output = Command::new("sh").args(["-c", command]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {said}");
    }

    #[tokio::test]
    async fn each_kind_of_change_is_told_by_itself() {
        if !alone() {
            return crate::host::testing::skip("a network of its own cannot be made here");
        }
        run("ip link set lo up");
        let (to, mut told) = mpsc::channel(16);
        watch(&to).unwrap();
        for (change, wanted) in CHANGES {
            run(change);
            let soon = tokio::time::timeout(Duration::from_secs(10), told.recv());
            let notice = soon.await.unwrap_or_else(|_| panic!("{change}: not told"));
            assert_eq!(notice, Some(wanted), "{change}");
            // One change may make several notices: the next one's must be its own.
            while let Ok(Some(_)) =
                tokio::time::timeout(Duration::from_millis(100), told.recv()).await
            {}
        }
    }
}
