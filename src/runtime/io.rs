//! A byte stream in both directions.

use tokio::io::{AsyncRead, AsyncWrite};

/// Any two-way stream: TCP, TLS, a unix socket.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}
