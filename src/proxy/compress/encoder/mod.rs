//! The codecs, driven directly: one frame per response, flushed when we say.
//!
//! Settings are for many streams at once: small windows, so that what an encoder costs is bounded ([`Kind::cost`]); a
//! longer window finds no more in events that repeat each other.

mod br;
mod gzip;
mod zstd;

use bytes::BytesMut;

use self::{br::Br, gzip::Gzip, zstd::Zstd};
use crate::{
    error::{self, Error},
    protocol::coding::Coding,
};

pub(super) use self::{
    br::{WHOLE as BR_WHOLE, WINDOW_LOG as BR_WINDOW_LOG},
    gzip::WHOLE as GZIP_WHOLE,
    zstd::{HASH_LOG as ZSTD_HASH_LOG, LEVEL as ZSTD_LEVEL, WINDOW_LOG as ZSTD_WINDOW_LOG},
};

/// An encoder and what it is set for. Those of one kind may serve one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Flushed with each event.
    GzipStream,
    /// Not flushed before the end.
    GzipWhole,
    /// Either.
    Zstd,
    /// Flushed with each event.
    BrStream,
    /// Not flushed before the end.
    BrWhole,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::GzipStream, Self::GzipWhole, Self::Zstd, Self::BrStream, Self::BrWhole];

    /// For a body that is flushed with each event (`stream`), or not before its end.
    pub const fn of(coding: Coding, stream: bool) -> Self {
        match (coding, stream) {
            (Coding::Gzip, true) => Self::GzipStream,
            (Coding::Gzip, false) => Self::GzipWhole,
            (Coding::Zstd, _) => Self::Zstd,
            (Coding::Br, true) => Self::BrStream,
            (Coding::Br, false) => Self::BrWhole,
        }
    }

    pub const fn coding(self) -> Coding {
        match self {
            Self::GzipStream | Self::GzipWhole => Coding::Gzip,
            Self::Zstd => Coding::Zstd,
            Self::BrStream | Self::BrWhole => Coding::Br,
        }
    }

    /// Memory one takes, in bytes. Measured: resident memory of 200 of them, each over 440 KB of events, rounded up
    /// (docs/compression.md).
    pub const fn cost(self) -> u64 {
        const KIB: u64 = 1024;
        match self {
            Self::GzipStream => 320 * KIB,
            // Without flushes its symbol buffers fill.
            Self::GzipWhole => 384 * KIB,
            Self::Zstd => 128 * KIB,
            Self::BrStream => 416 * KIB,
            Self::BrWhole => 736 * KIB,
        }
    }
}

/// Encodes one response at a time.
#[derive(Debug)]
pub struct Encoder {
    kind: Kind,
    codec: Codec,
}

#[derive(Debug)]
enum Codec {
    Gzip(Gzip),
    Zstd(Zstd),
    Br(Box<Br>),
}

/// What is wanted of a codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Take the input; give what there happens to be.
    Take,
    /// Give all that was taken, decodable.
    Flush,
    /// End the frame.
    Finish,
}

/// What a codec did.
#[derive(Clone, Copy, Debug)]
struct Step {
    read: usize,
    written: usize,
    /// The order is carried out.
    done: bool,
}

impl Encoder {
    /// A new one.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(kind: Kind) -> Result<Self, Error> {
        let codec = match kind {
            Kind::GzipStream => Codec::Gzip(Gzip::new(gzip::STREAM)),
            Kind::GzipWhole => Codec::Gzip(Gzip::new(gzip::WHOLE)),
            Kind::Zstd => Codec::Zstd(Zstd::new()?),
            Kind::BrStream => Codec::Br(Box::new(Br::new(br::STREAM))),
            Kind::BrWhole => Codec::Br(Box::new(Br::new(br::WHOLE))),
        };
        Ok(Self { kind, codec })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Takes `input`; what comes out may be nothing yet.
    ///
    /// # Errors
    /// A fault of the codec.
    pub fn take(&mut self, input: &[u8], scratch: &mut [u8], out: &mut BytesMut) -> Result<(), Error> {
        self.run(input, Order::Take, scratch, out)
    }

    /// Takes `input` and gives all that was taken so far, decodable.
    ///
    /// # Errors
    /// A fault of the codec.
    pub fn flush(&mut self, input: &[u8], scratch: &mut [u8], out: &mut BytesMut) -> Result<(), Error> {
        self.run(input, Order::Flush, scratch, out)
    }

    /// Takes `input` and ends the frame.
    ///
    /// # Errors
    /// A fault of the codec.
    pub fn finish(&mut self, input: &[u8], scratch: &mut [u8], out: &mut BytesMut) -> Result<(), Error> {
        self.run(input, Order::Finish, scratch, out)
    }

    /// Ready for another response; `None` when it cannot be.
    pub fn reset(mut self) -> Option<Self> {
        let ready = match &mut self.codec {
            Codec::Gzip(gzip) => gzip.reset(),
            Codec::Zstd(zstd) => zstd.reset().is_ok(),
            // Its state has no way back.
            Codec::Br(_) => false,
        };
        ready.then_some(self)
    }

    fn run(&mut self, mut input: &[u8], order: Order, scratch: &mut [u8], out: &mut BytesMut) -> Result<(), Error> {
        loop {
            let step = match &mut self.codec {
                Codec::Gzip(gzip) => gzip.step(input, order, scratch)?,
                Codec::Zstd(zstd) => zstd.step(input, order, scratch)?,
                Codec::Br(br) => br.step(input, order, scratch)?,
            };
            out.extend_from_slice(&scratch[..step.written]);
            input = &input[step.read..];
            if step.done {
                return Ok(());
            }
            if step.read == 0 && step.written == 0 {
                return Err(fault("it makes no progress"));
            }
        }
    }
}

fn fault(what: impl std::fmt::Display) -> Error {
    Error::new(error::Kind::Internal, format!("an encoder failed: {what}"))
}

#[cfg(test)]
mod tests;
