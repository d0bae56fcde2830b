//! Opens connections: name, Happy Eyeballs (RFC 8305), socket options, TLS; all within one `connect` timeout.

use std::{
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::{Failure, Resolver, Stage, Target, pool::late, target::Place, tls, wire::Wire};
use crate::{config::Scheme, error::Cause, runtime::io::Duplex};

/// RFC 8305 §8: the recommended time before the next address is tried beside the present one.
const STAGGER: Duration = Duration::from_millis(250);

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// TCP keep-alive: a backend whose machine is gone is noticed although nothing is sent.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// For how long sent bytes may stay unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Connector {
    resolver: Rc<Resolver>,
    limit: Duration,
}

impl Connector {
    pub(super) fn new(resolver: Rc<Resolver>, limit: Duration) -> Self {
        Self { resolver, limit }
    }

    /// A connected wire, and whether it speaks HTTP/2.
    pub(super) async fn connect(&self, target: &Target, only_http1: bool) -> Result<(Wire, bool), Failure> {
        match tokio::time::timeout(self.limit, self.open(target, only_http1)).await {
            Ok(opened) => opened.map_err(|cause| Failure::new(Stage::Connect, cause)),
            Err(_) => Err(late(self.limit)),
        }
    }

    async fn open(&self, target: &Target, only_http1: bool) -> Result<(Wire, bool), Cause> {
        let tcp = match target.place() {
            Place::Unix(path) => return Ok((Wire::Unix(UnixStream::connect(path).await?), false)),
            Place::Host { host, port } => {
                let addresses = self.resolver.lookup(host).await?;
                race(&interleave(&addresses, *port)).await?
            }
        };
        let Some(tls) = target.tls() else { return Ok((Wire::Tcp(tcp), target.scheme() == Scheme::H2c)) };
        let config = tls.get(only_http1).await?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(tls.name(), tcp).await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((Wire::Boxed(Box::new(stream)), is_http2))
    }
}

/// A connected stream for a protocol other than HTTP, with TLS by the system's roots. Its deadline is the caller's.
///
/// # Errors
/// An unknown name, nobody there, a handshake that failed.
pub async fn dial(resolver: &Resolver, host: &Arc<str>, port: u16, tls: bool) -> io::Result<Box<dyn Duplex + Send>> {
    let addresses = resolver.lookup(host).await.map_err(io::Error::other)?;
    let tcp = race(&interleave(&addresses, port)).await?;
    if !tls {
        return Ok(Box::new(tcp));
    }
    let (config, name) = tls::of_host(host).await.map_err(io::Error::other)?;
    Ok(Box::new(tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?))
}

/// RFC 8305 §4: the families take turns, the resolver's first one first.
fn interleave(addresses: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (mut first, mut second): (Vec<_>, Vec<_>) =
        addresses.iter().copied().partition(|address| address.is_ipv6() == first_is_v6);
    first.truncate(MAX_ADDRESSES);
    second.truncate(MAX_ADDRESSES);
    let mut turns = Vec::with_capacity(first.len() + second.len());
    for turn in 0..first.len().max(second.len()) {
        turns.extend(first.get(turn));
        turns.extend(second.get(turn));
    }
    turns.truncate(MAX_ADDRESSES);
    turns.into_iter().map(|address| SocketAddr::new(address, port)).collect()
}

type Attempt = Pin<Box<dyn Future<Output = io::Result<TcpStream>>>>;

/// The first connection that stands. The next address starts when the one before failed, or did not answer for
/// [`STAGGER`]; those that lose are dropped, and so closed.
async fn race(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    if let [only] = addresses {
        return connect(*only).await;
    }
    let mut waiting = addresses.iter().copied();
    let mut running: Vec<Attempt> = Vec::new();
    let mut failed = None;
    let mut stagger = pin!(tokio::time::sleep(STAGGER));
    poll_fn(|cx| {
        loop {
            let mut start_next = running.is_empty() || stagger.as_mut().poll(cx).is_ready();
            let mut index = 0;
            while index < running.len() {
                match running[index].as_mut().poll(cx) {
                    Poll::Pending => index += 1,
                    Poll::Ready(Ok(stream)) => return Poll::Ready(Ok(stream)),
                    Poll::Ready(Err(error)) => {
                        drop(running.swap_remove(index));
                        failed = Some(error);
                        start_next = true;
                    }
                }
            }
            match waiting.next_if(start_next) {
                Some(address) => {
                    running.push(Box::pin(connect(address)));
                    stagger.as_mut().reset(tokio::time::Instant::now() + STAGGER);
                }
                None if running.is_empty() => {
                    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                    return Poll::Ready(Err(failed.take().unwrap_or_else(none)));
                }
                None => return Poll::Pending,
            }
        }
    })
    .await
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    let options = SockRef::from(&socket);
    options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    #[cfg(target_os = "linux")]
    options.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    let stream = socket.connect(address).await;
    stream.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
}

trait NextIf: Iterator {
    /// The next one, if `wanted`.
    fn next_if(&mut self, wanted: bool) -> Option<Self::Item> {
        if wanted { self.next() } else { None }
    }
}

impl<I: Iterator> NextIf for I {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let addresses: Vec<IpAddr> =
            ["::1", "::2", "::3", "10.0.0.1"].iter().map(|text| text.parse().unwrap()).collect();
        let order: Vec<_> = interleave(&addresses, 80).iter().map(|a| a.ip().to_string()).collect();
        assert_eq!(order, ["::1", "10.0.0.1", "::2", "::3"]);
    }

    #[test]
    fn addresses_are_bounded() {
        let many: Vec<IpAddr> = (0..100).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        assert_eq!(interleave(&many, 80).len(), MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn a_refused_address_does_not_hide_the_next() {
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed_at = closed.local_addr().unwrap();
        drop(closed);
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open_at = open.local_addr().unwrap();
        let stream = race(&[closed_at, open_at]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open_at);
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn all_refused_is_the_last_reason() {
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = closed.local_addr().unwrap();
        drop(closed);
        assert_eq!(race(&[at, at]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(race(&[]).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
