//! Heads: the answer's, read strictly (RFC 9112 §2.2, §4, §5, §6), and the request's, written.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::{MAX_HEADERS, MAX_INTERIM, Malformed, framing::Framing};
use crate::client::{Head, Target};

/// An answer's head, and what it says about the connection.
#[derive(Debug)]
pub struct AnswerHead {
    pub status: StatusCode,
    /// Without what concerns this connection only.
    pub headers: HeaderMap,
    pub framing: Framing,
    pub keep: Keep,
}

/// Whether and how long the connection may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    pub alive: bool,
    /// `Keep-Alive: timeout`, seconds.
    pub timeout: Option<u32>,
    /// `Keep-Alive: max`, requests.
    pub max: Option<u32>,
}

/// Collects one final head out of reads of any size. Holds bytes only while a head came in part.
#[derive(Debug)]
pub struct Reader {
    partial: Vec<u8>,
    scanned: usize,
    interim: u32,
    limit: usize,
    to_head: bool,
    upgrade: bool,
}

impl Reader {
    /// A reader for the answer to one request: `to_head` for HEAD, `upgrade` when 101 was asked for.
    pub fn new(limit: usize, to_head: bool, upgrade: bool) -> Self {
        Self { partial: Vec::new(), scanned: 0, interim: 0, limit, to_head, upgrade }
    }

    /// Takes the next bytes; once the final head is complete, gives it and how many of `bytes` belong to it.
    ///
    /// # Errors
    /// The answer is malformed, or over a bound.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<(AnswerHead, usize)>, Malformed> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let before = self.partial.len();
            if before == 0 {
                let Some(end) = self.find_end(rest)? else {
                    self.partial.extend_from_slice(rest);
                    return Ok(None);
                };
                at += end;
                if let Some(head) = self.finish(&rest[..end])? {
                    return Ok(Some((head, at)));
                }
            } else {
                // At most one head's worth is added, whatever else came with it.
                let take = rest.len().min(self.limit + 1 - before.min(self.limit));
                let mut partial = std::mem::take(&mut self.partial);
                partial.extend_from_slice(&rest[..take]);
                let Some(end) = self.find_end(&partial)? else {
                    self.partial = partial;
                    at += take;
                    continue;
                };
                at += end - before;
                if let Some(head) = self.finish(&partial[..end])? {
                    return Ok(Some((head, at)));
                }
            }
        }
        Ok(None)
    }

    /// Looks for the empty line, from where the last look ended.
    fn find_end(&mut self, buf: &[u8]) -> Result<Option<usize>, Malformed> {
        const START: &[u8] = b"HTTP/1.";
        let known = buf.len().min(START.len());
        if buf[..known] != START[..known] {
            return Err(Malformed::NotHttp);
        }
        for at in memchr::memchr_iter(b'\n', &buf[self.scanned..]) {
            let at = self.scanned + at;
            if at >= self.limit {
                return Err(Malformed::HeadTooLarge);
            }
            if at == 0 || buf[at - 1] != b'\r' {
                return Err(Malformed::BareLineFeed);
            }
            if buf[..at].ends_with(b"\r\n\r") {
                self.scanned = 0;
                return Ok(Some(at + 1));
            }
        }
        if buf.len() > self.limit {
            return Err(Malformed::HeadTooLarge);
        }
        self.scanned = buf.len();
        Ok(None)
    }

    fn finish(&mut self, raw: &[u8]) -> Result<Option<AnswerHead>, Malformed> {
        let head = parse(raw, self.to_head, self.upgrade)?;
        if head.is_none() {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(Malformed::TooManyInterim);
            }
        }
        Ok(head)
    }
}

/// Room for what the gateway adds to an answer, so that its map is made once.
const OWN_FIELDS: usize = 4;

