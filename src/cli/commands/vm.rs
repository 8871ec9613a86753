//! `vman vm …`

use super::{object, some};
use crate::cli::{
    Session,
    args::{Format, NewVm, Start, Targets, VmCommand, Wait},
    ask::Ask,
    error::CliError,
    sanitize::{Sanitizer, one_line},
    view::{self, first},
    wait::{Outcome, title},
};
use http_body_util::BodyExt as _;
use hyper::header;
use serde_json::{Map, Value, json};

/// Deleting a running VM ends its QEMU and removes its files before it answers.
const DELETE_PATIENCE_S: u64 = 60;

pub(in crate::cli) async fn run(
    command: VmCommand,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    match command {
        VmCommand::List { state, labels } => {
            let mut ask = Ask::get(&["vms"]);
            if let Some(state) = state {
                ask = ask.query("state", state);
            }
            for label in labels {
                ask = ask.query("label", label);
            }
            session.list(&view::VM, ask).await
        }
        VmCommand::Create(vm) => {
            let created = create(&vm, session).await?;
            view::VM.one(&created, session.format, session.terminal)
        }
        VmCommand::Launch { vm, wait } => {
            let created = create(&vm, session).await?;
            let id = view::VM.id_of(&created);
            let started = act("start", &[], std::slice::from_ref(&id), &wait, session).await;
            started.map_err(|error| told_after_creation(error, &id))
        }
        VmCommand::Info { id } => session.one(&view::VM, Ask::get(&["vms", &id])).await,
        VmCommand::Set {
            id,
            autostart,
            start,
            independent,
        } => {
            let mut body = start_fields(&start);
            body.extend(object([
                ("autostart", some(autostart.as_ref())),
                ("depends_on", independent.then(|| Value::Array(Vec::new()))),
            ]));
            let ask = Ask::patch(&["vms", &id]).json(Value::Object(body));
            session.one(&view::VM, ask).await
        }
        VmCommand::Start(targets) => simple("start", &targets, session).await,
        VmCommand::Restart(targets) => simple("restart", &targets, session).await,
        VmCommand::Pause(targets) => simple("pause", &targets, session).await,
        VmCommand::Resume(targets) => simple("resume", &targets, session).await,
        VmCommand::Reset(targets) => simple("reset", &targets, session).await,
        VmCommand::Stop {
            targets,
            force,
            timeout,
        } => {
            let force = force.then(|| ("force", "true".to_owned()));
            let timeout = timeout.map(|seconds| ("timeout_s", seconds.to_string()));
            let query: Vec<_> = force.into_iter().chain(timeout).collect();
            act("stop", &query, &targets.ids, &targets.wait, session).await
        }
        VmCommand::Delete {
            targets,
            keep_root_disk,
        } => delete(&targets, keep_root_disk, session).await,
        VmCommand::Console { id, follow, raw } => console(&id, follow, raw, session).await,
        VmCommand::Logs {
            id,
            follow,
            lines,
            since,
        } => super::logs::run(&id, follow, lines, since.as_deref(), session).await,
        VmCommand::Explain { id } => explain(&id, session).await,
    }
}

async fn create(vm: &NewVm, session: &Session<'_>) -> Result<Value, CliError> {
    let mut body = super::template::size(&vm.size);
    let restart = vm.restart.as_ref().map(|policy| {
        Value::Object(object([
            ("policy", Some(policy.clone().into())),
            ("max_restarts", some(vm.max_restarts.as_ref())),
        ]))
    });
    body.extend(object([
        ("template_name", Some(vm.template.clone().into())),
        ("name", some(vm.name.as_ref())),
        ("network", some(vm.network.as_ref())),
        ("restart", restart),
        ("cpu_weight", some(vm.cpu_weight.as_ref())),
        ("cpu_quota", some(vm.cpu_quota.as_ref())),
        ("io_weight", some(vm.io_weight.as_ref())),
        ("autostart", vm.autostart.then(|| true.into())),
    ]));
    body.extend(start_fields(&vm.start));
    let ask = Ask::post(&["vms"]).json(Value::Object(body));
    Ok(session.client.ask(&ask).await?.value)
}

/// `db` or `db:address`, as the API takes it.
fn start_fields(start: &Start) -> Map<String, Value> {
    let one = |text: &String| match text.split_once(':') {
        Some((vm, condition)) => json!({ "vm": vm, "condition": condition }),
        None => json!({ "vm": text }),
    };
    let all: Vec<Value> = start.depends_on.iter().map(one).collect();
    object([
        ("priority", some(start.priority.as_ref())),
        ("depends_on", (!all.is_empty()).then(|| all.into())),
    ])
}

/// Whoever launched should know that the VM exists although it does not run.
fn told_after_creation(error: CliError, id: &str) -> CliError {
    match error {
        CliError::Failed(text) => CliError::Failed(format!(
            "{text}\n  the VM is recorded: `vman vm start {id}` tries again, `vman vm delete {id}` removes it"
        )),
        other => other,
    }
}

async fn simple(
    action: &str,
    targets: &Targets,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    act(action, &[], &targets.ids, &targets.wait, session).await
}

/// Asks for all first and waits then, so that many VMs are worked on at once. One refusal does not keep the others
/// from being asked; the last one decides the exit code.
async fn act(
    action: &str,
    query: &[(&str, String)],
    ids: &[String],
    wait: &Wait,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    let mut begun = Vec::new();
    let mut failures = Vec::new();
    for id in ids {
        let mut ask = Ask::post(&["vms", id, "actions", action]);
        for (name, value) in query {
            ask = ask.query(name, value);
        }
        match session.client.ask(&ask).await {
            Ok(answer) => begun.push((id, answer)),
            Err(error) => failures.push(error),
        }
    }
    let mut results = Vec::new();
    for (id, answer) in begun {
        match session.settle(answer, wait).await {
            Ok(Outcome::GoesOn(operation)) => results.push((id, operation, true)),
            Ok(Outcome::Done(_)) => match session.client.ask(&Ask::get(&["vms", id])).await {
                Ok(answer) => results.push((id, answer.value, false)),
                Err(error) => failures.push(error),
            },
            Err(error) => failures.push(error),
        }
    }
    print_results(&results, ids.len() == 1, session)?;
    conclude(failures, session)
}

