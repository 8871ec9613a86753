//! The root's own end, and what its children do once or again.

use super::{Ports, Tree, TreeSettings};
use crate::{disks::ImageError, fakes::FakeHost, observer::DriftSettings};
use std::time::Duration;
use vman_model::{ImageKind, ImageName, Origin, UnixMs};

async fn start(ports: Ports) -> Tree {
    let settings = TreeSettings {
        max_vms: 10,
        max_launches: 2,
        allowance: vman_model::Allowance::default(),
        observer_interval: Duration::from_millis(20),
        drift: DriftSettings::default(),
    };
    Tree::start(ports, &settings).await.unwrap()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_root_that_dies_says_so_and_one_that_is_stopped_does_not() {
    let tree = start(FakeHost::new().ports()).await;
    let gave_up = tree.gave_up.clone();
    tree.root.kill();
    until("it is said", || gave_up.borrow().is_some()).await;
    tree.stop().await;
    let tree = start(FakeHost::new().ports()).await;
    let gave_up = tree.gave_up.clone();
    tree.stop().await;
    assert_eq!(*gave_up.borrow(), None);
}

#[tokio::test]
async fn a_tree_that_cannot_start_leaves_the_storage_to_the_next_one() {
    let host = FakeHost::new();
    host.storage().fail_open(crate::ports::LoadError::Io {
        path: "store".to_owned(),
        error: "not now".to_owned(),
    });
    let settings = TreeSettings {
        max_vms: 1,
        max_launches: 1,
        allowance: vman_model::Allowance::default(),
        observer_interval: Duration::from_secs(5),
        drift: DriftSettings::default(),
    };
    let refused = Tree::start(host.ports(), &settings).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("not now")));
    start(host.ports()).await.stop().await;
}

#[tokio::test]
async fn uploads_are_swept_once_a_daemon_and_not_when_the_store_comes_back() {
    let host = FakeHost::new();
    let tree = start(host.ports()).await;
    let store = || tree.handles.store.clone();
    let checks = || tree.handles.observer.report().checks;
    until("the observer has looked", || checks() >= 5).await;
    host.panic_in_commits(1);
    let _ = store().commit(vman_model::Change::default()).await;
    // The Observer comes last: a new one counts anew.
    until("everything has come back", || checks() < 5).await;
    assert_eq!(host.storage().opens(), 2);
    let disks = tree.handles.disks.clone();
    let name = ImageName::parse("kernel").unwrap();
    let begun = disks.begin_upload(name.clone(), ImageKind::Kernel).await;
    let mut upload = begun.unwrap();
    assert_eq!(host.image_sweeps(), 1);
    // A deletion must not take the file of the upload under way.
    let deleted = disks
        .delete_image(name.clone(), Origin::Daemon, UnixMs(1))
        .await;
    assert_eq!(deleted, Err(ImageError::BeingUploaded(name.clone())));
    upload
        .write(bytes::Bytes::from_static(b"kernel"))
        .await
        .unwrap();
    let sum = Some("0".repeat(64));
    let refused = upload.finish(sum, Origin::Daemon, UnixMs(1)).await;
    assert!(matches!(refused, Err(ImageError::File(_))), "{refused:?}");
    let mut upload = disks
        .begin_upload(name.clone(), ImageKind::Kernel)
        .await
        .unwrap();
    upload
        .write(bytes::Bytes::from_static(b"kernel"))
        .await
        .unwrap();
    let record = upload
        .finish(None, Origin::Daemon, UnixMs(1))
        .await
        .unwrap();
    assert_eq!(record.file_size, 6);
    disks
        .delete_image(name, Origin::Daemon, UnixMs(1))
        .await
        .unwrap();
    tree.stop().await;
}

#[tokio::test]
async fn an_observers_check_that_panics_is_reported_and_the_next_one_comes() {
    let host = FakeHost::new();
    host.panic_in_checks(1);
    let tree = start(host.ports()).await;
    let observer = tree.handles.observer.clone();
    let failed = || {
        let report = observer.report();
        report
            .last_issues
            .iter()
            .any(|issue| issue.issue_type == "check_failed")
    };
    until("it is reported", failed).await;
    until("the next one is well", || {
        observer.report().last_issues.is_empty()
    })
    .await;
    assert!(observer.check().await.is_some());
    tree.stop().await;
}
