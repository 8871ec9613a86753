//! Images whose upload meets a store that dies.

use super::{
    daemon::{Daemon, origin},
    operations::{host, image},
};
use crate::{
    disks::{ImageError, StartedUpload},
    fakes::NextCommit,
};
use vman_model::{ImageKind, ImageRecord};

async fn begin(daemon: &Daemon) -> Result<StartedUpload, ImageError> {
    let disks = &daemon.on().disks;
    disks.begin_upload(image("i"), ImageKind::Disk).await
}

async fn finish(daemon: &Daemon, mut upload: StartedUpload) -> Result<ImageRecord, ImageError> {
    upload.write(vec![0; 4096].into()).await?;
    upload.finish(None, origin(), daemon.on().clock.now()).await
}

#[tokio::test]
async fn an_image_of_an_unknown_outcome_keeps_its_file_when_it_is_uploaded_again() {
    let daemon = Daemon::start_in_step(host()).await;
    let first = begin(&daemon).await.unwrap();
    daemon.host.storage().then(NextCommit::UnknownButWritten);
    let outcome = finish(&daemon, first).await;
    assert!(matches!(outcome, Err(ImageError::Store(error)) if !error.is_certain()));
    // The client comes again before the store has read what is true.
    let second = begin(&daemon).await.unwrap();
    let known = || {
        daemon
            .on()
            .store
            .inventory()
            .images
            .contains_key(&image("i"))
    };
    daemon.until("the store knows it", known).await;
    let outcome = finish(&daemon, second).await;
    assert_eq!(outcome, Err(ImageError::Exists(image("i"))));
    assert_eq!(daemon.host.image_files(), [image("i")]);
    daemon.oracle().await;
}