/// Parses one whole head; `None` for an interim answer.
fn parse(raw: &[u8], to_head: bool, upgrade: bool) -> Result<Option<AnswerHead>, Malformed> {
    // One exact copy; the values are slices of it.
    let raw = Bytes::copy_from_slice(raw);
    let mut slots = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let size = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, &raw, &mut slots)
        .map_err(malformed)?;
    if size != httparse::Status::Complete(raw.len()) {
        return Err(Malformed::Header);
    }
    let http11 = parsed.version == Some(1);
    let code = parsed.code.filter(|code| *code < 600).ok_or(Malformed::Status)?;
    let status = StatusCode::from_u16(code).map_err(|_| Malformed::Status)?;
    if status.is_informational() {
        match status {
            StatusCode::SWITCHING_PROTOCOLS if upgrade && http11 => {}
            StatusCode::SWITCHING_PROTOCOLS => return Err(Malformed::UnaskedUpgrade),
            _ => return Ok(None),
        }
    }
    let mut fields = Fields::default();
    let mut headers = HeaderMap::with_capacity(parsed.headers.len() + OWN_FIELDS);
    for field in parsed.headers.iter() {
        let name = name(field.name)?;
        let value = field.value.trim_ascii();
        match fields.take(&name, value)? {
            Taken::Codec if upgrade && name == header::UPGRADE => {}
            Taken::Codec => continue,
            Taken::Content => {}
        }
        let value = HeaderValue::from_maybe_shared(raw.slice_ref(value)).map_err(|_| Malformed::Header)?;
        headers.append(name, value);
    }
    let framing = fields.framing(status, http11, to_head)?;
    fields.clean(&mut headers, status);
    let alive = if http11 { !fields.close } else { fields.keep_alive && !fields.close };
    let keep = Keep { alive: alive && framing != Framing::Close, timeout: fields.timeout, max: fields.max };
    Ok(Some(AnswerHead { status, headers, framing, keep }))
}

/// The name of a field. Those that nearly every answer has are known at sight; any other is looked up.
fn name(text: &str) -> Result<HeaderName, Malformed> {
    // Most servers write small letters: a comparison by words.
    let is = |known: &str| text == known || text.eq_ignore_ascii_case(known);
    Ok(match text.len() {
        4 if is("date") => header::DATE,
        6 if is("server") => header::SERVER,
        10 if is("connection") => header::CONNECTION,
        12 if is("content-type") => header::CONTENT_TYPE,
        13 if is("cache-control") => header::CACHE_CONTROL,
        14 if is("content-length") => header::CONTENT_LENGTH,
        17 if is("transfer-encoding") => header::TRANSFER_ENCODING,
        _ => HeaderName::from_bytes(text.as_bytes()).map_err(|_| Malformed::Header)?,
    })
}

fn malformed(error: httparse::Error) -> Malformed {
    match error {
        httparse::Error::TooManyHeaders => Malformed::TooManyHeaders,
        httparse::Error::Status => Malformed::Status,
        httparse::Error::Version => Malformed::NotHttp,
        _ => Malformed::Header,
    }
}

/// Whose a field is.
enum Taken {
    /// The connection's: it goes no further.
    Codec,
    /// The answer's.
    Content,
}

/// The fields that speak about framing and the connection.
#[derive(Default)]
struct Fields {
    length: Option<u64>,
    /// The length was written in another way than we would, and is put in anew.
    length_anew: bool,
    coded: bool,
    close: bool,
    keep_alive: bool,
    timeout: Option<u32>,
    max: Option<u32>,
    /// What `Connection` names beside `close` and `keep-alive`.
    named: Vec<HeaderName>,
}

