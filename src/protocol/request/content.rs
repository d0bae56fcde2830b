//! Messages, what they are made of, and what lies inline in them.

use super::{
    Walk, base64,
    fault::{Fault, shown},
    rule::{ANY, ARRAY, BOOL, NULL, NUMBER, OBJECT, STRING, wrong_kind},
    schema,
};
use crate::protocol::json::Text;

/// What is noted of the message, part or tool that is being read. None of them lies in another of its kind.
#[derive(Debug, Default)]
pub(super) struct Noted {
    role: Spoken,
    part: Spoken,
    /// The part stands in a chat, where its type has to be known.
    chat: bool,
    /// The kind of a part's `text`.
    text: u8,
    /// A part's `source` says that it is base64.
    is_base64: bool,
    /// What is wrong with a part's image or sound. It is told once its type is known to be that of one.
    data: Option<Fault>,
    /// A tool is, or may be meant as, a function.
    pub(super) is_function: bool,
    /// A tool's `function` came, and was judged so.
    pub(super) function: Option<Result<(), Fault>>,
    /// A form of answers is to follow a schema.
    pub(super) wants_schema: bool,
    pub(super) has_schema: bool,
}

/// A word that decides about others beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Spoken {
    #[default]
    Nothing,
    Assistant,
    Tool,
    Text,
    Media,
    Document,
    Other,
}

/// Types of a chat's parts.
const PARTS: [&str; 5] = ["text", "image_url", "input_audio", "file", "refusal"];

impl Spoken {
    fn of(text: &Text<'_>) -> Self {
        match text.name().as_ref() {
            b"assistant" => Self::Assistant,
            b"tool" => Self::Tool,
            b"text" => Self::Text,
            b"image_url" | b"input_image" | b"input_audio" | b"image" => Self::Media,
            b"document" => Self::Document,
            _ => Self::Other,
        }
    }
}

pub(super) const REQUIRED: &str = "it is required, and is missing";

