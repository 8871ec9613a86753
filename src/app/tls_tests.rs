//! Certificates made for the test, and real handshakes.

use super::*;
use crate::http::{Bounds, Listeners, serve_within};
use axum::{Router, routing::get};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{os::unix::fs::PermissionsExt, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Bench {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let bench = Self { folder, issuer };
        fs::write(bench.path("ca.pem"), bench.issuer.pem()).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A certificate in `name.pem` and its key in `name.key`.
    fn issue(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        let path = self.path(&format!("{name}.key"));
        fs::write(&path, key.serialize_pem()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn config(&self, client_ca: bool) -> TlsConfig {
        TlsConfig {
            certificate: self.path("server.pem"),
            key: self.path("server.key"),
            client_ca: client_ca.then(|| self.path("ca.pem")),
        }
    }

    /// What a client is answered that shows the certificate of this name.
    async fn ask(&self, config: &TlsConfig, show: Option<&str>) -> std::io::Result<String> {
        let tls = Some(acceptor(config).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let listeners = Listeners {
            tcp: Some(listener),
            unix: None,
            tls,
        };
        let router = Router::new().route("/", get(|| async { "hello" }));
        let serving = serve_within(listeners, router, stop.clone(), Bounds::default());
        let serving = tokio::spawn(serving);
        let stream = TcpStream::connect(address).await?;
        let answered = timeout(PATIENCE, exchange(self.client(show), stream)).await?;
        stop.cancel();
        timeout(PATIENCE, serving).await??;
        answered
    }

    fn client(&self, show: Option<&str>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let client = match show {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = certificates(&self.path(&format!("{name}.pem"))).unwrap();
                let key = private_key(&self.path(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        TlsConnector::from(Arc::new(client))
    }
}

async fn exchange(client: TlsConnector, stream: TcpStream) -> std::io::Result<String> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = client.connect(name, stream).await?;
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn a_client_that_trusts_the_issuer_is_served() {
    let bench = Bench::new();
    bench.issue("server");
    let answer = bench.ask(&bench.config(false), None).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
        "{answer}"
    );
}

#[tokio::test]
async fn where_client_certificates_are_asked_for_only_their_issuers_clients_get_in() {
    let bench = Bench::new();
    bench.issue("server");
    bench.issue("client");
    let config = bench.config(true);
    let answer = bench.ask(&config, Some("client")).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(bench.ask(&config, None).await.is_err());
    let other = Bench::new();
    other.issue("stranger");
    for file in ["stranger.pem", "stranger.key"] {
        fs::copy(other.path(file), bench.path(file)).unwrap();
    }
    assert!(bench.ask(&config, Some("stranger")).await.is_err());
}

#[test]
fn files_that_cannot_serve_are_named_with_the_reason() {
    let bench = Bench::new();
    bench.issue("server");
    bench.issue("other");
    let why = |config: &TlsConfig| acceptor(config).err().unwrap().to_string();
    let mut config = bench.config(false);
    fs::set_permissions(&config.key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(why(&config).contains("chmod o-rwx"), "{}", why(&config));
    config.key = bench.path("other.key");
    assert!(why(&config).contains("server.pem"), "{}", why(&config));
    config.certificate = bench.path("server.key");
    assert!(
        why(&config).contains("holds no certificate"),
        "{}",
        why(&config)
    );
    config.certificate = bench.path("none.pem");
    assert!(why(&config).contains("none.pem"), "{}", why(&config));
}
