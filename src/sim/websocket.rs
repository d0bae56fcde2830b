//! A WebSocket (RFC 6455) that echoes, at `/v1/realtime`: enough to see that a tunnel is one.

use super::{
    coding::{base64, sha1},
    state::Request,
    wire::{Framing, Head, Leave, NoRequest, Wire},
};

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The longest frame that is echoed.
const MOST: usize = 1024 * 1024;

/// Whether this is a handshake.
pub(crate) fn wanted(request: &Request) -> bool {
    request.path() == "/v1/realtime"
        && request.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// Answers the handshake and echoes text and binary messages until either side closes.
pub(crate) async fn serve(wire: &mut Wire, request: &Request) -> Result<(), Leave> {
    let Some(key) = request.header("sec-websocket-key") else {
        wire.close = true;
        return wire.whole(&Head::new(400, "text/plain"), b"sec-websocket-key is missing").await;
    };
    let accept = base64(&sha1(format!("{key}{GUID}").as_bytes()));
    let head = Head::new(101, "")
        .with("upgrade", "websocket")
        .with("connection", "Upgrade")
        .with("sec-websocket-accept", accept);
    wire.close = true;
    wire.begin(&head, Framing::None).await?;
    let mut read = Vec::new();
    loop {
        let Some((frame, used)) = Frame::parse(&read)? else {
            match wire.more_raw().await {
                Ok(bytes) => read.extend_from_slice(&bytes),
                Err(NoRequest::End | NoRequest::Http2 | NoRequest::Bad(_)) => return Err(Leave::Gone),
            }
            continue;
        };
        read.drain(..used);
        let opcode = match frame.opcode {
            PING => PONG,
            PONG => continue,
            same => same,
        };
        wire.raw(&write(frame.last, opcode, &frame.payload)).await?;
        if opcode == CLOSE {
            return Ok(());
        }
    }
}

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

#[derive(Debug, PartialEq)]
struct Frame {
    last: bool,
    opcode: u8,
    payload: Vec<u8>,
}

impl Frame {
    /// A frame of a client (masked) at the start of `bytes` and its length; `None` while it is not whole.
    fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Leave> {
        let [first, second, ..] = bytes else { return Ok(None) };
        let (length, at) = match (second & 0x7f, &bytes[2..]) {
            (126, [a, b, ..]) => (usize::from(u16::from_be_bytes([*a, *b])), 4),
            (127, [a, b, c, d, e, f, g, h, ..]) => {
                let length = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
                (usize::try_from(length).unwrap_or(usize::MAX), 10)
            }
            (126 | 127, _) => return Ok(None),
            (short, _) => (usize::from(short), 2),
        };
        if length > MOST || second & 0x80 == 0 {
            return Err(Leave::Fin);
        }
        let Some(rest) = bytes.get(at..at + 4 + length) else { return Ok(None) };
        let (mask, masked) = rest.split_at(4);
        let payload = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        Ok(Some((Self { last: first & 0x80 != 0, opcode: first & 0x0f, payload }, at + 4 + length)))
    }
}

/// A frame of a server: not masked.
fn write(last: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![u8::from(last) << 7 | opcode];
    match payload.len() {
        short @ ..126 => out.push(short as u8),
        medium @ 126..0x1_0000 => {
            out.push(126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frames_of_rfc_6455() {
        let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let hello = Frame { last: true, opcode: 1, payload: b"Hello".to_vec() };
        assert_eq!(Frame::parse(&masked).unwrap(), Some((hello, 11)));
        assert_eq!(Frame::parse(&masked[..10]).unwrap(), None);
        assert_eq!(write(true, 1, b"Hello"), [0x81, 5, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        assert_eq!(write(true, 2, &[0; 256])[..4], [0x82, 126, 1, 0]);
    }
}
