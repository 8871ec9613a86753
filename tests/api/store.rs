//! The store's own work over the API.

use crate::support::Api;
use serde_json::{Value, json};
use vman_actors::ports::{CommitError, Storage, Table};

async fn backup(api: &Api) -> Value {
    api.post("/store/backup", &json!({})).await.expect(201)
}

#[tokio::test]
async fn a_backup_tells_its_file_its_revision_and_which_ones_went_for_it() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("before").await;
    let made = backup(&api).await;
    assert_eq!(made["revision"], api.revision());
    assert_eq!(made["removed"], json!([]));
    api.small_vm("after").await;
    let file = made["file"].as_str().unwrap().trim_start_matches("memory");
    let restored = api.host.storage().restored(file).unwrap();
    restored.open().unwrap();
    assert_eq!(restored.load(Table::Vms).unwrap().len(), 1);
    for _ in 0..9 {
        api.host.clock().advance_ms(1);
        assert_eq!(backup(&api).await["removed"], json!([]));
    }
    api.host.clock().advance_ms(1);
    let eleventh = backup(&api).await;
    assert_eq!(eleventh["removed"], json!([made["file"]]));
}

#[tokio::test]
async fn a_backup_that_cannot_be_made_says_why_and_the_next_one_is() {
    let api = Api::start().await;
    for (error, status, code, told) in [
        (CommitError::NoSpace, 507, "storage_full", "no room"),
        (CommitError::ReadOnly, 507, "storage_read_only", "read-only"),
        (
            CommitError::Refused("the disk lies".to_owned()),
            503,
            "host_failed",
            "the disk lies",
        ),
    ] {
        api.host.storage().fail_backup(error);
        let refused = api.post("/store/backup", &json!({})).await;
        let problem = refused.problem(status, code);
        assert!(
            problem["detail"].as_str().unwrap().contains(told),
            "{problem}"
        );
    }
    backup(&api).await;
    api.post("/store/backup", &json!({"path": "/etc/passwd"}))
        .await
        .problem(422, "unknown_field");
}
