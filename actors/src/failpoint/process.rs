//! How a real daemon dies at a step: at once, as by SIGKILL.
//!
//! Told by the environment of a test build: `FAILPOINT=network.claim.after#2`
//! is the second time that this step is passed; `FAILPOINT_LOG=file` has the
//! steps written down as they are passed, one a line.

use super::{Fate, HOST_POINTS, Side, Step, Watch};
use std::{
    collections::HashMap,
    io::Write,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

static PROCESS: OnceLock<Arc<Process>> = OnceLock::new();

/// The watch of this process.
pub struct Process {
    /// The step and the how manyeth time.
    armed: Option<String>,
    die: fn() -> !,
    passed: Mutex<(HashMap<Step, u32>, Option<Log>)>,
}

/// Where steps are written down.
pub type Log = Box<dyn Write + Send>;

/// Sets up the watch of this process, once: the step at which it is to die, how
/// it dies, and where it writes down its steps.
pub fn arm(armed: Option<String>, die: fn() -> !, log: Option<Log>) {
    let process = Process {
        armed,
        die,
        passed: Mutex::new((HashMap::new(), log)),
    };
    let _ = PROCESS.set(Arc::new(process));
}

/// The watch of this process, if it was set up.
pub fn process() -> Option<Arc<Process>> {
    PROCESS.get().cloned()
}

pub(super) fn hit(room: &str, what: &str, side: Side) {
    let mut known = HOST_POINTS.iter();
    let point = known.find(|known| known.split_once('.') == Some((room, what)));
    if let (Some(process), Some(point)) = (PROCESS.get(), point) {
        process.pass(Step { point, side });
    }
}

impl Watch for Process {
    fn pass(&self, step: Step) -> Fate {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let (passed, log) = &mut *passed;
        let times = passed.entry(step).or_default();
        *times += 1;
        let name = format!("{step}#{times}");
        if let Some(log) = log {
            let _ = log.write_all(format!("{name}\n").as_bytes());
        }
        if self.armed.as_ref() == Some(&name) {
            // No destructor runs and no other thread gets further than it is.
            (self.die)();
        }
        Fate::Go
    }
}
