//! TLS for the API's TCP listener, from files.
//!
//! Read once at start: a renewed certificate is taken up by restarting the daemon, which no guest
//! notices. Must not: fall back to no TLS where it was asked for.

use crate::config::TlsConfig;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

/// Why TLS cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as what it is named for.
    #[error("cannot use {path} for TLS: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The parts do not fit together.
    #[error("cannot serve TLS with {path}: {why}")]
    Unfit {
        /// The certificate.
        path: PathBuf,
        /// What rustls says.
        why: String,
    },
}

fn bad(path: &Path) -> impl Fn(String) -> TlsError {
    move |why| TlsError::File {
        path: path.to_owned(),
        why,
    }
}

/// What makes TLS of accepted connections.
pub(super) fn acceptor(config: &TlsConfig) -> Result<TlsAcceptor, TlsError> {
    let unfit = |why: String| TlsError::Unfit {
        path: config.certificate.clone(),
        why,
    };
    let chain = certificates(&config.certificate)?;
    let key = private_key(&config.key)?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unfit(error.to_string()))?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| bad(path)(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .build()
                .map_err(|error| bad(path)(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder
        .with_single_cert(chain, key)
        .map_err(|error| unfit(error.to_string()))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| bad(path)(error.to_string()))?;
    if read.is_empty() {
        return Err(bad(path)("it holds no certificate".to_owned()));
    }
    Ok(read)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let mode = fs::metadata(path)
        .map_err(|error| bad(path)(error.to_string()))?
        .mode();
    if mode & 0o007 != 0 {
        let why = "every user of this host can read or write it: chmod o-rwx it".to_owned();
        return Err(bad(path)(why));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| bad(path)(error.to_string()))
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
