//! The classes of events in the log: the word in `VMAN_EVENT`, the MESSAGE_ID
//! that journald keeps for it, and what `journalctl -x` says of it.
//!
//! Must stay true: an id once released stays with its class for ever; people's
//! alarms ask for it. A new class gets a new id (`systemd-id128 new`), a row in
//! `docs/operations.md` and, by `UPDATE_CATALOG=1 cargo test`, its place in
//! `contrib/vman.catalog`; tests compare.

use std::fmt::Write as _;

/// A class of events.
#[derive(Clone, Copy, Debug)]
pub struct EventClass {
    /// The word in `VMAN_EVENT`.
    pub event: &'static str,
    /// The MESSAGE_ID.
    pub id: &'static str,
    /// What happened, in one line.
    pub subject: &'static str,
    /// What it means and what to do; `@FIELD@` is replaced by the record's.
    pub text: &'static str,
}

macro_rules! classes {
    ($($event:literal $id:literal $subject:literal $text:literal;)*) => {
        /// Every class.
        pub const EVENT_CLASSES: &[EventClass] = &[$(EventClass {
            event: $event,
            id: $id,
            subject: $subject,
            text: $text,
        },)*];
    };
}

classes! {
    "daemon.starting" "bbcff4e17c28469d9a96419e392bb256"
        "VMAN is starting"
        "The daemon was started on the storage path @VMAN_STORAGE@. Recovery follows: guests that kept running are found again, and MESSAGE_ID=f9ea6206c26e4f5fa9b41005143f3a2b tells when it is done.";
    "daemon.ready" "f9ea6206c26e4f5fa9b41005143f3a2b"
        "VMAN is ready"
        "Recovery is done: it is known of every VM what became of it, and what was wanted is under way.";
    "daemon.stopped" "1399f287c6d24532a8391d76e3080ef3"
        "VMAN has stopped"
        "The daemon ended in order. Guests keep running; the next start finds them again.";
    "daemon.gave_up" "95ab84c7626345a88430eb27c77e9945"
        "VMAN gives up and ends"
        "Parts of the daemon died more often than its budget allows: @VMAN_ERROR@. The process ends so that the service manager starts it anew. Guests keep running. If it comes again, look for a full or broken disk under the storage path, and keep this log for a report.";
    "actor.died" "9967fbb85bcf4ec9aea620f24fd49b10"
        "A part of VMAN died and is started again"
        "The actor @VMAN_COMPONENT@ died: @VMAN_ERROR@. Its successor reads what is true from the store and the host. No guest is touched. This is a bug or a broken disk: keep the log around this record for a report.";
    "vm.actor_quarantined" "7c3830f9ff804606ba9ec853aba6d7d1"
        "A VM's actor failed too often and rests"
        "The actor of VM @VMAN_VM_ID@ failed again and again: @VMAN_ERROR@. Its guest runs on; commands to it are refused for a minute, then it is tried again. Other VMs do not notice.";
    "vm.created" "d3d0956fce434e1fa2b3fdeae039f5fe"
        "A VM was made"
        "VM @VMAN_VM_ID@ was made by @VMAN_PRINCIPAL@.";
    "vm.phase_changed" "774e7fe8047a4e24a4551c8fd4a8c3f0"
        "A VM went from one phase to another"
        "VM @VMAN_VM_ID@ went from @VMAN_FROM@ to @VMAN_PHASE@; reason: @VMAN_REASON@; cause: @VMAN_CAUSE@. @VMAN_DETAIL@\n\n'vman vm explain @VMAN_VM_ID@' shows what led to it.";
    "vm.updated" "dc3bc6e9c8754730a2cc3cc06f166d4a"
        "Something about a VM changed within its phase"
        "VM @VMAN_VM_ID@: @VMAN_DETAIL@";
    "vm.erased" "51b44d2792d04a9abd5b974fc073484f"
        "A VM was erased"
        "VM @VMAN_VM_ID@ and what belonged to it were erased.";
    "template.created" "47e9e49fa3d44f28abdbe77e6a5cf46b"
        "A template was made"
        "Template @VMAN_NAME@ was made by @VMAN_PRINCIPAL@.";
    "template.deleted" "d120eb1a4296451e809c826f07dae23d"
        "A template was deleted"
        "Template @VMAN_NAME@ was deleted by @VMAN_PRINCIPAL@.";
    "image.created" "d4a3b6570f18430a9023d792374c700f"
        "An image became usable"
        "Image @VMAN_NAME@ was uploaded, inspected and can be used.";
    "image.deleted" "6d0036309b1e425994d9ce0fbf97b190"
        "An image was deleted"
        "Image @VMAN_NAME@ was deleted.";
    "disk.created" "7963a76739404af5a018aea34d987db6"
        "A disk was made"
        "Disk @VMAN_DISK_ID@ was made by @VMAN_PRINCIPAL@.";
    "disk.deleted" "4f7a00b0f8d046d1ae8b06d2b351d332"
        "A disk was deleted"
        "Disk @VMAN_DISK_ID@ and its file were deleted by @VMAN_PRINCIPAL@.";
    "disk.changed" "f1b2bcb071aa41f097f25b4bb32ad531"
        "Something about a disk changed"
        "Disk @VMAN_DISK_ID@: @VMAN_DETAIL@";
    "disk.attached" "50a36445aba04010a4bc05ae74dc2d99"
        "A disk was attached to a VM"
        "Disk @VMAN_DISK_ID@: @VMAN_DETAIL@";
    "disk.detached" "ba9a1e131db24c0cbd3301180150f33e"
        "A disk was detached from a VM"
        "Disk @VMAN_DISK_ID@: @VMAN_DETAIL@";
    "disk.failed" "6e1fd3a1a30442c2a5ff385d47fbb3a3"
        "Something a disk was asked for failed"
        "Disk @VMAN_DISK_ID@: @VMAN_DETAIL@\n\nThe operation that asked tells what can be done; look for free space under the storage path as well.";
    "forward.created" "5208d94e2bac4ce3bf2f335ad4000303"
        "A port forward was made"
        "@VMAN_DETAIL@";
    "forward.deleted" "e6a34bc8055c400f9b0479063b24b8bd"
        "A port forward was deleted"
        "@VMAN_DETAIL@";
    "lease.given" "67e042c0efc447da8a0b6cdfd862ef0f"
        "A VM got an address"
        "@VMAN_DETAIL@";
    "nic.attached" "e82d4ccf26584f4498d3515aa83125a0"
        "A VM was given a network card"
        "VM @VMAN_VM_ID@: @VMAN_DETAIL@";
    "nic.detached" "1a2074576b5342a09f312c06a6c3a5a3"
        "A network card was taken from a VM"
        "VM @VMAN_VM_ID@: @VMAN_DETAIL@";
    "nic.changed" "f3ef470671f64f969bce5a27ea9eb84f"
        "Something about a network card changed"
        "VM @VMAN_VM_ID@: @VMAN_DETAIL@";
    "network.healed" "6e063f8dc1fc465b83da523330ddd3f8"
        "Something of the network was put right"
        "@VMAN_DETAIL@\n\nIf it comes again, another program on this host changes what is VMAN's.";
    "network.failed" "9b25acc1c6e64922810cf971384c7268"
        "Something of the network cannot be had"
        "@VMAN_DETAIL@\n\n'vman network info' and the network's check in /health tell what is missing.";
    "drift.found" "b3fee192e09043e0975e4ce8ab1e7dc0"
        "The host differs from the records"
        "@VMAN_DETAIL@\n\nThe observer's status ('vman observer status') tells what was done about it.";
    "drift.gone" "eb591154aec94b7ba09e71be76cd9c21"
        "A difference between host and records is gone"
        "@VMAN_DETAIL@";
    "token.created" "5d77c52196984f72a2f5dd0fb5a2c6cc"
        "A token was made"
        "@VMAN_DETAIL@";
    "token.revoked" "f235f2ea7e164a6481f7c5f3c7921617"
        "A token was revoked"
        "@VMAN_DETAIL@";
    "record.quarantined" "878d8d14d64f4ce098408be212c298ad"
        "A record could not be read and was set aside"
        "A row of the store could not be read. It was set aside, the others are not concerned: @VMAN_DETAIL@\n\nLook for a failing disk under the storage path; the observer's status names the row until it is dealt with.";
    "host.booted" "9e40b38cb8c34782a331d3d4d21da007"
        "The host was booted and VMs are started with it"
        "@VMAN_DETAIL@\n\n'vman host info' tells which are still to come.";
    "host.draining" "d39878e69cf24b3eabd0632ce582861a"
        "All VMs are stopped because the host is to go down"
        "@VMAN_DETAIL@ It was asked for by @VMAN_PRINCIPAL@. Until the next boot, or 'vman host resume', none is started.";
    "host.drained" "b3065354454a4a51aa5c4744fa755590"
        "The host is drained"
        "@VMAN_DETAIL@";
    "host.resumed" "d01e1e08d8fb4770a599a3e049d9f58f"
        "A drained host goes on"
        "@VMAN_DETAIL@";
    "vm.start_late" "81c234cd5b654741a42c5af2b2f30ab7"
        "A VM is started although one it waits for is not up"
        "@VMAN_DETAIL@\n\n'vman vm explain' of the other one tells why it is not up.";
    "store.rebuilt" "4f0d1c7e9a5b4b6d8e2f3a1c5d7b9e80"
        "The store was made again of manifests"
        "@VMAN_DETAIL@\n\nThe log of events and the operations of the lost store are gone; 'vman observer check' tells what differs from the host.";
    "store.migrated" "0d0c64c3a5a14c2bb5c1dd8a2a3f9e61"
        "The store was brought up to this VMAN's schema"
        "@VMAN_ROWS@ records that an older VMAN wrote are now as this one writes them. What was there before is in @VMAN_BACKUP@; remove it when you will not go back.";
    "config.reloaded" "7a67a76b6f2a40a491b2cc0e311a99f4"
        "The configuration was read again"
        "Applied at once: @VMAN_APPLIED@. Waiting for a restart, which guests do not notice: @VMAN_WAITING@.";
    "config.refused" "852a765be21c48588a293650043459d6"
        "The new configuration is wrong"
        "Nothing of it was applied, VMAN goes on with the old one: @VMAN_ERROR@\n\n'vman config check' tells the same before a reload.";
    "log.dropped" "a5806baa7f5e4c5f8aaec555d9acc59a"
        "Log records were dropped"
        "@VMAN_DROPPED@ records for @VMAN_DESTINATION@ were dropped because it was too slow; VMAN waits for no log. Nothing else was lost: 'vman events' has every recorded change.";
    "request.answered" "4d85eb7186914cc9a6291dbacdf15e03"
        "A request was answered"
        "@VMAN_METHOD@ @VMAN_ROUTE@ by @VMAN_PRINCIPAL@ was answered @VMAN_STATUS@ after @VMAN_DURATION_US@ microseconds.";
}

/// The MESSAGE_ID of a class.
pub(super) fn message_id(event: &str) -> Option<&'static str> {
    let class = EVENT_CLASSES.iter().find(|class| class.event == event);
    class.map(|class| class.id)
}

/// The message catalogue, as `journalctl --update-catalog` reads it
/// (systemd.io/CATALOG).
pub fn catalogue() -> String {
    let mut out =
        "# What journalctl -x says about VMAN's records. Made from src/telemetry/classes.rs.\n\n"
            .to_owned();
    for class in EVENT_CLASSES {
        let EventClass {
            id, subject, text, ..
        } = class;
        let repository = env!("CARGO_PKG_REPOSITORY");
        let _ = write!(
            out,
            "-- {id}\nSubject: {subject}\nDefined-By: VMAN\nSupport: {repository}\nDocumentation: man:vman(1)\n\n{text}\n\n"
        );
    }
    out
}
