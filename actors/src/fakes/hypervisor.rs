//! QEMUs as tasks.

use super::{
    disks::DiskTurns,
    script::{Act, Launch, Powerdown, Script},
    world::{World, spend_one},
};
use crate::ports::{
    AdoptPlan, Adoption, BoxFuture, ConsoleTail, DiskAction, DiskError, FoundProcess, HostError,
    HostProbe, Hypervisor, LaunchError, LaunchPlan, Machine, MachineAction, MachineError,
    MachineNews, NewsSink, NicAction, PortForward,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use vman_model::{
    VmId,
    vm::{Confinement, ExitStatus, ProcessIdentity, RunState, SeenDisk},
};

/// How often a followed console is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(50);

pub(super) struct FakeHypervisor {
    pub(super) world: Arc<World>,
    pub(super) daemon: u64,
}

/// Counts a launch until it answers or is dropped.
struct Starting(Arc<World>);

impl Starting {
    fn begin(world: &Arc<World>) -> Self {
        world.starting(true);
        Self(world.clone())
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.starting(false);
    }
}

impl Hypervisor for FakeHypervisor {
    fn confine(
        &self,
        _: &VmId,
        _: BTreeSet<u32>,
        _: bool,
    ) -> BoxFuture<'static, Result<Confinement, HostError>> {
        Box::pin(async { Ok(Confinement::default()) })
    }

    fn launch(
        &self,
        plan: LaunchPlan,
        news: NewsSink,
    ) -> BoxFuture<'static, Result<Arc<dyn Machine>, LaunchError>> {
        let (world, daemon) = (self.world.clone(), self.daemon);
        Box::pin(async move {
            let script = world.script(&plan.vm);
            let starting = Starting::begin(&world);
            world.pause(daemon, script.spawn_takes).await;
            match &script.launch {
                Launch::Fails(error) => return Err(error.clone()),
                Launch::PanicsBefore => panic!("the adapter panics as scripted"),
                _ => {}
            }
            let (pid, client) = world.spawn(&plan, daemon, news);
            assert!(
                script.launch != Launch::PanicsAfter,
                "the adapter panics as scripted, with its QEMU started"
            );
            if script.launch == Launch::NeverGreets
                && let Some(qemu) = world.things().qemus.get_mut(&pid)
            {
                // From its first moment on: what answered once has greeted.
                qemu.told.hangs = true;
            }
            let machine = FakeMachine::new(&world, daemon, pid, client, &plan.vm);
            tokio::spawn(boot(world, plan.vm, pid, client, script, starting));
            Ok(Arc::new(machine) as Arc<dyn Machine>)
        })
    }

    fn adopt(
        &self,
        plan: AdoptPlan,
        news: NewsSink,
    ) -> BoxFuture<'static, Result<Adoption, HostError>> {
        let (world, daemon) = (self.world.clone(), self.daemon);
        Box::pin(async move {
            let script = world.script(&plan.vm);
            world.pause(daemon, script.adopt_takes).await;
            if world.spend(&plan.vm, |script| &mut script.adopt_errors) {
                return Err(HostError("cannot look, as scripted".to_owned()));
            }
            let pid = world.things().qemus.iter().find_map(|(pid, qemu)| {
                let told = &qemu.told;
                (told.uuid == plan.uuid && told.incarnation == plan.incarnation).then_some(*pid)
            });
            let attached = pid.and_then(|pid| Some((pid, world.attach(pid, daemon, news)?)));
            let Some((pid, client)) = attached else {
                return Ok(Adoption::Gone);
            };
            let machine = FakeMachine::new(&world, daemon, pid, client, &plan.vm);
            if script.greets_early {
                greet(&world, pid, client);
                world.pause(daemon, script.greet_takes).await;
                return Ok(Adoption::Found(Arc::new(machine)));
            }
            tokio::spawn(async move {
                world.pause(daemon, script.greet_takes).await;
                greet(&world, pid, client);
            });
            Ok(Adoption::Found(Arc::new(machine)))
        })
    }

    fn replace_tap(
        &self,
        vm: VmId,
        incarnation: vman_model::Incarnation,
        _: crate::ports::NicPlan,
        _: u32,
    ) -> BoxFuture<'static, Result<bool, HostError>> {
        let world = self.world.clone();
        Box::pin(async move {
            let things = world.things();
            Ok(things
                .qemus
                .values()
                .any(|qemu| qemu.told.vm == vm && qemu.told.incarnation == incarnation))
        })
    }

    fn oom_kills(&self, vm: &VmId) -> BoxFuture<'static, Result<Option<u64>, HostError>> {
        let kills = self.world.script(vm).oom_kills;
        Box::pin(async move { Ok(kills) })
    }

    fn forward_ports(
        &self,
        vm: VmId,
        incarnation: vman_model::Incarnation,
        _: u8,
        ports: BTreeSet<PortForward>,
    ) -> BoxFuture<'static, Result<bool, HostError>> {
        let (world, daemon) = (self.world.clone(), self.daemon);
        Box::pin(async move {
            world.pause(daemon, Duration::ZERO).await;
            let things = &mut *world.things();
            let mut qemus = things.qemus.values_mut();
            let ours = |qemu: &&mut super::world::Qemu| {
                qemu.told.vm == vm && qemu.told.incarnation == incarnation
            };
            let Some(qemu) = qemus.find(ours) else {
                return Ok(false);
            };
            if ports
                .iter()
                .any(|port| things.taken_ports.contains(&port.host_port))
            {
                return Err(HostError("the port is taken, as scripted".to_owned()));
            }
            qemu.ports = ports;
            Ok(true)
        })
    }

    fn release(&self, vm: &VmId) -> BoxFuture<'static, Result<(), HostError>> {
        let (world, daemon, vm) = (self.world.clone(), self.daemon, vm.clone());
        Box::pin(async move {
            world.pause(daemon, Duration::ZERO).await;
            if world.spend(&vm, |script| &mut script.release_errors) {
                return Err(HostError(format!(
                    "cannot remove the socket of {vm}, as scripted"
                )));
            }
            if world.things().lives(&vm) {
                world.violation(format!("{vm} was released under its QEMU"));
            }
            Ok(())
        })
    }

    fn erase(&self, vm: &VmId) -> BoxFuture<'static, Result<(), HostError>> {
        let (world, daemon, vm) = (self.world.clone(), self.daemon, vm.clone());
        Box::pin(async move {
            world.pause(daemon, Duration::ZERO).await;
            if world.things().lives(&vm) {
                world.violation(format!("{vm} was erased under its QEMU"));
            }
            world.things().consoles.remove(&vm);
            Ok(())
        })
    }

    fn survey(&self) -> BoxFuture<'static, Result<Vec<FoundProcess>, HostError>> {
        let (world, daemon) = (self.world.clone(), self.daemon);
        Box::pin(async move {
            world.pause(daemon, Duration::ZERO).await;
            let things = world.things();
            let found = things.qemus.values().map(|qemu| FoundProcess {
                uuid: qemu.told.uuid,
                incarnation: qemu.told.incarnation,
                identity: qemu.told.identity.clone(),
            });
            Ok(found.chain(things.strangers.iter().cloned()).collect())
        })
    }

    fn console(&self, vm: &VmId, max: usize) -> BoxFuture<'static, Result<ConsoleTail, HostError>> {
        let (bytes, file_size) = console_from(&self.world, vm, 0);
        let skip = bytes.len().saturating_sub(max);
        let bytes = bytes[skip..].to_vec();
        Box::pin(async move { Ok(ConsoleTail { bytes, file_size }) })
    }

    fn follow_console(&self, vm: &VmId, backlog: usize) -> BoxStream<'static, Bytes> {
        let (world, vm) = (self.world.clone(), vm.clone());
        let (_, written) = console_from(&world, &vm, u64::MAX);
        let from = written.saturating_sub(backlog as u64);
        let stream = futures_util::stream::unfold(from, move |mut seen| {
            let (world, vm) = (world.clone(), vm.clone());
            async move {
                loop {
                    let (bytes, written) = console_from(&world, &vm, seen);
                    // An erased VM's console begins anew.
                    let began_anew = std::mem::replace(&mut seen, written) > written;
                    if !bytes.is_empty() && !began_anew {
                        return Some((Bytes::from(bytes), seen));
                    }
                    tokio::time::sleep(FOLLOW_EVERY).await;
                }
            }
        });
        stream.boxed()
    }

    fn trim_logs(&self, _: Vec<VmId>) -> BoxFuture<'static, Result<(), HostError>> {
        let panics = spend_one(&self.world.check_panics);
        Box::pin(async move {
            assert!(!panics, "the check panics as scripted");
            // They are bounded as they are written.
            Ok(())
        })
    }

    fn probe(&self) -> BoxFuture<'static, HostProbe> {
        Box::pin(async {
            HostProbe {
                qemu: Ok("7.2.0 (simulated)".to_owned()),
                qemu_img: Ok("7.2.0 (simulated)".to_owned()),
                accelerator: "simulated: no QEMU is started".to_owned(),
                jail: "simulated: there is nothing to confine".to_owned(),
                tool_jail: "simulated: there is nothing to confine".to_owned(),
            }
        })
    }
}

