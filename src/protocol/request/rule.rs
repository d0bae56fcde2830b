//! What a value may be: one rule for each kind of member, at both levels.

use super::{
    MOST_CHOICES, Walk,
    fault::{Fault, shown},
    schema,
};

/// The kinds of JSON values, a bit each.
pub(super) const NULL: u8 = 1;
pub(super) const BOOL: u8 = 2;
pub(super) const NUMBER: u8 = 4;
pub(super) const STRING: u8 = 8;
pub(super) const ARRAY: u8 = 16;
pub(super) const OBJECT: u8 = 32;
pub(super) const ANY: u8 = 63;

/// A rule. Ranges hold at the strict level; what the light one asks for is said with each.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// Whatever it is.
    Any,
    /// One of these kinds, at each level.
    Kinds {
        light: u8,
        strict: u8,
    },
    /// Judged at the strict level alone.
    Strictly(&'static Rule),
    /// One of these words. Light: anything.
    OneOf(&'static [&'static str]),
    /// `true` or `false`. Light: what pydantic takes for one.
    Flag,
    /// `stream_options.include_usage`
    IncludeUsage,
    /// Light: whatever may be read as a number.
    Number {
        least: f64,
        most: f64,
    },
    /// Light: whatever may be read as a number.
    Integer {
        least: i64,
        most: i64,
    },
    /// A limit of tokens. Light: a number, -1 at least.
    Tokens {
        least: i64,
    },
    /// `n` and `best_of`. Light: no more than the gateway's own bound, and a number where all engines read it.
    Choices {
        most: u64,
        read: bool,
    },
    /// Stop strings, of which a single one may stand `alone`. Light: no numbers and booleans in the array.
    Stop {
        most: usize,
        alone: bool,
    },
    /// `prompt` and `input`: text, token ids, or arrays of them, of so many elements.
    Prompt {
        most: usize,
    },
    Bias,
    Metadata,

    Messages,
    Role(&'static [&'static str]),
    Content,
    PartType,
    PartText,
    ImageUrl,
    DataUrl,
    Audio,
    /// Data of the part's member of that name.
    Base64(&'static str),
    Source,
    SourceType,
    ToolCalls,
    Input,
    ItemContent,
    Turns,
    TurnContent,
    System,

    Tools,
    /// An array, of objects of that table at the strict level.
    ToolList(&'static schema::Table),
    ToolType,
    Function,
    /// Light: any string.
    FunctionName,
    /// An object of that table, or one of the words. Light: whatever is no string.
    ToolChoice(&'static schema::Table),
    ChosenName,
    Format,
    FormatType,
    FormatSchema,
    /// An object of that table. Light: whatever else.
    Table(&'static schema::Table),
    /// An array of objects of that table. Light: whatever else.
    TableList(&'static schema::Table),
}

/// OpenAI's.
const MOST_METADATA: usize = 16;

/// The kind of a value by its first byte.
pub(super) fn kind(first: u8) -> u8 {
    match first {
        b'"' => STRING,
        b'{' => OBJECT,
        b'[' => ARRAY,
        b't' | b'f' => BOOL,
        b'n' => NULL,
        _ => NUMBER,
    }
}

/// The kinds in words: `a string or an array`.
pub(super) fn words(kinds: u8) -> String {
    const WORDS: [&str; 6] = ["null", "a boolean", "a number", "a string", "an array", "an object"];
    // That null is as good as nothing is not worth a word where anything else is expected.
    let told = if kinds == NULL { kinds } else { kinds & !NULL };
    let words: Vec<_> = (0..6).filter(|bit| told & (1 << bit) != 0).map(|bit| WORDS[bit]).collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, first)) => format!("{} or {last}", first.join(", ")),
        None => "nothing".to_owned(),
    }
}

/// Expected one of `kinds`, but it is `got`.
#[cold]
pub(super) fn wrong_kind(kinds: u8, got: u8) -> Fault {
    Fault::new(format!("expected {}, but got {}", words(kinds), words(got)))
}

#[cold]
fn out_of_range(least: impl std::fmt::Display, most: Option<impl std::fmt::Display>, got: &str) -> Fault {
    let got = shown(got);
    Fault::new(match most {
        Some(most) => format!("it must be from {least} to {most}, but is {got}"),
        None => format!("it must be at least {least}, but is {got}"),
    })
}

impl<'a> Walk<'a> {
    /// Reads the value at the cursor, which is not `null`.
    pub(super) fn value(&mut self, rule: Rule) -> Result<(), Fault> {
        match rule {
            Rule::Any => self.skip(),
            Rule::Kinds { light, strict } => {
                self.expect_by_level(light, strict)?;
                self.skip()
            }
            Rule::Strictly(rule) => {
                if self.strict() {
                    self.value(*rule)
                } else {
                    self.skip()
                }
            }
            Rule::OneOf(words) => self.one_of(words),
            Rule::Flag => self.flag(),
            Rule::IncludeUsage => self.include_usage(),
            Rule::Number { least, most } => self.number(least, most),
            Rule::Integer { least, most } => self.integer(least, most),
            Rule::Tokens { least } => self.tokens(least),
            Rule::Choices { most, read } => self.choices(most, read),
            Rule::Stop { most, alone } => self.stop(most, alone),
            Rule::Prompt { most } => self.prompt(most),
            Rule::Bias => self.bias(),
            Rule::Metadata => self.metadata(),
            Rule::Messages => self.messages(),
            Rule::Role(roles) => self.role(roles),
            Rule::Content => self.content(),
            Rule::PartType => self.part_type(),
            Rule::PartText => self.part_text(),
            Rule::ImageUrl => self.image_url(),
            Rule::DataUrl => self.data_url(),
            Rule::Audio => self.audio(),
            Rule::Base64(parent) => self.base64(parent),
            Rule::Source => self.source(),
            Rule::SourceType => self.source_type(),
            Rule::ToolCalls => self.tool_calls(),
            Rule::Input => self.input(),
            Rule::ItemContent => self.item_content(),
            Rule::Turns => self.turns(),
            Rule::TurnContent => self.turn_content(),
            Rule::System => self.system(),
            Rule::Tools => self.tools(),
            Rule::ToolList(table) => {
                self.expect(ARRAY)?;
                self.table_list(table)
            }
            Rule::ToolType => self.tool_type(),
            Rule::Function => self.function(),
            Rule::FunctionName => self.function_name(),
            Rule::ToolChoice(table) => self.tool_choice(table),
            Rule::ChosenName => self.chosen_name(),
            Rule::Format => self.format(),
            Rule::FormatType => self.format_type(),
            Rule::FormatSchema => self.format_schema(),
            Rule::Table(table) => self.nested(table, ANY, OBJECT).map(drop),
            Rule::TableList(table) => self.table_list(table),
        }
    }

    /// Judges a `null`, which is as good as nothing nearly everywhere.
    pub(super) fn null(&self, rule: Rule) -> Result<(), Fault> {
        match rule {
            Rule::Kinds { light, strict } if light & NULL == 0 => Err(wrong_kind(strict, NULL)),
            _ => Ok(()),
        }
    }

    pub(super) fn skip(&mut self) -> Result<(), Fault> {
        Ok(self.reader.skip()?)
    }

    /// The kind of the value at the cursor.
    #[inline]
    pub(super) fn peek_kind(&mut self) -> Result<u8, Fault> {
        Ok(kind(self.reader.peek()?))
    }

    /// The kind of the value at the cursor, which must be one of `kinds`.
    #[inline]
    pub(super) fn expect(&mut self, kinds: u8) -> Result<u8, Fault> {
        self.expect_by_level(kinds, kinds)
    }

    /// As [`expect`](Self::expect), by the level. What is told are the strict ones: they are right for all engines.
    #[inline]
    pub(super) fn expect_by_level(&mut self, light: u8, strict: u8) -> Result<u8, Fault> {
        let kind = self.peek_kind()?;
        let kinds = if self.strict() { strict } else { light };
        if kind & kinds == 0 {
            // What starts no value at all is no JSON, and that is told first.
            self.skip()?;
            return Err(wrong_kind(strict, kind));
        }
        Ok(kind)
    }

    /// Reads an object by `table`; `false` = it is another value, which was skipped.
    pub(super) fn nested(&mut self, table: &'static schema::Table, light: u8, strict: u8) -> Result<bool, Fault> {
        if self.expect_by_level(light, strict)? != OBJECT {
            return self.skip().map(|()| false);
        }
        let met = self.object(table)?;
        self.needs(table, met).map(|()| true)
    }

    /// Reads the array at the cursor, element by element.
    pub(super) fn each(&mut self, mut element: impl FnMut(&mut Self, usize) -> Result<(), Fault>) -> Result<(), Fault> {
        if self.reader.open(b']')? {
            return Ok(());
        }
        for index in 0.. {
            self.reader.peek()?;
            element(self, index).map_err(|fault| fault.at(index))?;
            if self.reader.last(b']')? {
                break;
            }
        }
        Ok(())
    }

    fn table_list(&mut self, table: &'static schema::Table) -> Result<(), Fault> {
        if self.expect_by_level(ANY, ARRAY)? != ARRAY {
            return self.skip();
        }
        self.each(|walk, _| {
            walk.expect_by_level(ANY, OBJECT)?;
            walk.nested(table, ANY, OBJECT).map(drop)
        })
    }

    /// Steps over a value and gives its text.
    pub(super) fn raw(&mut self) -> Result<&'a str, Fault> {
        self.reader.peek()?;
        let start = self.reader.offset();
        self.skip()?;
        Ok(std::str::from_utf8(self.reader.since(start)).unwrap_or_default())
    }

    /// A string, escapes resolved; it was peeked at.
    pub(super) fn text(&mut self) -> Result<std::borrow::Cow<'a, str>, Fault> {
        Ok(self.reader.quoted()?.decode())
    }

    fn one_of(&mut self, words: &[&str]) -> Result<(), Fault> {
        if !self.strict() {
            return self.skip();
        }
        self.expect(STRING)?;
        let text = self.text()?;
        if words.contains(&&*text) {
            return Ok(());
        }
        Err(Fault::new(format!("expected one of {}, but got `{}`", words.join(", "), shown(&text))))
    }

    pub(super) fn flag(&mut self) -> Result<(), Fault> {
        let kind = self.expect_by_level(BOOL | NUMBER | STRING, BOOL)?;
        let raw = self.raw()?;
        let fine = match kind {
            NUMBER => raw.parse().is_ok_and(|number: f64| number == 0.0 || number == 1.0),
            STRING => {
                let word = raw.trim_matches('"');
                ["0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes"]
                    .iter()
                    .any(|known| known.eq_ignore_ascii_case(word))
            }
            _ => true,
        };
        if fine { Ok(()) } else { Err(Fault::new(format!("expected true or false, but got {}", shown(raw)))) }
    }

    fn include_usage(&mut self) -> Result<(), Fault> {
        let start = self.reader.offset();
        self.flag()?;
        self.fields.include_usage = match self.reader.since(start) {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        };
        Ok(())
    }

    /// A number as it is spelled, or at the light level what pydantic may read as one.
    fn numeral(&mut self) -> Result<&'a str, Fault> {
        let kind = self.expect_by_level(BOOL | NUMBER | STRING, NUMBER)?;
        let raw = self.raw()?;
        let special = |raw: &str| ["inf", "nan"].iter().any(|word| raw.to_ascii_lowercase().contains(word));
        if kind == STRING && !raw.bytes().any(|byte| byte.is_ascii_digit()) && !special(raw) {
            return Err(Fault::new(format!("expected a number, but got {}", shown(raw))));
        }
        Ok(raw)
    }

    fn number(&mut self, least: f64, most: f64) -> Result<(), Fault> {
        let raw = self.numeral()?;
        if !self.strict() || raw.parse().is_ok_and(|number: f64| (least..=most).contains(&number)) {
            return Ok(());
        }
        Err(out_of_range(least, Some(most), raw))
    }

    fn integer(&mut self, least: i64, most: i64) -> Result<(), Fault> {
        let raw = self.numeral()?;
        if !self.strict() {
            return Ok(());
        }
        if raw.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
            return Err(Fault::new(format!("expected an integer, but got {}", shown(raw))));
        }
        if raw.parse().is_ok_and(|number: i64| (least..=most).contains(&number)) {
            return Ok(());
        }
        Err(out_of_range(least, (most < i64::MAX).then_some(most), raw))
    }

    /// Engines take -1 for "no limit", and none takes less. Above, each has a bound of its own.
    fn tokens(&mut self, least: i64) -> Result<(), Fault> {
        if self.strict() {
            return self.integer(least, i64::MAX);
        }
        let raw = self.numeral()?;
        if raw.starts_with('-') && raw.parse().is_ok_and(|number: f64| number <= -2.0) {
            return Err(out_of_range(least, None::<u8>, raw));
        }
        Ok(())
    }

    fn choices(&mut self, most: u64, read: bool) -> Result<(), Fault> {
        if self.strict() {
            return self.integer(1, i64::try_from(most).unwrap_or(i64::MAX));
        }
        let raw = if read { self.numeral()? } else { self.raw()? };
        // Also as pydantic reads it: from a string, with underscores between its digits.
        let spelled: String;
        let number = match raw.strip_prefix('"').and_then(|raw| raw.strip_suffix('"')) {
            None => raw,
            Some(inside) => {
                spelled = crate::protocol::json::decode(inside.as_bytes()).trim().replace('_', "");
                &spelled
            }
        };
        match number.parse::<f64>() {
            Ok(number) if number > MOST_CHOICES as f64 => Err(Fault::new(format!(
                "it must be at most {MOST_CHOICES}, which is a bound of this gateway, but is {}",
                shown(raw)
            ))),
            _ => Ok(()),
        }
    }

    fn stop(&mut self, most: usize, alone: bool) -> Result<(), Fault> {
        let kind = self.expect_by_level(ANY, if alone { STRING | ARRAY } else { ARRAY })?;
        if kind != ARRAY {
            return self.skip();
        }
        let strict = self.strict();
        self.each(|walk, index| {
            if strict && index == most {
                return Err(Fault::new(format!("expected at most {most} stop strings")));
            }
            walk.expect_by_level(ANY & !NUMBER & !BOOL, STRING)?;
            walk.skip()
        })
    }

    /// Of arrays, `[1.5]` and `[["a"]]` are refused by all engines; objects and mixtures are not.
    fn prompt(&mut self, most: usize) -> Result<(), Fault> {
        if self.expect_by_level(STRING | ARRAY | OBJECT, STRING | ARRAY)? != ARRAY {
            return self.skip();
        }
        let strict = self.strict();
        let mut first = None;
        self.each(|walk, index| {
            if strict && index == most {
                return Err(Fault::new(format!("expected at most {most} elements")));
            }
            let kind = walk.expect_by_level(ANY & !NULL, STRING | NUMBER | ARRAY)?;
            if strict && kind != *first.get_or_insert(kind) {
                return Err(Fault::new(
                    "expected the same as before it: all strings, all token ids, or all arrays of them",
                ));
            }
            match kind {
                NUMBER => walk.token_id(),
                ARRAY => walk.each(|walk, _| match walk.expect_by_level(NUMBER | BOOL | OBJECT, NUMBER)? {
                    NUMBER => walk.token_id(),
                    _ => walk.skip(),
                }),
                _ => walk.skip(),
            }
        })
    }

    /// Token ids are 32 bits wide in every engine.
    fn token_id(&mut self) -> Result<(), Fault> {
        let raw = self.raw()?;
        let short = raw.len() < 10 && raw.bytes().all(|byte| byte.is_ascii_digit());
        if short || raw.parse().is_ok_and(|id: f64| id.fract() == 0.0 && (0.0..=f64::from(i32::MAX)).contains(&id)) {
            return Ok(());
        }
        Err(Fault::new(format!("expected a token id, from 0 to {}, but got {}", i32::MAX, shown(raw))))
    }

    fn bias(&mut self) -> Result<(), Fault> {
        if !self.strict() {
            return self.skip();
        }
        self.expect(OBJECT)?;
        self.pairs(|walk, name| {
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Fault::new(format!("expected token ids as names, but got `{}`", shown(name))));
            }
            walk.expect(NUMBER)?;
            walk.number(-100.0, 100.0)
        })
    }

    fn metadata(&mut self) -> Result<(), Fault> {
        if !self.strict() {
            return self.skip();
        }
        self.expect(OBJECT)?;
        let mut count = 0;
        self.pairs(|walk, _| {
            count += 1;
            if count > MOST_METADATA {
                return Err(Fault::new(format!("expected at most {MOST_METADATA} members")));
            }
            walk.expect(STRING)?;
            walk.skip()
        })
    }

    /// Reads the object at the cursor, whose names are data.
    fn pairs(&mut self, mut pair: impl FnMut(&mut Self, &str) -> Result<(), Fault>) -> Result<(), Fault> {
        if self.reader.open(b'}')? {
            return Ok(());
        }
        loop {
            let name = self.reader.name()?;
            self.reader.peek()?;
            pair(self, &name.decode())?;
            if self.reader.last(b'}')? {
                return Ok(());
            }
        }
    }
}
