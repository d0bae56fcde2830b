//! Whatever passes is JSON that another parser takes, says the same to the scan that judges nothing, and passes the
//! light level if it passes the strict one. Whatever is refused says where.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::protocol::{
    endpoint::Endpoint,
    json,
    request::{Level, read},
};

const ENDPOINTS: [Endpoint; 8] = [
    Endpoint::Chat,
    Endpoint::Completions,
    Endpoint::Embeddings,
    Endpoint::Responses,
    Endpoint::Messages,
    Endpoint::CountTokens,
    Endpoint::Rerank,
    Endpoint::Score,
];

fuzz_target!(|body: &[u8]| {
    let scanned = json::scan(body);
    for endpoint in ENDPOINTS {
        let (light, strict) = (read(endpoint, body, Level::Light), read(endpoint, body, Level::Strict));
        match (&light, &strict) {
            (Ok(light), Ok(strict)) => assert_eq!(light, strict),
            (Err(_), Ok(_)) => panic!("strict is stricter"),
            _ => {}
        }
        for invalid in [&light, &strict].into_iter().filter_map(|judged| judged.as_ref().err()) {
            assert!(!invalid.message.is_empty() && invalid.message.len() < 1024);
            assert!(invalid.param.as_deref() != Some(""));
        }
        let Ok(light) = light else { continue };
        let scanned = scanned.as_ref().expect("what is judged well passes the scan");
        let mut scanned = scanned.clone();
        if !matches!(endpoint, Endpoint::Chat | Endpoint::Completions) {
            // Nobody else has this.
            scanned.include_usage = None;
        }
        assert_eq!(light, scanned);
        // Another parser has bounds of its own (levels, surrogates, numbers), but agrees on the grammar.
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        if let Err(e) = serde_json::from_slice::<&serde_json::value::RawValue>(body) {
            assert!(e.to_string().contains("recursion"), "{e}");
        }
    }
});