/// What was written to a console from byte `from` on, and how much in all.
fn console_from(world: &World, vm: &VmId, from: u64) -> (Vec<u8>, u64) {
    let things = world.things();
    let Some(console) = things.consoles.get(vm) else {
        return (Vec::new(), 0);
    };
    let first_kept = console.written - console.kept.len() as u64;
    let skip = usize::try_from(from.saturating_sub(first_kept)).unwrap_or(usize::MAX);
    let bytes = console.kept.get(skip..).unwrap_or_default().to_vec();
    (bytes, console.written)
}

/// From the process to the running guest.
async fn boot(
    world: Arc<World>,
    vm: VmId,
    pid: u32,
    client: u64,
    script: Script,
    starting: Starting,
) {
    tokio::time::sleep(script.greet_takes).await;
    match script.launch {
        Launch::ExitsAtOnce { code, stderr } => {
            drop(starting);
            return world.exit(pid, &ExitStatus::Code(code), &stderr);
        }
        Launch::NeverGreets => return drop(starting),
        _ => {}
    }
    drop(starting);
    // The daemon lets the guest run; without one it waits for the next.
    if world.is_attached(pid, client) {
        if let Some(qemu) = world.things().qemus.get_mut(&pid) {
            if qemu.told.hangs {
                return;
            }
            qemu.told.state = RunState::Running;
        }
        let line = format!("simulated guest of {vm} is up (pid {pid})\r\n");
        world.print(&vm, line.as_bytes());
        world.tell(pid, &MachineNews::Ready(RunState::Running));
    }
}

