//! [`Tap`]: reads the client's stream as it passes, so that another backend can go on with it.
//!
//! What is seen here is all that a continuation knows: the text that was delivered, its token ids, the ids and numbers
//! every further event has to bear (`Skeleton`), and how far the closing events came. Where token ids were asked for
//! by us they are taken out again; everything else passes on as the same bytes.

mod chunk;
mod delivered;
mod frame;
mod named;
mod read;
mod skeleton;
mod template;
mod write;

#[cfg(test)]
mod tests;

use std::ops::Range;

use bytes::Bytes;

pub(in crate::proxy::resume) use chunk::{Chunk, Told, literal};
pub use delivered::{Delivered, Ids, Mark};
pub(in crate::proxy::resume) use frame::{Frame, blanks};
use named::Named;
use skeleton::Skeleton;
use template::{Template, read_ids};

use crate::protocol::{
    endpoint::Endpoint,
    usage::{Alike, Finish},
};

/// The terminator of OpenAI's streams.
pub(in crate::proxy::resume) const DONE: &[u8] = b"[DONE]";

/// Terminators of the other dialects.
const LAST: [&[u8]; 3] = [b"message_stop", b"response.completed", b"response.incomplete"];

/// What upstream gives of an event without its end is longer than this.
const PIECE: usize = 1 << 20;

/// The ids of a long prompt are an event of megabytes: up to here it is put together.
const LONGEST: usize = 8 << 20;

/// Whether half an event is one that upstream could not hold, and that can be held here.
pub(in crate::proxy::resume) fn is_piece(rest: &[u8]) -> bool {
    rest.len() > PIECE && rest.len() <= LONGEST
}

/// `data` behind what is pending.
pub(in crate::proxy::resume) fn join(pending: &mut Vec<u8>, data: Bytes) -> Bytes {
    if pending.is_empty() {
        return data;
    }
    pending.extend_from_slice(&data);
    std::mem::take(pending).into()
}

fn around(alike: Alike) -> u32 {
    alike.around
}

/// What of a stream's data may go on, and what was seen.
#[derive(Debug)]
pub struct Passed {
    pub data: Bytes,
    pub seen: Seen,
}

/// How a stream stands after a piece of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// More has to come.
    Going,
    /// The engine ended it abnormally: an error event (its message), finish `abort` or `error`, a terminator without
    /// finishes. The data ends before that event.
    Cut(String),
    /// Its terminator came: it is whole.
    Ended,
}

/// Reads one client-facing stream.
#[derive(Debug)]
pub struct Tap {
    endpoint: Endpoint,
    /// Token ids were asked for by us.
    ids: bool,
    /// The engine writes members that are `null`: ids become that instead of vanishing.
    nulls: bool,
    template: Template,
    /// What `upstream` calls events that are the template: such need not be compared again.
    known: Option<u32>,
    scratch: Vec<u32>,
    skeleton: Skeleton,
    delivered: Delivered,
    choices: Choices,
    /// The end of a text block (`content_block_stop`) waits until it is known that the engine did not give up: a client
    /// that has it can be told no more text.
    waits: bool,
    /// That end, where it was in an earlier piece of data.
    ending: Vec<u8>,
    /// The last byte of an event that was too large to come whole.
    broken: Option<u8>,
    /// The beginning of an event that comes in pieces and may hold ids.
    pending: Vec<u8>,
    begun: bool,
    over: Option<Seen>,
}

/// What follows from one event.
enum Verdict {
    Pass,
    /// Nothing of it goes on.
    Drop,
    /// It waits for what comes next.
    Hold,
    Cut(String),
    End,
}

impl Tap {
    /// `ids`: token ids were asked for by us and are taken out of each event.
    pub fn new(endpoint: Endpoint, ids: bool) -> Self {
        Self {
            endpoint,
            ids,
            nulls: false,
            template: Template::default(),
            known: None,
            scratch: Vec::new(),
            skeleton: Skeleton::default(),
            delivered: Delivered::new(ids),
            choices: Choices::default(),
            waits: false,
            ending: Vec::new(),
            broken: None,
            pending: Vec::new(),
            begun: false,
            over: None,
        }
    }

