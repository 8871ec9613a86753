//! What a VmActor is told, and the bounded bag its machine's news wait in.

use crate::{
    ports::{Machine, MachineNews},
    vm::handle::{CommandError, CommandRequest},
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};
use vman_model::{
    Incarnation, OperationRecord, Revision,
    vm::{Fact, SeenDisk, Timer},
};

/// What a VmActor is told.
pub enum VmMsg {
    /// A user's command.
    Command(
        Box<CommandRequest>,
        oneshot::Sender<Result<OperationRecord, CommandError>>,
    ),
    /// Something that happened in an incarnation.
    Fact(Incarnation, Fact),
    /// News of a machine wait in the bag.
    News(Incarnation, Arc<Mailbag>),
    /// The machine of an incarnation was launched or found.
    Machine(Incarnation, Arc<dyn Machine>),
    /// A delay ran out.
    Timer(Incarnation, Timer),
    /// The observer asks whether its machine answers. The permit bounds how
    /// many such questions wait.
    Ping(OwnedSemaphorePermit),
    /// Which data disks its machine has, asked at this revision: later changes
    /// are not judged by it.
    DisksLooked(Revision, Incarnation, Vec<SeenDisk>),
    /// The observer saw no QEMU of this VM although it is, at this revision,
    /// recorded with one: look for it again.
    LookAgain(Revision, OwnedSemaphorePermit),
    /// A disk's limits were changed.
    LimitDisk(vman_model::DiskId),
    /// Try again to record what could not be recorded.
    Retry,
    /// The effect that had the host's turn has ended.
    LaneFree,
    /// The effect that had the host's turn panicked: what it did is unknown.
    EffectLost,
}

/// News of one machine, waiting for its VM. Whatever a QEMU sends, at most
/// [`MAX_NEWS`] wait, and at most one message about them is in the mailbox.
#[derive(Default)]
pub struct Mailbag(Mutex<Bag>);

/// More than any honest sequence between two turns of an actor.
const MAX_NEWS: usize = 32;

#[derive(Default)]
struct Bag {
    news: VecDeque<MachineNews>,
    announced: bool,
    held: bool,
}

impl Mailbag {
    fn lock(&self) -> std::sync::MutexGuard<'_, Bag> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A bag whose news are not announced until it is opened.
    pub fn held() -> Self {
        Self(Mutex::new(Bag {
            held: true,
            ..Bag::default()
        }))
    }

    /// From here on news are announced; answers whether some wait already.
    pub fn open(&self) -> bool {
        let mut bag = self.lock();
        bag.held = false;
        bag.announced = !bag.news.is_empty();
        bag.announced
    }

    /// Puts news in; answers whether the VM has to be told that some wait. An
    /// exit is told even if other news were: it waits for no turn.
    pub fn put(&self, news: MachineNews) -> bool {
        let urgent = matches!(news, MachineNews::Exited { .. });
        let mut bag = self.lock();
        bag.coalesce(news);
        !bag.held && (!std::mem::replace(&mut bag.announced, true) || urgent)
    }

    /// Whether the last news is in it.
    pub fn has_exit(&self) -> bool {
        matches!(self.lock().news.back(), Some(MachineNews::Exited { .. }))
    }

    /// Takes everything out.
    pub fn take(&self) -> VecDeque<MachineNews> {
        let mut bag = self.lock();
        bag.announced = false;
        std::mem::take(&mut bag.news)
    }
}

impl Bag {
    /// The newest of a kind stands for a run of that kind; a guest that resets
    /// itself in a loop is told once per turn.
    fn coalesce(&mut self, news: MachineNews) {
        use MachineNews::{Deaf, GuestReset, Ready, RunState};
        let told_once = matches!(
            news,
            GuestReset | MachineNews::DiskLetGo(_) | MachineNews::DiskFailed { .. }
        );
        if told_once && self.news.contains(&news) {
            return;
        }
        let same_run = matches!(
            (self.news.back(), &news),
            (Some(Ready(_)), Ready(_))
                | (Some(RunState(_)), RunState(_))
                | (Some(Deaf(_)), Deaf(_))
        );
        if same_run {
            self.news.pop_back();
        }
        if self.news.len() >= MAX_NEWS {
            // Deaf and Ready flapping: what is newest is what matters.
            self.news.pop_front();
        }
        self.news.push_back(news);
    }
}

/// How often a VM turns to its machine's news: a guest that resets or suspends
/// itself in a loop shall not fill the event log.
#[derive(Default)]
pub(super) struct Pace {
    window: Option<Instant>,
    turns: u32,
}

/// Turns within [`WINDOW`]; an honest guest needs a handful in its life.
const MAX_TURNS: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

impl Pace {
    /// Takes a turn, or answers how long to wait for the next one.
    pub(super) fn turn(&mut self, now: Instant) -> Result<(), Duration> {
        let age = self.window.map(|began| now.duration_since(began));
        match age {
            Some(age) if age < WINDOW && self.turns >= MAX_TURNS => {
                return Err(WINDOW.saturating_sub(age));
            }
            Some(age) if age < WINDOW => self.turns += 1,
            Some(_) | None => (self.window, self.turns) = (Some(now), 1),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vman_model::vm::{ExitStatus, RunState};

    #[test]
    fn a_guest_in_a_loop_is_listened_to_a_bounded_number_of_times_a_second() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        let heard = |pace: &mut Pace, at| (0..1_000).filter(|_| pace.turn(at).is_ok()).count();
        assert_eq!(heard(&mut pace, began), MAX_TURNS as usize);
        let soon = began + Duration::from_millis(300);
        assert_eq!(pace.turn(soon), Err(Duration::from_millis(700)));
        assert_eq!(heard(&mut pace, began + WINDOW), MAX_TURNS as usize);
    }

    #[test]
    fn a_held_bag_announces_nothing_until_it_is_opened() {
        let bag = Mailbag::held();
        assert!(!bag.put(MachineNews::GuestReset));
        assert!(bag.open(), "what came meanwhile is to be announced");
        assert!(!bag.put(MachineNews::Ready(RunState::Running)));
        assert_eq!(bag.take().len(), 2);
        let bag = Mailbag::held();
        assert!(!bag.open());
        assert!(bag.put(MachineNews::GuestReset));
    }

    #[test]
    fn a_storm_of_news_waits_in_bounded_space_and_the_exit_is_kept() {
        let bag = Mailbag::default();
        assert!(
            bag.put(MachineNews::GuestReset),
            "the first news has to be announced"
        );
        for i in 0..10_000 {
            assert!(!bag.put(MachineNews::GuestReset));
            bag.put(MachineNews::RunState(RunState::Paused));
            bag.put(MachineNews::Deaf(i.to_string()));
            bag.put(MachineNews::Ready(RunState::Running));
        }
        let exit = MachineNews::Exited {
            status: ExitStatus::Code(0),
            stderr: String::new(),
        };
        bag.put(exit.clone());
        let news = bag.take();
        assert!(news.len() <= MAX_NEWS);
        assert_eq!(news.back(), Some(&exit));
        assert!(
            bag.put(exit.clone()) && bag.put(exit),
            "an exit is always announced"
        );
        bag.take();
        assert!(
            bag.put(MachineNews::GuestReset),
            "after a take news are announced again"
        );
    }
}
