//! What becomes of work on disks when it is not known: QEMU answers again, is found again, or ends.

use super::*;

#[test]
fn what_is_under_way_is_found_done_or_done_again_when_qemu_was_asked_what_it_has() {
    let plugging = ask(&vm_in(Phase::Running), attach(1)).record;
    let look = |record: &VmRecord, seen: &[SeenDisk]| tell(record, Fact::DisksSeen(seen.to_vec()));
    let found = look(&plugging, &[seen(1, true, true)]);
    assert_eq!(status(&found), OperationStatus::Succeeded);
    assert_eq!(states(&found.record), [&AttachState::Attached]);
    for half in [&[][..], &[seen(1, false, true)]] {
        let again = look(&plugging, half);
        assert_eq!(works(&again), [plug(1, FIRST_DATA_SLOT)], "{half:?}");
        assert_eq!(again.record, plugging);
    }
    let running = with_disks(Phase::Running, &[1]);
    let unplugging = ask(&running, Command::DetachDisk(disk(1))).record;
    let gone = look(&unplugging, &[]);
    assert_eq!(status(&gone), OperationStatus::Succeeded);
    assert_eq!(gone.disks, [DiskChange::Detach(disk(1))]);
    for (device, node) in [(true, true), (false, true), (true, false)] {
        let again = look(&unplugging, &[seen(1, device, node)]);
        assert_eq!(works(&again), [unplug(1)], "{device} {node}");
        assert_eq!(again.record, unplugging);
    }
    let growing = ask(&running, grow(1)).record;
    let again = look(&growing, &[seen(1, true, true)]);
    assert!(matches!(works(&again)[..], [Effect::Resize { .. }]));
}

#[test]
fn what_qemu_has_and_the_record_has_not_is_taken_out_and_the_other_way_round_is_told() {
    let mut running = with_disks(Phase::Running, &[1]);
    running.root_disk = Some(disk(9));
    let all = [seen(1, true, true), seen(9, true, true)];
    let same = tell(&running, Fact::DisksSeen(all.to_vec()));
    assert_eq!((same.record, same.effects), (running.clone(), Vec::new()));
    let taken_out = |there: SeenDisk| {
        let mut found = all.to_vec();
        found.push(there);
        works(&tell(&running, Fact::DisksSeen(found)))
    };
    let out = Effect::Unplug {
        operation: None,
        disk: disk(5),
    };
    assert_eq!(taken_out(seen(5, true, false)), std::slice::from_ref(&out));
    assert_eq!(taken_out(seen(5, false, true)), [out]);
    assert!(taken_out(seen(5, false, false)).is_empty());
    let lost = tell(&running, Fact::DisksSeen(vec![seen(9, true, true)]));
    assert_eq!(states(&lost.record), [&AttachState::LetGo]);
    // A VM that is not up any more is asked nothing.
    let mut stopping = running.clone();
    stopping.phase = Phase::Stopping;
    let late = tell(&stopping, Fact::DisksSeen(Vec::new()));
    assert_eq!((late.record, late.effects), (stopping, Vec::new()));
}

#[test]
fn a_qemu_that_is_found_again_is_asked_what_it_has_also_where_nothing_is_recorded() {
    let found = |record: &VmRecord| {
        let lost = step(record, Input::Recover, &moment(10, 1)).record;
        works(&tell(&lost, Fact::Ready(RunState::Running)))
    };
    let with_disk = with_disks(Phase::Running, &[1]);
    assert_eq!(found(&with_disk), [Effect::LookAtDisks]);
    let mut root = vm_in(Phase::Running);
    root.root_disk = Some(disk(9));
    let growing = ask(&root, grow(9)).record;
    assert_eq!(found(&growing), [Effect::LookAtDisks]);
    // It may have opened the file of a disk for an attachment that was never recorded.
    assert_eq!(found(&vm_in(Phase::Running)), [Effect::LookAtDisks]);
}

#[test]
fn a_qemu_that_answers_again_is_asked_what_became_of_work_whose_answer_was_lost() {
    let running = with_disks(Phase::Running, &[1]);
    let growing = ask(&running, grow(1)).record;
    let answers = |record: &VmRecord| works(&tell(record, Fact::Ready(RunState::Running)));
    assert_eq!(answers(&growing), [Effect::LookAtDisks]);
    assert!(answers(&running).is_empty(), "nothing is open");
}

#[test]
fn the_end_of_a_life_brings_work_on_disks_to_its_end() {
    let running = with_disks(Phase::Running, &[1, 2, 3]);
    let mut record = ask(&running, attach(4)).record;
    record = ask(&record, Command::DetachDisk(disk(2))).record;
    record = ask(&record, grow(1)).record;
    record = tell(&record, Fact::DiskLetGo(disk(3))).record;
    let exit = Fact::Exited {
        status: ExitStatus::Code(0),
        stderr: String::new(),
    };
    let exited = tell(&record, exit).record;
    let over = tell(&exited, Fact::Released { erased: false });
    let about_disks = over.operations.iter().filter(|row| row.disk_id.is_some());
    let ended: Vec<_> = about_disks.map(|row| row.status).collect();
    assert_eq!(ended, [OperationStatus::Succeeded; 3]);
    assert_eq!(over.disks, [DiskChange::Detach(disk(2))]);
    assert_eq!(states(&over.record), [&AttachState::Attached; 3]);
    let first = FIRST_DATA_SLOT;
    let left = [
        place(1, first, 'a'),
        place(3, first + 2, 'b'),
        place(4, first + 3, 'c'),
    ];
    assert_eq!(places(&over.record), left);
    assert!(!over.record.operations.iter().any(|op| op.disk.is_some()));
}

#[test]
fn a_paused_vm_that_waits_for_space_looks_for_it_when_its_qemu_answers_again() {
    let mut paused = with_disks(Phase::Paused, &[1]);
    paused.reason = Reason::IoError;
    let answers = tell(&paused, Fact::Ready(RunState::IoError));
    let armed = answers
        .effects
        .iter()
        .any(|effect| matches!(effect, Effect::Arm(..)));
    assert!(armed, "{:?}", answers.effects);
    paused.reason = Reason::User;
    let answers = tell(&paused, Fact::Ready(RunState::Paused));
    assert!(answers.effects.is_empty(), "{:?}", answers.effects);
    let stopped = ask(&paused, STOP);
    assert!(works(&stopped).is_empty());
}

#[test]
fn a_reset_of_the_machine_brings_back_what_the_guest_had_let_go_of_and_leaves_work_open() {
    let running = with_disks(Phase::Running, &[1, 2]);
    let let_go = tell(&running, Fact::DiskLetGo(disk(1))).record;
    let plugging = ask(&let_go, attach(3)).record;
    let reset = tell(&plugging, Fact::GuestReset).record;
    let open = AttachState::Plugging(operation(7));
    let attached = &AttachState::Attached;
    assert_eq!(states(&reset), [attached, attached, &open]);
    let first = FIRST_DATA_SLOT;
    let named = [
        place(1, first, 'a'),
        place(2, first + 1, 'b'),
        place(3, first + 2, 'c'),
    ];
    assert_eq!(places(&reset), named);
}
