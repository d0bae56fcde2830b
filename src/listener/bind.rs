//! From a configured address to listening sockets, one for each worker.
//!
//! TCP: every worker has a socket of its own by `SO_REUSEPORT`, so the kernel spreads connections and no lock is
//! shared. That option would let a second process join in silently; so the address is first bound without it.
//! Unix: one socket, shared by all workers.

use std::{
    fmt, io,
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket as RawSocket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::{
    balance::{self, Seat},
    io::Stream,
};
use crate::config::Listen;

/// Silence after which the system asks whether a client is still there, and again.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long sent bytes, or those questions, may stay unanswered.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(120);

/// One worker's listening socket. Made on the main thread, used up by [`super::serve`] on the worker's.
#[derive(Debug)]
pub struct Socket {
    raw: Raw,
    pub(super) seat: Seat,
}

#[derive(Debug)]
enum Raw {
    Tcp(std::net::TcpListener),
    Unix(StdUnixListener, Arc<UnixFile>),
}

/// A listening socket on its worker's runtime.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    /// The file is removed when the last worker closes.
    Unix(UnixListener, Arc<UnixFile>),
}

/// A connection that was accepted and not read from.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) stream: Stream,
    pub(super) address: Option<SocketAddr>,
}

/// The same, off its runtime: it may move to another thread.
#[derive(Debug)]
pub(super) enum Loose {
    Tcp(std::net::TcpStream, SocketAddr),
    Unix(StdUnixStream),
}

/// Why an address cannot be listened on.
#[derive(Debug)]
pub struct BindError {
    at: String,
    /// What sets the address.
    option: &'static str,
    source: io::Error,
}

/// The socket's file, removed with the listener if it is still the same one.
#[derive(Debug)]
pub(super) struct UnixFile {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

/// Connections the kernel holds for us before they are accepted; it lowers this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Owner and group may connect to a unix socket.
const UNIX_MODE: u32 = 0o660;

/// Opens `workers` sockets on `listen`. With port 0 all have the same free port.
///
/// # Errors
/// Names the address, and what to do about a port in use, a missing permission or an address of another machine.
pub fn bind(listen: &Listen, workers: usize) -> Result<Vec<Socket>, BindError> {
    let seats = balance::seats(workers);
    match listen {
        Listen::Tcp(address) => tcp(*address, seats).map_err(|source| BindError::new(address.to_string(), source)),
        Listen::Unix(path) => {
            unix(path, seats).map_err(|source| BindError::new(format!("unix:{}", path.display()), source))
        }
    }
}

impl Socket {
    /// The address in use, with the true port; `None` for a unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.raw {
            Raw::Tcp(listener) => listener.local_addr().ok(),
            Raw::Unix(..) => None,
        }
    }

    pub(super) fn into_parts(self) -> io::Result<(Listener, Seat)> {
        let listener = match self.raw {
            Raw::Tcp(listener) => Listener::Tcp(TcpListener::from_std(listener)?),
            Raw::Unix(listener, file) => Listener::Unix(UnixListener::from_std(listener)?, file),
        };
        Ok((listener, self.seat))
    }
}

impl Listener {
    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let (stream, address) = match self {
            Self::Tcp(listener) => {
                let (stream, address) = ready!(listener.poll_accept(cx))?;
                // Failing on a socket whose client is gone already is no matter.
                let _ = stream.set_nodelay(true);
                (Stream::Tcp(stream), Some(address))
            }
            Self::Unix(listener, _) => (Stream::Unix(ready!(listener.poll_accept(cx))?.0), None),
        };
        Poll::Ready(Ok(Accepted { stream, address }))
    }

    /// Accepts what waits in the backlog, and closes. The socket is asked itself: the runtime may not have noticed yet.
    pub(super) fn dry(self, mut take: impl FnMut(Accepted)) {
        let next: Box<dyn Fn() -> io::Result<Loose>> = match self {
            Self::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return };
                Box::new(move || {
                    let (stream, address) = listener.accept()?;
                    stream.set_nonblocking(true)?;
                    let _ = stream.set_nodelay(true);
                    Ok(Loose::Tcp(stream, address))
                })
            }
            Self::Unix(listener, file) => {
                let Ok(listener) = listener.into_std() else { return };
                Box::new(move || {
                    let _file = &file;
                    let (stream, _) = listener.accept()?;
                    stream.set_nonblocking(true)?;
                    Ok(Loose::Unix(stream))
                })
            }
        };
        // Bounded, should clients come faster than they are taken.
        for _ in 0..BACKLOG {
            match next().and_then(Loose::fasten) {
                Ok(accepted) => take(accepted),
                Err(_) => return,
            }
        }
    }
}

