//! TLS towards backends: whom to trust, who we are, which name to expect.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};

use crate::config::ClientTls;

/// A TLS setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsProblem {
    #[error("cannot read {what} {}: {reason}; give a PEM file that this process may read", path.display())]
    File { what: &'static str, path: PathBuf, reason: String },
    #[error("{name:?} is no server name; set tls.server_name to the name in the backend's certificate")]
    ServerName { name: String },
    #[error("tls.client_cert and tls.client_key must both be given")]
    HalfIdentity,
    #[error("the client certificate and its key cannot be used: {0}")]
    Identity(rustls::Error),
    #[error("the TLS provider offers no usable version: {0}")]
    Provider(rustls::Error),
    #[error("the system has no trusted root certificates; install ca-certificates, or set tls.ca for this backend")]
    NoRoots,
}

/// What one target needs for its handshakes.
#[derive(Debug)]
pub(super) struct ClientConfigs {
    name: ServerName<'static>,
    own_roots: Option<Arc<RootCertStore>>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    any: OnceLock<Arc<ClientConfig>>,
}

impl ClientConfigs {
    pub(super) fn new(host: &str, tls: &ClientTls) -> Result<Self, TlsProblem> {
        let name = tls.server_name.as_deref().unwrap_or(host);
        let name =
            ServerName::try_from(name.to_owned()).map_err(|_| TlsProblem::ServerName { name: name.to_owned() })?;
        let own_roots = tls.ca.as_deref().map(read_roots).transpose()?.map(Arc::new);
        let identity = match (&tls.client_cert, &tls.client_key) {
            (Some(cert), Some(key)) => Some((read_certs("client certificate", cert)?, read_key(key)?)),
            (None, None) => None,
            _ => return Err(TlsProblem::HalfIdentity),
        };
        let configs = Self { name, own_roots, identity, any: OnceLock::new() };
        if configs.identity.is_some() {
            // A key that does not fit its certificate is told now, not at the first request.
            configs.build(Arc::new(RootCertStore::empty()))?;
        }
        Ok(configs)
    }

    pub(super) fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }

    /// The configuration that offers HTTP/2 and HTTP/1.1, or for an upgrade HTTP/1.1 alone.
    pub(super) async fn get(&self, only_http1: bool) -> Result<Arc<ClientConfig>, TlsProblem> {
        let config = match self.any.get() {
            Some(config) => Arc::clone(config),
            None => {
                let roots = match &self.own_roots {
                    Some(roots) => Arc::clone(roots),
                    None => system_roots().await?,
                };
                let config = self.build(roots)?;
                Arc::clone(self.any.get_or_init(|| config))
            }
        };
        if !only_http1 {
            return Ok(config);
        }
        let mut config = ClientConfig::clone(&config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn build(&self, roots: Arc<RootCertStore>) -> Result<Arc<ClientConfig>, TlsProblem> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsProblem::Provider)?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            Some((certs, key)) => {
                builder.with_client_auth_cert(certs.clone(), key.clone_key()).map_err(TlsProblem::Identity)?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// For a protocol other than HTTP: the system's roots, no certificate of ours, no protocol named.
pub(super) async fn of_host(host: &str) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsProblem> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsProblem::ServerName { name: host.to_owned() })?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsProblem::Provider)?
        .with_root_certificates(system_roots().await?)
        .with_no_client_auth();
    Ok((Arc::new(config), name))
}

/// Given by hand, so that no other crate's choice of a process-wide default matters.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The system's roots: some 150 certificates, parsed once per process, off the worker, and only if a target has no
/// CA of its own. They never change while the process runs, so this one static holds no state.
async fn system_roots() -> Result<Arc<RootCertStore>, TlsProblem> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let load = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    };
    let roots = match ROOTS.get() {
        Some(roots) => Arc::clone(roots),
        None => tokio::task::spawn_blocking(move || Arc::clone(ROOTS.get_or_init(load)))
            .await
            .map_err(|_| TlsProblem::NoRoots)?,
    };
    if roots.is_empty() { Err(TlsProblem::NoRoots) } else { Ok(roots) }
}

fn read_roots(path: &Path) -> Result<RootCertStore, TlsProblem> {
    let mut roots = RootCertStore::empty();
    for cert in read_certs("CA file", path)? {
        roots.add(cert).map_err(|error| problem("CA file", path, &error))?;
    }
    Ok(roots)
}

fn read_certs(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsProblem> {
    let certs: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| problem(what, path, &error))?;
    if certs.is_empty() { Err(problem(what, path, &"it holds no certificate")) } else { Ok(certs) }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsProblem> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| problem("client key", path, &error))
}

fn problem(what: &'static str, path: &Path, reason: &dyn std::fmt::Display) -> TlsProblem {
    TlsProblem::File { what, path: path.to_owned(), reason: reason.to_string() }
}
