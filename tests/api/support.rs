//! A daemon without a process: router and tree on a simulated host.

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use vman::{
    config::AuthMode,
    http::{
        Access, HttpSettings, HttpState, Limits, LocalCallers, MetricsSources, Peer, Readiness,
        router,
    },
    telemetry::LogReader,
};
use vman_actors::{Tree, TreeSettings, fakes::FakeHost};
use vman_model::ImageName;

/// Nothing on the simulated host takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The bytes an image of a test has.
pub(crate) const IMAGE: &[u8] = b"a kernel, as far as anybody looks";

pub(crate) struct Api {
    pub(crate) router: Router,
    pub(crate) host: FakeHost,
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tree: Tree,
    pub(crate) peer: Option<Peer>,
}

/// What differs from test to test.
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) access: Access,
    pub(crate) default_boot_disk: Option<&'static str>,
    pub(crate) max_vms: usize,
    pub(crate) allowance: vman_model::Allowance,
    pub(crate) log: LogReader,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits {
                max_image: 1 << 20,
                upload_idle_s: 1,
                ..Limits::default()
            },
            access: Access::new(AuthMode::None).with_local(LocalCallers::default()),
            default_boot_disk: None,
            max_vms: 100,
            allowance: vman_model::Allowance::default(),
            log: LogReader::default(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The answer's JSON, if it has this status.
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(
            self.status,
            status,
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        if self.body.is_empty() {
            return Value::Null;
        }
        self.json()
    }

    /// The problem, if it is a whole one of this status and code.
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        let problem = self.expect(status);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["type"], format!("urn:vman:problem:{code}"));
        assert_eq!(problem["instance"], self.header("x-request-id"));
        for part in ["title", "detail"] {
            assert!(
                problem[part].as_str().is_some_and(|text| text.len() > 8),
                "{problem}"
            );
        }
        problem
    }
}

impl Api {
    pub(crate) async fn start() -> Api {
        Api::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Api {
        Api::on(FakeHost::new(), setup).await
    }

    pub(crate) async fn on(host: FakeHost, setup: Setup) -> Api {
        let settings = TreeSettings {
            max_vms: setup.max_vms,
            max_launches: 8,
            allowance: setup.allowance,
            observer_interval: Duration::from_secs(5),
            drift: vman_actors::observer::DriftSettings::default(),
        };
        let tree = Tree::start(host.ports(), &settings).await.unwrap();
        let (ready, done) = watch::channel(true);
        let shutdown = CancellationToken::new();
        let state = HttpState::new(HttpSettings {
            handles: tree.handles.clone(),
            readiness: Readiness {
                done,
                recovery: tree.recovery.clone(),
            },
            probe: tree.handles.hypervisor.probe().await,
            storage_check: Arc::new(|| Ok(())),
            access: setup.access,
            limits: setup.limits,
            default_boot_disk: setup
                .default_boot_disk
                .map(|name| ImageName::parse(name).unwrap()),
            metrics: MetricsSources::default(),
            log: setup.log,
            shutdown: shutdown.clone(),
        });
        Api {
            router: router(state),
            host,
            ready,
            shutdown,
            tree,
            peer: Some(Peer::Local { uid: 0, gid: 0 }),
        }
    }

    /// The answer with its body still to come.
    pub(crate) async fn open(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> axum::response::Response {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(body).unwrap();
        if let Some(peer) = &self.peer {
            request.extensions_mut().insert(peer.clone());
        }
        let answering = self.router.clone().oneshot(request);
        tokio::time::timeout(PATIENCE, answering)
            .await
            .expect("an answer in time")
            .unwrap()
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Answer {
        let response = self.open(method, target, headers, body).await;
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect())
            .await
            .expect("a body in time");
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.unwrap().to_bytes().to_vec(),
        }
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[], Body::empty()).await
    }

    pub(crate) async fn delete(&self, target: &str) -> Answer {
        self.send("DELETE", target, &[], Body::empty()).await
    }

    pub(crate) async fn post(&self, target: &str, body: &Value) -> Answer {
        self.post_with(target, &[], body).await
    }

    pub(crate) async fn post_with(
        &self,
        target: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Answer {
        self.post_raw(target, headers, body.to_string().into_bytes())
            .await
    }

    pub(crate) async fn post_raw(
        &self,
        target: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let mut all = vec![("content-type", "application/json")];
        all.extend_from_slice(headers);
        self.send("POST", target, &all, Body::from(body)).await
    }

    /// An action on a VM, waited for.
    pub(crate) async fn act(&self, vm: &str, action: &str) -> Answer {
        let target = format!("/vms/{vm}/actions/{action}?wait_s=20");
        self.send("POST", &target, &[], Body::empty()).await
    }

    pub(crate) async fn put_image(&self, name: &str, kind: &str) -> Value {
        let target = format!("/images/{name}?kind={kind}");
        self.send("PUT", &target, &[], Body::from(IMAGE))
            .await
            .expect(201)
    }

    /// The template `small`, which boots the kernel `linux`.
    pub(crate) async fn small_template(&self) {
        self.put_image("linux", "kernel").await;
        let template = json!({
            "name": "small", "cpu_count": 1, "ram_mib": 256,
            "boot": {"kernel": "linux", "cmdline": "console=ttyS0"},
        });
        self.post("/templates", &template).await.expect(201);
    }

    /// A VM of the template `small`.
    pub(crate) async fn small_vm(&self, name: &str) -> Value {
        let vm = json!({"template_name": "small", "name": name});
        self.post("/vms", &vm).await.expect(201)
    }

    pub(crate) fn revision(&self) -> u64 {
        self.tree.handles.store.inventory().revision.0
    }

    /// Waits until the VM is in this state.
    pub(crate) async fn until_state(&self, vm: &str, state: &str) -> Value {
        let mut revision = self.tree.handles.store.watch();
        let reached = async {
            loop {
                let seen = self.get(&format!("/vms/{vm}")).await.expect(200);
                if seen["state"] == state {
                    return seen;
                }
                revision.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, reached)
            .await
            .expect("the state in time")
    }
}