/// QMP answers, or does not.
fn greet(world: &World, pid: u32, client: u64) {
    if !world.is_attached(pid, client) {
        return;
    }
    let seen = world
        .things()
        .qemus
        .get(&pid)
        .map(|qemu| (qemu.told.hangs, qemu.told.state));
    match seen {
        Some((true, _)) => world.tell(pid, &MachineNews::Deaf("no greeting, as scripted".into())),
        Some((false, state)) => world.tell(pid, &MachineNews::Ready(state)),
        None => {}
    }
}

struct FakeMachine {
    world: Arc<World>,
    daemon: u64,
    pid: u32,
    client: u64,
    vm: VmId,
    identity: ProcessIdentity,
    turns: DiskTurns,
}

impl FakeMachine {
    fn new(world: &Arc<World>, daemon: u64, pid: u32, client: u64, vm: &VmId) -> Self {
        let identity = world
            .things()
            .qemus
            .get(&pid)
            .map(|qemu| qemu.told.identity.clone());
        let gone = || ProcessIdentity {
            pid,
            start_time: 0,
            boot_id: world.boot_id(),
        };
        Self {
            world: world.clone(),
            daemon,
            pid,
            client,
            vm: vm.clone(),
            identity: identity.unwrap_or_else(gone),
            turns: DiskTurns::default(),
        }
    }

