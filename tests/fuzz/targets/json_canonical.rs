//! A canonical form is its own canonical form and says what the body said.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sluicegate::protocol::json::{Canonicaliser, Omit, Unfit, scan};

fuzz_target!(|body: &[u8]| {
    let mut canonicaliser = Canonicaliser::default();
    let (mut form, mut again) = (Vec::new(), Vec::new());
    let further = ["b".to_owned()];
    let omit = Omit { members: &["user"], further: &further, stream: true, usage: true };
    let shorter = canonicaliser.write(body, &omit, &mut form);
    let short = std::mem::take(&mut form);
    let Ok(notes) = canonicaliser.write(body, &Omit::default(), &mut form) else { return };
    // What is left out is judged all the same; closing its gap counts as work.
    match shorter {
        Ok(noted) => assert!(noted == notes && short.len() <= form.len()),
        Err(unfit) => assert_eq!(unfit, Unfit::Costly),
    }
    assert!(scan(body).is_ok(), "what is strictly valid passes the light check");
    assert_eq!(canonicaliser.write(&form, &Omit::default(), &mut again), Ok(notes));
    assert_eq!(form, again);
    // Another parser reads the same from both, up to its own bound on depth. Numbers have equal spellings.
    let (Ok(before), Ok(after)) = (serde_json::from_slice::<Value>(body), serde_json::from_slice::<Value>(&form))
    else {
        return;
    };
    assert_eq!(before, after);
    // What it writes itself has the same form, unless it spells a number otherwise.
    if !form.iter().any(u8::is_ascii_digit) {
        let written = serde_json::to_vec(&before).expect("a value can be written");
        again.clear();
        assert_eq!(canonicaliser.write(&written, &Omit::default(), &mut again), Ok(notes));
        assert_eq!(form, again);
    }
});
