//! A [`Target`]: where a backend is reached, worked out once when the configuration is read.

use std::{path::PathBuf, sync::Arc};

use http::uri::PathAndQuery;

use super::tls::{ClientConfigs, TlsProblem};
use crate::config::{BackendUrl, ClientTls, Scheme};

/// An address to connect to. Shared by all workers; each has its own connections to it.
#[derive(Debug)]
pub struct Target {
    authority: String,
    base_path: Arc<str>,
    scheme: Scheme,
    place: Place,
    tls: Option<ClientConfigs>,
}

/// Where to dial.
#[derive(Debug)]
pub(super) enum Place {
    Host { host: Arc<str>, port: u16 },
    Unix(PathBuf),
}

impl Target {
    /// Reads the certificates that `tls` names, so that a wrong file is told at start; system roots are read at the
    /// first connection that needs them.
    ///
    /// # Errors
    /// A certificate or key cannot be read or used, or the server's name is none.
    pub fn new(url: &BackendUrl, tls: &ClientTls) -> Result<Arc<Self>, TlsProblem> {
        let place = match &url.unix {
            Some(path) => Place::Unix(path.clone()),
            None => Place::Host { host: Arc::clone(&url.host), port: url.port },
        };
        let tls = match url.scheme {
            Scheme::Https => Some(ClientConfigs::new(&url.host, tls)?),
            Scheme::Http | Scheme::H2c | Scheme::Unix => None,
        };
        let (authority, base_path) = (authority(url), Arc::clone(&url.base_path));
        Ok(Arc::new(Self { authority, base_path, scheme: url.scheme, place, tls }))
    }

    /// Host and port as in the `Host` field, without the port where it is the scheme's own.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What is put before `path`: empty, or `/like/this`. `*` is no path: it asks the server as a whole.
    pub(super) fn prefix(&self, path: &PathAndQuery) -> &str {
        if path == "*" { "" } else { &self.base_path }
    }

    pub(super) fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn tls(&self) -> Option<&ClientConfigs> {
        self.tls.as_ref()
    }
}

fn authority(url: &BackendUrl) -> String {
    if url.unix.is_some() {
        // A unix socket has no name; HTTP/1.1 wants a Host all the same.
        return "localhost".into();
    }
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.to_string() };
    match (url.scheme, url.port) {
        (Scheme::Https, 443) | (Scheme::Http | Scheme::H2c, 80) => host,
        (_, port) => format!("{host}:{port}"),
    }
}
