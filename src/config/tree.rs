//! YAML as a tree in which every value knows where it was written, so that each problem can point at its place.
//!
//! A YAML library that reads straight into types stops at the first mistake. This tree is read first, as a whole;
//! variables, environment and flags are laid over it; and `de.rs` reads types from it as often as it takes.

use std::{collections::HashMap, sync::Arc};

use granit_parser::{Event, Parser, ScalarStyle};

/// Nesting that a configuration may have; the deepest field of ours lies at 6.
const MAX_DEPTH: usize = 32;
/// Values that a configuration may have once aliases are followed: a few aliases of aliases make billions.
const MAX_NODES: usize = 50_000;

/// One value.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) at: At,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Written with nothing behind it, or `null`, or `~`: as good as not written.
    Null,
    /// Taken out because it was wrong; keeps the places of its neighbours.
    Hole,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// A variable of the environment had a part in it.
    pub(super) from_env: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_at: At,
    pub(super) value: Node,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum At {
    File(Span),
    /// `environment variable X`, `--flag`.
    Named(Arc<str>),
}

/// A stretch of the file; lines and columns (in characters) from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) end_line: usize,
    pub(super) end_column: usize,
}

/// A mistake in the YAML itself.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) span: Span,
    pub(super) reason: String,
    pub(super) help: Option<String>,
    /// Nothing behind it was read.
    pub(super) fatal: bool,
    /// What it is about is not in the tree.
    pub(super) left_out: bool,
}

impl Node {
    /// Text that was not written in the file.
    pub(super) fn text(text: impl Into<String>, at: At) -> Self {
        Self { value: Value::Scalar(Scalar { text: text.into(), from_env: false }), at }
    }

    /// An empty section.
    pub(super) fn empty() -> Self {
        Self { value: Value::Map(Vec::new()), at: At::File(Span { line: 1, column: 1, end_line: 1, end_column: 1 }) }
    }

    /// The value under `key`, if this is a section that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|e| e.key == key).map(|e| &e.value)
    }

    /// Whether there is nothing to read.
    pub(super) fn is_unset(&self) -> bool {
        matches!(self.value, Value::Null | Value::Hole)
    }

    fn count(&self) -> usize {
        1 + match &self.value {
            Value::List(nodes) => nodes.iter().map(Node::count).sum(),
            Value::Map(entries) => entries.iter().map(|e| e.value.count()).sum::<usize>(),
            _ => 0,
        }
    }
}

/// Reads one document. Mistakes that leave the rest readable are all reported; a syntax error ends the reading.
pub(super) fn parse(text: &str) -> (Node, Vec<Fault>) {
    let mut builder = Builder::default();
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    for next in Parser::new_from_str_with_options(text, options) {
        let step = match next {
            Ok((event, span)) => builder.take(event, Span::from(span)),
            Err(e) => Err(Fault::at(Span::from(granit_parser::Span::empty(*e.marker())), e.info())),
        };
        if let Err(fault) = step {
            builder.faults.push(Fault { fatal: true, ..fault });
            break;
        }
    }
    builder.close();
    let root = match builder.root {
        Some(Node { value: Value::Null, .. }) | None => Node::empty(),
        Some(root) => root,
    };
    (root, builder.faults)
}

/// Events → tree, without recursion.
#[derive(Default)]
struct Builder {
    stack: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    documents: usize,
    root: Option<Node>,
    faults: Vec<Fault>,
}

