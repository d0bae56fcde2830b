//! What one engine alone needs of a body, edited for each try: after the cache's key, as only now it is known who gets
//! it.
//!
//! * A shared stream tells its usage, so that it serves those who want it too, where the engine takes that and the
//!   stream can be changed back.
//! * The token limit gets the name that the engine knows, where the gateway has a word in it.
//! * The tenant's prefixes are kept apart.

use std::ops::Range;

use bytes::Bytes;
use metrics::Counter;

use crate::{
    body::Body,
    fleet::Backend,
    protocol::{
        endpoint::Endpoint,
        engine::Engine,
        json::{Edits, Malformed, Reader, decode},
        usage::ask,
    },
    proxy::{call::Call, salt::Salt},
    telemetry::metrics::{Name, Table},
};

/// What is edited, and what was.
#[derive(Debug)]
pub struct Own {
    /// `max_tokens_cap` or `default_max_tokens` is set: a limit that the engine does not hear would be none.
    pub limits: bool,
    pub counters: Counters,
}

/// Handles of one worker's table.
#[derive(Clone, Debug)]
pub struct Counters {
    limit: Counter,
    salt: Counter,
}

impl Counters {
    /// Registers every series in `table`.
    pub fn new(table: &Table) -> Self {
        let edit = |edit| table.counter(Name::PayloadEdits, &[("edit", edit)]);
        Self { limit: edit("limit_name"), salt: edit("cache_salt") }
    }
}

impl Own {
    /// The body for a try at `backend`: `body`, unless it has to be edited or `fitted` takes its place.
    pub(super) fn body(&self, call: &Call, backend: &Backend, fitted: Option<&Bytes>, body: Body) -> Body {
        let engine = backend.engine();
        let whole = fitted.or_else(|| call.payload.bytes());
        let asks = call.ask_usage && ask::takes(engine, call.endpoint);
        let renames = self.limits && knows_max_tokens_alone(engine, call.endpoint);
        let salt = call.salt.filter(|_| takes_salt(engine, call.endpoint));
        call.record.usage_asked.set(call.asked.usage);
        if !asks && !renames && salt.is_none() {
            return fitted.cloned().map_or(body, Body::whole);
        }
        let Some(whole) = whole else { return body };
        let mut edits = Edits::default();
        if asks && let Some((at, text)) = ask::with_usage(whole) {
            call.record.usage_asked.set(true);
            edits.replace(at, text.as_bytes(), ());
        }
        if renames && rename_limit(whole, &mut edits).unwrap_or_default() {
            self.counters.limit.increment(1);
        }
        if let Some(salt) = salt
            && put_salt(whole, salt, &mut edits).unwrap_or_default()
        {
            self.counters.salt.increment(1);
        }
        if edits.is_empty() {
            return fitted.cloned().map_or(body, Body::whole);
        }
        edits.sort();
        Body::whole(edits.apply(whole))
    }
}

/// TGI's and Ollama's chats ignore `max_completion_tokens`; vLLM, SGLang and llama.cpp take both names.
fn knows_max_tokens_alone(engine: Option<Engine>, endpoint: Endpoint) -> bool {
    endpoint == Endpoint::Chat && matches!(engine, Some(Engine::Tgi | Engine::Ollama))
}

/// vLLM takes a `cache_salt` wherever it reads a prompt, SGLang on these two. Others have no such field.
fn takes_salt(engine: Option<Engine>, endpoint: Endpoint) -> bool {
    match engine {
        Some(Engine::Vllm) => !matches!(
            endpoint,
            Endpoint::CountTokens | Endpoint::Response | Endpoint::Models | Endpoint::Model | Endpoint::Passthrough
        ),
        Some(Engine::Sglang) => matches!(endpoint, Endpoint::Chat | Endpoint::Completions),
        _ => false,
    }
}

