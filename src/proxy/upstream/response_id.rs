//! Finds the id that a `/v1/responses` answer was given, so that what refers to it returns to its backend.

use std::borrow::Cow;

use serde::Deserialize;

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Created<'a> {
    #[serde(borrow)]
    response: Answer<'a>,
}

/// The id of a plain answer.
pub(super) fn in_answer(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Answer<'_>>(body).ok().map(|answer| answer.id.into_owned())
}

/// The id in the first event of `data` that has one: `response.created`.
pub(super) fn in_event(data: &[u8]) -> Option<String> {
    data.split(|b| *b == b'\n')
        .filter_map(|line| line.strip_prefix(b"data:"))
        .find_map(|json| serde_json::from_slice::<Created<'_>>(json.trim_ascii()).ok())
        .map(|created| created.response.id.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_streamed() {
        assert_eq!(in_answer(br#"{"object":"response","id":"resp_1"}"#).as_deref(), Some("resp_1"));
        let events =
            b"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_2\"}}\n\n";
        assert_eq!(in_event(events).as_deref(), Some("resp_2"));
        assert_eq!(in_event(&events[..40]), None);
    }
}
