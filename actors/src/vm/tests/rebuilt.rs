//! A daemon whose store was lost and made again of manifests and living QEMUs.

use super::daemon::{Daemon, STOP, vm};
use crate::manifests::rebuild::rebuild_store;
use vman_model::{
    drift::SeenProcess,
    vm::{Phase, Reason},
};

fn living(daemon: &Daemon) -> Vec<SeenProcess> {
    let live = daemon.host.live();
    live.into_iter()
        .map(|qemu| SeenProcess {
            uuid: qemu.uuid,
            incarnation: qemu.incarnation,
            identity: qemu.identity,
        })
        .collect()
}

#[tokio::test]
async fn a_store_made_again_has_every_vm_and_disk_and_finds_the_running_ones_again() {
    let mut daemon = Daemon::start().await;
    let running = daemon.running("running").await;
    daemon.running("stopped").await;
    daemon.done(&vm("stopped"), STOP).await;
    daemon.create("never").await;
    let before = daemon.on().store.inventory();
    let written = || daemon.on().manifests.status().kept >= Some(before.revision);
    daemon.until("the manifests are written", written).await;
    let pid = daemon.host.qemu(&running).unwrap().identity;
    let launched = daemon.host.launched();
    daemon.host.kill_daemon();
    daemon.end().await;
    daemon.host.storage().lose();
    let files = daemon.host.manifests().files().into_iter().collect();
    let processes = living(&daemon);
    let report = rebuild_store(
        files,
        &processes,
        daemon.host.storage(),
        daemon.host.clock(),
    )
    .unwrap();
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    assert_eq!(report.living, 1);
    daemon.boot().await;
    daemon.until_phase(&running, Phase::Running).await;
    let after = daemon.on().store.inventory();
    assert_eq!(after.counts()[..4], before.counts()[..4]);
    assert!(after.revision > before.revision);
    assert_eq!(daemon.record(&running).unwrap().process, Some(pid));
    assert_eq!(
        daemon.host.launched(),
        launched,
        "nothing was started twice"
    );
    let stopped = daemon.record(&vm("stopped")).unwrap();
    assert_eq!(
        (stopped.phase, stopped.reason),
        (Phase::Stopped, Reason::User)
    );
    daemon.oracle().await;
    daemon.done(&running, STOP).await;
    daemon.oracle().await;
}