    /// Takes whole events, as upstream gives them. An event above its bound comes in pieces: these pass on unread, and
    /// the answer is not continued. `alike`: what upstream found `data` to be.
    pub fn push(&mut self, data: Bytes, alike: Option<Alike>) -> Passed {
        match &self.over {
            None => {}
            Some(Seen::Cut(why)) => return Passed { data: Bytes::new(), seen: Seen::Cut(why.clone()) },
            Some(seen) => return Passed { data, seen: seen.clone() },
        }
        let data = match self.alone(data, alike) {
            Ok(data) => return Passed { data, seen: Seen::Going },
            Err(data) => join(&mut self.pending, data),
        };
        let mut edits = Edits::default();
        let mut at = self.entry(&data);
        let mut waiting: Option<Range<usize>> = None;
        while at < data.len() {
            let rest = &data[at..];
            let blank = blanks(rest);
            if blank > 0 {
                at += blank;
                continue;
            }
            if let Some(end) = self.ordinary(rest, at, &data, &mut edits) {
                at += end;
                continue;
            }
            let Some(frame) = Frame::read(rest) else { break };
            let verdict = self.event(&frame, rest, at, &data, &mut edits);
            if !self.waits {
                edits.cut(&data, at..at, &std::mem::take(&mut self.ending));
                waiting = None;
            }
            match verdict {
                Verdict::Pass => {}
                Verdict::Hold => {
                    waiting = Some(at..at + frame.end);
                }
                Verdict::Drop => edits.cut(&data, at..at + frame.end, b""),
                Verdict::Cut(why) => {
                    self.over = Some(Seen::Cut(why.clone()));
                    let end = waiting.map_or(at, |waiting| waiting.start);
                    return Passed { data: edits.finish(data, end), seen: Seen::Cut(why) };
                }
                Verdict::End => {
                    self.over = Some(Seen::Ended);
                    at = data.len();
                    break;
                }
            }
            at += frame.end;
        }
        let mut end = data.len();
        if at < end && !self.half(&data[at..]) {
            end = at;
        }
        if let Some(waiting) = waiting {
            self.ending = data[waiting.clone()].to_vec();
            edits.cut(&data, waiting, b"");
        }
        Passed { data: edits.finish(data, end), seen: self.over.clone().unwrap_or(Seen::Going) }
    }

    /// Takes down an event that upstream compared, where it goes on as it is; whether it took memory. `None`: it is for
    /// [`push`](Self::push).
    #[inline(always)]
    pub fn known(&mut self, data: &[u8], alike: Alike) -> Option<bool> {
        let known = self.known == Some(alike.around) && alike.length == data.len() && alike.ids.is_none();
        if !known || self.over.is_some() || !self.is_between() {
            return None;
        }
        let before = self.delivered.held();
        self.delivered.record(&data[alike.text.0..alike.text.1], &[]);
        Some(self.delivered.held() != before)
    }

    /// Nothing is held back, and nothing is missing.
    #[inline(always)]
    fn is_between(&self) -> bool {
        self.begun && !self.waits && self.broken.is_none() && self.pending.is_empty()
    }

    /// What the client has.
    pub fn delivered(&self) -> &Delivered {
        &self.delivered
    }

    /// Heap bytes held.
    pub fn held(&self) -> usize {
        self.delivered.held()
            + self.skeleton.held()
            + self.template.held()
            + self.scratch.capacity() * 4
            + self.pending.capacity()
    }

    /// Throws away what only a continuation needs. Ids are still taken out.
    pub fn forget(&mut self) {
        self.delivered.forget();
        (self.skeleton.response, self.skeleton.items) = (Vec::new(), Vec::new());
    }

