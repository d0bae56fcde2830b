//! Types from a located tree, with *all* that is wrong in it.
//!
//! serde stops at the first error. So the wrong value is noted, taken out of the tree, and the reading begins again:
//! each round finds one mistake more, and what is right is read in the end. Unknown fields cost no round.

use std::{cell::RefCell, fmt};

use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};

use super::{
    secret,
    tree::{At, Entry, Node, Value},
};

/// Wrong values that one run reports; a file with more is not a configuration.
const MAX_FAULTS: usize = 100;

/// A value that does not fit.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) path: Vec<Step>,
    pub(super) at: Option<Box<At>>,
    pub(super) reason: String,
    pub(super) help: Option<String>,
    /// The field that an unknown one was probably meant to be.
    meant: Option<&'static str>,
}

impl Fault {
    /// The path that was probably meant.
    pub(super) fn meant(&self) -> Option<String> {
        let (_, section) = self.path.split_last()?;
        self.meant.map(|field| super::env::join(&path_text(section), field))
    }
}

/// One step of a path. Indices count what was written, holes included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Field(String),
    Item(usize),
}

/// Reads `T`. Wrong values are left at their defaults and reported, and become holes of the tree.
pub(super) fn read<T: de::DeserializeOwned + Default>(root: &mut Node) -> (T, Vec<Fault>) {
    let mut faults = Vec::new();
    while faults.len() < MAX_FAULTS {
        let unknown = RefCell::new(Vec::new());
        let result = T::deserialize(Reader { node: root, path: &Path::Root, unknown: &unknown });
        let before = faults.len();
        faults.extend(unknown.into_inner());
        if let Err(fault) = &result {
            faults.push(fault.clone());
        }
        for fault in &faults[before..] {
            dig(root, &fault.path);
        }
        if matches!(root.value, Value::Hole) {
            break;
        }
        if let Ok(value) = result {
            return (value, faults);
        }
    }
    (T::default(), faults)
}

/// Makes a hole.
fn dig(node: &mut Node, path: &[Step]) {
    let next = match (path.first(), &mut node.value) {
        (None, value) => {
            *value = Value::Hole;
            return;
        }
        (Some(Step::Field(key)), Value::Map(entries)) => {
            entries.iter_mut().find(|e| e.key == *key).map(|e| &mut e.value)
        }
        (Some(Step::Item(i)), Value::List(nodes)) => nodes.get_mut(*i),
        _ => None,
    };
    if let Some(next) = next {
        dig(next, &path[1..]);
    }
}

/// `backends[0].url`
pub(super) fn path_text(path: &[Step]) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Field(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(&secret::shown_key(key));
            }
            Step::Item(i) => out.push_str(&format!("[{i}]")),
        }
    }
    out
}

/// The name among `names` that was probably meant.
pub(super) fn nearest<'n>(written: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    // Comparing costs the product of both lengths.
    if written.len() > 64 {
        return None;
    }
    names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&written.to_lowercase(), name), name))
        .filter(|(likeness, name)| *likeness > 0.82 || strsim::damerau_levenshtein(written, name) <= 1)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// The way down to a value, kept on the stack.
enum Path<'p> {
    Root,
    Field(&'p Path<'p>, &'p str),
    Item(&'p Path<'p>, usize),
}

impl Path<'_> {
    fn steps(&self) -> Vec<Step> {
        match self {
            Path::Root => Vec::new(),
            Path::Field(up, key) => with(up.steps(), Step::Field((*key).to_owned())),
            Path::Item(up, i) => with(up.steps(), Step::Item(*i)),
        }
    }
}

fn with(mut steps: Vec<Step>, step: Step) -> Vec<Step> {
    steps.push(step);
    steps
}

#[derive(Clone, Copy)]
struct Reader<'p> {
    node: &'p Node,
    path: &'p Path<'p>,
    unknown: &'p RefCell<Vec<Fault>>,
}

