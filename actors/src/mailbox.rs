//! Actors as this tree has them: ractor's, with what waits in their mailboxes and how long they take over a message
//! counted by what they are.
//!
//! Owns: the wrapping of a message on its way ([`Letter`]), of the ref that sends it and of the actor that takes it.
//! Must not: know an actor, or change when or in which order anything is handled. Modules of actors name [`Actor`] and
//! [`ActorRef`] from here and never ractor's, whose refs would send past the count: their types do not fit.
//! Look next: `meters.rs` for the figures, `root.rs` and `vm/supervisor.rs` for who starts whom.

use crate::meters::ActorMeter;
use ractor::{ActorCell, ActorProcessingErr, Message, SpawnErr, SupervisionEvent};
use std::{
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

/// A message on its way. It counts as waiting until it is opened, or dropped with the mailbox of an actor that died.
pub(crate) struct Letter<M> {
    message: M,
    _waiting: Waiting,
}

impl<M> Letter<M> {
    fn new(message: M, meter: &Arc<ActorMeter>) -> Self {
        meter.waiting.inc();
        Self {
            message,
            _waiting: Waiting(meter.clone()),
        }
    }

    fn open(self) -> M {
        self.message
    }
}

struct Waiting(Arc<ActorMeter>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.dec();
    }
}

/// Why a message was not taken: its actor has ended, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the actor has ended and takes no message")]
pub struct Ended;

/// How to reach an actor that takes `M`; derefs to ractor's cell for what is not about messages.
pub struct ActorRef<M> {
    actor: ractor::ActorRef<Letter<M>>,
    meter: Arc<ActorMeter>,
}

impl<M> Clone for ActorRef<M> {
    fn clone(&self) -> Self {
        Self {
            actor: self.actor.clone(),
            meter: self.meter.clone(),
        }
    }
}

impl<M> Deref for ActorRef<M> {
    type Target = ActorCell;

    fn deref(&self) -> &ActorCell {
        &self.actor
    }
}

impl<M: Message> ActorRef<M> {
    /// Puts a message into the actor's mailbox.
    ///
    /// # Errors
    ///
    /// [`Ended`] where nobody will take it.
    pub fn cast(&self, message: M) -> Result<(), Ended> {
        let letter = Letter::new(message, &self.meter);
        self.actor.cast(letter).map_err(|_| Ended)
    }

    /// The same after a while; nobody is told if the actor has ended by then.
    pub fn send_after<F>(&self, delay: Duration, message: F)
    where
        F: FnOnce() -> M + Send + 'static,
    {
        let meter = self.meter.clone();
        self.actor
            .send_after(delay, move || Letter::new(message(), &meter));
    }

    /// The actor without the type of its messages.
    pub fn get_cell(&self) -> ActorCell {
        self.actor.get_cell()
    }
}

/// An actor of the tree; its methods are those of [`ractor::Actor`].
pub trait Actor: Send + Sync + 'static {
    /// What it takes.
    type Msg: Message;
    /// What it holds.
    type State: Send + 'static;
    /// What it is started with.
    type Arguments: Send + 'static;

    /// Makes its state, before anything is taken.
    fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> impl Future<Output = Result<Self::State, ActorProcessingErr>> + Send;

    /// Once it is up.
    fn post_start(
        &self,
        _: ActorRef<Self::Msg>,
        _: &mut Self::State,
    ) -> impl Future<Output = Result<(), ActorProcessingErr>> + Send {
        async { Ok(()) }
    }

    /// Takes one message.
    fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> impl Future<Output = Result<(), ActorProcessingErr>> + Send;

    /// A child has started, ended or failed; who has none is not told.
    fn handle_supervisor_evt(
        &self,
        _: ActorRef<Self::Msg>,
        _: SupervisionEvent,
        _: &mut Self::State,
    ) -> impl Future<Output = Result<(), ActorProcessingErr>> + Send {
        async { Ok(()) }
    }

    /// When it was stopped in order, and never otherwise.
    fn post_stop(
        &self,
        _: ActorRef<Self::Msg>,
        _: &mut Self::State,
    ) -> impl Future<Output = Result<(), ActorProcessingErr>> + Send {
        async { Ok(()) }
    }
}

/// An actor as ractor runs it.
struct Metered<A> {
    actor: A,
    meter: Arc<ActorMeter>,
}

impl<A: Actor> Metered<A> {
    fn own(&self, actor: ractor::ActorRef<Letter<A::Msg>>) -> ActorRef<A::Msg> {
        ActorRef {
            actor,
            meter: self.meter.clone(),
        }
    }
}

impl<A: Actor> ractor::Actor for Metered<A> {
    type Msg = Letter<A::Msg>;
    type State = A::State;
    type Arguments = A::Arguments;

    async fn pre_start(
        &self,
        myself: ractor::ActorRef<Self::Msg>,
        arguments: A::Arguments,
    ) -> Result<A::State, ActorProcessingErr> {
        self.actor.pre_start(self.own(myself), arguments).await
    }