    fn end(&self, kill: bool) {
        if !self.world.is_present(self.daemon) {
            return;
        }
        self.world.signal(&self.vm, self.pid, kill);
        let script = self.world.script(&self.vm);
        let hangs = self
            .world
            .things()
            .qemus
            .get(&self.pid)
            .is_some_and(|qemu| qemu.told.hangs);
        let (takes, status) = if kill {
            (script.kill_takes, ExitStatus::Signal(9))
        } else {
            let heard = script.terminate_takes.filter(|_| !hangs);
            (heard, ExitStatus::Code(0))
        };
        let Some(takes) = takes else { return };
        let (world, pid) = (self.world.clone(), self.pid);
        tokio::spawn(async move {
            tokio::time::sleep(takes).await;
            world.exit(pid, &status, "");
        });
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.world.detach(self.pid, self.client);
    }
}

impl Machine for FakeMachine {
    fn identity(&self) -> ProcessIdentity {
        self.identity.clone()
    }

    fn act(&self, action: MachineAction) -> BoxFuture<'static, Result<(), MachineError>> {
        let (world, daemon, vm) = (self.world.clone(), self.daemon, self.vm.clone());
        let (pid, client) = (self.pid, self.client);
        Box::pin(async move {
            let script = world.script(&vm);
            let hangs = world.things().qemus.get(&pid).map(|qemu| qemu.told.hangs);
            let deadline = script.qmp_deadline;
            let timeout = MachineError::Timeout(u64::try_from(deadline.as_millis()).unwrap_or(0));
            match (hangs, script.act) {
                (None, _) => Err(MachineError::Disconnected),
                (Some(true), _) => {
                    world.pause(daemon, deadline).await;
                    if world.is_attached(pid, client) {
                        world.tell(pid, &MachineNews::Deaf("no answer, as scripted".into()));
                    }
                    Err(timeout)
                }
                (Some(false), Act::Refused) => Err(MachineError::Refused("as scripted".into())),
                (Some(false), Act::TimesOut { done }) => {
                    if done {
                        perform(&world, &vm, pid, action);
                    }
                    world.pause(daemon, deadline).await;
                    Err(timeout)
                }
                (Some(false), Act::WorksAfter(takes)) => {
                    world.pause(daemon, takes).await;
                    perform(&world, &vm, pid, action);
                    Ok(())
                }
            }
        })
    }

    fn disk(&self, action: DiskAction) -> BoxFuture<'static, Result<(), DiskError>> {
        let (world, daemon, vm) = (self.world.clone(), self.daemon, self.vm.clone());
        let (pid, turn) = (self.pid, self.turns.of(&action));
        Box::pin(async move {
            let _turn = turn.lock().await;
            let script = world.script(&vm);
            world.pause(daemon, script.disk_takes).await;
            if world
                .things()
                .qemus
                .get(&pid)
                .is_none_or(|qemu| qemu.told.hangs)
            {
                world.pause(daemon, script.qmp_deadline).await;
                return Err(DiskError::Unknown("no answer, as scripted".to_owned()));
            }
            if script.disk_refused {
                return Err(DiskError::Refused("as scripted".to_owned()));
            }
            match action {
                DiskAction::Open(plan) => return world.open(pid, &plan),
                DiskAction::Plug { plan, opened } => return world.plug(pid, &plan, opened),
                DiskAction::Unplug(disk) if script.guest_holds_disks && world.shows(pid, &disk) => {
                    return Err(DiskError::Held(format!(
                        "the guest holds {disk}, as scripted"
                    )));
                }
                DiskAction::Unplug(disk) => world.unplug(pid, &disk),
                DiskAction::Resize(..) | DiskAction::Limit(..) => {}
            }
            Ok(())
        })
    }

    fn nic(&self, action: NicAction) -> BoxFuture<'static, Result<(), DiskError>> {
        let (world, daemon, vm) = (self.world.clone(), self.daemon, self.vm.clone());
        let pid = self.pid;
        Box::pin(async move {
            let script = world.script(&vm);
            world.pause(daemon, script.disk_takes).await;
            let hangs = {
                let things = world.things();
                things.qemus.get(&pid).is_none_or(|qemu| qemu.told.hangs)
            };
            if hangs {
                world.pause(daemon, script.qmp_deadline).await;
                return Err(DiskError::Unknown("no answer, as scripted".to_owned()));
            }
            match action {
                NicAction::Plug(..) if script.nic_refused => {
                    return Err(DiskError::Refused("as scripted".to_owned()));
                }
                NicAction::Unplug(slot) if script.guest_holds_nics => {
                    return Err(DiskError::Held(format!(
                        "the guest holds the card in slot {slot}, as scripted"
                    )));
                }
                action => world.work_on_nic(pid, &action),
            }
            Ok(())
        })
    }

    fn disks(&self) -> BoxFuture<'static, Result<Vec<SeenDisk>, MachineError>> {
        let (world, daemon, pid) = (self.world.clone(), self.daemon, self.pid);
        Box::pin(async move {
            world.pause(daemon, Duration::ZERO).await;
            world.seen_disks(pid).ok_or(MachineError::Disconnected)
        })
    }

    fn terminate(&self) {
        let panics = self
            .world
            .spend(&self.vm, |script| &mut script.terminate_panics);
        assert!(!panics, "terminate panics as scripted");
        self.end(false);
    }

    fn kill(&self) {
        self.end(true);
    }
}

