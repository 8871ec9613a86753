//! Lists: pages that shift under nobody, filters.

use crate::support::Api;
use serde_json::{Value, json};

fn ids(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap().iter();
    list.map(|vm| vm["id"].as_str().unwrap().to_owned())
        .collect()
}

/// The target of `Link: <…>; rel="next"`.
fn next(link: &str) -> Option<String> {
    let target = link.strip_prefix('<')?.split_once('>')?;
    assert_eq!(target.1, "; rel=\"next\"");
    Some(target.0.to_owned())
}

#[tokio::test]
async fn pages_together_are_the_list_whatever_is_made_or_deleted_meanwhile() {
    let api = Api::start().await;
    api.small_template().await;
    for i in 0..7 {
        api.small_vm(&format!("vm-{i}")).await;
    }
    let (mut seen, mut target) = (Vec::new(), "/vms?limit=3&state=stopped".to_owned());
    loop {
        let page = api.get(&target).await;
        let list = ids(&page.expect(200));
        assert!(list.len() <= 3);
        seen.extend(list);
        if seen.len() == 3 {
            api.delete("/vms/vm-2").await.expect(204);
            api.small_vm("vm-0a").await;
            api.small_vm("vm-9").await;
        }
        match next(page.header("link")) {
            Some(more) => target = more,
            None => break,
        }
    }
    assert_eq!(
        seen,
        [
            "vm-0", "vm-1", "vm-2", "vm-3", "vm-4", "vm-5", "vm-6", "vm-9"
        ]
    );
    let whole = api.get("/vms").await;
    assert_eq!(whole.header("link"), "");
    assert_eq!(whole.expect(200).as_array().unwrap().len(), 8);
    let exact = api.get("/vms?limit=8").await;
    assert_eq!(exact.header("link"), "", "a full last page has no next");
}

#[tokio::test]
async fn vms_are_found_by_state_and_labels() {
    let api = Api::start().await;
    api.small_template().await;
    for (name, labels) in [
        ("a", json!({"env": "x"})),
        ("b", json!({"env": "y", "k8s/app": "w"})),
        ("c", json!({})),
    ] {
        let vm = json!({"template_name": "small", "name": name, "labels": labels});
        api.post("/vms", &vm).await.expect(201);
    }
    api.act("b", "start").await.expect(200);
    for (query, found) in [
        ("state=running", vec!["b"]),
        ("state=stopped", vec!["a", "c"]),
        ("label=env", vec!["a", "b"]),
        ("label=env%3Dx", vec!["a"]),
        ("label=env&label=k8s/app=w", vec!["b"]),
        ("label=env=z", vec![]),
        ("state=stopped&label=env", vec!["a"]),
    ] {
        assert_eq!(
            ids(&api.get(&format!("/vms?{query}")).await.expect(200)),
            found,
            "{query}"
        );
    }
}

#[tokio::test]
async fn operations_are_paged_from_the_newest() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    for action in ["start", "pause", "resume", "stop"] {
        api.host.clock().advance_ms(10);
        api.act("a", action).await.expect(200);
    }
    let first = api.get("/operations?limit=3").await;
    let more = next(first.header("link")).unwrap();
    let kinds = |list: &Value| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|op| op["kind"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        kinds(&first.expect(200)),
        ["vm.stop", "vm.resume", "vm.pause"]
    );
    assert_eq!(kinds(&api.get(&more).await.expect(200)), ["vm.start"]);
    let running = api.get("/operations?status=running").await.expect(200);
    assert_eq!(running, json!([]));
}
