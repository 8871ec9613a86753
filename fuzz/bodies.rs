//! What a client sends as a body, to each path that takes one, on a simulated host.

use crate::support::Api;
use axum::body::Body;
use tokio::runtime::Runtime;

/// Everything that takes a body; the JSON ones first.
const TARGETS: &[(&str, &str)] = &[
    ("POST", "/templates"),
    ("POST", "/vms"),
    ("POST", "/vms/a/actions/stop"),
    ("POST", "/disks"),
    ("PATCH", "/disks/d"),
    ("POST", "/disks/d/attach"),
    ("POST", "/disks/d/detach"),
    ("POST", "/disks/d/resize"),
    ("POST", "/network/forwards"),
    ("POST", "/tokens"),
    ("POST", "/observer/check"),
    ("PUT", "/images/fuzzed"),
];

/// A daemon that takes them.
pub struct Bodies {
    runtime: Runtime,
    api: Api,
}

impl Bodies {
    /// With a VM and a disk.
    pub fn new() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let api = runtime.block_on(async {
            let api = Api::start().await;
            api.small_template().await;
            api.small_vm("a").await;
            let disk = serde_json::json!({"name": "d", "size": 1});
            api.post("/disks", &disk).await.expect(201);
            api
        });
        Self { runtime, api }
    }

    /// How many targets there are.
    pub fn targets() -> usize {
        TARGETS.len()
    }

    /// The first byte says where to, the rest is the body. Whatever it is, it is the client's fault
    /// or nobody's, and the answer is one of the API's.
    pub fn send(&self, bytes: &[u8]) {
        let Some((first, body)) = bytes.split_first() else {
            return;
        };
        let (method, target) = TARGETS[usize::from(*first) % TARGETS.len()];
        let headers = [("content-type", "application/json")];
        let sending = self
            .api
            .send(method, target, &headers, Body::from(body.to_vec()));
        let answer = self.runtime.block_on(sending);
        assert!(answer.status < 500, "{method} {target}: {answer:?}");
        if answer.status >= 400 {
            assert_eq!(answer.header("content-type"), "application/problem+json");
            answer.json();
        }
    }
}