/// A collection that is not closed yet.
struct Frame {
    node: Node,
    anchor: usize,
    /// A section's key that waits for its value.
    key: Option<(String, Span)>,
    /// Keys so far, with their lines.
    seen: HashMap<String, usize>,
    start: Span,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        if let Event::Scalar(_, _, _, Some(tag))
        | Event::SequenceStart(_, _, Some(tag))
        | Event::MappingStart(_, _, Some(tag)) = &event
            && !tag.is_yaml_core_schema()
        {
            self.faults.push(
                Fault::at(span, "YAML tags have no meaning here")
                    .help("remove the tag; secrets come by ${VAR} or *_file"),
            );
        }
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Fault::at(span, "a second document").help("keep one document in the file"));
                }
            }
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let value = match &*text {
                    "" | "~" | "null" | "Null" | "NULL" if plain => Value::Null,
                    _ => Value::Scalar(Scalar { text: text.into_owned(), from_env: false }),
                };
                self.finish(Node { value, at: At::File(span) }, anchor, span)?;
            }
            Event::SequenceStart(_, anchor, _) => self.open(Value::List(Vec::new()), anchor, span),
            Event::MappingStart(_, anchor, _) => self.open(Value::Map(Vec::new()), anchor, span),
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(mut frame) = self.stack.pop() {
                    if let Value::Map(entries) = &mut frame.node.value {
                        merge(entries);
                    }
                    self.finish(frame.node, frame.anchor, frame.start)?;
                }
            }
            Event::Alias(id) => {
                let Some(mut node) = self.anchors.get(&id).cloned() else {
                    return Err(Fault::at(span, "this alias points at the value that it is in"));
                };
                self.nodes += node.count();
                node.at = At::File(span);
                self.finish(node, 0, span)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Closes what a syntax error left open, so that what came before it is known.
    fn close(&mut self) {
        while let Some(frame) = self.stack.pop() {
            if self.finish(frame.node, 0, frame.start).is_err() {
                return;
            }
        }
    }

    fn open(&mut self, value: Value, anchor: usize, span: Span) {
        let node = Node { value, at: At::File(Span { end_line: span.line, end_column: span.column + 1, ..span }) };
        self.stack.push(Frame { node, anchor, key: None, seen: HashMap::new(), start: span });
    }

    /// Puts a finished value where it belongs.
    fn finish(&mut self, node: Node, anchor: usize, span: Span) -> Result<(), Fault> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Fault::at(span, format!("more than {MAX_NODES} values, aliases followed")));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut frame.node.value {
            Value::List(nodes) => nodes.push(node),
            Value::Map(entries) => match frame.key.take() {
                None => frame.key = Some((key_of(&node, span)?, span)),
                Some((key, at)) => match frame.seen.get(&key).filter(|_| key != MERGE) {
                    Some(first) => {
                        let fault = Fault::at(at, format!("`{}` is given twice", super::secret::shown_key(&key)));
                        let fault = fault.help(format!("first given in line {first}"));
                        self.faults.push(Fault { left_out: true, ..fault });
                    }
                    None => {
                        frame.seen.insert(key.clone(), at.line);
                        entries.push(Entry { key, key_at: At::File(at), value: node });
                    }
                },
            },
            _ => {}
        }
        Ok(())
    }
}

/// YAML's merge key: takes over the fields of other sections, own ones first.
const MERGE: &str = "<<";

fn key_of(node: &Node, span: Span) -> Result<String, Fault> {
    match &node.value {
        Value::Scalar(s) => Ok(s.text.clone()),
        Value::Null => Ok(String::new()),
        _ => Err(Fault::at(span, "the name of a field must be plain text")),
    }
}

/// Replaces each `<<` by the fields of what it names, where they are not given already.
fn merge(entries: &mut Vec<Entry>) {
    while let Some(i) = entries.iter().position(|e| e.key == MERGE && can_merge(&e.value)) {
        let entry = entries.remove(i);
        let sources = match entry.value.value {
            Value::List(nodes) => nodes,
            value => vec![Node { value, at: entry.value.at }],
        };
        for source in sources {
            let Value::Map(fields) = source.value else { continue };
            for field in fields {
                if !entries.iter().any(|e| e.key == field.key) {
                    entries.push(field);
                }
            }
        }
    }
}

fn can_merge(node: &Node) -> bool {
    match &node.value {
        Value::Map(_) => true,
        Value::List(nodes) => nodes.iter().all(|n| matches!(n.value, Value::Map(_))),
        _ => false,
    }
}

impl Fault {
    fn at(span: Span, reason: impl Into<String>) -> Self {
        Self { span, reason: reason.into(), help: None, fatal: false, left_out: false }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl From<granit_parser::Span> for Span {
    fn from(span: granit_parser::Span) -> Self {
        Self {
            line: span.start.line(),
            column: span.start.col() + 1,
            end_line: span.end.line(),
            end_column: span.end.col() + 1,
        }
    }
}
