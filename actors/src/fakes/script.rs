//! How the QEMU of a VM behaves, said before it does.

use crate::ports::LaunchError;
use std::time::Duration;

/// What becomes of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Launch {
    /// QEMU comes up and its guest runs.
    #[default]
    Works,
    /// It is not started.
    Fails(LaunchError),
    /// It is started and ends at once.
    ExitsAtOnce {
        /// With this code.
        code: i32,
        /// Having written this.
        stderr: String,
    },
    /// It is started and never answers QMP.
    NeverGreets,
    /// The adapter panics before anything was started.
    PanicsBefore,
    /// The adapter panics when QEMU has been started.
    PanicsAfter,
}

/// What a guest does when it is asked to power off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Powerdown {
    /// Nothing.
    Ignored,
    /// It powers off after this time.
    HeardAfter(Duration),
}

/// What becomes of a QMP command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It is done after this time.
    WorksAfter(Duration),
    /// QEMU refuses it.
    Refused,
    /// No answer within [`Script::qmp_deadline`].
    TimesOut {
        /// Whether it was done all the same.
        done: bool,
    },
}

/// How the QEMU of a VM, and what is done around it, behaves.
#[derive(Clone, Debug)]
pub struct Script {
    /// What becomes of a launch.
    pub launch: Launch,
    /// From the call to the process.
    pub spawn_takes: Duration,
    /// From the process to QMP's answer; also when it is adopted.
    pub greet_takes: Duration,
    /// What the guest does when it is asked to power off.
    pub powerdown: Powerdown,
    /// What becomes of a QMP command.
    pub act: Act,
    /// How long a command waits for its answer.
    pub qmp_deadline: Duration,
    /// From SIGTERM to the end; none if it is ignored.
    pub terminate_takes: Option<Duration>,
    /// From SIGKILL to the end; none for a process in uninterruptible sleep.
    pub kill_takes: Option<Duration>,
    /// Each piece of news but the exit is told this often.
    pub news_told: u8,
    /// QMP answers an adoption before the adoption itself is answered.
    pub greets_early: bool,
    /// So many calls of `terminate` panic, in the handler of whoever calls it.
    pub terminate_panics: u32,
    /// So many adoptions cannot look.
    pub adopt_errors: u32,
    /// From an adoption's call to its answer.
    pub adopt_takes: Duration,
    /// So many releases of the VM's files fail.
    pub release_errors: u32,
    /// So many claims of a network fail.
    pub claim_errors: u32,
    /// From a network claim's call to its answer.
    pub claim_takes: Duration,
    /// So many makings of a disk file fail for want of space.
    pub disk_errors: u32,
    /// From the call for a disk file, or for work on a living QEMU's disk, to its
    /// answer.
    pub disk_takes: Duration,
    /// QEMU refuses work on disks.
    pub disk_refused: bool,
    /// The guest lets go of no disk.
    pub guest_holds_disks: bool,
    /// Whether QEMU refuses further network cards.
    pub nic_refused: bool,
    /// Whether the guest lets go of no network card.
    pub guest_holds_nics: bool,
    /// What the kernel's counter of processes ended for memory says.
    pub oom_kills: Option<u64>,
}

impl Default for Script {
    /// A well-behaved QEMU on a fast host.
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            launch: Launch::Works,
            spawn_takes: ms(1),
            greet_takes: ms(5),
            powerdown: Powerdown::HeardAfter(ms(20)),
            act: Act::WorksAfter(ms(1)),
            qmp_deadline: ms(1_000),
            terminate_takes: Some(ms(2)),
            kill_takes: Some(ms(1)),
            news_told: 1,
            greets_early: false,
            terminate_panics: 0,
            adopt_errors: 0,
            adopt_takes: ms(1),
            release_errors: 0,
            claim_errors: 0,
            claim_takes: Duration::ZERO,
            disk_errors: 0,
            disk_takes: Duration::ZERO,
            disk_refused: false,
            guest_holds_disks: false,
            nic_refused: false,
            guest_holds_nics: false,
            oom_kills: None,
        }
    }
}

impl Script {
    /// A QEMU as slow as a real one, for people who try the daemon out.
    pub(super) fn lifelike() -> Self {
        let ms = Duration::from_millis;
        Self {
            spawn_takes: ms(15),
            greet_takes: ms(60),
            powerdown: Powerdown::HeardAfter(ms(900)),
            act: Act::WorksAfter(ms(3)),
            terminate_takes: Some(ms(15)),
            kill_takes: Some(ms(5)),
            adopt_takes: ms(10),
            disk_takes: ms(25),
            ..Self::default()
        }
    }
}
