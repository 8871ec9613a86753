//! Why a VM is where it is, in one sentence: its chain of events, told from the
//! present state back to what set it off. Pure; the chain is passed in.

use crate::{
    event::{Event, EventDraft, EventKind, Origin},
    vm::{Phase, Reason},
};

/// Links of a sentence. A longer story is in the chain itself.
const MAX_LINKS: usize = 10;

/// `stopped ← nothing is held any more ← QEMU was killed by signal 9`: each link
/// is what led to the one before it. The story ends where it was set off: by a
/// request, by a process that ended, by a guest. What a QEMU may take was set when
/// its VM was made, so that is what led to an end for memory. `chain` is newest
/// first; an empty one (the log has been cut) gives an empty sentence.
pub fn summary<'a>(chain: impl IntoIterator<Item = &'a Event>) -> String {
    let mut links: Vec<String> = Vec::new();
    let mut for_memory = false;
    for event in chain {
        let what = &event.what;
        if for_memory && what.kind != EventKind::VmCreated {
            continue;
        }
        if links.is_empty() {
            links.push(what.to.map_or("erased", Phase::as_str).to_owned());
        }
        let beginning = sets_off(event);
        let moved = what.from != what.to || what.kind == EventKind::VmCreated;
        if !moved && !beginning {
            continue;
        }
        // What is told again, with who did it or without, is one link.
        match links.last_mut() {
            Some(last) if *last == what.detail => *last = told(event),
            Some(last) if *last == told(event) => {}
            _ => links.push(told(event)),
        }
        for_memory = beginning && what.reason == Some(Reason::Oom);
        if beginning && !for_memory {
            return links.join(" ← ");
        }
        if links.len() > MAX_LINKS {
            break;
        }
    }
    if !links.is_empty() {
        // The story goes on further than it is told or known.
        links.push("…".to_owned());
    }
    links.join(" ← ")
}

fn told(event: &Event) -> String {
    let what = &event.what;
    let by = match &what.cause.origin {
        Origin::Request {
            request_id,
            principal,
            remote,
        } => format!(
            " (`{}`, asked by {principal}{} in request {request_id})",
            what.cause.input,
            remote.map_or_else(String::new, |remote| format!(" from {remote}"))
        ),
        Origin::RestartPolicy => " (by the restart policy)".to_owned(),
        Origin::Timer => format!(" (`{}` was due)", what.cause.input),
        Origin::Recovery => " (found out after a restart)".to_owned(),
        Origin::Observer => " (found by the observer)".to_owned(),
        Origin::Daemon if is_start_with_the_host(what) => " (with the host)".to_owned(),
        Origin::Qmp | Origin::Process | Origin::Effect | Origin::Daemon => String::new(),
    };
    format!("{}{by}", what.detail)
}

/// Whether the story begins with this event: what comes before it did not lead
/// to it.
fn sets_off(event: &Event) -> bool {
    let what = &event.what;
    if what.kind == EventKind::VmCreated {
        return true;
    }
    match what.cause.origin {
        Origin::Request { .. } => true,
        Origin::Process => what.cause.input == "exited" && by_itself(what),
        // It stands for that, though it was told to stand before.
        Origin::Qmp if what.kind == EventKind::DiskFailed => {
            what.to == Some(Phase::Paused) && by_itself(what)
        }
        // A guest that comes up was started by somebody; one that leaves, or
        // stands still, did so by itself.
        Origin::Qmp => what.from != what.to && what.to != Some(Phase::Running) && by_itself(what),
        Origin::Recovery => what.cause.input == "gone" && by_itself(what),
        Origin::Daemon => is_start_with_the_host(what),
        Origin::Effect | Origin::Timer | Origin::RestartPolicy | Origin::Observer => false,
    }
}

/// Nobody asked for it but the host, by its boot or by staying up after a drain.
fn is_start_with_the_host(what: &EventDraft) -> bool {
    what.cause.input == "start"
}

