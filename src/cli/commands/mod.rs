//! The commands, one file a noun: flags into a request, the answer into a view.

use super::{Session, args::Wait, ask::Ask, error::CliError, view, view::View, wait::Outcome};
use serde_json::{Map, Value};

pub(super) mod disk;
pub(super) mod events;
pub(super) mod host;
pub(super) mod image;
pub(super) mod local;
pub(super) mod logs;
pub(super) mod nic;
pub(super) mod operation;
pub(super) mod power;
pub(super) mod store;
pub(super) mod template;
pub(super) mod token;
pub(super) mod vm;

impl Session<'_> {
    /// GETs a list and prints it.
    async fn list(&mut self, view: &View, ask: Ask) -> Result<(), CliError> {
        let items = self.client.list(&ask).await?;
        view.list(&items, self.format, self.terminal)
    }

    /// GETs one thing and prints it.
    async fn one(&mut self, view: &View, ask: Ask) -> Result<(), CliError> {
        let answer = self.client.ask(&ask).await?;
        view.one(&answer.value, self.format, self.terminal)
    }

    /// Deletes, and says so to people.
    async fn delete(&mut self, kind: &str, id: &str, ask: Ask) -> Result<(), CliError> {
        self.client.ask(&ask).await?;
        self.done(&format!("{kind} {id} is deleted"), id)
    }

    /// A sentence for people, the id for `-o name`, nothing for other programs: the API answered nothing either.
    fn done(&mut self, sentence: &str, id: &str) -> Result<(), CliError> {
        match self.format {
            super::args::Format::Table => self.terminal.line(sentence),
            super::args::Format::Name => self.terminal.line(id),
            _ => Ok(()),
        }
    }

    /// Asks for long work, waits as the flags say, and prints the result or the operation.
    async fn work(&mut self, view: &View, ask: Ask, wait: &Wait) -> Result<(), CliError> {
        let (view, value) = match self.ask_and_wait(&ask, wait).await? {
            Outcome::Done(value) if super::wait::is_operation(&value) => (&view::OPERATION, value),
            // Work on a disk is answered with the disk beside what was done to it.
            Outcome::Done(Value::Object(mut done))
                if done.get("disk").is_some_and(Value::is_object) =>
            {
                (view, done.remove("disk").unwrap_or_default())
            }
            Outcome::Done(value) => (view, value),
            Outcome::GoesOn(value) => (&view::OPERATION, value),
        };
        view.one(&value, self.format, self.terminal)
    }
}

/// A JSON object of what was said; what was not said is left out.
fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Map<String, Value> {
    fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

/// A value that may be absent, as JSON.
fn some<T: Clone + Into<Value>>(value: Option<&T>) -> Option<Value> {
    value.cloned().map(Into::into)
}
