//! Waiting for an operation, with a progress line on a terminal.
//!
//! An operation is durable, so a daemon that is away for a moment is waited for as well.

use super::{
    Session, args::Wait, ask::Ask, client::Answer, error::CliError, sanitize::one_line, view::first,
};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long one question waits at the daemon. Short on a terminal, so that the progress line moves.
const STEP_ON_TERMINAL_S: u64 = 1;
const STEP_S: u64 = 20;
/// Pause between two questions where the daemon did not wait.
const LEAST_TURN: Duration = Duration::from_millis(200);
/// A daemon that restarts with many VMs is back within this.
const ABSENCE: Duration = Duration::from_secs(30);

/// What became of an operation.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// It has succeeded, or the answer was no operation but the result itself.
    Done(Value),
    /// It goes on; `--no-wait` was given.
    GoesOn(Value),
}

impl Session<'_> {
    /// Asks, and waits for the operation that is answered, if one is and the flags say so.
    pub(super) async fn ask_and_wait(
        &mut self,
        ask: &Ask,
        wait: &Wait,
    ) -> Result<Outcome, CliError> {
        let answer = self.client.ask(ask).await?;
        self.settle(answer, wait).await
    }

    /// Waits for the operation in an answer, if there is one and the flags say so.
    pub(super) async fn settle(
        &mut self,
        answer: Answer,
        wait: &Wait,
    ) -> Result<Outcome, CliError> {
        if !is_operation(&answer.value) {
            return Ok(Outcome::Done(answer.value));
        }
        if wait.no_wait && !has_ended(&answer.value) {
            return Ok(Outcome::GoesOn(answer.value));
        }
        let limit = Duration::from_secs(u64::from(wait.wait));
        self.wait_for(answer.value, limit).await.map(Outcome::Done)
    }

    /// Waits until the operation has ended; an error if it ended otherwise than well, or has not within `limit`.
    pub(super) async fn wait_for(
        &mut self,
        mut operation: Value,
        limit: Duration,
    ) -> Result<Value, CliError> {
        let id = text(&operation, &["id"]);
        let deadline = Instant::now() + limit;
        let line = self.progress_line();
        let mut absent_since: Option<Instant> = None;
        while !has_ended(&operation) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CliError::Failed(format!(
                    "{} has not ended within {} s and goes on\n  wait on with `vman operation wait {id}`",
                    title(&operation),
                    limit.as_secs(),
                )));
            }
            line.set_message(describe(&operation));
            let step = if self.terminal.err_is_terminal {
                STEP_ON_TERMINAL_S
            } else {
                STEP_S
            };
            // Rounded up, or the last part of a second would be asked for in a busy loop.
            let step = step.min(left.as_secs() + 1);
            let asked = Instant::now();
            let ask = Ask::get(&["operations", &id, "wait"])
                .query("timeout_s", step)
                .patience(step);
            match self.client.ask(&ask).await {
                Ok(answer) if is_operation(&answer.value) => {
                    absent_since = None;
                    operation = answer.value;
                    // A daemon that answers without waiting must not be asked in a busy loop.
                    if !has_ended(&operation) && asked.elapsed() < LEAST_TURN {
                        tokio::time::sleep(LEAST_TURN).await;
                    }
                }
                Ok(_) => return Err(self.client.garbled("an operation was expected")),
                Err(error) if error.is_absence() => {
                    let since = *absent_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > ABSENCE {
                        return Err(error);
                    }
                    line.set_message(format!("{}: the daemon is away", title(&operation)));
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                Err(error) => return Err(error),
            }
        }
        verdict(operation)
    }

    fn progress_line(&self) -> ProgressBar {
        if !self.terminal.err_is_terminal {
            return ProgressBar::hidden();
        }
        // However the wait ends, the line is gone before anything else is printed.
        let line = ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            line.set_style(style);
        }
        line.enable_steady_tick(Duration::from_millis(120));
        line
    }
}

fn verdict(operation: Value) -> Result<Value, CliError> {
    if text(&operation, &["status"]) == "succeeded" {
        return Ok(operation);
    }
    let status = text(&operation, &["status"]);
    let mut told = format!(
        "{} has {}",
        title(&operation),
        match status.as_str() {
            "cancelled" => "been cancelled",
            other => other,
        }
    );
    let detail = text(&operation, &["error.detail", "error"]);
    if !detail.is_empty() {
        told = format!("{told}: {detail}");
    }
    let code = text(&operation, &["error.code"]);
    if !code.is_empty() {
        told = format!("{told} ({code})");
    }
    let vm = text(&operation, &["vm_id"]);
    if !vm.is_empty() {
        told = format!("{told}\n  see `vman vm explain {vm}` and `vman vm console {vm}`");
    }
    Err(CliError::Failed(told))
}

/// Whether an answer is an operation rather than a result.
pub(super) fn is_operation(value: &Value) -> bool {
    ["id", "kind", "status"]
        .iter()
        .all(|field| value.get(field).is_some_and(Value::is_string))
}

fn has_ended(operation: &Value) -> bool {
    // A status that is not known here is no end: the daemon is asked again.
    matches!(
        text(operation, &["status"]).as_str(),
        "succeeded" | "failed" | "cancelled"
    )
}

/// `vm.start of hello`.
pub(super) fn title(operation: &Value) -> String {
    let kind = text(operation, &["kind"]);
    match text(operation, &["vm_id", "disk_id"]) {
        of if of.is_empty() => kind,
        of => format!("{kind} of {of}"),
    }
}

fn describe(operation: &Value) -> String {
    let step = text(operation, &["step"]);
    let progress = operation["progress"].as_u64().unwrap_or(0);
    match (step.is_empty(), progress) {
        (true, _) => title(operation),
        (false, 0) => format!("{}: {step}", title(operation)),
        (false, progress) => format!("{}: {step}, {progress}%", title(operation)),
    }
}

fn text(value: &Value, fields: &[&str]) -> String {
    first(value, fields)
        .and_then(Value::as_str)
        .map(one_line)
        .unwrap_or_default()
}