impl Reader<'_> {
    fn fault(self, reason: String) -> Fault {
        Fault { path: self.path.steps(), at: Some(Box::new(self.node.at.clone())), reason, help: None, meant: None }
    }

    /// Gives an error that a visitor raised its place; the innermost reader has the word.
    fn place(self, fault: Fault) -> Fault {
        if fault.at.is_some() {
            return fault;
        }
        let reason = match fault.reason.starts_with("expected ") {
            true => format!("{}, found {}", fault.reason, self.found()),
            false => fault.reason,
        };
        Fault { help: fault.help, ..self.fault(reason) }
    }

    /// What stands there, in words that never tell a secret.
    fn found(self) -> String {
        match &self.node.value {
            Value::Null | Value::Hole => "nothing".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a section".to_owned(),
            Value::Scalar(s) if self.may_show(&s.text) => format!("`{}`", secret::short(&s.text)),
            Value::Scalar(_) => "text".to_owned(),
        }
    }

    fn may_show(self, text: &str) -> bool {
        let path = self.path.steps();
        !path.is_empty() && !secret::is_secret_path(&path) && !secret::holds_secret(text)
    }

    fn wrong(self, expected: impl fmt::Display) -> Fault {
        self.fault(format!("expected {expected}, found {}", self.found()))
    }

    fn text(&self) -> Option<&str> {
        match &self.node.value {
            Value::Scalar(s) => Some(&s.text),
            _ => None,
        }
    }

    fn list<'de, V: Visitor<'de>>(self, nodes: &[Node], visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_seq(Items { of: self, nodes, next: 0 }).map_err(|e| self.place(e))
    }

    fn map<'de, V: Visitor<'de>>(self, entries: &[Entry], visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_map(Entries { of: self, entries, next: 0, fields: None }).map_err(|e| self.place(e))
    }
}

