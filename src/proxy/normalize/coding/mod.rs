//! Request bodies in a content coding: decoded while they come, so that what is inside can be read, checked, kept by
//! its content, and sent to any backend.
//!
//! A bomb costs no more than `limits.request_body`: bytes are capped as they come and after each codec, what the
//! codecs hold counts in `limits.body_memory`, and the worker has its turn after every [`TURN`] bytes of work.

mod chain;
mod codec;
mod room;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};

use self::{
    chain::{Chain, Stop, Turn},
    codec::{Coding, Fault},
    room::Room,
};
use super::payload::Frames;
use crate::{
    body::{Upload, too_large},
    error::{Error, Kind},
    proxy::memory::{Memory, Reservation},
};

/// The codings of one body, in the order in which they were applied.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Codings(Vec<Coding>);

/// More than this, one on the other, nobody means.
const MOST: usize = 3;
/// Bytes of work after which other requests have their turn.
const TURN: usize = 64 * 1024;

impl Codings {
    /// Takes what `headers` say of the content's coding out of them, and what holds for the coded bytes alone. `None` =
    /// it is in none.
    ///
    /// # Errors
    /// [`Kind::UnsupportedCoding`] for one that is not known, or too many.
    pub(super) fn take(headers: &mut HeaderMap) -> Result<Option<Self>, Error> {
        let mut codings = Vec::new();
        let names = headers.get_all(header::CONTENT_ENCODING);
        for name in names.iter().flat_map(|value| value.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii) {
            if name.is_empty() || name.eq_ignore_ascii_case(b"identity") {
                continue;
            }
            codings.push(Coding::named(name).ok_or_else(|| unsupported(name))?);
        }
        if codings.len() > MOST {
            let message =
                format!("the body is in {} codings; at most {MOST} are undone: send it in one", codings.len());
            return Err(Error::new(Kind::UnsupportedCoding, message));
        }
        headers.remove(header::CONTENT_ENCODING);
        if codings.is_empty() {
            return Ok(None);
        }
        for digest in DIGESTS {
            headers.remove(digest);
        }
        Ok(Some(Self(codings)))
    }
}

/// Sums over the coded bytes (RFC 9530, RFC 3230).
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

fn unsupported(name: &[u8]) -> Error {
    let name: String = String::from_utf8_lossy(name).chars().take(32).collect();
    Error::new(
        Kind::UnsupportedCoding,
        format!(
            "the content coding {name:?} is not known here; send the body as gzip, zstd, br or deflate, or in none"
        ),
    )
}

/// Reads and decodes all of `body`: at most `cap` bytes, as it comes and as it is. Gives also how many came.
///
/// # Errors
/// [`Kind::PayloadTooLarge`], [`Kind::BodyMemory`], [`Kind::BadRequest`] where it is not in these codings, or what the
/// client's side failed with.
pub(super) async fn read(
    body: Upload,
    codings: &Codings,
    cap: usize,
    memory: &Memory,
) -> Result<(usize, Bytes, Reservation), Error> {
    let mut frames = Frames::new(body, cap)?;
    let mut share = memory.reserve();
    share.grow(frames.announced.unwrap_or(0))?;
    let mut decoded = Decoded::new(codings, cap);
    let mut came = 0;
    while let Some(data) = frames.next(&mut share, decoded.held()).await? {
        came += data.len();
        if came > cap {
            return Err(too_large(cap));
        }
        decoded.take(&data, &mut share).await?;
    }
    let bytes = decoded.finish(&mut share)?;
    Ok((came, bytes, share))
}

/// A body as far as it is decoded.
struct Decoded {
    chain: Chain,
    room: Room,
    /// Bytes of work since the last turn of others.
    worked: usize,
}

impl Decoded {
    fn new(codings: &Codings, cap: usize) -> Self {
        Self { chain: Chain::new(&codings.0, cap), room: Room::new(cap), worked: 0 }
    }

    async fn take(&mut self, mut data: &[u8], share: &mut Reservation) -> Result<(), Error> {
        loop {
            let chain_holds = self.chain.held();
            let turn = self.chain.step(&mut data, |made| {
                // Before it is allocated.
                share.grow(chain_holds + self.room.held_with(made.len()))?;
                self.room.push(made);
                Ok::<_, Error>(())
            })?;
            let Turn::Moved(bytes) = turn else { return Ok(()) };
            share.grow(self.held())?;
            self.worked += bytes;
            if self.worked >= TURN {
                self.worked = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    fn finish(self, share: &mut Reservation) -> Result<Bytes, Error> {
        self.chain.finish()?;
        let whole = self.room.whole();
        share.shrink(whole.len());
        Ok(whole)
    }

    fn held(&self) -> usize {
        self.room.held() + self.chain.held()
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        let message = match stop {
            Stop::TooLarge { cap } => return too_large(cap),
            Stop::Truncated { coding, at } => {
                format!("the body ends inside its {} coding, after {at} bytes of it: send all of it", coding.name())
            }
            Stop::Fault { coding, at, fault } => {
                let name = coding.name();
                match fault {
                    Fault::Broken => format!(
                        "the body's {name} coding breaks near byte {at}: send what Content-Encoding says, or take it out"
                    ),
                    Fault::Trailing => format!("the body goes on after its {name} coding has ended at byte {at}"),
                    Fault::Window => {
                        format!("the body's {name} window is larger than 8 MiB (RFC 9659): send it with less")
                    }
                }
            }
        };
        Self::new(Kind::BadRequest, message)
    }
}

#[cfg(test)]
mod tests;
