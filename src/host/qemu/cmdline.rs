//! QEMU's command line as a pure function of a plan.
//!
//! Owns: which devices a VM is made of and where they sit. Must not: touch the host. A value that
//! came from a user or an operator appears in one of three places and nowhere else: a string within
//! a JSON argument, the word after `-append`, the word after `-kernel` or `-initrd` (QEMU takes each
//! of the three as it is). `-chardev` knows no JSON in QEMU 7.2, so all its values are ours:
//! descriptors instead of paths.
//!
//! Measured with QEMU 7.2 from exec to `cont` answered (median of 15): 20 ms for a q35 with both
//! monitors, console and sandbox (the sandbox: below 0.5 ms); a root port 0.45 ms each, alone in
//! its slot or eight to a slot; disk and NIC together 1 ms; `romfile` left out saves 1 ms; random
//! numbers, balloon, panic device and agent channel at most 1 ms each; each CPU beyond the first
//! 1 ms; memory size, memory backend and CPU model nothing; UEFI 2 ms.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vman_actors::ports::{BootFiles, DiskPlan, LaunchPlan, NicPlan};
use vman_model::{DiskCache, vm::NetworkKind};

/// The first option of every command line; the VM's uuid follows.
pub const UUID_OPTION: &str = "-uuid";

/// The fourth word of every command line, up to the incarnation's number.
pub const INCARNATION_MARK: &str = "name=opt/org.vman/incarnation,string=";

/// How many hot-pluggable slots a VM has. 7 ms of each start; two are taken by the root disk and the
/// first NIC, and a PCI bus has I/O space for no more windows than these.
pub const ROOT_PORTS: u8 = 16;

/// The first PCI slot of the root ports; eight ports share one.
const FIRST_PORT_SLOT: u8 = 0x10;

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor, by KVM.
    Kvm,
    /// QEMU, by translation.
    Tcg,
}

/// The two flash chips of a UEFI machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flash {
    /// The firmware, never written.
    pub code: PathBuf,
    /// This VM's own variables.
    pub vars: PathBuf,
}

/// What the host adds to a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machinery {
    /// What executes it.
    pub accel: Accel,
    /// Its flash, if the plan asks for UEFI.
    pub flash: Option<Flash>,
}

/// The numbers under which QEMU inherits what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptors {
    /// The listening socket of our monitor.
    pub qmp: RawFd,
    /// The listening socket of the monitor kept for people.
    pub rescue: RawFd,
    /// The listening socket of the serial console.
    pub console: RawFd,
    /// The file that the serial console is appended to.
    pub console_log: RawFd,
    /// The listening socket of the guest agent's channel.
    pub agent: RawFd,
    /// The TAPs, one for each network card on a bridge, in the cards' order.
    pub taps: Vec<TapNumbers>,
}

/// A TAP's descriptors as QEMU inherits them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapNumbers {
    /// One for each queue.
    pub queues: Vec<RawFd>,
    /// As many of vhost, or none.
    pub vhost: Vec<RawFd>,
}

/// A plan that cannot be a command line. Nothing happened.
#[derive(Debug, thiserror::Error)]
pub enum CmdlineError {
    /// An id has a byte that ids have not. It should have been refused long before.
    #[error("{0:?} cannot be an id on qemu's command line")]
    Id(String),
    /// JSON is UTF-8 and relative paths mean nothing in QEMU's directory.
    #[error("{0:?} is not an absolute path in UTF-8")]
    Path(PathBuf),
    /// A slot that there is not, or two devices in one.
    #[error("slot {0} does not exist or is taken")]
    Slot(u8),
    /// A card on a bridge without a TAP.
    #[error("the network card in slot {0} has no TAP")]
    Tap(u8),
}