/// Whether nobody had asked for it: who did is found further back.
fn by_itself(what: &EventDraft) -> bool {
    what.reason != Some(Reason::User)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Cause, Subject},
        ids::{RequestId, Revision, VmId},
        time::UnixMs,
    };

    fn event(from: Phase, to: Phase, origin: Origin, input: &str, detail: &str) -> Event {
        Event {
            revision: Revision(1),
            what: EventDraft {
                from: Some(from),
                to: Some(to),
                ..EventDraft::new(
                    UnixMs(0),
                    Subject::Vm(VmId::parse("vm").expect("letters are a valid id")),
                    EventKind::VmPhaseChanged,
                    detail,
                    Cause::new(origin, input),
                )
            },
        }
    }

    fn request() -> Origin {
        Origin::Request {
            request_id: RequestId::parse("r-7").expect("letters are a valid id"),
            principal: "token:ci".to_owned(),
            remote: None,
        }
    }

    fn started() -> Vec<Event> {
        use Phase::{Claiming, Launching, Running, Stopped};
        vec![
            event(
                Launching,
                Running,
                Origin::Qmp,
                "qmp_ready",
                "the guest runs",
            ),
            event(
                Launching,
                Launching,
                Origin::Process,
                "spawned",
                "it has a pid",
            ),
            event(
                Claiming,
                Launching,
                Origin::Effect,
                "claimed",
                "QEMU is being started",
            ),
            event(
                Stopped,
                Claiming,
                request(),
                "start",
                "taking hold of its disks",
            ),
            event(Stopped, Stopped, request(), "stop", "of an earlier story"),
        ]
    }

    #[test]
    fn a_running_vm_is_explained_by_the_request_that_started_it() {
        let told = summary(&started());
        let links: Vec<_> = told.split(" ← ").collect();
        assert_eq!(links[0], "running");
        assert_eq!(links[1], "the guest runs");
        assert!(!told.contains("pid"), "no link without a change: {told}");
        let last = *links.last().expect("more than none");
        assert!(
            last.contains("request r-7") && last.contains("token:ci"),
            "{told}"
        );
    }

    #[test]
    fn a_vm_whose_qemu_was_killed_is_explained_by_that_and_by_nothing_before_it() {
        use Phase::{Releasing, Running, Stopped};
        let mut chain = vec![
            event(
                Releasing,
                Stopped,
                Origin::Effect,
                "released",
                "QEMU was killed by signal 9",
            ),
            event(
                Running,
                Releasing,
                Origin::Process,
                "exited",
                "QEMU was killed by signal 9",
            ),
        ];
        chain.extend(started());
        assert_eq!(summary(&chain), "stopped ← QEMU was killed by signal 9");
    }

    fn because(reason: Reason, mut event: Event) -> Event {
        event.what.reason = Some(reason);
        event
    }

    #[test]
    fn an_end_that_was_asked_for_is_explained_by_who_asked_for_it() {
        use Phase::{Killing, Releasing, Running, Stopped, Stopping};
        let user = |event| because(Reason::User, event);
        let stopping = "the guest was asked to power off";
        let off = "the guest has powered off";
        let mut chain = vec![
            user(event(
                Releasing,
                Stopped,
                Origin::Effect,
                "released",
                "stop was asked for",
            )),
            user(event(
                Killing,
                Releasing,
                Origin::Process,
                "exited",
                "stop was asked for",
            )),
            user(event(
                Stopping,
                Killing,
                Origin::Qmp,
                "run_state_changed",
                off,
            )),
            user(event(Running, Stopping, request(), "stop", stopping)),
        ];
        chain.extend(started());
        assert_eq!(
            summary(&chain),
            "stopped ← stop was asked for ← the guest has powered off \
             ← the guest was asked to power off (`stop`, asked by token:ci in request r-7)"
        );
    }

    #[test]
    fn a_start_with_the_host_is_explained_by_that_and_by_nothing_before_it() {
        use Phase::{Claiming, Stopped};
        let asked = "start was asked for";
        let with_host = event(Stopped, Claiming, Origin::Daemon, "start", asked);
        let chain = [with_host].into_iter().chain(started());
        let chain: Vec<_> = chain.collect();
        assert_eq!(
            summary(&chain),
            "claiming ← start was asked for (with the host)"
        );
    }

    #[test]
    fn a_guest_that_stood_before_its_disk_was_told_stands_for_that_disk() {
        use Phase::{Paused, Running};
        let io_error = |event| because(Reason::IoError, event);
        let full = "disk d cannot be written: no space is left on the storage";
        let mut failed = io_error(event(Paused, Paused, Origin::Qmp, "disk_failed", full));
        failed.what.kind = EventKind::DiskFailed;
        let some = "a disk failed or the storage is full";
        let stood = event(Running, Paused, Origin::Qmp, "run_state_changed", some);
        let mut chain = vec![failed, io_error(stood)];
        chain.extend(started());
        assert_eq!(summary(&chain), format!("paused ← {full}"));
    }

    #[test]
    fn what_is_told_twice_is_one_link_with_who_did_it() {
        use Phase::{Failed, Releasing, Unknown};
        let gone = "its QEMU ended while the daemon was away";
        let chain = [
            event(Releasing, Failed, Origin::Effect, "released", gone),
            event(Unknown, Releasing, Origin::Recovery, "gone", gone),
        ];
        assert_eq!(
            summary(&chain),
            format!("failed ← {gone} (found out after a restart)")
        );
    }

    #[test]
    fn an_end_for_memory_is_explained_by_who_gave_it_that_much() {
        use Phase::{Failed, Releasing, Running, Stopped};
        let killed = "the kernel killed QEMU for memory";
        let oom = |event| because(Reason::Oom, event);
        let mut chain = vec![
            oom(event(Releasing, Failed, Origin::Effect, "released", killed)),
            oom(event(Running, Releasing, Origin::Process, "exited", killed)),
        ];
        chain.extend(started());
        assert_eq!(summary(&chain), format!("failed ← {killed} ← …"));
        let made = "VM vm was made with 128 MiB of memory";
        let mut made = event(Stopped, Stopped, request(), "create", made);
        made.what.kind = EventKind::VmCreated;
        chain.push(made);
        assert_eq!(
            summary(&chain),
            format!(
                "failed ← {killed} ← VM vm was made with 128 MiB of memory \
                 (`create`, asked by token:ci in request r-7)"
            )
        );
    }

    #[test]
    fn a_restart_by_policy_is_explained_by_what_ended_the_life_before() {
        use Phase::{Backoff, Claiming, Releasing, Running};
        let chain = [
            event(
                Backoff,
                Claiming,
                Origin::RestartPolicy,
                "backoff_due",
                "starting again",
            ),
            event(
                Releasing,
                Backoff,
                Origin::Effect,
                "released",
                "waiting 1 s",
            ),
            event(
                Running,
                Releasing,
                Origin::Process,
                "exited",
                "QEMU crashed",
            ),
        ];
        let told = summary(&chain);
        let expected =
            "claiming ← starting again (by the restart policy) ← waiting 1 s ← QEMU crashed";
        assert_eq!(told, expected);
    }

    #[test]
    fn a_chain_that_was_cut_or_is_long_says_so_and_an_empty_one_says_nothing() {
        use Phase::{Launching, Running};
        let running = event(
            Launching,
            Running,
            Origin::Qmp,
            "qmp_ready",
            "the guest runs",
        );
        assert_eq!(summary([&running]), "running ← the guest runs ← …");
        assert_eq!(summary([]), "");
        let long: Vec<_> = (0..100)
            .map(|n| {
                let detail = format!("link {n}");
                event(Launching, Running, Origin::Timer, "due", &detail)
            })
            .collect();
        let told = summary(&long);
        assert!(told.ends_with(" ← …") && told.matches(" ← ").count() <= MAX_LINKS + 1);
    }
}
