//! [`Splice`]: joins a continuation (a chat- or completions-shaped stream) onto a [`Tap`]'s stream.
//!
//! ```text
//!  continuation's text ─► Swallow ─► Straddle ─► writer of the client's dialect (tap) ─► delivered
//!                         (again)    (stop strings across the seam)
//! ```

mod seam;

#[cfg(test)]
mod tests;

use seam::{Straddle, Swallow};

use super::{
    request::Shape,
    tap::{Chunk, DONE, Frame, Passed, Seen, Tap, Told, blanks, is_piece, literal},
};
use crate::protocol::{
    json::{decode, write_string},
    usage::{Finish, Usage},
};

/// How the seam is made.
#[derive(Clone, Debug)]
pub struct Seam {
    /// What the continuation's events look like.
    pub shape: Shape,
    /// It tells token ids, and follows the first `said` ids that were delivered.
    pub ids: bool,
    /// Characters that come again and are swallowed: white space taken back, or the text of ids taken back. Where only
    /// white space was taken back, another text may come: then what is alike at the start is swallowed, and the rest
    /// goes on. Where a text was, it must come again: another one is a cut.
    pub swallow: String,
    /// Tokens that were delivered before and are the continuation's prompt now.
    pub said: u64,
    /// Client stop strings, looked for across the seam.
    pub stops: Vec<String>,
    /// Usage is told.
    pub usage: bool,
}

/// Joins a continuation onto a tap's stream. One for each continuation; the tap is what lasts.
#[derive(Debug)]
pub struct Splice {
    seam: Seam,
    swallow: Swallow,
    straddle: Straddle,
    begun: bool,
    /// Everything was said before: only usage is wanted, text and finish are thrown away.
    said_all: bool,
    /// Text came although the engine before had closed it.
    beyond: bool,
    /// The beginning of an event that comes in pieces.
    pending: Vec<u8>,
    /// Ids whose text is held.
    held_ids: Vec<u32>,
    told: Option<Told>,
    over: Option<Seen>,
}

impl Splice {
    pub fn new(seam: Seam) -> Self {
        Self {
            swallow: Swallow::new(&seam.swallow),
            seam,
            straddle: Straddle::default(),
            begun: false,
            said_all: false,
            beyond: false,
            pending: Vec::new(),
            held_ids: Vec::new(),
            told: None,
            over: None,
        }
    }