impl Fields {
    /// Reads a field if it is one of these.
    fn take(&mut self, name: &HeaderName, value: &[u8]) -> Result<Taken, Malformed> {
        if name == header::CONTENT_LENGTH {
            return self.take_length(value);
        }
        if name == header::TRANSFER_ENCODING {
            // Only ever the one coding, said once: everything else has been used to smuggle.
            if self.coded || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed::Coding);
            }
            self.coded = true;
        } else if name == header::CONNECTION {
            self.take_connection(value);
        } else if name.as_str() == "keep-alive" {
            self.take_keep_alive(value);
        } else {
            return Ok(if is_hop_by_hop(name) { Taken::Codec } else { Taken::Content });
        }
        Ok(Taken::Codec)
    }

    /// `5` and `5, 5` are the length 5; anything else is malformed.
    fn take_length(&mut self, value: &[u8]) -> Result<Taken, Malformed> {
        let is_first = self.length.is_none();
        for item in value.split(|byte| *byte == b',') {
            let item = item.trim_ascii();
            if item.is_empty() || item.len() > 19 || !item.iter().all(u8::is_ascii_digit) {
                return Err(Malformed::Length);
            }
            // 19 digits always fit.
            let length = item.iter().fold(0, |sum: u64, digit| sum * 10 + u64::from(digit - b'0'));
            if self.length.is_some_and(|known| known != length) {
                return Err(Malformed::Length);
            }
            self.length = Some(length);
        }
        let is_plain = matches!(value, [b'0'] | [b'1'..=b'9', ..]) && !value.contains(&b',');
        if is_first && is_plain {
            return Ok(Taken::Content);
        }
        self.length_anew |= is_first;
        Ok(Taken::Codec)
    }

    fn take_connection(&mut self, value: &[u8]) {
        for item in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if item.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if item.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if let Ok(name) = HeaderName::from_bytes(item)
                && !is_hop_by_hop(&name)
            {
                self.named.push(name);
            }
        }
    }

    fn take_keep_alive(&mut self, value: &[u8]) {
        for item in value.split(|byte| *byte == b',') {
            let Some(equals) = memchr::memchr(b'=', item) else { continue };
            let number = std::str::from_utf8(item[equals + 1..].trim_ascii()).ok().and_then(|n| n.parse().ok());
            match item[..equals].trim_ascii() {
                name if name.eq_ignore_ascii_case(b"timeout") => self.timeout = number,
                name if name.eq_ignore_ascii_case(b"max") => self.max = number,
                _ => {}
            }
        }
    }

    /// RFC 9112 §6.3.
    fn framing(&self, status: StatusCode, http11: bool, to_head: bool) -> Result<Framing, Malformed> {
        if self.coded && self.length.is_some() {
            return Err(Malformed::TwoFramings);
        }
        if self.coded && !http11 {
            return Err(Malformed::Coding);
        }
        Ok(match status {
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::SWITCHING_PROTOCOLS => Framing::Empty,
            _ if to_head => Framing::Empty,
            _ if self.coded => Framing::Chunked,
            _ => self
                .length
                .map_or(Framing::Close, |length| if length == 0 { Framing::Empty } else { Framing::Length(length) }),
        })
    }

    /// Takes out what `Connection` names; leaves one length, where the status may have any.
    fn clean(&self, headers: &mut HeaderMap, status: StatusCode) {
        for name in self.named.iter().filter(|name| *name != header::CONTENT_LENGTH) {
            headers.remove(name);
        }
        let Some(length) = self.length else { return };
        if status == StatusCode::NO_CONTENT || status.is_informational() {
            headers.remove(header::CONTENT_LENGTH);
        } else if self.length_anew {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
    }
}

/// Fields that concern one connection only (RFC 9110 §7.6.1).
pub(in crate::client) fn is_hop_by_hop(name: &HeaderName) -> bool {
    // By length first: this is asked for every field of every head.
    match name.as_str().len() {
        2 => name == header::TE,
        7 => name == header::UPGRADE,
        10 => name == header::CONNECTION || name.as_str() == "keep-alive",
        16 => name.as_str() == "proxy-connection",
        17 => name == header::TRANSFER_ENCODING,
        _ => false,
    }
}

/// Whether the codec writes this request field itself, or must not send it at all: `Expect` is answered on the
/// client's side of the gateway.
fn is_ours(name: &HeaderName) -> bool {
    match name.as_str().len() {
        4 => name == header::HOST,
        6 => name == header::EXPECT,
        14 => name == header::CONTENT_LENGTH,
        _ => is_hop_by_hop(name),
    }
}

/// How a request's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// No body: a length of 0 is said where the method usually has one.
    Nothing,
    Length(u64),
    Chunked,
    /// No body, and the connection is asked to become another protocol.
    Upgrade,
}

/// Writes a request's head.
pub(super) fn write(out: &mut Vec<u8>, target: &Target, head: &Head<'_>, body: Sent) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.prefix(head.path).as_bytes());
    out.extend_from_slice(head.path.as_str().as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if !head.extra.iter().any(|(name, _)| name == header::HOST) {
        field(out, b"host", target.authority().as_bytes());
    }
    for (name, value) in head.headers {
        if !is_ours(name) && !head.extra.iter().any(|(extra, _)| extra == name) {
            field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    for (name, value) in head.extra {
        if name == header::HOST || !is_ours(name) {
            field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    write_framing(out, head, body);
    out.extend_from_slice(b"\r\n");
}

fn write_framing(out: &mut Vec<u8>, head: &Head<'_>, body: Sent) {
    match body {
        Sent::Nothing if matches!(*head.method, Method::POST | Method::PUT | Method::PATCH) => {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        Sent::Nothing => {}
        Sent::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            decimal(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Sent::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Sent::Upgrade => {
            let protocol = head.headers.get(header::UPGRADE).map_or(&b"websocket"[..], HeaderValue::as_bytes);
            field(out, b"connection", b"upgrade");
            field(out, b"upgrade", protocol);
        }
    }
}

pub(super) fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes digits without the formatting machinery.
fn decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