/// The arguments of QEMU, its own name left out.
pub fn arguments(
    plan: &LaunchPlan,
    machinery: &Machinery,
    fds: &Descriptors,
) -> Result<Vec<OsString>, CmdlineError> {
    check_slots(plan)?;
    let mut words = Words::default();
    identity(&mut words, plan);
    machine(&mut words, plan, machinery)?;
    channels(&mut words, fds);
    root_ports(&mut words);
    for (order, disk) in plan.disks.iter().enumerate() {
        words.json("-blockdev", &disk_node(disk)?);
        words.json("-device", &boot_disk(disk, order)?);
    }
    let mut taps = fds.taps.iter();
    for nic in &plan.nics {
        add_nic(&mut words, nic, &mut taps)?;
    }
    small_devices(&mut words, fds);
    if let Some(boot) = &plan.boot {
        boot_kernel(&mut words, boot)?;
    }
    Ok(words.0)
}

fn check_slots(plan: &LaunchPlan) -> Result<(), CmdlineError> {
    let mut taken = [false; ROOT_PORTS as usize];
    let disks = plan.disks.iter().map(|disk| disk.slot);
    for slot in disks.chain(plan.nics.iter().map(|nic| nic.slot)) {
        match taken.get_mut(usize::from(slot)) {
            Some(free) if !*free => *free = true,
            _ => return Err(CmdlineError::Slot(slot)),
        }
    }
    Ok(())
}

/// Where a device in the `index`th hot-pluggable slot is to be put.
pub fn root_port(index: u8) -> String {
    format!("port{index}")
}

#[derive(Default)]
struct Words(Vec<OsString>);

impl Words {
    fn flag(&mut self, option: &str) {
        self.0.push(option.into());
    }

    fn option(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }

    fn json(&mut self, option: &str, value: &Value) {
        self.option(option, value.to_string());
    }
}

/// Comes first and in this order: `adopt.rs` looks for it there.
fn identity(words: &mut Words, plan: &LaunchPlan) {
    words.option(UUID_OPTION, plan.uuid.to_string());
    words.option("-fw_cfg", format!("{INCARNATION_MARK}{}", plan.incarnation));
    // A VM's id is of a charset without commas.
    words.option("-name", format!("guest={},debug-threads=on", plan.vm));
}

fn machine(
    words: &mut Words,
    plan: &LaunchPlan,
    machinery: &Machinery,
) -> Result<(), CmdlineError> {
    words.flag("-nodefaults");
    words.flag("-no-user-config");
    // The CPUs wait for `cont`, which is sent with the monitor's first bytes.
    words.flag("-S");
    let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    words.option("-sandbox", sandbox);
    let (accel, cpu) = match machinery.accel {
        // The HPET is of no use beside KVM's clock and wakes the host; TCG guests calibrate by it.
        Accel::Kvm => ("accel=kvm,hpet=off", "host"),
        // Five-level page tables cost a translated guest time and trip firmware of some age.
        Accel::Tcg => ("accel=tcg", "max,la57=off"),
    };
    let mut machine =
        format!("q35,{accel},usb=off,vmport=off,smbus=off,sata=off,dump-guest-core=off");
    if let Some(Flash { code, vars }) = &machinery.flash {
        flash(words, "flash-code", code, true)?;
        flash(words, "flash-vars", vars, false)?;
        machine += ",pflash0=flash-code,pflash1=flash-vars";
    }
    words.option("-machine", machine);
    words.option("-cpu", cpu);
    words.option("-smp", plan.cpu_count.to_string());
    words.option("-m", format!("{}M", plan.ram_mib));
    words.option("-display", "none");
    words.option("-rtc", "base=utc");
    // A guest's end pauses QEMU, so that its reason outlives a daemon that was away.
    words.option(
        "-action",
        "shutdown=pause,reboot=reset,panic=pause,watchdog=pause",
    );
    Ok(())
}

fn flash(words: &mut Words, node: &str, path: &Path, fixed: bool) -> Result<(), CmdlineError> {
    let file = json!({"driver": "file", "filename": checked_path(path)?, "read-only": fixed});
    let flash = json!({"driver": "raw", "node-name": node, "read-only": fixed, "file": file});
    words.json("-blockdev", &flash);
    Ok(())
}