impl Walk<'_> {
    pub(super) fn messages(&mut self) -> Result<(), Fault> {
        self.expect(ARRAY)?;
        let mut some = false;
        self.each(|walk, _| {
            some = true;
            walk.expect(OBJECT)?;
            walk.message()
        })?;
        self.not_empty(some)
    }

    fn not_empty(&self, some: bool) -> Result<(), Fault> {
        if some || !self.strict() { Ok(()) } else { Err(Fault::new("at least one is required")) }
    }

    fn message(&mut self) -> Result<(), Fault> {
        self.noted.role = Spoken::Nothing;
        let table = &schema::MESSAGE;
        let met = self.object(table)?;
        self.needs(table, met)?;
        if !self.strict() {
            return Ok(());
        }
        let said = |name: &[u8]| table.find(name).is_some_and(|index| met.said & (1 << index) != 0);
        let calls = self.noted.role == Spoken::Assistant
            && (said(b"tool_calls") || said(b"function_call") || said(b"audio") || said(b"refusal"));
        if !said(b"content") && !calls {
            return Err(Fault::new(REQUIRED).under("content"));
        }
        if self.noted.role == Spoken::Tool && !said(b"tool_call_id") {
            return Err(Fault::new(REQUIRED).under("tool_call_id"));
        }
        Ok(())
    }

    pub(super) fn role(&mut self, roles: &[&str]) -> Result<(), Fault> {
        self.expect(STRING)?;
        let role = self.reader.quoted()?;
        self.noted.role = Spoken::of(&role);
        if self.strict() && !roles.iter().any(|known| role.is(known.as_bytes())) {
            let got = role.decode();
            return Err(Fault::new(format!("expected one of {}, but got `{}`", roles.join(", "), shown(&got))));
        }
        Ok(())
    }

    pub(super) fn content(&mut self) -> Result<(), Fault> {
        if self.expect(STRING | ARRAY)? == STRING {
            return self.skip();
        }
        self.each(|walk, _| {
            walk.expect(OBJECT)?;
            walk.noted.chat = true;
            walk.part(STRING)?;
            walk.noted.chat = false;
            Ok(())
        })
    }

    /// Reads a part of a content, whose `text` must be one of `texts` if its type says that it is text.
    fn part(&mut self, texts: u8) -> Result<(), Fault> {
        (self.noted.part, self.noted.text, self.noted.data) = (Spoken::Nothing, 0, None);
        let met = self.object(&schema::PART)?;
        self.needs(&schema::PART, met)?;
        match self.noted.part {
            // Text that is not there is `null` to some.
            Spoken::Text if self.noted.text & texts == 0 && !(self.noted.text == 0 && texts & NULL != 0) => {
                let fault =
                    if self.noted.text == 0 { Fault::new(REQUIRED) } else { wrong_kind(texts, self.noted.text) };
                Err(fault.under("text"))
            }
            Spoken::Document if !self.strict() => Ok(()),
            Spoken::Media | Spoken::Document | Spoken::Nothing => self.noted.data.take().map_or(Ok(()), Err),
            _ => Ok(()),
        }
    }

    pub(super) fn part_type(&mut self) -> Result<(), Fault> {
        let light = if self.noted.chat { STRING } else { ANY };
        if self.expect_by_level(light, STRING)? != STRING {
            return self.skip();
        }
        let word = self.reader.quoted()?;
        self.noted.part = Spoken::of(&word);
        if self.noted.chat && self.strict() && !PARTS.iter().any(|known| word.is(known.as_bytes())) {
            let got = word.decode();
            return Err(Fault::new(format!("expected one of {}, but got `{}`", PARTS.join(", "), shown(&got))));
        }
        Ok(())
    }

    pub(super) fn part_text(&mut self) -> Result<(), Fault> {
        self.noted.text = self.peek_kind()?;
        self.skip()
    }

    /// An object with a `url`, or in responses the URL itself.
    pub(super) fn image_url(&mut self) -> Result<(), Fault> {
        match self.expect(ANY)? {
            STRING => self.data_url(),
            OBJECT => self.nested(&schema::IMAGE_URL, ANY, ANY).map(drop),
            kind => {
                self.skip()?;
                self.hold(wrong_kind(STRING | OBJECT, kind).under("image_url"));
                Ok(())
            }
        }
    }

    /// Keeps the first fault of a part's data, with the path inside the part.
    fn hold(&mut self, fault: Fault) {
        self.noted.data.get_or_insert(fault);
    }

    pub(super) fn data_url(&mut self) -> Result<(), Fault> {
        if self.expect(ANY)? != STRING {
            return self.skip();
        }
        let url = self.reader.quoted()?;
        let name = url.name();
        let Some(data) = name.strip_prefix(b"data:") else { return Ok(()) };
        if let Some(flaw) = url_flaw(data, self.strict()) {
            self.hold(Fault::new(flaw).under("image_url"));
        }
        Ok(())
    }

    pub(super) fn audio(&mut self) -> Result<(), Fault> {
        self.nested(&schema::AUDIO, ANY, OBJECT).map(drop)
    }

    /// The `data` of the part's member that is called `parent`.
    pub(super) fn base64(&mut self, parent: &str) -> Result<(), Fault> {
        if self.expect(ANY)? != STRING {
            return self.skip();
        }
        let data = self.reader.quoted()?;
        if let Some(flaw) = base64::flaw(&data.name()) {
            self.hold(Fault::new(flaw).under("data").under(parent));
        }
        Ok(())
    }

    pub(super) fn source(&mut self) -> Result<(), Fault> {
        self.noted.is_base64 = false;
        let before = self.noted.data.is_some();
        self.nested(&schema::SOURCE, ANY, OBJECT)?;
        // A document's data may also be plain text.
        if !self.noted.is_base64 && !before {
            self.noted.data = None;
        }
        Ok(())
    }

    pub(super) fn source_type(&mut self) -> Result<(), Fault> {
        if self.expect_by_level(ANY, STRING)? != STRING {
            return self.skip();
        }
        self.noted.is_base64 = self.reader.quoted()?.is(b"base64");
        Ok(())
    }

    pub(super) fn tool_calls(&mut self) -> Result<(), Fault> {
        if self.expect_by_level(ARRAY | OBJECT, ARRAY)? != ARRAY {
            return self.skip();
        }
        self.each(|walk, _| {
            walk.expect(OBJECT)?;
            walk.nested(&schema::TOOL_CALL, OBJECT, OBJECT).map(drop)
        })
    }

    pub(super) fn input(&mut self) -> Result<(), Fault> {
        if self.expect(STRING | ARRAY)? == STRING {
            return self.skip();
        }
        self.each(|walk, _| {
            walk.expect(OBJECT)?;
            walk.nested(&schema::ITEM, OBJECT, OBJECT).map(drop)
        })
    }

    pub(super) fn item_content(&mut self) -> Result<(), Fault> {
        if self.expect_by_level(ANY & !NUMBER & !BOOL, STRING | ARRAY)? != ARRAY {
            return self.skip();
        }
        self.each(|walk, _| if walk.peek_kind()? == OBJECT { walk.part(ANY) } else { walk.skip() })
    }

    /// llama.cpp takes whatever is no array for an empty one.
    pub(super) fn turns(&mut self) -> Result<(), Fault> {
        if self.expect_by_level(ANY, ARRAY)? != ARRAY {
            return self.skip();
        }
        let mut some = false;
        self.each(|walk, _| {
            some = true;
            walk.expect(OBJECT)?;
            walk.nested(&schema::TURN, OBJECT, OBJECT).map(drop)
        })?;
        self.not_empty(some)
    }

    pub(super) fn turn_content(&mut self) -> Result<(), Fault> {
        if self.expect(STRING | ARRAY)? == STRING {
            return self.skip();
        }
        let strict = self.strict();
        self.each(|walk, _| {
            if walk.expect_by_level(ANY, OBJECT)? != OBJECT {
                return walk.skip();
            }
            walk.part(if strict { STRING } else { STRING | NULL })
        })
    }

    pub(super) fn system(&mut self) -> Result<(), Fault> {
        if self.expect_by_level(ANY, STRING | ARRAY)? != ARRAY || !self.strict() {
            return self.skip();
        }
        self.each(|walk, _| {
            walk.expect(OBJECT)?;
            walk.part(STRING)
        })
    }
}

/// What is wrong with a data URL's rest. SGLang decodes what follows the comma, whatever stands before it.
fn url_flaw(data: &[u8], strict: bool) -> Option<&'static str> {
    let Some(comma) = data.iter().position(|byte| *byte == b',') else {
        return Some("the data URL has no comma before its data; it should read `data:image/png;base64,…`");
    };
    let (head, rest) = (&data[..comma], &data[comma + 1..]);
    if head.ends_with(b";base64") {
        return base64::flaw(rest);
    }
    strict.then_some("the data URL is not in base64; it should read `data:image/png;base64,…`")
}
