//! Who is at the other end of a connection.

use std::{cell::RefCell, fmt, net::SocketAddr, pin::Pin};

use bytes::Bytes;

use crate::runtime::io::Duplex;

/// One client connection, as the service made for it may know it.
#[derive(Default)]
pub struct Peer {
    /// The client's address; `None` over a unix socket.
    pub address: Option<SocketAddr>,
    /// The address the client connected to.
    pub local: Option<SocketAddr>,
    /// Whether it came by TLS.
    pub tls: bool,
    /// Its certificate, when one was asked for.
    pub identity: Option<Fingerprint>,
    /// The server name it asked for in TLS.
    pub sni: Option<Box<str>>,
    tunnel: RefCell<Option<Tunnel>>,
}

/// SHA-256 of a client's leaf certificate (DER); prints as hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// Takes over a connection after its 101 answer: the stream, and bytes the client sent after its request's head.
pub type Tunnel = Box<dyn FnOnce(Box<dyn Duplex>, Bytes) -> Pin<Box<dyn Future<Output = ()>>>>;

impl Peer {
    /// A client in clear at `address`.
    pub fn new(address: Option<SocketAddr>, local: Option<SocketAddr>) -> Self {
        Self { address, local, ..Self::default() }
    }

    /// Hands the connection to `take` once the 101 answer that the service is about to give is on the wire. With any
    /// other answer `take` is dropped uncalled. HTTP/1.1 only: HTTP/2 has no 101.
    pub fn tunnel(&self, take: Tunnel) {
        *self.tunnel.borrow_mut() = Some(take);
    }

    pub(super) fn take_tunnel(&self) -> Option<Tunnel> {
        self.tunnel.borrow_mut().take()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("address", &self.address)
            .field("local", &self.local)
            .field("tls", &self.tls)
            .field("identity", &self.identity)
            .field("sni", &self.sni)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
