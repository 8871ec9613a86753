//! What happens in a simulated life: what users ask for, what QEMU, guests and
//! the host do, and what dies.

use super::{Knowledge, Known, Life, Way};
use crate::{
    fakes::{Act, FakeHost, Launch, NextCommit, Powerdown},
    ports::LaunchError,
    root::Handles,
    vm::tests::{
        daemon::{DELETE, RESTART, STOP, STOP_BY_FORCE, origin, vm},
        operations::{
            attach_nic, command, create, disk, forward, image, make_template, make_token, new_disk,
            on_failure, put_image,
        },
        trial::Dice,
    },
};
use std::sync::Arc;
use vman_model::{
    DiskOptions, ForwardRecord, Protocol, RestartPolicy, TapName, TemplateName, TokenName, VmId,
    drift::{FileKind, Room, SeenFile},
    network::LinkState,
    vm::{Command, ExitStatus, RunState},
};

pub(super) const VMS: u64 = 4;
pub(super) const DISKS: u64 = 3;
const IMAGES: u64 = 2;

pub(super) fn vm_name(n: u64) -> String {
    format!("vm-{n}")
}

pub(super) fn disk_name(n: u64) -> String {
    format!("disk-{n}")
}

fn image_name(n: u64) -> String {
    format!("image-{n}")
}

/// What a user asks for.
#[derive(Clone, Debug)]
enum Wish {
    CreateVm(String, RestartPolicy),
    Command(String, Command),
    CreateDisk(String, Option<String>),
    DeleteDisk(String),
    Resize(String, u64),
    Limit(String, String),
    PutImage(String),
    DeleteImage(String),
    MakeTemplate,
    DeleteTemplate,
    MakeToken,
    RevokeToken,
    Forward(String),
    Unforward,
    AttachNic(String),
    Check,
}

impl Wish {
    /// What it makes or ends, and which of both.
    fn about(&self) -> Option<(String, Known)> {
        match self {
            Wish::CreateVm(id, _) => Some((format!("vm {id}"), Known::There)),
            Wish::Command(id, command) if *command == DELETE => {
                Some((format!("vm {id}"), Known::Gone))
            }
            Wish::CreateDisk(id, _) => Some((format!("disk {id}"), Known::There)),
            Wish::DeleteDisk(id) => Some((format!("disk {id}"), Known::Gone)),
            _ => None,
        }
    }

    /// Asks; whether the answer was yes.
    async fn ask(self, on: &Handles) -> bool {
        let now = on.clock.now();
        match self {
            Wish::CreateVm(id, restart) => create(on, &id, restart).await,
            Wish::Command(id, wish) => command(on, &id, wish).await,
            Wish::CreateDisk(id, from) => {
                let new = new_disk(&id, from.as_deref());
                on.disks.create_disk(new, on.clock.clone()).await.is_ok()
            }
            Wish::DeleteDisk(id) => on.disks.delete_disk(disk(&id), origin(), now).await.is_ok(),
            Wish::Resize(id, size) => {
                let id = disk(&id);
                let resized = on.disks.resize_disk(&id, size, origin(), now);
                resized.await.is_ok()
            }
            Wish::Limit(id, of) => {
                let limit = |options: &mut DiskOptions| options.limits.iops = 100;
                let changed = on.disks.change_disk(&disk(&id), limit, origin(), now).await;
                on.vms.limit_disk(&vm(&of), disk(&id));
                changed.is_ok()
            }
            Wish::PutImage(name) => put_image(on, &name).await,
            Wish::DeleteImage(name) => {
                let deleted = on.disks.delete_image(image(&name), origin(), now);
                deleted.await.is_ok()
            }
            Wish::MakeTemplate => make_template(on).await,
            Wish::DeleteTemplate => {
                let name = TemplateName::parse("other").unwrap();
                let deleted = crate::templates::delete(&on.store, name, origin(), now);
                deleted.await.is_ok()
            }
            Wish::MakeToken => make_token(on).await,
            Wish::RevokeToken => {
                let name = TokenName::parse("t").unwrap();
                let revoked = crate::tokens::revoke(&on.store, name, origin(), now);
                revoked.await.is_ok()
            }
            Wish::Forward(id) => forward(on, &id).await,
            Wish::Unforward => {
                let id = ForwardRecord::id_of(Protocol::Tcp, 2222);
                on.network.unforward(&id, origin()).await.is_ok()
            }
            Wish::AttachNic(id) => attach_nic(on, &id).await,
            Wish::Check => on.observer.check().await.is_some(),
        }
    }
}

