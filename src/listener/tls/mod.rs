//! TLS of a listener: certificates that are re-read when their files change.
//!
//! The whole rustls configuration is swapped, so that a new client CA takes effect too; connections that stand keep
//! what they shook hands with. With `client_ca` every client must show a certificate signed by it.

use std::{
    fmt, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{
    io::Stream,
    peer::{Fingerprint, Peer},
};
use crate::config::ServerTls;

mod expiry;

/// A listener's TLS, shared by all workers. Whoever owns it calls [`Reloading::check`] about once a second.
#[derive(Debug)]
pub struct Reloading {
    files: ServerTls,
    current: ArcSwap<Loaded>,
    /// What was last tried, good or bad: a broken file is reported once, not every second.
    tried: Mutex<Vec<Stamp>>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<rustls::ServerConfig>,
    expires: Option<SystemTime>,
}

/// What [`Reloading::check`] found.
#[derive(Debug)]
pub enum Checked {
    /// The files are as they were.
    Unchanged,
    /// New certificates are in use.
    Reloaded,
    /// The files changed and are not usable; the old certificates stay in use.
    Failed(TlsError),
}

/// Why a certificate, key or CA cannot be used.
#[derive(Debug)]
pub struct TlsError {
    path: PathBuf,
    what: String,
}

/// When one of these differs, the file is another one. The canonical path notices a link, also of a parent folder,
/// that points elsewhere: Kubernetes swaps `..data`, and the new file may have the old length and time.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    modified: Option<SystemTime>,
    length: u64,
    inode: (u64, u64),
}

impl Reloading {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn new(files: &ServerTls) -> Result<Arc<Self>, TlsError> {
        let tried = stamps(files);
        let loaded = load(files)?;
        Ok(Arc::new(Self { files: files.clone(), current: ArcSwap::from_pointee(loaded), tried: Mutex::new(tried) }))
    }

    /// Looks whether the files have changed, and re-reads them if so. Blocks for the time of a few small reads.
    pub fn check(&self) -> Checked {
        let stamps = stamps(&self.files);
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        if *tried == stamps {
            return Checked::Unchanged;
        }
        // Stamps are taken before reading: a change in between is seen the next time.
        *tried = stamps;
        match load(&self.files) {
            Ok(loaded) => {
                self.current.store(Arc::new(loaded));
                Checked::Reloaded
            }
            Err(error) => Checked::Failed(error),
        }
    }

    /// When the certificate in use ends, for a metric; `None` if its date cannot be read.
    pub fn expires(&self) -> Option<SystemTime> {
        self.current.load().expires
    }

    fn config(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.current.load().config)
    }
}

/// Shakes hands on `stream` and notes in `peer` who it is. True: HTTP/2 was agreed on.
pub(super) async fn accept(tls: &Reloading, stream: Stream, peer: &mut Peer) -> io::Result<(Stream, bool)> {
    let stream = tokio_rustls::TlsAcceptor::from(tls.config()).accept(stream).await?;
    let session = stream.get_ref().1;
    peer.tls = true;
    peer.sni = session.server_name().map(Into::into);
    peer.identity = session.peer_certificates().and_then(|chain| chain.first()).and_then(fingerprint);
    let h2 = session.alpn_protocol() == Some(b"h2");
    Ok((Stream::Tls(Box::new(stream)), h2))
}

fn load(files: &ServerTls) -> Result<Loaded, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let chain = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|cause| TlsError::new(&files.key, format_args!("no private key in PEM form: {cause}")))?;
    let expires = chain.first().and_then(|leaf| expiry::not_after(leaf)).map(|s| UNIX_EPOCH + Duration::from_secs(s));
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|cause| TlsError::new(&files.cert, cause))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => builder.with_client_cert_verifier(verifier(ca, provider)?),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|cause| TlsError::new(&files.cert, format_args!("certificate and key do not go together: {cause}")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Loaded { config: Arc::new(config), expires })
}

fn verifier(
    ca: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|cause| TlsError::new(ca, cause))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|cause| TlsError::new(ca, cause))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::new(path, "no certificate in PEM form")),
        Ok(found) => Ok(found),
        Err(cause) => Err(TlsError::new(path, cause)),
    }
}

/// SHA-256 as the TLS library has it: no hash of our own, no further dependency.
fn fingerprint(leaf: &CertificateDer<'_>) -> Option<Fingerprint> {
    let suite = ring::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13()?;
    let hash = suite.common.hash_provider.hash(leaf);
    hash.as_ref().try_into().ok().map(Fingerprint)
}

fn stamps(files: &ServerTls) -> Vec<Stamp> {
    [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()].into_iter().flatten().map(|f| stamp(f)).collect()
}

/// A file that is not there has a stamp too: one that no real file has.
fn stamp(path: &Path) -> Stamp {
    let path = std::fs::canonicalize(path).unwrap_or_default();
    let found = std::fs::metadata(&path).ok();
    Stamp {
        modified: found.as_ref().and_then(|f| f.modified().ok()),
        length: found.as_ref().map_or(0, std::fs::Metadata::len),
        inode: found.as_ref().map_or((0, 0), |f| (f.dev(), f.ino())),
        path,
    }
}

impl TlsError {
    fn new(path: &Path, what: impl fmt::Display) -> Self {
        Self { path: path.to_owned(), what: what.to_string() }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

impl std::error::Error for TlsError {}

#[cfg(test)]
mod tests;
