//! Random commands, faults and deaths, told apart by a seed. Whatever happens,
//! the oracle holds in the end.

use super::{
    daemon::{DELETE, Daemon, RESTART, STOP, STOP_BY_FORCE, alone, on_threads, origin, spec, vm},
    trial::Dice,
};
use crate::{
    fakes::{Act, FakeHost, Launch, NextCommit, Powerdown},
    ports::LaunchError,
    vm::NewVm,
};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use vman_model::{
    RestartMode, RestartPolicy, VmId,
    vm::{Command, Desired, ExitStatus, Phase, RunState},
};

const VMS: u64 = 5;
const STEPS: u64 = 60;
/// Lives at once: most of a life is waiting.
const WORKERS: usize = 4;

/// What was promised about each VM: made, and perhaps asked to be gone.
#[derive(Default)]
struct Promises {
    made: BTreeMap<VmId, bool>,
}

struct Chaos {
    daemon: Daemon,
    dice: Dice,
    promises: Promises,
    /// Time is real: nothing that ends only at a deadline of many seconds.
    real: bool,
}

impl Chaos {
    async fn step(&mut self) {
        let id = vm(&format!("vm-{}", self.dice.roll(VMS)));
        match self.dice.roll(100) {
            0..20 => self.create(&id).await,
            20..70 => self.command(&id).await,
            70..78 => self.qemu_acts(&id),
            78..86 => self.rewrite_script(&id),
            86..88 => self.commit_fails(),
            88 => {
                if let Some(supervisor) = self.daemon.on().vms.directory.supervisor.get() {
                    supervisor.kill();
                }
            }
            89..92 => {
                if let Some(entry) = self.daemon.on().vms.directory.get(&id)
                    && let Some(actor) = entry.actor
                {
                    actor.kill();
                }
            }
            92..97 => self.daemon.kill_and_start().await,
            97..99 => self.daemon.stop_and_start().await,
            _ => {
                self.daemon.host.reboot();
                self.daemon.kill_and_start().await;
            }
        }
        if self.dice.roll(2) == 0 {
            let time = self.dice.ms(60);
            self.daemon.pass(time).await;
        }
    }

    async fn create(&mut self, id: &VmId) {
        let mut restart = RestartPolicy {
            mode: [RestartMode::Never, RestartMode::OnFailure][usize::from(self.dice.roll(2) == 0)],
            ..RestartPolicy::default()
        };
        restart.budget.backoff_ms = 20;
        let new = NewVm {
            id: Some(id.clone()),
            spec: spec(restart),
            address: None,
            origin: origin(),
            idempotency: None,
        };
        if self.daemon.on().vms.create(new).await.is_ok() {
            self.promises.made.insert(id.clone(), false);
        }
    }

    async fn command(&mut self, id: &VmId) {
        let command = match self.dice.roll(10) {
            0..3 => Command::Start,
            3 if self.real => Command::Stop {
                force: false,
                timeout_ms: 200,
            },
            3 => STOP,
            5 if self.real => Command::Restart {
                force: false,
                timeout_ms: 200,
            },
            4 => STOP_BY_FORCE,
            5 => RESTART,
            6 => Command::Pause,
            7 => Command::Resume,
            8 => Command::Reset,
            _ => DELETE,
        };
        if command == DELETE
            && let Some(asked) = self.promises.made.get_mut(id)
        {
            // Even one that was not answered may have been taken.
            *asked = true;
        }
        let (vms, request) = (self.daemon.on().vms.clone(), self.daemon.request(command));
        let id = id.clone();
        let asking = tokio::spawn(async move { vms.command(&id, request).await });
        if self.dice.roll(2) == 0 {
            self.daemon
                .until("the command is answered", || asking.is_finished())
                .await;
        }
    }

    fn qemu_acts(&mut self, id: &VmId) {
        let host = &self.daemon.host;
        match self.dice.roll(6) {
            0 => host.die(id, ExitStatus::Signal(9), ""),
            1 => host.guest(id, RunState::Shutdown),
            2 => host.guest(id, RunState::GuestPanicked),
            3 => host.guest_resets(id),
            4 if !self.real => host.hang(id, true),
            _ => host.hang(id, false),
        }
    }

