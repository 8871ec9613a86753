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