/// People get a sentence for each; programs the VMs, or the operations with `--no-wait`: one for one id, else a list.
fn print_results(
    results: &[(&String, Value, bool)],
    single: bool,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    match session.format {
        Format::Table => results.iter().try_for_each(|(id, value, goes_on)| {
            let line = if *goes_on {
                let operation = view::OPERATION.id_of(value);
                format!("{} goes on as operation {operation}", title(value))
            } else {
                summary(id, value)
            };
            session.terminal.line(&line)
        }),
        Format::Name => results
            .iter()
            .try_for_each(|(id, _, _)| session.terminal.line(id)),
        format => match results {
            [] => Ok(()),
            [(_, value, _)] if single => view::document(value, format, session.terminal),
            results => {
                let values = results.iter().map(|(_, value, _)| value.clone());
                let values = Value::Array(values.collect());
                view::document(&values, format, session.terminal)
            }
        },
    }
}

/// `hello is running at 10.0.2.15`, or `hello is stopped (guest_shutdown)`.
fn summary(id: &str, vm: &Value) -> String {
    let text = |field| {
        let value = first(vm, &[field]).and_then(Value::as_str);
        value.map(one_line).unwrap_or_default()
    };
    let state = text("state");
    match state.as_str() {
        "running" if !text("local_ip").is_empty() => {
            format!("{id} is running at {}", text("local_ip"))
        }
        "running" | "paused" => format!("{id} is {state}"),
        _ if text("reason").is_empty() => format!("{id} is {state}"),
        _ => format!("{id} is {state} ({})", text("reason")),
    }
}

fn conclude(mut failures: Vec<CliError>, session: &mut Session<'_>) -> Result<(), CliError> {
    let last = failures.pop();
    for failure in failures {
        session.terminal.note(&format!("vman: {failure}"));
    }
    last.map_or(Ok(()), Err)
}

async fn delete(
    targets: &Targets,
    keep_root_disk: bool,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    let mut failures = Vec::new();
    for id in &targets.ids {
        let mut ask = Ask::delete(&["vms", id]).patience(DELETE_PATIENCE_S);
        if keep_root_disk {
            ask = ask.query("keep_root_disk", "true");
        }
        match session.ask_and_wait(&ask, &targets.wait).await {
            Ok(Outcome::GoesOn(operation)) => {
                let operation = view::OPERATION.id_of(&operation);
                session.done(
                    &format!("VM {id} is being deleted by operation {operation}"),
                    id,
                )?;
            }
            Ok(Outcome::Done(_)) => session.done(&format!("VM {id} is deleted"), id)?,
            Err(error) => failures.push(error),
        }
    }
    conclude(failures, session)
}

async fn console(
    id: &str,
    follow: bool,
    raw: bool,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    let mut sanitizer = (session.terminal.out_is_terminal && !raw).then(Sanitizer::default);
    let mut print = move |session: &mut Session<'_>, bytes: &[u8]| match &mut sanitizer {
        Some(sanitizer) => session.terminal.write(sanitizer.feed(bytes).as_bytes()),
        None => session.terminal.write(bytes),
    };
    let ask = Ask::get(&["vms", id, "console"]);
    if !follow {
        let answer = session.client.ask(&ask).await?;
        if session.format != Format::Table {
            return view::document(&answer.value, session.format, session.terminal);
        }
        let text = answer.value["console"].as_str().unwrap_or_default();
        return print(session, text.as_bytes());
    }
    let ask = ask.query("follow", "true").accept("text/plain, */*;q=0.5");
    let response = session.client.stream(&ask).await?;
    let kind = response.headers().get(header::CONTENT_TYPE);
    let events = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let mut parser = crate::cli::sse::Parser::default();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| CliError::Interrupted {
            target: session.client.target().to_string(),
            cause: crate::cli::client::chain(&error),
            changing: false,
        })?;
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        if events {
            for message in parser.feed(&bytes) {
                print(session, message.data.as_bytes())?;
            }
        } else {
            print(session, &bytes)?;
        }
    }
    Ok(())
}

async fn explain(id: &str, session: &mut Session<'_>) -> Result<(), CliError> {
    let answer = session
        .client
        .ask(&Ask::get(&["vms", id, "explain"]))
        .await?;
    if matches!(session.format, Format::Json | Format::Yaml) {
        return view::document(&answer.value, session.format, session.terminal);
    }
    if session.format == Format::Table {
        // The present state first, then how it came about.
        let vm = session.client.ask(&Ask::get(&["vms", id])).await?.value;
        let mut line = summary(id, &vm);
        if let Some(detail) = first(&vm, &["detail"]).and_then(Value::as_str) {
            line = format!("{line}: {}", one_line(detail));
        }
        session.terminal.line(&line)?;
        if let Some(story) = first(&answer.value, &["summary"]).and_then(Value::as_str) {
            session.terminal.line(&one_line(story))?;
        }
    }
    let events = match &answer.value {
        Value::Array(events) => events,
        other => first(other, &["events", "chain"])
            .and_then(Value::as_array)
            .ok_or_else(|| session.client.garbled("a list of events was expected"))?,
    };
    view::EVENT.list(events, session.format, session.terminal)
}
