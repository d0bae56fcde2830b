//! Where a body ends (RFC 9112 §6.3, §7): a decoder that works in place, so that bytes read into the worker's scratch
//! are copied once, exactly.

use std::ops::Range;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{MAX_EXTENSION, MAX_HEADERS, Malformed};

/// How a body's end is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none: HEAD, 204, 304, length 0.
    Empty,
    /// So many bytes.
    Length(u64),
    /// Chunked coding.
    Chunked,
    /// All until the connection's end.
    Close,
}

/// Takes the framing off one body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    extension_left: u32,
    trailer_limit: usize,
    /// Boxed: rare, and as large as all the rest.
    trailers: Option<Box<HeaderMap>>,
}

/// What one call of [`Decoder::decode`] found.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// The content, joined, as a range of the buffer.
    pub data: Range<usize>,
    /// How many bytes of the buffer belong to this body; less than all of them only at its end or a fault.
    pub used: usize,
    /// What is wrong after `data`; the decoder is of no use from here on.
    pub fault: Option<Malformed>,
}

#[derive(Debug)]
enum State {
    Length(u64),
    Close,
    /// In a chunk size, after so many digits.
    Size {
        value: u64,
        digits: u8,
    },
    /// White space after a chunk size: an extension must follow.
    SizePad {
        value: u64,
    },
    Extension {
        value: u64,
    },
    /// The CR of a chunk-size line was seen.
    SizeLf {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// After the last chunk: an empty line ends the body, anything else is a trailer.
    TrailerStart,
    TrailerLines(Vec<u8>),
    EndLf,
    Done,
    Broken(Malformed),
}

impl Decoder {
    /// A decoder for one body; trailers may have `trailer_limit` bytes.
    pub fn new(framing: Framing, trailer_limit: usize) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { value: 0, digits: 0 },
            Framing::Close => State::Close,
        };
        Self { state, extension_left: MAX_EXTENSION, trailer_limit, trailers: None }
    }

    /// Whether the whole body was seen.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Whether the end of the connection is the end of this body.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self.state, State::Close)
    }

    /// The bytes that are left, when the framing says.
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// The trailers, once the body is done.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take().map(|trailers| *trailers)
    }

    /// Takes `count` bytes that were read past this decoder into a buffer of their own; only when [`Decoder::left`]
    /// says that so many are content.
    pub fn skip(&mut self, count: usize) {
        if let State::Length(left) = &mut self.state {
            *left = left.saturating_sub(count as u64);
            if *left == 0 {
                self.state = State::Done;
            }
        }
    }

    /// Takes the framing off `buf`, moving chunks together. Any split of the same bytes gives the same content, the
    /// same trailers, the same fault.
    pub fn decode(&mut self, buf: &mut [u8]) -> Step {
        match &mut self.state {
            State::Length(left) => {
                let used = usize::try_from(*left).map_or(buf.len(), |left| left.min(buf.len()));
                self.skip(used);
                Step { data: 0..used, used, fault: None }
            }
            State::Close => Step { data: 0..buf.len(), used: buf.len(), fault: None },
            State::Done => Step { data: 0..0, used: 0, fault: None },
            State::Broken(fault) => Step { data: 0..0, used: 0, fault: Some(*fault) },
            _ => self.dechunk(buf),
        }
    }

    fn dechunk(&mut self, buf: &mut [u8]) -> Step {
        let mut data = 0..0;
        let mut at = 0;
        while at < buf.len() && !self.is_done() {
            if let State::Data { left } = &mut self.state {
                let take = usize::try_from(*left).map_or(buf.len() - at, |left| left.min(buf.len() - at));
                *left -= take as u64;
                if *left == 0 {
                    self.state = State::DataCr;
                }
                if data.is_empty() {
                    data = at..at + take;
                } else {
                    buf.copy_within(at..at + take, data.end);
                    data.end += take;
                }
                at += take;
                continue;
            }
            if let Err(fault) = self.step(buf[at]) {
                self.state = State::Broken(fault);
                return Step { data, used: at, fault: Some(fault) };
            }
            at += 1;
        }
        Step { data, used: at, fault: None }
    }

    /// One byte of framing.
    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        match &mut self.state {
            State::Size { value, digits } => match (byte, char::from(byte).to_digit(16)) {
                // 15 digits are more than any body has, and cannot overflow.
                (_, Some(digit)) if *digits < 15 => {
                    *value = *value << 4 | u64::from(digit);
                    *digits += 1;
                }
                (b'\r', _) if *digits > 0 => self.state = State::SizeLf { value: *value },
                (b';', _) if *digits > 0 => self.state = State::Extension { value: *value },
                (b' ' | b'\t', _) if *digits > 0 => self.state = State::SizePad { value: *value },
                _ => return Err(Malformed::ChunkSize),
            },
            State::SizePad { value } => match byte {
                b' ' | b'\t' => return self.count_extension(),
                b';' => self.state = State::Extension { value: *value },
                _ => return Err(Malformed::ChunkSize),
            },
            State::Extension { value } => match byte {
                b'\r' => self.state = State::SizeLf { value: *value },
                b'\t' | b' '..=b'~' | 0x80.. => return self.count_extension(),
                _ => return Err(Malformed::ChunkExtension),
            },
            State::SizeLf { value } => match (byte, *value) {
                (b'\n', 0) => self.state = State::TrailerStart,
                (b'\n', left) => self.state = State::Data { left },
                _ => return Err(Malformed::ChunkSize),
            },
            State::DataCr if byte == b'\r' => self.state = State::DataLf,
            State::DataLf if byte == b'\n' => self.state = State::Size { value: 0, digits: 0 },
            State::DataCr | State::DataLf => return Err(Malformed::ChunkEnd),
            State::TrailerStart if byte == b'\r' => self.state = State::EndLf,
            State::TrailerStart => {
                self.state = State::TrailerLines(Vec::new());
                return self.step(byte);
            }
            State::TrailerLines(lines) => {
                if lines.len() >= self.trailer_limit {
                    return Err(Malformed::Trailer);
                }
                lines.push(byte);
                if byte == b'\n' && !lines.ends_with(b"\r\n") {
                    return Err(Malformed::Trailer);
                }
                if lines.ends_with(b"\r\n\r\n") {
                    self.trailers = parse_trailers(lines)?.map(Box::new);
                    self.state = State::Done;
                }
            }
            State::EndLf if byte == b'\n' => self.state = State::Done,
            State::EndLf => return Err(Malformed::Trailer),
            // `decode` handles these; there is no framing in them.
            State::Length(_) | State::Close | State::Data { .. } | State::Done => {}
            State::Broken(fault) => return Err(*fault),
        }
        Ok(())
    }

    fn count_extension(&mut self) -> Result<(), Malformed> {
        self.extension_left = self.extension_left.checked_sub(1).ok_or(Malformed::ChunkExtension)?;
        Ok(())
    }
}

/// Trailers that may travel on; those that frame, route or belong to one connection are dropped (RFC 9110 §6.5.1).
fn parse_trailers(lines: &[u8]) -> Result<Option<HeaderMap>, Malformed> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let parsed = httparse::parse_headers(lines, &mut slots).map_err(|_| Malformed::Trailer)?;
    let httparse::Status::Complete((_, fields)) = parsed else { return Err(Malformed::Trailer) };
    let mut trailers = HeaderMap::new();
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed::Trailer)?;
        let value = HeaderValue::from_bytes(field.value.trim_ascii()).map_err(|_| Malformed::Trailer)?;
        if may_trail(&name) {
            trailers.append(name, value);
        }
    }
    Ok(Some(trailers).filter(|trailers| !trailers.is_empty()))
}

/// Whether a field may stand after a body, in either direction.
pub(super) fn may_trail(name: &HeaderName) -> bool {
    !super::head::is_hop_by_hop(name)
        && ![
            header::CONTENT_LENGTH,
            header::HOST,
            header::TRAILER,
            header::CONTENT_ENCODING,
            header::CONTENT_TYPE,
            header::CONTENT_RANGE,
            header::AUTHORIZATION,
            header::SET_COOKIE,
        ]
        .contains(name)
}