/// Asks, and notes what was answered.
async fn asked(wish: Wish, on: Handles, known: Arc<Knowledge>) {
    let about = wish.about().map(|(what, is)| {
        let number = known.ask(&what);
        (what, number, is)
    });
    let yes = wish.ask(&on).await;
    if let (Some((what, number, is)), true) = (about, yes) {
        known.answer(&what, number, is);
    }
}

impl Life {
    pub(super) async fn step(&mut self) {
        let id = vm_name(self.dice.roll(VMS));
        match self.dice.roll(100) {
            0..70 => {
                let wish = wish(&mut self.dice, self.way, id);
                self.ask(wish).await;
            }
            70..78 => qemu_acts(&mut self.dice, self.way, &self.daemon.host, &vm(&id)),
            78..85 => rewrite_script(&mut self.dice, self.way, &self.daemon.host, &vm(&id)),
            85..87 => self.commit_fails(),
            87 => {
                if let Some(supervisor) = self.daemon.on().vms.directory.supervisor.get() {
                    supervisor.kill();
                }
            }
            88..91 => {
                if let Some(entry) = self.daemon.on().vms.directory.get(&vm(&id))
                    && let Some(actor) = entry.actor
                {
                    actor.kill();
                }
            }
            91..94 => host_acts(&mut self.dice, &self.daemon.host, &vm(&id)),
            94..97 => self.reborn().await,
            97..99 => {
                // SIGTERM.
                self.daemon.end().await;
                self.reborn().await;
            }
            _ => {
                self.daemon.host.reboot();
                self.reborn().await;
            }
        }
        self.pause().await;
    }

    async fn ask(&mut self, wish: Wish) {
        let (on, known) = (self.daemon.on().clone(), self.known.clone());
        let asking = tokio::spawn(asked(wish, on, known));
        if self.dice.roll(2) == 0 {
            self.daemon
                .until("it is answered", || asking.is_finished() || self.is_over())
                .await;
        }
    }

    fn commit_fails(&mut self) {
        let host = &self.daemon.host;
        if self.dice.roll(8) == 0 {
            return host.panic_in_commits(1);
        }
        host.storage().then(match self.dice.roll(8) {
            0 => NextCommit::UnknownButWritten,
            1 => NextCommit::UnknownNotWritten,
            2 => NextCommit::ReadOnly,
            _ => NextCommit::NoSpace,
        });
    }
}

fn wish(dice: &mut Dice, way: Way, id: String) -> Wish {
    let disk = disk_name(dice.roll(DISKS));
    let image = image_name(dice.roll(IMAGES));
    match dice.roll(70) {
        0..12 => {
            let policies = [RestartPolicy::default(), on_failure()];
            let [never, on_failure] = policies;
            let policy = if dice.roll(2) == 0 { never } else { on_failure };
            Wish::CreateVm(id, policy)
        }
        12..42 => Wish::Command(id, of_a_vm(dice, way)),
        42..50 => Wish::Command(id, of_its_devices(dice, &disk)),
        50..54 => Wish::CreateDisk(disk, (dice.roll(3) == 0).then_some(image)),
        54..56 => Wish::DeleteDisk(disk),
        56 => Wish::Resize(disk, 16 * (1 + dice.roll(4))),
        57 => Wish::Limit(disk, id),
        58..60 => Wish::PutImage(image),
        60 => Wish::DeleteImage(image),
        61 => Wish::MakeTemplate,
        62 => Wish::DeleteTemplate,
        63 => Wish::MakeToken,
        64 => Wish::RevokeToken,
        65 => Wish::Forward(id),
        66 => Wish::Unforward,
        67 => Wish::AttachNic(id),
        _ => Wish::Check,
    }
}