/// Gives a limit that is named `max_completion_tokens` alone the name `max_tokens`.
fn rename_limit(body: &[u8], edits: &mut Edits) -> Result<bool, Malformed> {
    let (mut new, mut old) = (None, None);
    Reader::new(body).members(|reader, key| {
        let found = match &*key.name() {
            b"max_completion_tokens" => &mut new,
            b"max_tokens" => &mut old,
            _ => return reader.skip(),
        };
        *found = Some((key.literal(), reader.span()?));
        Ok(())
    })?;
    let null = |(_, value): &(Range<usize>, Range<usize>)| body[value.clone()] == *b"null";
    match (new, old) {
        (Some(new), None) if !null(&new) => edits.replace(new.0, &br#""max_tokens""#[..], ()),
        (Some(new), Some(old)) if !null(&new) && null(&old) => edits.replace(old.1, body[new.1].to_vec(), ()),
        _ => return Ok(false),
    }
    Ok(true)
}

/// Puts the tenant's salt in, in place of one that the client sent.
fn put_salt(body: &[u8], salt: Salt, edits: &mut Edits) -> Result<bool, Malformed> {
    let mut reader = Reader::new(body);
    if reader.peek()? != b'{' {
        return Ok(false);
    }
    let (open, mut empty, mut own) = (reader.offset() + 1, true, None);
    reader.members(|reader, key| {
        empty = false;
        if key.is(b"cache_salt") {
            own = Some(reader.span()?);
            return Ok(());
        }
        reader.skip()
    })?;
    let text = |own: &[u8]| format!("\"{}\"", salt.text(&decode(own)));
    match own {
        // Of duplicates the last counts.
        Some(at) if body[at.clone()] != *b"null" => edits.replace(at.clone(), text(&body[at]).into_bytes(), ()),
        Some(at) => edits.replace(at, text(b"").into_bytes(), ()),
        None => {
            let comma = if empty { "" } else { "," };
            edits.replace(open..open, format!("\"cache_salt\":{}{comma}", text(b"")).into_bytes(), ());
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::proxy::salt::Salts;

    fn edited(body: &str, edit: impl Fn(&[u8], &mut Edits) -> Result<bool, Malformed>) -> Option<String> {
        let mut edits = Edits::default();
        let made = edit(body.as_bytes(), &mut edits).unwrap_or_default();
        made.then(|| String::from_utf8_lossy(&edits.apply(body.as_bytes())).into_owned())
    }

    #[test]
    fn a_limit_gets_the_name_that_is_known() {
        for (body, expected) in [
            (r#"{"max_completion_tokens" : 5}"#, Some(r#"{"max_tokens" : 5}"#)),
            (r#"{"max_tokens":null,"max_completion_tokens":5}"#, Some(r#"{"max_tokens":5,"max_completion_tokens":5}"#)),
            (r#"{"max_tokens":4,"max_completion_tokens":5}"#, None),
            (r#"{"max_completion_tokens":null}"#, None),
            ("{}", None),
            ("[", None),
        ] {
            assert_eq!(edited(body, rename_limit).as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn a_salt_is_the_gateways_own() {
        let salt = Salts::new(None).of(None, &HeaderMap::new());
        let put = |body: &str| edited(body, |body, edits| put_salt(body, salt, edits));
        let (none, own) = (salt.text(""), salt.text("\"mine\""));
        assert_eq!(put("{}"), Some(format!(r#"{{"cache_salt":"{none}"}}"#)));
        assert_eq!(put(r#" { "a":1}"#), Some(format!(r#" {{"cache_salt":"{none}", "a":1}}"#)));
        assert_eq!(put(r#"{"cache_salt":null}"#), Some(format!(r#"{{"cache_salt":"{none}"}}"#)));
        assert_eq!(put(r#"{"a":1,"cache_salt" : "mine"}"#), Some(format!(r#"{{"a":1,"cache_salt" : "{own}"}}"#)));
        assert_eq!(put("[]"), None);
    }

    #[test]
    fn only_engines_that_know_it_get_a_salt() {
        assert!(takes_salt(Some(Engine::Vllm), Endpoint::Messages));
        assert!(takes_salt(Some(Engine::Sglang), Endpoint::Chat));
        assert!(!takes_salt(Some(Engine::Sglang), Endpoint::Messages));
        assert!(!takes_salt(Some(Engine::Vllm), Endpoint::Passthrough));
        assert!(!takes_salt(Some(Engine::OpenAi), Endpoint::Chat));
        assert!(!takes_salt(None, Endpoint::Chat));
    }
}
