use super::*;
use crate::host::dirs::StorageLock;
use bytes::Bytes;
use std::{fs, path::Path};
use vman_model::{ImageFormat, ImageKind};

fn sha256sum(path: &Path) -> String {
    let output = std::process::Command::new("sha256sum")
        .arg(path)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

fn storage() -> (tempfile::TempDir, StorageLock) {
    let dir = tempfile::tempdir().unwrap();
    let lock = StorageLock::acquire(dir.path()).unwrap();
    (dir, lock)
}

fn name(text: &str) -> ImageName {
    ImageName::parse(text).unwrap()
}

fn files(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

async fn send(images: &HostImages, parts: &[&[u8]]) -> Result<Box<dyn Upload>, FileError> {
    let mut upload = images.begin(&name("debian")).await?;
    for part in parts {
        upload.write(Bytes::copy_from_slice(part)).await?;
    }
    Ok(upload)
}

#[tokio::test]
async fn an_image_is_streamed_in_named_and_removed() {
    let (_dir, lock) = storage();
    let images = HostImages::new(lock.dirs(), DEFAULT_IMAGE_LIMIT).unwrap();
    let upload = send(&images, &[&[7; 1000], &[7; 1048]]).await.unwrap();
    assert_eq!(files(&lock.dirs().tmp()).len(), 1);
    let staged = upload.finish(ImageKind::Disk, None).await.unwrap();
    assert_eq!(
        (staged.format, staged.file_size, staged.virtual_size),
        (ImageFormat::Raw, 2048, 2048)
    );
    let sum = staged.sha256.clone();
    images.publish(&name("debian"), staged).await.unwrap();
    let path = images.path(&name("debian"));
    assert_eq!(fs::read(&path).unwrap(), [7; 2048]);
    assert_eq!(sum, sha256sum(&path));
    assert_eq!(files(&lock.dirs().tmp()).len(), 0);
    images.remove(&name("debian")).await.unwrap();
    images.remove(&name("debian")).await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_checksum_is_kept_in_either_case_and_another_is_refused() {
    let (_dir, lock) = storage();
    let images = HostImages::new(lock.dirs(), DEFAULT_IMAGE_LIMIT).unwrap();
    let upload = send(&images, &[&[7; 512]]).await.unwrap();
    let wrong = "0".repeat(64);
    let error = upload
        .finish(ImageKind::Disk, Some(wrong.clone()))
        .await
        .unwrap_err();
    let FileError::Checksum { expected, actual } = error else {
        panic!("{error}")
    };
    assert_eq!(expected, wrong);
    assert_eq!(files(&lock.dirs().tmp()).len(), 0);
    let upload = send(&images, &[&[7; 512]]).await.unwrap();
    let right = actual.to_uppercase();
    upload.finish(ImageKind::Disk, Some(right)).await.unwrap();
}

#[tokio::test]
async fn nothing_is_left_of_an_upload_that_ends_early_in_any_way() {
    let (_dir, lock) = storage();
    let images = HostImages::new(lock.dirs(), 4096).unwrap();
    let left = || files(&lock.dirs().tmp());
    drop(send(&images, &[&[7; 512]]).await.unwrap());
    assert_eq!(left(), [""; 0], "dropped");
    let error = send(&images, &[&[7; 4096], &[7; 1]]).await.err().unwrap();
    assert_eq!(error, FileError::TooLarge { limit: 4096 });
    assert_eq!(left(), [""; 0], "too large");
    let upload = send(&images, &[b"QFI\xfb"]).await.unwrap();
    let error = upload.finish(ImageKind::Disk, None).await.unwrap_err();
    assert!(matches!(error, FileError::Refused(_)), "{error}");
    assert_eq!(left(), [""; 0], "refused");
    let upload = send(&images, &[&[7; 512]]).await.unwrap();
    drop(upload.finish(ImageKind::Disk, None).await.unwrap());
    assert_eq!(left(), [""; 0], "staged but not published");
}

#[tokio::test]
async fn after_a_failed_write_the_rest_is_refused() {
    let (_dir, lock) = storage();
    let images = HostImages::new(lock.dirs(), 600).unwrap();
    let mut upload = send(&images, &[&[7; 512]]).await.unwrap();
    upload
        .write(Bytes::from_static(&[7; 512]))
        .await
        .unwrap_err();
    upload.write(Bytes::from_static(&[7; 1])).await.unwrap_err();
    upload.finish(ImageKind::Disk, None).await.unwrap_err();
}

#[tokio::test]
async fn sweeping_keeps_what_is_known_and_what_is_under_way() {
    let (_dir, lock) = storage();
    let images = HostImages::new(lock.dirs(), DEFAULT_IMAGE_LIMIT).unwrap();
    fs::write(images.path(&name("known")), "k").unwrap();
    fs::write(images.path(&name("unknown")), "u").unwrap();
    fs::write(lock.dirs().tmp().join("image-0123-0.part"), "old").unwrap();
    fs::write(lock.dirs().tmp().join("disk-0123-0.part"), "another's").unwrap();
    let upload = send(&images, &[&[7; 512]]).await.unwrap();
    images.sweep(vec![name("known")]).await.unwrap();
    assert_eq!(files(&lock.dirs().images()), ["known"]);
    assert_eq!(files(&lock.dirs().tmp()).len(), 2);
    upload.finish(ImageKind::Disk, None).await.unwrap();
}

#[tokio::test]
async fn an_image_takes_the_place_of_a_symbolic_link_and_not_of_its_target() {
    let (dir, lock) = storage();
    let images = HostImages::new(lock.dirs(), DEFAULT_IMAGE_LIMIT).unwrap();
    let precious = dir.path().join("precious");
    fs::write(&precious, "p").unwrap();
    std::os::unix::fs::symlink(&precious, images.path(&name("debian"))).unwrap();
    let upload = send(&images, &[&[7; 512]]).await.unwrap();
    let staged = upload.finish(ImageKind::Disk, None).await.unwrap();
    images.publish(&name("debian"), staged).await.unwrap();
    assert_eq!(fs::read(&precious).unwrap(), b"p");
    assert_eq!(fs::read(images.path(&name("debian"))).unwrap(), [7; 512]);
}

#[tokio::test]
async fn a_full_storage_is_told_as_such() {
    if !Path::new("/dev/full").exists() {
        crate::host::testing::skip("there is no /dev/full here");
        return;
    }
    let (_dir, lock) = storage();
    let tmp = Folder::open(&lock.dirs().tmp()).unwrap();
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let unfinished = Unfinished::new(&tmp, "image-x".to_owned());
    let mut upload = HostUpload::new("receiving image x".to_owned(), full, unfinished, 1 << 20);
    let error = upload
        .write(Bytes::from_static(&[7; 4096]))
        .await
        .unwrap_err();
    assert!(matches!(error, FileError::NoSpace { .. }), "{error}");
}
