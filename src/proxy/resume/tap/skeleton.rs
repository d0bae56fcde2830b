//! [`Skeleton`]: what every further event of a stream has to bear, and how far its envelope came.

use std::ops::Range;

use super::{
    chunk::{Chunk, one_line},
    named::Named,
};

/// Raw JSON values are kept as they came.
#[derive(Debug, Default)]
pub(super) struct Skeleton {
    pub(super) id: Vec<u8>,
    pub(super) created: Vec<u8>,
    pub(super) model: Vec<u8>,
    pub(super) fingerprint: Vec<u8>,
    /// `"logprobs":null` is spelled out.
    pub(super) no_logprobs: bool,
    /// The opening event was passed on.
    pub(super) started: bool,
    pub(super) finish_sent: bool,
    pub(super) usage_sent: bool,
    /// The literal of the reason that a continuation gave, where it was told in OpenAI's words.
    pub(super) word: Vec<u8>,
    /// The literal of the stop string that ended it.
    pub(super) stop: Vec<u8>,

    /// Responses: the next `sequence_number`; `None` where the engine does not number.
    pub(super) sequence: Option<u64>,
    /// The object of `response.created`.
    pub(super) response: Vec<u8>,
    /// Output items that are done, with commas between.
    pub(super) items: Vec<u8>,
    /// The item's id, and its place.
    pub(super) item: Vec<u8>,
    pub(super) output_index: Option<u64>,
    pub(super) next_output: u64,
    pub(super) content_index: Option<u64>,
    pub(super) part: Part,
    /// Bytes of delivered literal before this part.
    pub(super) part_from: usize,

    /// Messages: the block that is open.
    pub(super) block: Option<u64>,
    pub(super) next_block: u64,
    pub(super) text_block: bool,
}

/// How far an output item came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// None is open.
    #[default]
    None,
    /// The item was added.
    Item,
    /// Its text part was added.
    Open,
    /// Its text was told as a whole.
    Told,
    /// Its part is done.
    Done,
}

impl Skeleton {
    /// Fills in what is not known yet from a chat or completions event.
    pub(super) fn adopt(&mut self, chunk: &Chunk, said: &[u8]) {
        if !self.started {
            fill(&mut self.fingerprint, &chunk.fingerprint, said);
            self.no_logprobs |= chunk.no_logprobs;
        }
        fill(&mut self.id, &chunk.id, said);
        fill(&mut self.created, &chunk.created, said);
        fill(&mut self.model, &chunk.model, said);
    }

    pub(super) fn name(&mut self, named: &Named<'_>, said: &[u8]) {
        fill(&mut self.id, &named.id, said);
        fill(&mut self.created, &named.created, said);
        fill(&mut self.model, &named.model, said);
    }

    pub(super) fn add_item(&mut self, item: &[u8]) {
        if !self.items.is_empty() && !item.is_empty() {
            self.items.push(b',');
        }
        self.items.extend_from_slice(item);
    }

    pub(super) fn held(&self) -> usize {
        [&self.id, &self.created, &self.model, &self.fingerprint, &self.stop, &self.response, &self.items, &self.item]
            .iter()
            .map(|part| part.capacity())
            .sum()
    }
}

fn fill(slot: &mut Vec<u8>, range: &Option<Range<usize>>, said: &[u8]) {
    if slot.is_empty()
        && let Some(range) = range
    {
        slot.extend_from_slice(&one_line(&said[range.clone()]));
    }
}