    /// Takes whole events of the continuation, gives events in the client's dialect, and takes them down in `tap` as
    /// delivered. [`Seen::Ended`] once the closing events are among them; data of a cut is what came before it.
    pub fn push(&mut self, data: &[u8], tap: &mut Tap) -> Passed {
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            self.begin(tap);
        }
        let joined;
        let data = if self.pending.is_empty() {
            data
        } else {
            joined = [&std::mem::take(&mut self.pending)[..], data].concat();
            &joined
        };
        let mut at = 0;
        while self.over.is_none() && at < data.len() {
            let rest = &data[at..];
            at += blanks(rest);
            let rest = &data[at..];
            if rest.is_empty() {
                break;
            }
            let Some(frame) = Frame::read(rest) else {
                if self.seam.ids && is_piece(rest) {
                    self.pending = rest.to_vec();
                    break;
                }
                let line = rest.strip_prefix(b"data:").map(<[u8]>::trim_ascii);
                self.over = Some(if line == Some(DONE) {
                    self.done(&mut out, tap)
                } else {
                    Seen::Cut("an event of the continuation is too large to be read".to_owned())
                });
                break;
            };
            let seen = self.event(&frame, rest, &mut out, tap);
            if seen != Seen::Going {
                self.over = Some(seen);
            }
            at += frame.end;
        }
        Passed { data: out.into(), seen: self.over.clone().unwrap_or(Seen::Going) }
    }

    fn begin(&mut self, tap: &mut Tap) {
        let delivered = tap.delivered();
        self.said_all = delivered.finish().is_some() || delivered.is_closed();
        let longest = self.seam.stops.iter().map(|stop| stop.chars().count()).max().unwrap_or(0);
        let tail = delivered.tail(longest.saturating_sub(1));
        self.straddle = Straddle::new(&tail, std::mem::take(&mut self.seam.stops));
        if !self.said_all {
            tap.continues(self.seam.ids, self.seam.said);
        }
    }

    fn event(&mut self, frame: &Frame, rest: &[u8], out: &mut Vec<u8>, tap: &mut Tap) -> Seen {
        let Some(said) = frame.data(rest) else {
            // A comment: keeps connections alive on the client's side too.
            if rest.first() == Some(&b':') {
                out.extend_from_slice(&rest[..frame.end]);
            }
            return Seen::Going;
        };
        if said.trim_ascii() == DONE {
            return self.done(out, tap);
        }
        let failed = frame.name(rest) == b"error";
        let Ok(chunk) = Chunk::read(&said) else {
            return Seen::Cut("an event of the continuation is not JSON".to_owned());
        };
        if let Some(error) = chunk.error {
            return Seen::Cut(error);
        }
        if failed {
            return Seen::Cut("the continuation failed".to_owned());
        }
        if matches!(chunk.finish, Finish::Abort | Finish::Error) {
            return Seen::Cut(format!("the engine ended the continuation with `{}`", chunk.finish.name()));
        }
        if chunk.choices.iter().any(|(index, _)| *index > 0) {
            return Seen::Cut("the continuation has several choices".to_owned());
        }
        self.chunk(&chunk, &said, out, tap)
    }

    fn chunk(&mut self, chunk: &Chunk, said: &[u8], out: &mut Vec<u8>, tap: &mut Tap) -> Seen {
        tap.adopt(chunk, said);
        self.told = chunk.usage.or(self.told);
        let text = literal(chunk.text.clone().map_or(&b""[..], |range| &said[range]));
        if self.said_all || tap.delivered().finish().is_some() {
            let text = decode(&text);
            let new = self.swallow.pass(&text);
            self.beyond |= new.is_none_or(|new| !new.is_empty());
        } else {
            let ids = tap.ids_of(chunk, said, self.seam.ids && self.seam.said == 0);
            if chunk.reasoning && !tap.delivered().has_no_text() {
                return Seen::Cut("the continuation takes the answer for reasoning".to_owned());
            }
            if (chunk.reasoning || chunk.tools) && !self.others(chunk, said, &ids, out, tap) {
                return Seen::Cut("the continuation says what cannot be told in the client's dialect".to_owned());
            }
            let ids = if chunk.reasoning { Vec::new() } else { ids };
            let logprobs = chunk.logprobs.clone().filter(|_| tap.speaks(self.seam.shape)).map(|range| &said[range]);
            if let Some(over) = self.text(&text, ids, logprobs, out, tap) {
                return over;
            }
        }
        if chunk.finish.is_real()
            && let Some(over) = self.finish(chunk, said, out, tap)
        {
            return over;
        }
        if let Some(finish) = tap.delivered().finish().filter(|_| self.seam.usage && chunk.usage.is_some()) {
            tap.write_finish(out, finish);
            let told = self.usage(tap);
            tap.write_usage(out, told);
        }
        Seen::Going
    }

    fn others(&mut self, chunk: &Chunk, said: &[u8], ids: &[u32], out: &mut Vec<u8>, tap: &mut Tap) -> bool {
        self.swallow.is_done() && tap.write_others(out, chunk, said, ids)
    }

    /// Takes text through the seam to the client. `Some`: it is over.
    fn text(
        &mut self,
        raw: &[u8],
        ids: Vec<u32>,
        logprobs: Option<&[u8]>,
        out: &mut Vec<u8>,
        tap: &mut Tap,
    ) -> Option<Seen> {
        if self.swallow.is_done() && self.straddle.is_done() {
            tap.write_text(out, raw, &ids, logprobs);
            return None;
        }
        let text = decode(raw);
        let Some(new) = self.swallow.pass(&text) else {
            return Some(Seen::Cut("the continuation did not repeat what was taken back".to_owned()));
        };
        self.held_ids.extend_from_slice(&ids);
        match self.straddle.pass(new) {
            seam::Found::Nothing => {}
            seam::Found::Text(text) => self.write(&text, out, tap),
            seam::Found::Stop(stop) => return Some(self.stopped(&stop, out, tap)),
        }
        None
    }

    fn write(&mut self, text: &str, out: &mut Vec<u8>, tap: &mut Tap) {
        let mut literal = Vec::new();
        write_string(&mut literal, text);
        let ids = std::mem::take(&mut self.held_ids);
        tap.write_text(out, &literal[1..literal.len() - 1], &ids, None);
    }

    /// A client's stop string came to its end across the seam: no engine could see it.
    fn stopped(&mut self, stop: &str, out: &mut Vec<u8>, tap: &mut Tap) -> Seen {
        let mut literal = Vec::new();
        write_string(&mut literal, stop);
        tap.set_stop(&literal);
        tap.write_finish(out, Finish::Stop);
        self.close(out, tap)
    }

    fn finish(&mut self, chunk: &Chunk, said: &[u8], out: &mut Vec<u8>, tap: &mut Tap) -> Option<Seen> {
        if tap.delivered().finish().is_some() {
            return None;
        }
        let finish = if self.said_all && self.beyond { Finish::Stop } else { chunk.finish };
        if !self.said_all {
            if !self.swallow.may_end() {
                return Some(Seen::Cut("the continuation did not repeat what was taken back".to_owned()));
            }
            let rest = self.straddle.rest();
            self.write(&rest, out, tap);
        }
        if let Some(stop) = &chunk.stop {
            tap.set_stop(&said[stop.clone()]);
        }
        if let Some(word) = chunk.word.as_ref().filter(|_| finish == chunk.finish) {
            tap.set_word(&said[word.clone()]);
        }
        tap.write_finish(out, finish);
        None
    }

    fn done(&mut self, out: &mut Vec<u8>, tap: &mut Tap) -> Seen {
        if tap.delivered().finish().is_none() {
            return Seen::Cut("the continuation ended without a finish reason".to_owned());
        }
        self.close(out, tap)
    }

    fn close(&mut self, out: &mut Vec<u8>, tap: &mut Tap) -> Seen {
        let told = self.usage(tap);
        // A chat stream says nothing rather than a guess; the other dialects have no way to say nothing.
        let known = self.told.is_some() || tap.delivered().ids().is_some();
        let told = (self.seam.usage && known).then_some(told);
        tap.write_close(out, Finish::Stop, told);
        Seen::Ended
    }

    /// What the whole answer used, once the continuation told its part.
    pub fn total(&self, tap: &Tap) -> Option<Usage> {
        self.told.map(|_| self.usage(tap).usage())
    }

    /// Usage as if the stream had never been cut.
    fn usage(&self, tap: &Tap) -> Told {
        let known = tap.best_known();
        let Some(told) = self.told else { return known };
        let less = || (told.input.saturating_sub(self.seam.said), told.cached);
        let (input, cached) = tap.prompt_told(told.cached).unwrap_or_else(less);
        // Where all was said, what came is what was taken back, and what ends it; other text was thrown away.
        let more = if self.said_all && self.beyond { 0 } else { told.output };
        Told { input, output: self.seam.said.saturating_add(more), cached: cached.map(|n| n.min(input)) }
    }
}
