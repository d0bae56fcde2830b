//! `/tokenize` and `/detokenize`, which each engine has under the same path and with members of its own.

use bytes::Bytes;
use http::uri::PathAndQuery;

use super::{completions::write_ids, write_string};
use crate::protocol::json::{Raw, Reader, Writer};

/// vLLM and SGLang read `prompt` and `add_special_tokens`, llama.cpp `content` and `add_special`.
pub(super) fn tokenize(model: Option<Raw<'_>>, text: &str) -> (PathAndQuery, Bytes) {
    let mut writer = writer(model, 2 * text.len());
    write_string(writer.name("prompt"), text);
    write_string(writer.name("content"), text);
    writer.member("add_special_tokens", "false");
    writer.member("add_special", "false");
    (PathAndQuery::from_static("/tokenize"), writer.finish().into())
}

pub(super) fn detokenize(model: Option<Raw<'_>>, ids: &[u32]) -> (PathAndQuery, Bytes) {
    let mut writer = writer(model, 8 * ids.len());
    write_ids(writer.name("tokens"), ids.iter());
    (PathAndQuery::from_static("/detokenize"), writer.finish().into())
}

fn writer(model: Option<Raw<'_>>, size: usize) -> Writer {
    let mut writer = Writer::new(size + 128);
    if let Some(model) = model {
        writer.member("model", model.0);
    }
    writer
}

/// The number of tokens in an answer of `/tokenize`: `count`, else the length of `tokens`.
pub fn token_count(body: &[u8]) -> Option<u64> {
    let (mut count, mut listed) = (None, None);
    let mut reader = Reader::new(body);
    let read = reader.members(|reader, key| {
        if key.is(b"count") {
            count = reader.unsigned()?;
            return Ok(());
        }
        if !key.is(b"tokens") || reader.peek()? != b'[' {
            return reader.skip();
        }
        let mut length = 0;
        reader.elements(|reader| {
            length += 1;
            reader.skip()
        })?;
        listed = Some(length);
        Ok(())
    });
    read.and_then(|()| reader.finish()).ok().and(count.or(listed))
}

/// How many tokens prompt and answer may have together, in an answer of vLLM's `/tokenize`.
pub fn context_length(body: &[u8]) -> Option<u64> {
    let mut length = None;
    let mut reader = Reader::new(body);
    let read = reader.members(|reader, key| {
        if key.is(b"max_model_len") {
            length = reader.unsigned()?;
            return Ok(());
        }
        reader.skip()
    });
    read.and_then(|()| reader.finish()).ok().and(length)
}

/// The text in an answer of `/detokenize`: `prompt` (vLLM), `text` (SGLang) or `content` (llama.cpp).
pub fn detokenized(body: &[u8]) -> Option<String> {
    let mut found = None;
    let mut reader = Reader::new(body);
    let read = reader.members(|reader, key| {
        if !matches!(key.name().as_ref(), b"prompt" | b"text" | b"content") {
            return reader.skip();
        }
        if let Some(text) = reader.text()? {
            found = Some(text.decode().into_owned());
        }
        Ok(())
    });
    read.and_then(|()| reader.finish()).ok().and(found)
}