fn channels(words: &mut Words, fds: &Descriptors) {
    for (id, fd) in [("qmp0", fds.qmp), ("qmp1", fds.rescue)] {
        words.option(
            "-chardev",
            format!("socket,id={id},fd={fd},server=on,wait=off"),
        );
        words.option("-mon", format!("chardev={id},mode=control"));
    }
    let (fd, log) = (fds.console, fds.console_log);
    // Opening a descriptor's link opens the file behind it anew: no path, so nothing to escape.
    let log = format!("logfile=/proc/self/fd/{log},logappend=on");
    words.option(
        "-chardev",
        format!("socket,id=console0,fd={fd},server=on,wait=off,{log}"),
    );
    words.option("-serial", "chardev:console0");
}

fn root_ports(words: &mut Words) {
    for index in 0..ROOT_PORTS {
        let (slot, function) = (FIRST_PORT_SLOT + index / 8, index % 8);
        let port = json!({
            "driver": "pcie-root-port",
            "id": root_port(index),
            "bus": "pcie.0",
            "addr": format!("{slot:#x}.{function}"),
            "multifunction": function == 0,
            "chassis": index + 1,
            "slot": index + 1,
        });
        words.json("-device", &port);
    }
}

/// The name of the node beneath a disk's.
pub fn file_node(node: &str) -> String {
    match node.strip_prefix("disk") {
        Some(rest) => format!("file{rest}"),
        None => format!("file-{node}"),
    }
}

/// The block node of a disk, for `-blockdev` and `blockdev-add` alike.
pub fn disk_node(disk: &DiskPlan) -> Result<Value, CmdlineError> {
    check_id(&disk.node)?;
    let options = &disk.options;
    let discard = if options.keep_discarded {
        "ignore"
    } else {
        "unmap"
    };
    // `disk-x` and `file-x`: never the name of another disk's node.
    let mut file = json!({
        "driver": "file",
        "node-name": file_node(&disk.node),
        "filename": checked_path(&disk.path)?,
        "discard": discard,
    });
    let mut node = json!({
        "driver": disk.format.as_str(),
        "node-name": disk.node,
        "discard": discard,
    });
    for node in [&mut file, &mut node] {
        // What is QEMU's default is not said: a refusal repeats all of it.
        match options.cache {
            DiskCache::Writeback | DiskCache::Writethrough => {}
            DiskCache::None => node["cache"] = json!({"direct": true}),
            DiskCache::Unsafe => node["cache"] = json!({"no-flush": true}),
        }
        if options.read_only {
            node["read-only"] = true.into();
        }
    }
    node["file"] = file;
    Ok(node)
}

/// The device of a disk, for `-device` and `device_add` alike.
pub fn disk_device(disk: &DiskPlan) -> Result<Value, CmdlineError> {
    check_id(&disk.device)?;
    let mut device = json!({
        "driver": "virtio-blk-pci",
        "id": disk.device,
        "drive": disk.node,
        "bus": root_port(disk.slot),
        "serial": disk.serial,
        // A full host disk pauses the guest instead of failing its writes.
        "werror": "stop",
        "rerror": "stop",
    });
    if disk.options.cache == DiskCache::Writethrough {
        device["write-cache"] = "off".into();
    }
    Ok(device)
}

fn boot_disk(disk: &DiskPlan, order: usize) -> Result<Value, CmdlineError> {
    let mut device = disk_device(disk)?;
    device["bootindex"] = (order + 1).into();
    Ok(device)
}

fn add_nic<'a>(
    words: &mut Words,
    nic: &NicPlan,
    taps: &mut impl Iterator<Item = &'a TapNumbers>,
) -> Result<(), CmdlineError> {
    let id = nic_id(nic.slot);
    let mut queues = 1;
    match nic.kind {
        NetworkKind::User => words.json("-netdev", &user_netdev(&id)),
        NetworkKind::Bridge => {
            let tap = taps.next().ok_or(CmdlineError::Tap(nic.slot))?;
            queues = tap.queues.len();
            let numbers = |all: &[RawFd]| {
                let all: Vec<String> = all.iter().map(ToString::to_string).collect();
                all.join(":")
            };
            words.json(
                "-netdev",
                &tap_netdev(&id, &numbers(&tap.queues), &numbers(&tap.vhost)),
            );
        }
        NetworkKind::None => return Ok(()),
    }
    words.json("-device", &nic_device(nic, &id, queues));
    Ok(())
}

