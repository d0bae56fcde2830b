//! Tools, the choice among them, and the form of the answer.

use super::{
    Walk,
    content::REQUIRED,
    fault::{Fault, shown},
    rule::{ANY, ARRAY, OBJECT, STRING},
    schema,
};
use crate::protocol::json::{Malformed, Reader};

/// Types of `response_format` that any engine or API takes.
const FORMATS: [&str; 8] = ["text", "json_object", "json_schema", "structural_tag", "json", "regex", "grammar", ""];

/// OpenAI's.
const MOST_TOOLS: usize = 128;
const LONGEST_NAME: usize = 64;

impl Walk<'_> {
    pub(super) fn tools(&mut self) -> Result<(), Fault> {
        self.expect(ARRAY)?;
        self.each(|walk, index| {
            if walk.strict() && index == MOST_TOOLS {
                return Err(Fault::new(format!("expected at most {MOST_TOOLS} tools")));
            }
            walk.expect(OBJECT)?;
            walk.tool()
        })
    }

    /// All engines know functions alone, but other types are theirs to refuse.
    fn tool(&mut self) -> Result<(), Fault> {
        (self.noted.is_function, self.noted.function) = (true, None);
        let met = self.object(&schema::TOOL)?;
        self.needs(&schema::TOOL, met)?;
        if !self.noted.is_function {
            return Ok(());
        }
        match self.noted.function.take() {
            None => Err(Fault::new(REQUIRED).under("function")),
            Some(judged) => judged,
        }
    }

    pub(super) fn tool_type(&mut self) -> Result<(), Fault> {
        if self.expect_by_level(ANY, STRING)? != STRING {
            self.noted.is_function = false;
            return self.skip();
        }
        self.noted.is_function = self.reader.quoted()?.is(b"function");
        Ok(())
    }

    pub(super) fn function(&mut self) -> Result<(), Fault> {
        let start = self.reader.clone();
        match self.nested(&schema::FUNCTION, OBJECT, OBJECT) {
            Err(fault) if fault.is_syntax() || self.strict() => return Err(fault),
            Err(fault) => {
                self.noted.function = Some(Err(fault.under("function")));
                self.reader = start;
                self.skip()?;
            }
            Ok(_) => self.noted.function = Some(Ok(())),
        }
        Ok(())
    }

    pub(super) fn function_name(&mut self) -> Result<(), Fault> {
        self.expect(STRING)?;
        let name = self.text()?;
        let fine = (1..=LONGEST_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if fine || !self.strict() {
            return Ok(());
        }
        let name = shown(&name);
        Err(Fault::new(format!("expected 1 to {LONGEST_NAME} letters, digits, _ and -, but got `{name}`")))
    }

    pub(super) fn tool_choice(&mut self, table: &'static schema::Table) -> Result<(), Fault> {
        match self.expect_by_level(ANY, STRING | OBJECT)? {
            STRING => self.choice_word(),
            OBJECT => self.nested(table, ANY, OBJECT).map(drop),
            _ => self.skip(),
        }
    }

    fn choice_word(&mut self) -> Result<(), Fault> {
        let word = self.text()?;
        if ["none", "auto", "required"].contains(&&*word) {
            return Ok(());
        }
        let got = shown(&word);
        Err(Fault::new(format!("expected none, auto, required, or an object that names a tool, but got `{got}`")))
    }

    pub(super) fn chosen_name(&mut self) -> Result<(), Fault> {
        if self.expect_by_level(ANY, STRING)? != STRING {
            return self.skip();
        }
        self.named = Some(self.reader.quoted()?);
        Ok(())
    }

    pub(super) fn format(&mut self) -> Result<(), Fault> {
        (self.noted.wants_schema, self.noted.has_schema) = (false, false);
        self.nested(&schema::FORMAT, ANY, OBJECT)?;
        if self.strict() && self.noted.wants_schema && !self.noted.has_schema {
            return Err(Fault::new(REQUIRED).under("json_schema"));
        }
        Ok(())
    }

    pub(super) fn format_schema(&mut self) -> Result<(), Fault> {
        self.noted.has_schema = true;
        self.nested(&schema::FORMAT_SCHEMA, ANY, OBJECT).map(drop)
    }

    pub(super) fn format_type(&mut self) -> Result<(), Fault> {
        if self.expect_by_level(ANY, STRING)? != STRING {
            return self.skip();
        }
        let word = self.text()?;
        self.noted.wants_schema = word == "json_schema";
        let known = if self.strict() { &FORMATS[..3] } else { &FORMATS };
        if known.contains(&&*word) {
            return Ok(());
        }
        Err(Fault::new(format!("expected text, json_object or json_schema, but got `{}`", shown(&word))))
    }

    /// Strict: a choice that names a tool names one of those that are there. They may stand behind it.
    pub(super) fn chosen_tool(&self) -> Result<(), Fault> {
        let Some(named) = self.named.filter(|_| self.strict()) else { return Ok(()) };
        let name = named.name();
        let there = match self.tools {
            Some(start) => has_tool(self.body, start, &name)?,
            None => false,
        };
        if there {
            return Ok(());
        }
        let name = shown(&named.decode());
        Err(Fault::new(format!("it names the tool `{name}`, which is not among the tools")).under("tool_choice"))
    }
}

/// Whether the array at `start`, which was read before, has a tool of that name.
fn has_tool(body: &[u8], start: usize, name: &[u8]) -> Result<bool, Malformed> {
    let mut found = false;
    let mut reader = Reader::from(body, start);
    reader.elements(|reader| {
        reader.members(|reader, key| match key.name().as_ref() {
            b"name" | b"server_label" => {
                found |= reader.text()?.is_some_and(|text| text.is(name));
                Ok(())
            }
            b"function" | b"custom" => reader.members(|reader, key| {
                if !key.is(b"name") {
                    return reader.skip();
                }
                found |= reader.text()?.is_some_and(|text| text.is(name));
                Ok(())
            }),
            _ => reader.skip(),
        })
    })?;
    Ok(found)
}
