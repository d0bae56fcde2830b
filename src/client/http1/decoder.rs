//! The reading half of the codec without any I/O: the same [`Reader`] and [`Decoder`] that the exchange uses, fed by
//! hand. Property tests and the fuzzer use it.

use bytes::Bytes;
use http::{HeaderMap, Response};

use super::{
    Malformed,
    framing::Decoder,
    head::{Keep, Reader},
};

/// Reads one answer.
#[derive(Debug)]
pub struct ResponseDecoder {
    reader: Reader,
    body: Option<(Decoder, Keep)>,
    limit: usize,
    ended: bool,
    surplus: bool,
}

/// What a decoder finds.
#[derive(Debug)]
pub enum Event {
    /// The final head.
    Head(Response<()>),
    /// Content, never empty.
    Data(Bytes),
    /// Trailers, after all content.
    Trailers(HeaderMap),
    /// The answer is whole.
    End,
}

/// How the connection's end leaves an answer that was not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEof {
    /// Its end was the end of the answer, or came after it.
    Whole,
    /// The answer was cut.
    Cut,
}

impl ResponseDecoder {
    /// A decoder for the answer to one request. `limit` bounds a head and the trailers, in bytes.
    pub fn new(limit: usize, to_head: bool) -> Self {
        Self { reader: Reader::new(limit, to_head, false), body: None, limit, ended: false, surplus: false }
    }

    /// Takes the next bytes of the connection.
    ///
    /// # Errors
    /// The answer is malformed; what was found before that has been given.
    pub fn push(&mut self, bytes: &[u8], mut on: impl FnMut(Event)) -> Result<(), Malformed> {
        let mut bytes = bytes;
        if self.body.is_none() {
            let Some((head, used)) = self.reader.push(bytes)? else { return Ok(()) };
            bytes = &bytes[used..];
            let mut response = Response::new(());
            *response.status_mut() = head.status;
            *response.headers_mut() = head.headers;
            on(Event::Head(response));
            self.body = Some((Decoder::new(head.framing, self.limit), head.keep));
        }
        let Some((decoder, _)) = &mut self.body else { return Ok(()) };
        let mut copy = bytes.to_vec();
        let step = decoder.decode(&mut copy);
        if !step.data.is_empty() {
            on(Event::Data(Bytes::copy_from_slice(&copy[step.data])));
        }
        if let Some(fault) = step.fault {
            return Err(fault);
        }
        if decoder.is_done() {
            self.surplus |= step.used < bytes.len();
            let trailers = decoder.take_trailers();
            self.finish(trailers, on);
        }
        Ok(())
    }

    /// The connection ended.
    pub fn eof(&mut self, on: impl FnMut(Event)) -> AtEof {
        if self.body.as_ref().is_some_and(|(decoder, _)| decoder.ends_with_connection()) {
            self.finish(None, on);
        }
        if self.ended { AtEof::Whole } else { AtEof::Cut }
    }

    /// Whether the connection may carry another request: the answer is whole, nothing followed it, and it says so.
    pub fn is_reusable(&self) -> bool {
        self.ended && !self.surplus && self.body.as_ref().is_some_and(|(_, keep)| keep.alive)
    }

    fn finish(&mut self, trailers: Option<HeaderMap>, mut on: impl FnMut(Event)) {
        if self.ended {
            return;
        }
        self.ended = true;
        if let Some(trailers) = trailers {
            on(Event::Trailers(trailers));
        }
        on(Event::End);
    }
}