impl Accepted {
    /// Takes it off this thread's runtime.
    pub(super) fn loosen(self) -> io::Result<Loose> {
        match (self.stream, self.address) {
            (Stream::Tcp(stream), Some(address)) => Ok(Loose::Tcp(stream.into_std()?, address)),
            (Stream::Unix(stream), _) => Ok(Loose::Unix(stream.into_std()?)),
            (Stream::Tcp(_) | Stream::Tls(_), _) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Loose {
    /// Puts it on this thread's runtime.
    pub(super) fn fasten(self) -> io::Result<Accepted> {
        Ok(match self {
            Self::Tcp(stream, address) => {
                Accepted { stream: Stream::Tcp(TcpStream::from_std(stream)?), address: Some(address) }
            }
            Self::Unix(stream) => Accepted { stream: Stream::Unix(UnixStream::from_std(stream)?), address: None },
        })
    }
}

fn tcp(address: SocketAddr, seats: Vec<Seat>) -> io::Result<Vec<Socket>> {
    raw(address, false)?;
    let mut at = address;
    let mut sockets = Vec::with_capacity(seats.len());
    for seat in seats {
        let socket = raw(at, true)?;
        socket.listen(BACKLOG)?;
        let listener = std::net::TcpListener::from(socket);
        at = listener.local_addr()?;
        sockets.push(Socket { raw: Raw::Tcp(listener), seat });
    }
    Ok(sockets)
}

fn raw(address: SocketAddr, shared: bool) -> io::Result<RawSocket> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // `[::]` means every address of the machine, IPv4 included.
        socket.set_only_v6(false)?;
    }
    // Accepted sockets inherit these: a client that vanished without a word is noticed, whatever it waits for.
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn unix(path: &Path, seats: Vec<Seat>) -> io::Result<Vec<Socket>> {
    remove_stale(path)?;
    let listener = StdUnixListener::bind(path)?;
    let file = Arc::new(UnixFile { path: path.to_owned(), id: UnixFile::id(path) });
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(UNIX_MODE))?;
    listener.set_nonblocking(true)?;
    let socket = |seat| Ok(Socket { raw: Raw::Unix(listener.try_clone()?, Arc::clone(&file)), seat });
    seats.into_iter().map(socket).collect()
}

/// A process that was killed leaves its socket file behind. It is removed only if nobody answers on it.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is not a socket is in the way"));
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
    }
}

impl UnixFile {
    fn id(path: &Path) -> Option<(u64, u64)> {
        std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
    }
}

impl Drop for UnixFile {
    fn drop(&mut self) {
        if self.id.is_some() && self.id == Self::id(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl BindError {
    fn new(at: String, source: io::Error) -> Self {
        Self { at, option: "`listen` or --listen", source }
    }

    /// Says that another option set the address.
    #[must_use]
    pub fn by(self, option: &'static str) -> Self {
        Self { option, ..self }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, option, source } = self;
        write!(f, "cannot listen on {at}: ")?;
        match source.kind() {
            io::ErrorKind::AddrInUse => {
                write!(f, "another process listens there already; stop it, or choose another address with {option}")
            }
            io::ErrorKind::PermissionDenied => f.write_str(
                "no permission; ports below 1024 need CAP_NET_BIND_SERVICE, a unix socket needs a folder this user \
                 may write to",
            ),
            io::ErrorKind::AddrNotAvailable => {
                f.write_str("this machine has no such address; 0.0.0.0 or [::] stand for all it has")
            }
            io::ErrorKind::NotFound => f.write_str("the folder of the socket does not exist"),
            _ => fmt::Display::fmt(source, f),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