/// What QEMU does on a command.
fn perform(world: &Arc<World>, vm: &VmId, pid: u32, action: MachineAction) {
    let Some(state) = world.things().qemus.get(&pid).map(|qemu| qemu.told.state) else {
        return;
    };
    match (action, state) {
        (MachineAction::Pause, RunState::Running) => world.run_state(pid, RunState::Paused),
        (MachineAction::Resume, RunState::Paused | RunState::Prelaunch | RunState::IoError) => {
            world.run_state(pid, RunState::Running);
            power_off_if_asked(world, vm, pid);
        }
        (MachineAction::Reset, _) => world.tell(pid, &MachineNews::GuestReset),
        (MachineAction::Powerdown, _) => {
            if let Some(qemu) = world.things().qemus.get_mut(&pid) {
                qemu.asked_off = true;
            }
            power_off_if_asked(world, vm, pid);
        }
        (MachineAction::Ping, state) => world.tell(pid, &MachineNews::Ready(state)),
        (MachineAction::Pause | MachineAction::Resume, _) => {}
    }
}

fn power_off_if_asked(world: &Arc<World>, vm: &VmId, pid: u32) {
    let hears = |state: &RunState, asked: bool| asked && *state == RunState::Running;
    let heard = world
        .things()
        .qemus
        .get(&pid)
        .is_some_and(|qemu| hears(&qemu.told.state, qemu.asked_off));
    let Powerdown::HeardAfter(takes) = world.script(vm).powerdown else {
        return;
    };
    if !heard {
        return;
    }
    let world = world.clone();
    tokio::spawn(async move {
        tokio::time::sleep(takes).await;
        let runs = |world: &World| {
            let things = world.things();
            let qemu = things.qemus.get(&pid);
            qemu.is_some_and(|qemu| qemu.told.state == RunState::Running)
        };
        if runs(&world) {
            world.run_state(pid, RunState::Shutdown);
        }
    });
}
