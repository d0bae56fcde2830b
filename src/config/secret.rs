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
    if name.ends_with("_file") || name.contains("max_tokens") || name.ends_with("tokens_per_minute") {
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

/// Whether a value at this place, or around it, is secret. `tls.key` and its like name files.
pub(super) fn is_secret_path(path: &[Step]) -> bool {
    let mut parent = None;
    for step in path {
        let Step::Field(name) = step else { continue };
        if is_secret(parent, name) {
            return true;
        }
        parent = Some(name.as_str());
    }
    false
}

fn is_secret(parent: Option<&str>, name: &str) -> bool {
    is_secret_name(name) && name != "keys" && name != "client_key" && !parent.is_some_and(|p| p.contains("tls"))
}

/// Text for a message: credentials of URLs blanked, control characters out, of bounded length.
pub(super) fn short(text: &str) -> String {
    const MOST: usize = 60;
    let (safe, _, _) = Secrets::default().mask(0, text, 0, 0);
    let mut out: String = safe.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect();
    if safe.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

/// A key for a message or a path; text that slipped into it may hold a secret.
pub(super) fn shown_key(key: &str) -> Cow<'_, str> {
    if holds_secret(key) { MASK.into() } else { short(key).into() }
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
        collect(root, None, "", false, &mut spans);
        spans.sort_by_key(|s| (s.line, s.column));
        Self { spans }
    }

    /// Line `number` with its secrets and the credentials of URLs blanked, and where the characters from `column` to
    /// `end` (from 1) have moved to.
    pub(super) fn mask(&self, number: usize, line: &str, column: usize, end: usize) -> (String, usize, usize) {
        let chars: Vec<char> = line.chars().collect();
        let mut stretches = credentials(&chars);
        stretches.extend(comment(&chars));
        for span in self.spans.iter().filter(|s| s.line <= number && number <= s.end_line) {
            let from = if span.line == number { span.column - 1 } else { 0 };
            let to = if span.end_line == number { span.end_column - 1 } else { chars.len() };
            stretches.push((from.min(chars.len()), to.min(chars.len())));
        }
        stretches.sort_unstable();
        let (mut out, mut next, mut starts) = (String::new(), 0, Vec::with_capacity(chars.len() + 1));
        for (from, to) in stretches.into_iter().filter(|(from, to)| from < to) {
            for &c in &chars[next.min(from)..from] {
                starts.push(out.chars().count());
                out.push(c);
            }
            if to > next {
                let at = out.chars().count();
                starts.resize(to, at);
                out.push_str(MASK);
                next = to;
            }
        }
        for &c in &chars[next..] {
            starts.push(out.chars().count());
            out.push(c);
        }
        starts.push(out.chars().count());
        let place = |column: usize| starts.get(column.saturating_sub(1)).or(starts.last()).map_or(1, |at| at + 1);
        let (start, end) = (place(column), place(end));
        (out, start, end)
    }
}

/// A comment that has a secret's name in it: an old value may stand there.
fn comment(chars: &[char]) -> Option<(usize, usize)> {
    let start = (0..chars.len()).find(|&i| chars[i] == '#' && (i == 0 || chars[i - 1].is_whitespace()))?;
    let text: String = chars[start..].iter().collect();
    holds_secret(&text).then_some((start, chars.len()))
}

/// Where `user:password` stands in each `scheme://user:password@host`.
fn credentials(chars: &[char]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for i in 0..chars.len().saturating_sub(2) {
        if chars[i..i + 3] != [':', '/', '/'] {
            continue;
        }
        let rest = &chars[i + 3..];
        let end = rest.iter().position(|c| "/?#\"' \t,}]".contains(*c)).unwrap_or(rest.len());
        if let Some(at) = rest[..end].iter().rposition(|c| *c == '@') {
            found.push((i + 3, i + 3 + at));
        }
    }
    found
}

/// `inside`: some section around it is a secret's, and all that stands there is meant to be one.
fn collect(node: &Node, parent: Option<&str>, name: &str, inside: bool, spans: &mut Vec<Span>) {
    let mut note = |at: &At| {
        if let At::File(span) = at {
            spans.push(*span);
        }
    };
    let secret = inside || is_secret(parent, name);
    match &node.value {
        Value::Scalar(scalar) if (secret && !is_reference(&scalar.text)) || holds_secret(&scalar.text) => {
            note(&node.at)
        }
        Value::Map(entries) => {
            for entry in entries {
                if secret || holds_secret(&entry.key) {
                    note(&entry.key_at);
                }
            }
            for entry in entries {
                collect(&entry.value, Some(name), &entry.key, secret, spans);
            }
        }
        Value::List(nodes) => nodes.iter().for_each(|node| collect(node, parent, name, inside, spans)),
        _ => {}
    }
}

/// Whether a text has a secret's name and a colon in it, as when lines of YAML became text by a slip of indentation.
pub(super) fn holds_secret(text: &str) -> bool {
    let name =
        |before: &str| before.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().is_some_and(is_secret_name);
    is_pem(text) || text.match_indices(':').any(|(i, _)| name(text[..i].trim_end_matches([' ', '"', '\''])))
}

/// The text of a key or certificate, where the name of its file was meant.
pub(super) fn is_pem(text: &str) -> bool {
    text.contains("-----BEGIN")
}

/// `${VAR}` or `${VAR:?message}`, which give nothing away.
fn is_reference(text: &str) -> bool {
    let inner = text.strip_prefix("${").and_then(|t| t.strip_suffix('}'));
    inner.is_some_and(|inner| !inner.contains(['{', '}']) && !inner.contains(":-"))
}

/// Lines above a syntax error that are looked at for a secret's name, whatever their indentation.
const NEAR: usize = 5;

/// Whether line `number` (from 1), where the YAML breaks off, may be a part of a secret: it, or the line that it is
/// indented below, has a secret's name. The tree cannot tell, for it ends here.
pub(super) fn may_be_secret(lines: &[String], number: usize) -> bool {
    let indent = |line: &str| line.len() - line.trim_start_matches([' ', '-', '\t']).len();
    let names_secret = |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(is_secret_name);
    let lines = &lines[..number.min(lines.len())];
    // Where the YAML breaks off, indentation may be what is wrong: the nearest lines above may be owners too.
    let nearest = lines.iter().rev().filter(|line| !line.trim().is_empty()).take(NEAR);
    if nearest.into_iter().any(|line| names_secret(line)) {
        return true;
    }
    let mut least = usize::MAX;
    for (i, line) in lines.iter().enumerate().rev().filter(|(_, line)| !line.trim().is_empty()) {
        let owner = i + 1 == number || indent(line) < least;
        if owner && names_secret(line) {
            return true;
        }
        if i + 1 < number && indent(line) < least && indent(line) == 0 {
            return false;
        }
        least = least.min(indent(line));
    }
    false
}
