//! No body makes an edit write invalid JSON or change what it should not: what comes out is what the same edits make of
//! the parsed tree, every spelling as it was, and a second time changes nothing.

#![no_main]

#[path = "../../../src/proxy/normalize/edit/tests/tree.rs"]
mod tree;

use std::{collections::HashMap, sync::Arc};

use libfuzzer_sys::fuzz_target;
// The tree names them as the crate does.
use sluicegate::{config, protocol, proxy};
use sluicegate::{
    config::{Normalize, Validate},
    protocol::{endpoint::Endpoint, json},
    proxy::normalize::edit::{Alias, Plan, changes},
};

const ENDPOINTS: [Endpoint; 8] = [
    Endpoint::Chat,
    Endpoint::Completions,
    Endpoint::Responses,
    Endpoint::Messages,
    Endpoint::CountTokens,
    Endpoint::Embeddings,
    Endpoint::Rerank,
    Endpoint::Passthrough,
];

const STRIPS: [&[&str]; 4] =
    [&[], &["user", "metadata.trace"], &["metadata.a.b", "seed", "max_tokens.x"], &["model", "metadata", "metadata.a"]];

// The first byte chooses the endpoint, the second the edits.
fuzz_target!(|input: &[u8]| {
    let [endpoint, edits, body @ ..] = input else { return };
    let (endpoint, config) = (ENDPOINTS[usize::from(endpoint & 7)], config_of(*edits));
    let plan = Plan::new(&config);
    let Ok(fields) = json::scan(body) else { return };
    let named = fields.model.as_ref().filter(|model| model.text == "alias");
    let made = plan.edits(endpoint, body, named.map(|model| Alias { at: &model.span, model: "m" }));
    let tree = std::str::from_utf8(body).ok().filter(|_| is_strict(body)).and_then(tree::Node::parse);
    let expected = tree.map(|tree| tree::edited(&tree, &config, endpoint));
    let Ok(edits) = made else {
        assert!(!matches!(expected, Some(Ok(_))) || body.len() > 4096, "refused, but not on the tree");
        return;
    };
    let out = edits.apply(body);
    assert_eq!(out.len(), edits.length(body, edits.blanks(body)));
    let saved: i64 = changes(body, &edits).iter().map(|change| change.saved).sum();
    assert_eq!(saved, body.len() as i64 - out.len() as i64);
    assert!(json::scan(&out).is_ok(), "an edited body is as well-formed as before");
    if let Some(expected) = expected {
        let out = std::str::from_utf8(&out).ok().and_then(tree::Node::parse);
        assert_eq!(out, expected.ok(), "on the tree it is another");
    }
    let again = plan.edits(endpoint, &out, None).expect("it was taken before");
    assert_eq!(again.apply(&out), out);
});

/// Whether another parser takes it: the check here is light.
fn is_strict(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body).is_ok()
}

fn config_of(edits: u8) -> Normalize {
    let prompts: HashMap<Arc<str>, Arc<str>> = HashMap::from([("terse".into(), "Be \"terse\".\n".into())]);
    Normalize {
        validate: Validate::Off,
        minify: edits & 1 > 0,
        nulls: edits & 2 > 0,
        dedupe_images: false,
        max_tokens_cap: (edits & 4 > 0).then_some(100),
        default_max_tokens: (edits & 8 > 0).then_some(16),
        strip: STRIPS[usize::from(edits >> 5 & 3)].iter().map(|path| (*path).to_owned()).collect(),
        system_prompts: if edits & 16 > 0 { prompts } else { HashMap::new() },
        max_pixels: None,
        isolate_prefix_cache: false,
    }
}
