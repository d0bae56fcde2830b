//! The environment: `${VAR}` inside values, `SLUICEGATE_…` over fields, `PORT` as a last resort.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::{
    de::nearest,
    file::FileConfig,
    secret::shown_key,
    tree::{self, At, Entry, Node, Scalar, Value},
};

/// Environment variables, as they were when the process began or as a test gives them.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// This process's. What is not UTF-8 cannot be named in a configuration and is left out.
    pub fn of_process() -> Self {
        Self(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect())
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Names alone: any value may be a secret.
impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Self {
        Self(iter.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

/// Something wrong with a variable, or with the place that names one.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: At,
    pub(super) path: String,
    pub(super) reason: String,
    pub(super) help: Option<String>,
    pub(super) warning: bool,
}

/// Puts variables in the place of `${…}` in every value. The text is a value already: a variable cannot add YAML.
pub(super) fn interpolate(node: &mut Node, path: &str, env: &Env, faults: &mut Vec<Fault>) {
    match &mut node.value {
        Value::List(nodes) => {
            for (i, node) in nodes.iter_mut().enumerate() {
                interpolate(node, &format!("{path}[{i}]"), env, faults);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                let path = join(path, &entry.key);
                interpolate(&mut entry.value, &path, env, faults);
            }
        }
        Value::Scalar(scalar) if scalar.text.contains("${") => match expand(&scalar.text, env) {
            Ok(text) if text.is_empty() => node.value = Value::Null,
            Ok(text) => {
                scalar.from_env = true;
                scalar.text = text;
            }
            Err((reason, help)) => {
                let at = node.at.clone();
                faults.push(Fault { at, path: path.to_owned(), reason, help, warning: false });
                node.value = Value::Hole;
            }
        },
        _ => {}
    }
}

/// `a.b`, or `b` at the top.
pub(super) fn join(path: &str, key: &str) -> String {
    let key = shown_key(key);
    if path.is_empty() { key.into_owned() } else { format!("{path}.{key}") }
}

/// One value with its variables put in.
fn expand(text: &str, env: &Env) -> Result<String, (String, Option<String>)> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(i) = rest.find("${") {
        let (before, from) = rest.split_at(i);
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &from[2..];
            continue;
        }
        out.push_str(before);
        let Some(end) = from.find('}') else {
            return Err(("`${` has no `}`".to_owned(), Some("close it, or write `$${` for the text `${`".to_owned())));
        };
        out.push_str(&variable(&from[2..end], env)?);
        rest = &from[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// `VAR`, `VAR:-default` or `VAR:?message`; with the last two an empty variable counts as unset.
fn variable(inner: &str, env: &Env) -> Result<String, (String, Option<String>)> {
    let (name, rule) = match inner.split_once(':') {
        Some((name, rule)) => (name, Some(rule)),
        None => (inner, None),
    };
    let well_formed = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let unknown_rule = rule.is_some_and(|rule| !rule.starts_with(['-', '?']));
    if !well_formed || unknown_rule {
        let help = "write `${VAR}`, `${VAR:-default}` or `${VAR:?message}`, or `$${` for the text `${`";
        return Err(("not the name of an environment variable in `${…}`".to_owned(), Some(help.to_owned())));
    }
    let value = env.get(name).filter(|value| rule.is_none() || !value.is_empty());
    match (value, rule.map(|rule| rule.split_at(1))) {
        (Some(value), _) => Ok(value.to_owned()),
        (None, Some(("-", default))) => Ok(default.to_owned()),
        (None, Some((_, message))) if !message.trim().is_empty() => {
            Err((format!("environment variable `{name}` is not set: {}", message.trim()), None))
        }
        (None, _) => Err((
            format!("environment variable `{name}` is not set"),
            Some(format!("set it, or write `${{{name}:-default}}`")),
        )),
    }
}

const PREFIX: &str = "SLUICEGATE_";
/// Variables with our prefix that are no fields.
const OTHERS: [&str; 1] = ["SLUICEGATE_CONFIG"];

/// Lays `SLUICEGATE_…` over the file. Names that are no field are let be, for Kubernetes sets `SLUICEGATE_SERVICE_HOST`
/// and its like for a service of our name; those that nearly are one are pointed at.
pub(super) fn override_fields(root: &mut Node, env: &Env, faults: &mut Vec<Fault>) {
    for (name, text) in &env.0 {
        let Some(path) = name.strip_prefix(PREFIX).filter(|_| !OTHERS.contains(&name.as_str())) else { continue };
        let steps: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        let at = At::Named(Arc::from(format!("environment variable {name}")));
        if !FileConfig::FIELDS.contains(&steps[0].as_str()) {
            let close = |field: &&str| strsim::damerau_levenshtein(&steps[0], field) <= 2 && steps[0] != "port";
            if let Some(field) = nearest(&steps[0], FileConfig::FIELDS.iter().copied()).filter(close) {
                faults.push(Fault {
                    at,
                    path: String::new(),
                    reason: "no field has this name".to_owned(),
                    help: Some(format!("did you mean {PREFIX}{}?", field.to_uppercase())),
                    warning: true,
                });
            }
            continue;
        }
        match value(text, &at) {
            Ok(value) => set(root, &steps, value),
            Err(reason) => {
                faults.push(Fault { at, path: steps.join("."), reason, help: None, warning: false });
            }
        }
    }
}

/// A variable's text as a value: lists and sections are written as in YAML's flow style, all else is taken as it is.
fn value(text: &str, at: &At) -> Result<Node, String> {
    if !text.trim_start().starts_with(['[', '{']) {
        let mut node = Node::text(text, at.clone());
        if text.is_empty() {
            node.value = Value::Null;
        } else if let Value::Scalar(Scalar { from_env, .. }) = &mut node.value {
            *from_env = true;
        }
        return Ok(node);
    }
    let (mut node, faults) = tree::parse(text);
    if let Some(fault) = faults.first() {
        return Err(format!("not a YAML value: {} (at character {})", fault.reason, fault.span.column));
    }
    relocate(&mut node, at);
    Ok(node)
}

/// Gives a tree that was read from a variable the variable's name as its place.
fn relocate(node: &mut Node, at: &At) {
    node.at = at.clone();
    match &mut node.value {
        Value::Scalar(scalar) => scalar.from_env = true,
        Value::List(nodes) => nodes.iter_mut().for_each(|n| relocate(n, at)),
        Value::Map(entries) => {
            for entry in entries {
                entry.key_at = at.clone();
                relocate(&mut entry.value, at);
            }
        }
        _ => {}
    }
}

/// Puts `value` at a path, making sections on the way; a number is the index of a list.
pub(super) fn set(node: &mut Node, steps: &[impl AsRef<str>], value: Node) {
    let Some((step, rest)) = steps.split_first() else {
        *node = value;
        return;
    };
    let step = step.as_ref();
    if node.is_unset() {
        let empty = if step == "0" { Value::List(Vec::new()) } else { Value::Map(Vec::new()) };
        *node = Node { value: empty, at: value.at.clone() };
    }
    if let Value::List(nodes) = &mut node.value
        && let Ok(i) = step.parse::<usize>()
    {
        if i == nodes.len() {
            nodes.push(Node { value: Value::Null, at: value.at.clone() });
        }
        if let Some(node) = nodes.get_mut(i) {
            set(node, rest, value);
        }
        return;
    }
    // A scalar where a section belongs is reported when it is read.
    let Value::Map(entries) = &mut node.value else { return };
    let i = entries.iter().position(|e| e.key == step).unwrap_or_else(|| {
        let empty = Node { value: Value::Null, at: value.at.clone() };
        entries.push(Entry { key: step.to_owned(), key_at: value.at.clone(), value: empty });
        entries.len() - 1
    });
    if rest.is_empty() {
        entries[i].key_at = value.at.clone();
    }
    set(&mut entries[i].value, rest, value);
}