/// The id of the netdev of the card in a slot.
pub fn nic_id(slot: u8) -> String {
    format!("nic{slot}")
}

/// The name of the device of the card in a slot.
pub fn nic_name(slot: u8) -> String {
    format!("dev-{}", nic_id(slot))
}

/// The netdev of QEMU's user-mode network, for `-netdev` and `netdev_add` alike.
pub fn user_netdev(id: &str) -> Value {
    json!({"type": "user", "id": id})
}

/// The netdev of a TAP whose descriptors QEMU has, by number or by name, for `-netdev` and
/// `netdev_add` alike. `vhost` may be empty.
pub fn tap_netdev(id: &str, queues: &str, vhost: &str) -> Value {
    let mut netdev = json!({"type": "tap", "id": id, "fds": queues, "vhost": !vhost.is_empty()});
    if !vhost.is_empty() {
        netdev["vhostfds"] = json!(vhost);
    }
    netdev
}

/// The device of a card, for `-device` and `device_add` alike.
pub fn nic_device(nic: &NicPlan, id: &str, queues: usize) -> Value {
    let mut device = json!({
        "driver": "virtio-net-pci",
        "id": nic_name(nic.slot),
        "netdev": id,
        "mac": nic.mac.map(|byte| format!("{byte:02x}")).join(":"),
        "bus": root_port(nic.slot),
        // No network boot, so no option rom to load.
        "romfile": "",
    });
    if queues > 1 {
        device["mq"] = json!(true);
        // Two for each queue, one for the configuration, one for control.
        device["vectors"] = json!(2 * queues + 2);
    }
    device
}

fn small_devices(words: &mut Words, fds: &Descriptors) {
    words.json("-object", &json!({"qom-type": "rng-builtin", "id": "rng0"}));
    words.json(
        "-device",
        &json!({"driver": "virtio-rng-pci", "id": "dev-rng", "rng": "rng0", "bus": "pcie.0"}),
    );
    words.json("-device", &json!({"driver": "virtio-balloon-pci", "id": "dev-balloon", "bus": "pcie.0", "deflate-on-oom": true}));
    words.json(
        "-device",
        &json!({"driver": "pvpanic-pci", "id": "dev-panic", "bus": "pcie.0"}),
    );
    words.option(
        "-chardev",
        format!("socket,id=agent0,fd={},server=on,wait=off", fds.agent),
    );
    words.json(
        "-device",
        &json!({"driver": "virtio-serial-pci", "id": "dev-serial", "bus": "pcie.0"}),
    );
    let port = json!({
        "driver": "virtserialport",
        "id": "dev-agent",
        "bus": "dev-serial.0",
        "chardev": "agent0",
        "name": "org.qemu.guest_agent.0",
    });
    words.json("-device", &port);
}

fn boot_kernel(words: &mut Words, boot: &BootFiles) -> Result<(), CmdlineError> {
    words.option("-kernel", checked_path(&boot.kernel)?);
    if let Some(initrd) = &boot.initrd {
        words.option("-initrd", checked_path(initrd)?);
    }
    words.option("-append", &boot.cmdline);
    Ok(())
}

fn check_id(id: &str) -> Result<(), CmdlineError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let starts = id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if starts && id.bytes().all(fits) {
        return Ok(());
    }
    Err(CmdlineError::Id(id.to_owned()))
}

fn checked_path(path: &Path) -> Result<&str, CmdlineError> {
    path.to_str()
        .filter(|text| path.is_absolute() && !text.contains('\0'))
        .ok_or_else(|| CmdlineError::Path(path.to_owned()))
}

#[cfg(test)]
#[path = "cmdline_tests.rs"]
mod tests;