    fn rewrite_script(&mut self, id: &VmId) {
        let (dice, real) = (&mut self.dice, self.real);
        self.daemon.host.script_vm(id, |script| {
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
            script.kill_takes = (dice.roll(4) > 0 || real).then(|| dice.ms(20));
            script.terminate_panics = u32::from(dice.roll(6) == 0);
        });
    }

    fn commit_fails(&mut self) {
        if self.dice.roll(8) == 0 {
            return self.daemon.host.panic_in_commits(1);
        }
        let next = match self.dice.roll(8) {
            0 => NextCommit::UnknownButWritten,
            1 => NextCommit::UnknownNotWritten,
            2..5 => NextCommit::NoSpace,
            _ => NextCommit::Slow(Duration::from_millis(1)),
        };
        self.daemon.host.storage().then(next);
    }

    /// Nothing fails any more, and everything comes to its end.
    async fn settle(&mut self) {
        for n in 0..VMS {
            let id = vm(&format!("vm-{n}"));
            self.daemon
                .host
                .script_vm(&id, |script| *script = crate::fakes::Script::default());
            self.daemon.host.hang(&id, false);
        }
        // What the root gave up, a new daemon takes over.
        self.daemon.kill_and_start().await;
        self.daemon.oracle().await;
        let inventory = self.daemon.on().store.inventory();
        for (id, asked) in &self.promises.made {
            let there = inventory.vms.contains_key(id);
            assert!(there || *asked, "{id} is lost");
        }
        for (id, vm) in &inventory.vms {
            let (desired, phase) = (vm.value.desired, vm.value.phase);
            let fits = match desired {
                Desired::Running => {
                    matches!(phase, Phase::Running | Phase::Paused | Phase::Failed)
                }
                Desired::Stopped => phase == Phase::Stopped,
                Desired::Erased { .. } => false,
            };
            assert!(fits, "{id} is {phase:?}, wanted {desired:?}");
        }
    }
}

async fn live_through(seed: u64, real: bool) {
    let host = FakeHost::seeded(seed);
    let daemon = if real {
        Daemon::start_in_real_time(host).await
    } else {
        Daemon::start_on(host).await
    };
    let mut chaos = Chaos {
        daemon,
        dice: Dice::new(seed),
        promises: Promises::default(),
        real,
    };
    for _ in 0..STEPS {
        chaos.step().await;
    }
    chaos.settle().await;
}

/// Lives through all of these, a few at once; tells the seeds that failed.
fn live_through_all(seeds: std::ops::Range<u64>, real: bool) {
    let next = AtomicU64::new(seeds.start);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(seed) = Some(next.fetch_add(1, Ordering::SeqCst))
                    && seed < seeds.end
                {
                    let life = || {
                        if real {
                            on_threads(live_through(seed, real));
                        } else {
                            alone(live_through(seed, real));
                        }
                    };
                    if std::panic::catch_unwind(life).is_err() {
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "these seeds failed: {failed:?}");
}

#[test]
fn random_commands_faults_and_deaths_lose_double_and_leave_open_nothing() {
    live_through_all(0..50, false);
}

#[test]
fn the_same_holds_on_threads_that_really_run_at_once() {
    live_through_all(0..8, true);
}

/// `VMAN_TEST_CHAOS_FROM` and `VMAN_TEST_CHAOS_SEEDS` say which,
/// `VMAN_TEST_CHAOS_REAL=1` asks for real threads and time.
#[test]
#[ignore = "minutes long: for the night"]
fn thousands_of_random_lives_lose_double_and_leave_open_nothing() {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let from = number("VMAN_TEST_CHAOS_FROM").unwrap_or(0);
    let seeds = number("VMAN_TEST_CHAOS_SEEDS").unwrap_or(5_000);
    live_through_all(
        from..from + seeds,
        number("VMAN_TEST_CHAOS_REAL") == Some(1),
    );
}
