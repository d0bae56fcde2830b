//! [`Delivered`]: what of an answer reached the client, packed.

use std::borrow::Cow;

use crate::{
    protocol::{
        json::decode,
        usage::{Finish, Usage},
    },
    proxy::resume::refusal::Refusal,
};

/// What was passed on: text, ids, how it stands.
///
/// Text is kept as the insides of the string literals it came in. Ids are kept in chunks as they came: how many, each,
/// and how many bytes of literal came with them, all as LEB128 (about four bytes a token).
#[derive(Debug, Default)]
pub struct Delivered {
    raw: Vec<u8>,
    packed: Vec<u8>,
    ids: usize,
    prompt: Option<Vec<u8>>,
    /// Ids were asked for.
    asked: bool,
    /// Something came without its ids.
    gap: bool,
    chunks: u64,
    pub(super) reasoning: bool,
    pub(super) tools: bool,
    pub(super) choices: bool,
    pub(super) logprobs: bool,
    pub(super) oversize: bool,
    pub(super) finish: Finish,
    pub(super) closed: bool,
    pub(super) usage: Option<Usage>,
    forgotten: bool,
}

/// Token ids with, after each chunk, how many there were and how many bytes of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    pub all: Vec<u32>,
    pub marks: Vec<Mark>,
}

/// Where a chunk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Ids so far.
    pub ids: usize,
    /// Bytes of text so far.
    pub text: usize,
    /// Characters of text so far.
    chars: usize,
    /// Ids of this chunk alone, and whether text came with them.
    own: usize,
    said: bool,
}

impl Delivered {
    pub(super) fn new(ids: bool) -> Self {
        Self { asked: ids, ..Self::default() }
    }

    /// The text of the first choice; lone surrogates became U+FFFD.
    pub fn text(&self) -> String {
        decode(&self.raw).into_owned()
    }

    /// No text of the answer proper; reasoning may have come.
    pub fn has_no_text(&self) -> bool {
        self.raw.is_empty()
    }

    /// Neither text nor anything else of content.
    pub fn is_empty(&self) -> bool {
        self.chunks == 0 && !self.reasoning && !self.tools && !self.choices && !self.oversize && !self.logprobs
    }

    /// The prompt's ids, when the engine told them.
    pub fn prompt_ids(&self) -> Option<Vec<u32>> {
        let mut rest = &self.prompt.as_ref()?[..];
        let mut all = Vec::new();
        while !rest.is_empty() {
            all.push(narrow(take(&mut rest)));
        }
        Some(all)
    }

    /// The answer's ids; `None` when they were not asked for, or something came without them.
    pub fn ids(&self) -> Option<Ids> {
        if !self.knows_ids() {
            return None;
        }
        let mut ids = Ids::default();
        let (mut rest, mut raw) = (&self.packed[..], &self.raw[..]);
        let (mut text, mut chars) = (0, 0);
        while !rest.is_empty() {
            let own = take(&mut rest) as usize;
            for _ in 0..own {
                ids.all.push(narrow(take(&mut rest)));
            }
            let length = (take(&mut rest) as usize).min(raw.len());
            let (part, behind) = raw.split_at(length);
            raw = behind;
            let part = decode(part);
            text += part.len();
            chars += part.chars().count();
            ids.marks.push(Mark { ids: ids.all.len(), text, chars, own, said: length > 0 });
        }
        Some(ids)
    }

    /// The ids whose text was delivered, where the engine holds nothing but incomplete characters back (no stop
    /// strings): those of the last chunks without text are dropped. See [`settled_is_sure`](Self::settled_is_sure).
    pub fn settled_ids(&self) -> Option<Vec<u32>> {
        let mut ids = self.ids()?;
        let kept = ids.marks.iter().rev().find(|mark| mark.said).map_or(0, |mark| mark.ids);
        ids.all.truncate(kept);
        Some(ids.all)
    }

    /// Whether the settled ids are beyond doubt: the last chunk with text had one id. Of several, merged by a busy
    /// engine, the last can be the beginning of a character; the engine's `/detokenize` tells.
    pub fn settled_is_sure(&self) -> bool {
        let marks = self.ids().map(|ids| ids.marks).unwrap_or_default();
        marks.iter().rev().find(|mark| mark.said).is_none_or(|mark| mark.own == 1)
    }

    /// With stop strings of at most `longest` characters: the most ids whose text surely was delivered whole. Behind a
    /// chunk the engine holds back at most `longest` - 1 characters and one that is not complete.
    pub fn sure_ids(&self, longest: usize) -> Option<Vec<u32>> {
        if longest == 0 {
            return self.settled_ids();
        }
        let mut ids = self.ids()?;
        let all = decode(&self.raw).chars().count();
        let sure = |mark: &&Mark| mark.chars.saturating_add(longest) <= all;
        let kept = ids.marks.iter().rev().find(sure).map_or(0, |mark| mark.ids);
        ids.all.truncate(kept);
        Some(ids.all)
    }

    /// Events that brought text or reasoning.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// The reason of its end, once that is known, also where the events that tell it are not written yet.
    pub fn finish(&self) -> Option<Finish> {
        self.finish.is_real().then_some(self.finish)
    }