fn of_a_vm(dice: &mut Dice, way: Way) -> Command {
    // In real time nothing that ends only at a deadline of many seconds.
    let timeout_ms = if way == Way::Threads { 200 } else { 30_000 };
    match dice.roll(12) {
        0..5 => Command::Start,
        5 => match STOP {
            Command::Stop { force, .. } => Command::Stop { force, timeout_ms },
            other => other,
        },
        6 => STOP_BY_FORCE,
        7 => match RESTART {
            Command::Restart { force, .. } => Command::Restart { force, timeout_ms },
            other => other,
        },
        8 => Command::Pause,
        9 => Command::Resume,
        10 => Command::Reset,
        _ => DELETE,
    }
}

fn of_its_devices(dice: &mut Dice, name: &str) -> Command {
    match dice.roll(7) {
        5 => Command::DetachNic(1),
        6 => Command::SetLink {
            nic: u8::try_from(dice.roll(2)).unwrap(),
            link: LinkState::Down,
        },
        0..3 => Command::AttachDisk {
            disk: disk(name),
            letter: None,
        },
        3 => Command::DetachDisk(disk(name)),
        _ => Command::ResizeDisk {
            disk: disk(name),
            from_mib: 16,
            size_mib: 16 * (1 + dice.roll(4)),
        },
    }
}

fn qemu_acts(dice: &mut Dice, way: Way, host: &FakeHost, id: &VmId) {
    match dice.roll(7) {
        0 => host.die(id, ExitStatus::Signal(9), ""),
        1 => host.guest(id, RunState::Shutdown),
        2 => host.guest(id, RunState::GuestPanicked),
        3 => host.guest_resets(id),
        4 => host.guest(id, RunState::IoError),
        5 if way == Way::InStep => host.hang(id, true),
        _ => host.hang(id, false),
    }
}

/// Somebody meddles with the host.
fn host_acts(dice: &mut Dice, host: &FakeHost, id: &VmId) {
    match dice.roll(4) {
        0 => host.meddle("a TAP is gone", vec![TapName::of(id, 0)]),
        1 => host.fail_settlings(1),
        2 => host.panic_in_checks(1),
        _ => host.stray(
            Room::Disks,
            SeenFile {
                name: "orphan.qcow2".to_owned(),
                kind: FileKind::File,
                bytes: 1,
                age_ms: 1_000_000_000,
            },
        ),
    }
}

fn rewrite_script(dice: &mut Dice, way: Way, host: &FakeHost, id: &VmId) {
    let real = way == Way::Threads;
    host.script_vm(id, |script| {
        script.launch = match dice.roll(10) {
            0 => Launch::Fails(LaunchError::Spawn("scripted".to_owned())),
            1 => Launch::ExitsAtOnce {
                code: 1,
                stderr: String::new(),
            },
            2 if !real => Launch::NeverGreets,
            3 if dice.roll(4) == 0 => Launch::PanicsBefore,
            4 if dice.roll(4) == 0 => Launch::PanicsAfter,
            _ => Launch::Works,
        };
        script.act = match dice.roll(5) {
            0 => Act::Refused,
            1 => Act::TimesOut {
                done: dice.roll(2) == 0,
            },
            _ => Act::WorksAfter(dice.ms(10)),
        };
        script.powerdown = match dice.roll(3) {
            0 => Powerdown::Ignored,
            _ => Powerdown::HeardAfter(dice.ms(50)),
        };
        script.spawn_takes = dice.ms(100);
        script.greet_takes = dice.ms(30);
        script.terminate_takes = (dice.roll(4) > 0).then(|| dice.ms(20));
        script.adopt_takes = dice.ms(30);
        script.claim_takes = dice.ms(10);
        script.greets_early = dice.roll(3) == 0;
        script.news_told = 1 + u8::from(dice.roll(3) == 0);
        script.adopt_errors = u32::try_from(dice.roll(3)).unwrap();
        script.release_errors = u32::try_from(dice.roll(3)).unwrap();
        script.claim_errors = u32::from(dice.roll(4) == 0);
        script.disk_errors = u32::from(dice.roll(4) == 0);
        script.disk_takes = dice.ms(10);
        script.disk_refused = dice.roll(6) == 0;
        script.guest_holds_disks = dice.roll(6) == 0;
        script.kill_takes = (dice.roll(4) > 0 || real).then(|| dice.ms(20));
        script.terminate_panics = u32::from(dice.roll(6) == 0);
    });
}