    async fn post_start(
        &self,
        myself: ractor::ActorRef<Self::Msg>,
        state: &mut A::State,
    ) -> Result<(), ActorProcessingErr> {
        self.actor.post_start(self.own(myself), state).await
    }

    async fn handle(
        &self,
        myself: ractor::ActorRef<Self::Msg>,
        letter: Self::Msg,
        state: &mut A::State,
    ) -> Result<(), ActorProcessingErr> {
        let (message, begun) = (letter.open(), Instant::now());
        let handled = self.actor.handle(self.own(myself), message, state).await;
        self.meter.handled.observe(begun.elapsed());
        handled
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ractor::ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut A::State,
    ) -> Result<(), ActorProcessingErr> {
        let myself = self.own(myself);
        self.actor.handle_supervisor_evt(myself, event, state).await
    }

    async fn post_stop(
        &self,
        myself: ractor::ActorRef<Self::Msg>,
        state: &mut A::State,
    ) -> Result<(), ActorProcessingErr> {
        self.actor.post_stop(self.own(myself), state).await
    }
}

/// Starts an actor that nobody supervises, and answers when it is up.
///
/// # Errors
///
/// What its `pre_start` says.
pub async fn spawn<A: Actor>(
    actor: A,
    arguments: A::Arguments,
    meter: Arc<ActorMeter>,
) -> Result<(ActorRef<A::Msg>, tokio::task::JoinHandle<()>), SpawnErr> {
    let metered = Metered {
        actor,
        meter: meter.clone(),
    };
    let (actor, task) = ractor::Actor::spawn(None, metered, arguments).await?;
    Ok((ActorRef { actor, meter }, task))
}

/// Starts an actor below another, and answers when it is up.
///
/// # Errors
///
/// What its `pre_start` says.
pub async fn spawn_linked<A: Actor>(
    actor: A,
    arguments: A::Arguments,
    supervisor: ActorCell,
    meter: Arc<ActorMeter>,
) -> Result<ActorRef<A::Msg>, SpawnErr> {
    let metered = Metered {
        actor,
        meter: meter.clone(),
    };
    let (actor, _) = ractor::Actor::spawn_linked(None, metered, arguments, supervisor).await?;
    Ok(ActorRef { actor, meter })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    /// Takes its messages one at a time, each until it is let go.
    struct Slow;

    type Gate = oneshot::Receiver<()>;

    impl Actor for Slow {
        type Msg = Gate;
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<Gate>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }

        async fn handle(
            &self,
            _: ActorRef<Gate>,
            gate: Gate,
            (): &mut (),
        ) -> Result<(), ActorProcessingErr> {
            gate.await.map_err(Into::into)
        }
    }

    async fn until(what: impl Fn() -> bool) {
        let reached = async {
            while !what() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reached)
            .await
            .expect("it comes to that");
    }

    #[tokio::test]
    async fn what_waits_is_counted_until_it_is_taken_and_how_long_that_took() {
        let meter = Arc::new(ActorMeter::default());
        let (actor, task) = spawn(Slow, (), meter.clone()).await.unwrap();
        let (let_go, first) = oneshot::channel();
        let (_kept, second) = oneshot::channel();
        actor.cast(first).unwrap();
        actor.cast(second).unwrap();
        until(|| meter.waiting.get() == 1).await;
        assert_eq!(meter.handled.spread().count, 0, "it is still being handled");
        let_go.send(()).unwrap();
        until(|| meter.waiting.get() == 0).await;
        assert_eq!(meter.handled.spread().count, 1);
        actor.kill();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn what_dies_with_its_actor_waits_no_more() {
        let meter = Arc::new(ActorMeter::default());
        let (actor, task) = spawn(Slow, (), meter.clone()).await.unwrap();
        let mut kept = Vec::new();
        for _ in 0..3 {
            let (let_go, gate) = oneshot::channel();
            kept.push(let_go);
            actor.cast(gate).unwrap();
        }
        until(|| meter.waiting.get() == 2).await;
        actor.kill();
        task.await.unwrap();
        until(|| meter.waiting.get() == 0).await;
        assert_eq!(actor.cast(oneshot::channel().1), Err(Ended));
        assert_eq!(meter.waiting.get(), 0);
    }

    #[tokio::test]
    async fn what_is_sent_later_is_counted_when_it_is_sent() {
        let meter = Arc::new(ActorMeter::default());
        let (actor, task) = spawn(Slow, (), meter.clone()).await.unwrap();
        let (let_go, gate) = oneshot::channel();
        actor.send_after(Duration::from_millis(1), move || gate);
        let_go.send(()).unwrap();
        until(|| meter.handled.spread().count == 1).await;
        assert_eq!(meter.waiting.get(), 0);
        actor.stop(None);
        task.await.unwrap();
    }
}
