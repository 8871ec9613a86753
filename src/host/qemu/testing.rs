//! A real QEMU for the tests of this folder, or a loud word that there is none.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

/// The binary, or `None` after saying so.
pub(crate) fn qemu_binary() -> Option<&'static str> {
    let binary = "qemu-system-x86_64";
    let found = Command::new(binary)
        .arg("-version")
        .stdout(Stdio::null())
        .status();
    if found.is_ok_and(|status| status.success()) {
        return Some(binary);
    }
    #[expect(clippy::print_stderr, reason = "a test that cannot run says so aloud")]
    {
        eprintln!("SKIPPED: there is no {binary} on this host");
    }
    None
}

/// A QEMU with a monitor on `listener` and nothing else.
pub(crate) fn bare(listener: &UnixListener) -> Option<Child> {
    let binary = qemu_binary()?;
    let inherited = fcntl_dupfd_cloexec(listener, 100).expect("a descriptor");
    fcntl_setfd(&inherited, FdFlags::empty()).expect("inheritable");
    let chardev = format!(
        "socket,id=qmp0,fd={},server=on,wait=off",
        inherited.as_raw_fd()
    );
    let mut command = Command::new(binary);
    command.args(["-nodefaults", "-machine", "none", "-S", "-display", "none"]);
    command.args(["-chardev", &chardev, "-mon", "chardev=qmp0,mode=control"]);
    Some(command.stdin(Stdio::null()).spawn().expect("qemu starts"))
}
