//! What must never be shown: which fields are secret, and how text is made safe to print.

use std::{borrow::Cow, fmt, sync::Arc};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    de::Step,
    tree::{At, Node, Span, Value},
};

/// A secret: prints as `***`, compared by the stages that need it through [`Secret::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

/// What stands in place of a secret.
pub const MASK: &str = "***";

impl Secret {
    pub fn new(value: impl Into<Arc<str>>) -> Self {
        Self(value.into())
    }

    /// The secret itself; never log it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "writeOnly": true })
    }
}

/// Words that make the name of a field a secret's.
const WORDS: [&str; 8] = ["key", "token", "secret", "password", "passwd", "credential", "redis", "authorization"];

/// Whether a field of this name, right or misspelt, holds a secret. Paths of files are none.
fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase();
    if name.ends_with("_file") || name.starts_with("max_tokens") || name.ends_with("tokens_per_minute") {
        return false;
    }
    name.split(|c: char| !c.is_alphanumeric())
        .any(|part| WORDS.iter().any(|word| part.contains(word) || near(part, word)))
        || ["api_key", "admin_token", "interruption_token"].iter().any(|n| strsim::damerau_levenshtein(n, &name) <= 2)
}

/// A misspelling; short words would match half the dictionary.
fn near(part: &str, word: &str) -> bool {
    word.len() >= 5 && strsim::damerau_levenshtein(part, word) <= 1
}

/// Whether a value at this place is secret. `tls.key` and its like name files.
pub(super) fn is_secret_path(path: &[Step]) -> bool {
    let mut fields = path.iter().rev().filter_map(|step| match step {
        Step::Field(name) => Some(name.as_str()),
        Step::Item(_) => None,
    });
    let Some(last) = fields.next() else { return false };
    is_secret(fields.next(), last)
}

fn is_secret(parent: Option<&str>, name: &str) -> bool {
    is_secret_name(name) && name != "keys" && name != "client_key" && !parent.is_some_and(|p| p.contains("tls"))
}

/// Text for a message: credentials of URLs blanked, control characters out, of bounded length.
pub(super) fn short(text: &str) -> String {
    const MOST: usize = 60;
    let safe = without_userinfo(text);
    let mut out: String = safe.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect();
    if safe.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

/// Replaces `user:password` in each `scheme://user:password@host`.
fn without_userinfo(text: &str) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(i) = rest.find("://") {
        let (before, after) = rest.split_at(i + 3);
        out.push_str(before);
        let end = after.find(|c: char| "/?#\"' \t,}]".contains(c)).unwrap_or(after.len());
        match after[..end].rfind('@') {
            Some(at) => {
                out.push_str(MASK);
                rest = &after[at..];
            }
            None => rest = after,
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Places of secrets in a file, found once, so that no source line is shown with one.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    spans: Vec<Span>,
}

impl Secrets {
    /// All secrets of the tree; those that variables bring in are not in the file.
    pub(super) fn of(root: &Node) -> Self {
        let mut spans = Vec::new();
        collect(root, None, "", &mut spans);
        spans.sort_by_key(|s| (s.line, s.column));
        Self { spans }
    }

    /// Line `number` with its secrets blanked, and where `column` (from 1) has moved to.
    pub(super) fn mask(&self, number: usize, line: &str, column: usize) -> (String, usize) {
        let chars: Vec<char> = line.chars().collect();
        let (mut out, mut moved, mut next) = (String::new(), column, 0);
        for span in self.spans.iter().filter(|s| s.line <= number && number <= s.end_line) {
            let from = if span.line == number { span.column - 1 } else { 0 }.clamp(next, chars.len());
            let to = if span.end_line == number { span.end_column - 1 } else { chars.len() }.clamp(from, chars.len());
            if from == to {
                continue;
            }
            out.extend(&chars[next..from]);
            if column > to {
                moved = moved + MASK.len() - (to - from);
            } else if column > from {
                moved = out.chars().count() + 1;
            }
            out.push_str(MASK);
            next = to;
        }
        out.extend(&chars[next.min(chars.len())..]);
        (without_userinfo(&out).into_owned(), moved)
    }
}

fn collect(node: &Node, parent: Option<&str>, name: &str, spans: &mut Vec<Span>) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                collect(&entry.value, Some(name), &entry.key, spans);
            }
        }
        Value::List(nodes) => nodes.iter().for_each(|node| collect(node, parent, name, spans)),
        Value::Scalar(scalar) if is_secret(parent, name) && !scalar.from_env && !scalar.text.is_empty() => {
            if let At::File(span) = node.at {
                spans.push(span);
            }
        }
        _ => {}
    }
}

/// Whether line `number` (from 1), where the YAML breaks off, may be a part of a secret: it, or the line that it is
/// indented below, has a secret's name. The tree cannot tell, for it ends here.
pub(super) fn may_be_secret(text: &str, number: usize) -> bool {
    let indent = |line: &str| line.len() - line.trim_start_matches([' ', '-', '\t']).len();
    let mut least = usize::MAX;
    let lines: Vec<&str> = text.lines().take(number).collect();
    for (i, line) in lines.iter().enumerate().rev().filter(|(_, line)| !line.trim().is_empty()) {
        let owner = i + 1 == number || indent(line) < least;
        if owner && line.split(|c: char| !c.is_alphanumeric() && c != '_').any(is_secret_name) {
            return true;
        }
        if i + 1 < number && indent(line) < least && indent(line) == 0 {
            return false;
        }
        least = least.min(indent(line));
    }
    false
}