/// What to say of a value that should have been a number.
fn number<T: std::str::FromStr>(reader: Reader<'_>, what: &str) -> Result<T, Fault> {
    let Some(text) = reader.text() else { return Err(reader.wrong(what)) };
    text.replace('_', "").parse().map_err(|_| reader.wrong(what))
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty, $what:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            visitor.$visit(number::<$type>(self, $what)?).map_err(|e| self.place(e))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null | Value::Hole => visitor.visit_unit().map_err(|e| self.place(e)),
            Value::Scalar(s) => visitor.visit_str(&s.text).map_err(|e| self.place(e)),
            Value::List(nodes) => self.list(nodes, visitor),
            Value::Map(entries) => self.map(entries, visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let hint = match self.text().map(str::to_ascii_lowercase).as_deref() {
            Some("true") => return visitor.visit_bool(true),
            Some("false") => return visitor.visit_bool(false),
            Some("yes" | "on" | "1" | "y") => Some("write `true`"),
            Some("no" | "off" | "0" | "n") => Some("write `false`"),
            _ => None,
        };
        Err(Fault { help: hint.map(str::to_owned), ..self.wrong("true or false") })
    }

    numbers! {
        deserialize_i8 visit_i8 i8, "a whole number";
        deserialize_i16 visit_i16 i16, "a whole number";
        deserialize_i32 visit_i32 i32, "a whole number";
        deserialize_i64 visit_i64 i64, "a whole number";
        deserialize_u8 visit_u8 u8, "a whole number from 0 to 255";
        deserialize_u16 visit_u16 u16, "a whole number from 0 to 65535";
        deserialize_u32 visit_u32 u32, "a whole number from 0";
        deserialize_u64 visit_u64 u64, "a whole number from 0";
        deserialize_f32 visit_f32 f32, "a number";
        deserialize_f64 visit_f64 f64, "a number";
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.text() {
            Some(text) => visitor.visit_str(text).map_err(|e| self.place(e)),
            None => Err(self.wrong(Expecting(&visitor))),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.text() {
            Some(text) => visitor.visit_str(text).map_err(|e| self.place(e)),
            None => Err(self.wrong("text")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.node.is_unset() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::List(nodes) => self.list(nodes, visitor),
            Value::Scalar(_) => {
                Err(Fault { help: Some("write it in brackets: `[…]`".to_owned()), ..self.wrong("a list") })
            }
            _ => Err(self.wrong("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Map(entries) => self.map(entries, visitor),
            _ => Err(self.wrong("a section of `name: value` lines")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let Value::Map(entries) = &self.node.value else {
            let help = Some(format!("fields here: {}", fields.join(", ")));
            return Err(Fault { help, ..self.wrong("a section of `name: value` lines") });
        };
        for entry in entries.iter().filter(|e| !fields.contains(&e.key.as_str())) {
            if matches!(entry.value.value, Value::Hole) || self.unknown.borrow().len() >= MAX_FAULTS {
                continue;
            }
            let meant = nearest(&entry.key, fields.iter().copied());
            let help = match meant {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("fields here: {}", fields.join(", ")),
            };
            self.unknown.borrow_mut().push(Fault {
                path: with(self.path.steps(), Step::Field(entry.key.clone())),
                at: Some(Box::new(entry.key_at.clone())),
                reason: format!("unknown field `{}`", secret::shown_key(&entry.key)),
                help: Some(help),
                meant,
            });
        }
        visitor.visit_map(Entries { of: self, entries, next: 0, fields: Some(fields) }).map_err(|e| self.place(e))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        // Tools that speak YAML 1.1 (Helm, PyYAML) write `off` as `false`.
        let text = self.text().map(|text| if text == "false" && variants.contains(&"off") { "off" } else { text });
        match text {
            Some(text) if variants.contains(&text) => {
                visitor.visit_enum(IntoDeserializer::<Fault>::into_deserializer(text)).map_err(|e| self.place(e))
            }
            Some(text) => {
                let help = nearest(text, variants.iter().copied()).map(|v| format!("did you mean `{v}`?"));
                Err(Fault { help, ..self.wrong(choices(variants)) })
            }
            None => Err(self.wrong(choices(variants))),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self).map_err(|e| self.place(e))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! { char bytes byte_buf unit unit_struct tuple tuple_struct }
}

/// `a, b or c`
fn choices(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [one] => format!("`{one}`"),
        [most @ .., last] => {
            let most: Vec<_> = most.iter().map(|n| format!("`{n}`")).collect();
            format!("{} or `{last}`", most.join(", "))
        }
    }
}

struct Expecting<'v, V>(&'v V);

impl<'de, V: Visitor<'de>> fmt::Display for Expecting<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }
}

struct Items<'p> {
    of: Reader<'p>,
    nodes: &'p [Node],
    next: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        while let Some(node) = self.nodes.get(self.next) {
            let path = Path::Item(self.of.path, self.next);
            self.next += 1;
            if !matches!(node.value, Value::Hole) {
                return seed.deserialize(Reader { node, path: &path, unknown: self.of.unknown }).map(Some);
            }
        }
        Ok(None)
    }
}

struct Entries<'p> {
    of: Reader<'p>,
    entries: &'p [Entry],
    next: usize,
    /// Fields that are known; `None` = any name.
    fields: Option<&'static [&'static str]>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        while let Some(entry) = self.entries.get(self.next) {
            let known = self.fields.is_none_or(|fields| fields.contains(&entry.key.as_str()));
            if known && !entry.value.is_unset() {
                return seed.deserialize(entry.key.as_str().into_deserializer()).map(Some);
            }
            self.next += 1;
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some(entry) = self.entries.get(self.next) else {
            return Err(de::Error::custom("a value was asked for before its name"));
        };
        self.next += 1;
        let path = Path::Field(self.of.path, &entry.key);
        seed.deserialize(Reader { node: &entry.value, path: &path, unknown: self.of.unknown })
    }
}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        // Types of ours put what to do on a second line.
        let text = message.to_string();
        let (reason, help) = match text.split_once('\n') {
            Some((reason, help)) => (reason.to_owned(), Some(help.to_owned())),
            None => (text, None),
        };
        Self { path: Vec::new(), at: None, reason, help, meant: None }
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        // serde would print the value, and it may be a secret.
        Self::custom(format_args!("expected {expected}"))
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Fault {}
