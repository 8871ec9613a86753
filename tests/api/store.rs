//! The store's own work over the API.

use crate::support::Api;
use serde_json::{Value, json};
use vman_actors::ports::{CommitError, Row, Storage, Table};

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

#[tokio::test]
async fn a_check_finds_nothing_while_much_is_under_way_and_a_spoilt_row_at_once() {
    let api = Api::start().await;
    api.small_template().await;
    let work = async {
        for number in 0..20 {
            let name = format!("vm-{number}");
            api.small_vm(&name).await;
            api.post(&format!("/vms/{name}/actions/start"), &json!({}))
                .await
                .expect(202);
        }
    };
    let look = async {
        for _ in 0..10 {
            let checked = api.post("/store/check", &json!({})).await.expect(200);
            assert_eq!(checked["faults"], json!([]), "{checked}");
        }
    };
    tokio::join!(work, look);
    let checked = api.post("/store/check", &json!({})).await.expect(200);
    assert_eq!(
        (&checked["ok"], &checked["rows"]["vms"]),
        (&json!(true), &json!(20))
    );
    assert_eq!(checked["revision"], api.revision());
    let key = b"vm-3".to_vec();
    let value = Some(b"no row".to_vec());
    let table = Table::Vms;
    api.host.storage().plant(Row { table, key, value });
    let checked = api.post("/store/check", &json!({})).await.expect(200);
    assert_eq!(checked["ok"], false);
    let told = checked["faults"].to_string();
    assert!(
        told.contains("vms/vm-3") && told.contains("cannot be read"),
        "{told}"
    );
}

#[tokio::test]
async fn an_export_is_for_admins_and_has_everything_but_what_tokens_are_known_by() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("web-1").await;
    let wanted = json!({"name": "ci", "scope": "read"});
    let made = api.post("/tokens", &wanted).await.expect(201);
    let answer = api.get("/store/export").await;
    assert_eq!(answer.status, 200);
    let text = String::from_utf8(answer.body).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["vman_export"], 1);
    assert_eq!(lines.last().unwrap()["end"], true);
    let of = |table: &str| lines.iter().filter(|line| line["table"] == table).count();
    assert_eq!((of("vms"), of("tokens")), (1, 1));
    assert!(of("events") >= 3, "{text}");
    let secret = made["token"].as_str().unwrap().rsplit('_').next().unwrap();
    assert!(!text.contains("hash") && !text.contains(secret), "{text}");
}