    /// Where the first event starts: behind a byte order mark, or the rest of an event that came in pieces.
    fn entry(&mut self, data: &[u8]) -> usize {
        if let Some(last) = self.broken {
            let Some(end) = frame::resume_behind(data, last) else {
                self.broken = data.last().copied().or(self.broken);
                return data.len();
            };
            self.broken = None;
            return end;
        }
        if !std::mem::replace(&mut self.begun, true) && data.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 }
    }

    /// Half an event: too large to come whole, or the last of a stream that ended without a blank line. `false`: it is
    /// held until the rest of it comes.
    fn half(&mut self, rest: &[u8]) -> bool {
        if self.ids && is_piece(rest) {
            self.pending = rest.to_vec();
            return false;
        }
        if !self.ends(rest) {
            self.broken = rest.last().copied();
            self.delivered.oversize = true;
        }
        true
    }

    /// Whether half an event is the terminator, without its blank line.
    fn ends(&mut self, rest: &[u8]) -> bool {
        let whole = [rest, b"\n\n"].concat();
        let Some(frame) = Frame::read(&whole).filter(|_| rest.len() <= PIECE) else { return false };
        let said = frame.data(&whole).unwrap_or_default();
        let last = |named: Named<'_>| named.kind.is_some_and(|kind| LAST.contains(&&kind.name()[..]));
        if said.trim_ascii() != DONE && (self.is_openai() || !Named::read(&said).is_ok_and(last)) {
            return false;
        }
        let verdict = self.event(&frame, &whole, 0, &whole, &mut Edits::default());
        if matches!(verdict, Verdict::End) {
            self.over = Some(Seen::Ended);
        }
        matches!(verdict, Verdict::End)
    }

    fn is_openai(&self) -> bool {
        matches!(self.endpoint, Endpoint::Chat | Endpoint::Completions)
    }

    /// A read that is one event like the one before, as nearly all are; `Err` when it is not.
    #[inline(always)]
    fn alone(&mut self, data: Bytes, alike: Option<Alike>) -> Result<Bytes, Bytes> {
        if !self.is_between() {
            return Err(data);
        }
        let alike = alike.filter(|alike| alike.length == data.len());
        if let Some(alike) = alike
            && self.known == Some(alike.around)
            && let Some(ids) = alike.ids
        {
            return self.with_ids(data, alike.text, ids);
        }
        if let Some(text) = self.template.text(&data) {
            self.known = alike.filter(|alike| alike.text == (text.start, text.end) && alike.ids.is_none()).map(around);
            self.delivered.record(&data[text], &[]);
            return Ok(data);
        }
        let Some(found) = self.template.find(&data, &mut self.scratch).filter(|found| found.end == data.len()) else {
            return Err(data);
        };
        let same = |alike: &Alike| {
            let ids = alike.ids.map(|(start, end)| self.template.gone(start..end));
            alike.text == (found.text.start, found.text.end) && found.number.is_none() && ids == found.drop
        };
        self.known = alike.filter(same).map(around);
        self.delivered.record(&data[found.text], &self.scratch);
        if let Some(number) = found.number {
            self.skeleton.sequence = number.checked_add(1);
        }
        Ok(match found.drop {
            Some(drop) => self.without(&data, drop),
            None => data,
        })
    }

    /// One that upstream compared, ids and all.
    #[inline(always)]
    fn with_ids(&mut self, data: Bytes, text: (usize, usize), (start, end): (usize, usize)) -> Result<Bytes, Bytes> {
        if read_ids(&data[start..], &mut self.scratch) != Some(end - start) {
            return Err(data);
        }
        self.delivered.record(&data[text.0..text.1], &self.scratch);
        let drop = self.template.gone(start..end);
        Ok(self.without(&data, drop))
    }

    fn without(&self, data: &[u8], drop: Range<usize>) -> Bytes {
        let instead = self.template.instead();
        let mut left = Vec::with_capacity(data.len() - drop.len() + instead.len());
        left.extend_from_slice(&data[..drop.start]);
        left.extend_from_slice(instead);
        left.extend_from_slice(&data[drop.end..]);
        left.into()
    }

    /// An event like the one before: its length.
    #[inline]
    fn ordinary(&mut self, rest: &[u8], at: usize, data: &[u8], edits: &mut Edits) -> Option<usize> {
        if self.waits {
            return None;
        }
        self.scratch.clear();
        let found = self.template.find(rest, &mut self.scratch)?;
        self.delivered.record(&rest[found.text], &self.scratch);
        if let Some(number) = found.number {
            self.skeleton.sequence = number.checked_add(1);
        }
        if let Some(drop) = found.drop {
            edits.cut(data, at + drop.start..at + drop.end, self.template.instead());
        }
        Some(found.end)
    }

    fn event(&mut self, frame: &Frame, rest: &[u8], at: usize, data: &[u8], edits: &mut Edits) -> Verdict {
        let Some(said) = frame.data(rest) else { return Verdict::Pass };
        let verdict = if said.trim_ascii() == DONE {
            match self.is_openai() && self.choices.all_ended() {
                true => Verdict::End,
                false => Verdict::Cut("the stream ended without a finish reason".to_owned()),
            }
        } else {
            match self.endpoint {
                Endpoint::Chat | Endpoint::Completions => {
                    let Ok(chunk) = Chunk::read(&said) else { return self.unreadable(frame, rest) };
                    let verdict = self.chunk(&chunk, &said, frame, rest);
                    if self.ids && matches!(verdict, Verdict::Pass) {
                        self.take_out(&chunk, &said, frame, at, data, edits);
                    }
                    verdict
                }
                Endpoint::Messages | Endpoint::Responses => {
                    let Ok(named) = Named::read(&said) else { return self.unreadable(frame, rest) };
                    self.named(&named, &said, frame, rest)
                }
                _ => Verdict::Pass,
            }
        };
        match verdict {
            Verdict::Pass if frame.name(rest) == b"error" => {
                Verdict::Cut(chunk::bounded(&String::from_utf8_lossy(&said)))
            }
            verdict => verdict,
        }
    }

    /// Not JSON: what it says is unknown, so nothing can be proven of what follows.
    fn unreadable(&mut self, frame: &Frame, rest: &[u8]) -> Verdict {
        if frame.name(rest) == b"error" {
            let said = frame.data(rest).unwrap_or_default();
            return Verdict::Cut(chunk::bounded(&String::from_utf8_lossy(&said)));
        }
        self.delivered.oversize = true;
        Verdict::Pass
    }
}