    /// The engine closed the text (`content_block_stop`, `output_text.done`), and has not told why: nothing can follow.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Usage, as far as the stream told it (messages: the input tokens of `message_start`).
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// What of the answer itself forbids to continue it.
    pub fn refusal(&self) -> Option<Refusal> {
        if self.oversize {
            Some(Refusal::Oversize)
        } else if self.choices {
            Some(Refusal::Choices)
        } else if self.tools {
            Some(Refusal::ToolCall)
        } else if self.reasoning && (self.raw.is_empty() || !self.knows_ids()) {
            Some(Refusal::Reasoning)
        } else if self.logprobs {
            Some(Refusal::Logprobs)
        } else {
            None
        }
    }

    fn knows_ids(&self) -> bool {
        self.asked && !self.gap && !self.forgotten
    }

    /// Literal bytes of text so far.
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// How many ids are known.
    pub(in crate::proxy::resume) fn id_count(&self) -> Option<usize> {
        self.knows_ids().then_some(self.ids)
    }

    pub(in crate::proxy::resume) fn prompt_count(&self) -> Option<usize> {
        // Each id ends in the one byte without the high bit.
        self.prompt.as_ref().map(|packed| packed.iter().filter(|byte| **byte < 0x80).count())
    }

    /// Takes down a piece of text (the inside of a literal) and its ids.
    #[inline]
    pub(super) fn record(&mut self, raw: &[u8], ids: &[u32]) {
        self.chunks += u64::from(!raw.is_empty());
        if self.forgotten {
            return;
        }
        self.raw.extend_from_slice(raw);
        if !self.asked {
            return;
        }
        if ids.is_empty() {
            self.gap |= !raw.is_empty();
            return;
        }
        put(&mut self.packed, ids.len() as u64);
        for &id in ids {
            put(&mut self.packed, u64::from(id));
        }
        put(&mut self.packed, raw.len() as u64);
        self.ids += ids.len();
    }

    /// Takes down a piece of reasoning. Its text is not kept, its ids are.
    pub(super) fn record_reasoning(&mut self, ids: &[u32]) {
        self.reasoning = true;
        self.chunks += 1;
        self.gap |= ids.is_empty();
        self.record(b"", ids);
    }

    /// Takes down the prompt's ids; those that came first stay.
    pub(super) fn record_prompt(&mut self, ids: &[u32]) {
        if self.forgotten || self.prompt.is_some() {
            return;
        }
        let mut packed = Vec::with_capacity(ids.len() * 3);
        ids.iter().for_each(|id| put(&mut packed, u64::from(*id)));
        packed.shrink_to_fit();
        self.prompt = Some(packed);
    }

    /// What comes next follows the first `kept` ids: the others were taken back, their text was not.
    pub(super) fn keep_ids(&mut self, kept: usize) {
        let Some(ids) = self.ids() else { return };
        if kept >= ids.all.len() {
            return;
        }
        let whole: Vec<_> = self.spans().collect();
        self.packed.clear();
        let (mut from, mut length, mut written) = (0, 0, 0);
        for (index, mark) in ids.marks.iter().enumerate() {
            if mark.ids > kept {
                break;
            }
            put(&mut self.packed, (mark.ids - from) as u64);
            ids.all[from..mark.ids].iter().for_each(|id| put(&mut self.packed, u64::from(*id)));
            put(&mut self.packed, whole[index] as u64);
            (from, length, written) = (mark.ids, length + whole[index], index + 1);
        }
        // The text of what was taken back stays delivered: it counts with what is left.
        let behind = self.raw.len() - length;
        if from < kept || (behind > 0 && written < whole.len()) {
            put(&mut self.packed, (kept - from) as u64);
            ids.all[from..kept].iter().for_each(|id| put(&mut self.packed, u64::from(*id)));
            put(&mut self.packed, behind as u64);
        }
        self.ids = kept;
    }

    /// Literal bytes of each chunk.
    fn spans(&self) -> impl Iterator<Item = usize> + '_ {
        let mut rest = &self.packed[..];
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            for _ in 0..take(&mut rest) {
                take(&mut rest);
            }
            Some(take(&mut rest) as usize)
        })
    }

    /// From here on no ids are known.
    pub(super) fn lose_ids(&mut self) {
        self.asked = false;
        self.packed = Vec::new();
        self.ids = 0;
    }

    /// A stream that has said nothing yet may be taken up with ids.
    pub(super) fn begin_ids(&mut self) {
        self.asked |= self.raw.is_empty() && self.chunks == 0;
    }

    pub(super) fn forget(&mut self) {
        self.forgotten = true;
        (self.raw, self.packed, self.prompt) = (Vec::new(), Vec::new(), None);
    }

    pub(super) fn is_forgotten(&self) -> bool {
        self.forgotten
    }

    pub(super) fn held(&self) -> usize {
        self.raw.capacity() + self.packed.capacity() + self.prompt.as_ref().map_or(0, Vec::capacity)
    }

    /// The last `count` characters.
    pub(in crate::proxy::resume) fn tail(&self, count: usize) -> String {
        let text: Cow<'_, str> = decode(&self.raw);
        match text.char_indices().rev().nth(count.saturating_sub(1)) {
            Some((at, _)) if count > 0 => text[at..].to_owned(),
            None if count > 0 => text.into_owned(),
            _ => String::new(),
        }
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(rest: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    while let Some((&byte, behind)) = rest.split_first() {
        *rest = behind;
        value |= u64::from(byte & 0x7f) << (shift & 63);
        shift += 7;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn narrow(id: u64) -> u32 {
    u32::try_from(id).unwrap_or(u32::MAX)
}
