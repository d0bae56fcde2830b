//! The sections of bytes: `compression`, `egress`, `normalize`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::Validator;
use crate::config::{
    Compression, Egress, Normalize,
    file::{self, Flush},
};

/// The longest time that an event may wait for others.
const LONGEST_FLUSH: Duration = Duration::from_secs(5);

/// What every request consists of.
const NEEDED: [&str; 5] = ["model", "messages", "prompt", "input", "stream"];

impl Validator<'_> {
    pub(super) fn compression(&mut self, written: &file::Compression) -> Compression {
        let mut algorithms = Vec::new();
        for (i, algorithm) in written.algorithms.iter().enumerate() {
            if algorithms.contains(algorithm) {
                self.error(&format!("compression.algorithms[{i}]"), "is in the list twice", "take one out");
            } else {
                algorithms.push(*algorithm);
            }
        }
        Compression {
            algorithms,
            min_size: usize::try_from(written.min_size.0).unwrap_or(usize::MAX),
            flush: self.flush(written.flush),
            memory: written.memory.0,
            exclude: self.networks("compression.exclude", &written.exclude),
        }
    }

    fn flush(&mut self, written: Flush) -> Option<Duration> {
        let Flush::After(period) = written else { return None };
        if period.0.is_zero() || period.0 > LONGEST_FLUSH {
            self.error("compression.flush", format!("{period} is out of range"), "`event`, or from 1ms to 5s");
        }
        Some(period.0)
    }

    pub(super) fn normalize(&mut self, written: &file::Normalize) -> Normalize {
        let (cap, default) = (written.max_tokens_cap, written.default_max_tokens);
        for (field, value) in [("max_tokens_cap", cap), ("default_max_tokens", default)] {
            if value == Some(0) {
                self.error(&format!("normalize.{field}"), "0 would allow no answer", "take it out for no limit");
            }
        }
        if let (Some(cap), Some(default)) = (cap, default)
            && default > cap
        {
            let reason = format!("{default} is more than `max_tokens_cap` ({cap})");
            self.error("normalize.default_max_tokens", reason, "");
        }
        for (i, field) in written.strip.iter().enumerate().filter(|(_, field)| NEEDED.contains(&field.as_str())) {
            let path = format!("normalize.strip[{i}]");
            self.error(&path, format!("without `{field}` no request could be answered"), "take it out of the list");
        }
        if written.dedupe_images {
            self.warn(
                "normalize.dedupe_images",
                "no engine can be told that an image is an earlier one of the same request: all are sent",
                "take it out; docs/payload.md says why, and what saves the same work elsewhere",
            );
        }
        let max_pixels = written.images.as_ref().and_then(|images| images.max_pixels);
        if written.images.is_some() && max_pixels.is_none_or(|pixels| pixels == 0) {
            self.error("normalize.images", "`images` needs `max_pixels`", "write `images: {max_pixels: 1048576}`");
        }
        Normalize {
            validate: written.validate,
            minify: written.minify,
            nulls: written.nulls,
            dedupe_images: written.dedupe_images,
            max_tokens_cap: cap.map(u64::from),
            default_max_tokens: default.map(u64::from),
            strip: written.strip.clone(),
            system_prompts: prompts(written),
            max_pixels,
            isolate_prefix_cache: written.isolate_prefix_cache,
        }
    }
}

pub(super) fn egress(written: &file::Egress) -> Egress {
    Egress { slim: written.slim }
}

fn prompts(written: &file::Normalize) -> HashMap<Arc<str>, Arc<str>> {
    let prompts = written.system_prompts.iter().flatten();
    prompts.map(|(name, text)| (name.as_str().into(), text.as_str().into())).collect()
}