/// Takes pieces out of data; what is left is copied only then.
#[derive(Debug, Default)]
struct Edits {
    out: Vec<u8>,
    /// Up to there the data was looked at.
    from: usize,
}

impl Edits {
    /// `with` stands in the place of `range`; ranges come in order, and may overlap the one before.
    fn cut(&mut self, data: &[u8], range: Range<usize>, with: &[u8]) {
        if range.is_empty() && with.is_empty() {
            return;
        }
        if self.from == 0 {
            self.out.reserve(data.len());
        }
        self.out.extend_from_slice(&data[self.from..range.start.max(self.from)]);
        self.out.extend_from_slice(with);
        self.from = range.end.max(self.from);
    }

    /// What is left up to `end`.
    fn finish(mut self, data: Bytes, end: usize) -> Bytes {
        if self.from == 0 && self.out.is_empty() {
            return if end == data.len() { data } else { data.slice(..end) };
        }
        self.out.extend_from_slice(data.get(self.from..end).unwrap_or_default());
        self.out.into()
    }
}

/// Which choices began and which ended.
#[derive(Debug, Default)]
struct Choices {
    began: u128,
    ended: u128,
    /// One had an index of 128 or more: the terminator must do for it.
    beyond: bool,
}

impl Choices {
    fn saw(&mut self, index: u64, finish: Finish) {
        let Some(bit) = u32::try_from(index).ok().and_then(|index| 1_u128.checked_shl(index)) else {
            self.beyond = true;
            return;
        };
        self.began |= bit;
        if finish.is_real() {
            self.ended |= bit;
        }
    }

    fn all_ended(&self) -> bool {
        (self.began != 0 || self.beyond) && self.began == self.ended
    }
}
