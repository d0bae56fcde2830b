//! A body that is taken has its model where the span says, and an edit of it changes nothing else.

#![no_main]

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use sluicegate::protocol::{engine, json, rename};

fuzz_target!(|body: &[u8]| {
    let _ = engine::detect(None, body);
    let _ = engine::detect_by_info(body);
    if let Ok(models) = engine::parse_models(body) {
        assert!(models.iter().all(|model| model.raw.starts_with(b"{") && model.raw.ends_with(b"}")));
    }
    let _ = rename::rename_in_answer(body, "new");
    let Ok(fields) = json::scan(body) else { return };
    let Some(model) = &fields.model else { return };
    let renamed = |body: &[u8], at: &Range<usize>, name: &str| {
        let (mut edits, mut literal) = (json::Edits::default(), Vec::new());
        json::write_string(&mut literal, name);
        edits.replace(at.clone(), literal, ());
        edits.apply(body)
    };
    let edited = renamed(body, &model.span, "new \"name\"");
    let again = json::scan(&edited).expect("an edited body is as well-formed as before");
    let new = again.model.as_ref().expect("the name is where it was");
    assert_eq!(new.text, "new \"name\"");
    assert_eq!(renamed(&edited, &new.span, &model.text), renamed(body, &model.span, &model.text));
    assert_eq!((again.stream, again.token_limit(), again.n), (fields.stream, fields.token_limit(), fields.n));
});
