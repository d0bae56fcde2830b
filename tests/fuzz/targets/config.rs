//! Any text is a configuration or a list of problems, and every problem can be shown.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sluicegate::config::{Env, Flags, Format, from_text, render};

fuzz_target!(|text: &str| {
    let env: Env = [("A", "1"), ("EMPTY", "")].into_iter().collect();
    match from_text(text, Some(Path::new("fuzz.yaml")), &env, &Flags::default()) {
        Ok(loaded) => drop(loaded.config.view()),
        Err(problems) => {
            assert!(!problems.is_empty());
            for format in [Format::Human, Format::Json, Format::Github] {
                render(&problems, format);
            }
        }
    }
});
