//! The same edits once more, on a tree: what the splices are measured against, by property tests and by the fuzzer.
//! Scalars keep their spelling, objects their order and duplicates.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::{config, protocol::endpoint::Endpoint, proxy::normalize::edit};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Object(Vec<(String, Self)>),
    Array(Vec<Self>),
    /// As it is spelled.
    Scalar(String),
}

/// An object's members, duplicates too, each value as it is spelled.
#[derive(Debug)]
pub(super) struct Pairs(pub(super) Vec<(String, Box<RawValue>)>);

impl Pairs {
    pub(super) fn parse(json: &str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut all = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    all.push(pair);
                }
                Ok(Pairs(all))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl Node {
    pub(super) fn parse(json: &str) -> Option<Self> {
        let json = json.trim();
        Some(match json.as_bytes().first()? {
            b'{' => {
                let pairs = Pairs::parse(json)?.0.into_iter();
                Self::Object(pairs.map(|(name, value)| Some((name, Self::parse(value.get())?))).collect::<Option<_>>()?)
            }
            b'[' => {
                let all: Vec<Box<RawValue>> = serde_json::from_str(json).ok()?;
                Self::Array(all.iter().map(|value| Self::parse(value.get())).collect::<Option<_>>()?)
            }
            _ => Self::Scalar(json.to_owned()),
        })
    }

    fn is_null(&self) -> bool {
        *self == Self::Scalar("null".to_owned())
    }

    /// The text of a string; lone surrogates have none.
    fn text(&self) -> Option<String> {
        let Self::Scalar(raw) = self else { return None };
        raw.starts_with('"').then(|| serde_json::from_str(raw).unwrap_or_else(|_| "?".to_owned()))
    }
}

const LIMITS: [&str; 4] = ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"];

/// What is sent in place of `body`, in which `alias` stands for `m`; an error where it is refused.
pub(super) fn edited(body: &Node, config: &config::Normalize, endpoint: Endpoint) -> Result<Node, ()> {
    let Node::Object(mut all) = body.clone() else { return Err(()) };
    let edits = endpoint != Endpoint::Passthrough;
    if let Some((_, model)) = all.iter_mut().rfind(|(name, _)| name == "model")
        && model.text().as_deref() == Some("alias")
    {
        *model = Node::Scalar("\"m\"".to_owned());
    }
    if !edits {
        return Ok(Node::Object(all));
    }
    for path in &config.strip {
        let steps: Vec<_> = path.split('.').collect();
        // Whatever is below a limit is no limit.
        if steps.len() == 1 || !LIMITS.contains(&steps[0]) {
            strip(&mut all, &steps);
        }
    }
    let named = take_prompt(&mut all, config);
    if config.nulls {
        all = without_nulls(all, endpoint);
    }
    let mut front = Vec::new();
    limit(&mut all, config, endpoint, &mut front);
    if let Some(name) = named {
        put(&name, &mut all, config, endpoint, &mut front)?;
    }
    front.extend(all);
    Ok(Node::Object(front))
}

fn strip(all: &mut Vec<(String, Node)>, steps: &[&str]) {
    match steps {
        [name] => all.retain(|(own, _)| own != name),
        [name, rest @ ..] => {
            for (own, value) in all {
                if let (true, Node::Object(below)) = (own == name, value) {
                    strip(below, rest);
                }
            }
        }
        [] => {}
    }
}

fn take_prompt(all: &mut Vec<(String, Node)>, config: &config::Normalize) -> Option<Node> {
    if config.system_prompts.is_empty() {
        return None;
    }
    let named = all.iter().rfind(|(name, _)| name == "system_prompt").map(|(_, value)| value.clone());
    all.retain(|(name, _)| name != "system_prompt");
    named.filter(|name| !name.is_null())
}

fn without_nulls(all: Vec<(String, Node)>, endpoint: Endpoint) -> Vec<(String, Node)> {
    let known = edit::nullable(endpoint);
    let mut left: Vec<(String, Node)> = Vec::new();
    for (name, value) in all {
        let said = left.iter().any(|(other, value)| *other == name && !value.is_null());
        if !value.is_null() || said || !known.contains(&name.as_str()) {
            left.push((name, value));
        }
    }
    left
}

fn limit(all: &mut [(String, Node)], config: &config::Normalize, endpoint: Endpoint, front: &mut Vec<(String, Node)>) {
    let (own, names): (_, &[&str]) = match endpoint {
        Endpoint::Chat => ("max_tokens", &["max_tokens", "max_completion_tokens"]),
        Endpoint::Completions | Endpoint::Messages => ("max_tokens", &["max_tokens"]),
        Endpoint::Responses => ("max_output_tokens", &["max_output_tokens"]),
        _ => return,
    };
    if let Some(cap) = config.max_tokens_cap {
        for (_, value) in all.iter_mut().filter(|(name, value)| LIMITS.contains(&name.as_str()) && !value.is_null()) {
            let number = match value {
                Node::Scalar(raw) => raw.parse::<f64>().ok().filter(|number| (0.0..=cap as f64).contains(number)),
                _ => None,
            };
            if number.is_none() {
                let spelled = value.text().and_then(|text| text.trim().parse::<u64>().ok());
                *value = Node::Scalar(spelled.unwrap_or(cap).min(cap).to_string());
            }
        }
    }
    let last = |own: &str| all.iter().rposition(|(name, _)| name == own);
    if names.iter().any(|name| last(name).is_some_and(|at| !all[at].1.is_null())) {
        return;
    }
    let Some(limit) = config.default_max_tokens.or(config.max_tokens_cap) else { return };
    let limit = Node::Scalar(limit.to_string());
    match last(own) {
        Some(at) => all[at].1 = limit,
        None => front.push((own.to_owned(), limit)),
    }
}

fn put(
    name: &Node,
    all: &mut [(String, Node)],
    config: &config::Normalize,
    endpoint: Endpoint,
    front: &mut Vec<(String, Node)>,
) -> Result<(), ()> {
    let text = config.system_prompts.get(&*name.text().ok_or(())?).ok_or(())?;
    let literal = Node::Scalar(serde_json::to_string(&**text).map_err(drop)?);
    let last = |own: &str| all.iter().rposition(|(name, _)| name == own);
    let field = match endpoint {
        Endpoint::Chat => {
            let at = last("messages").ok_or(())?;
            return chat(&mut all[at].1, literal);
        }
        Endpoint::Messages | Endpoint::CountTokens => "system",
        Endpoint::Responses => "instructions",
        _ => return Err(()),
    };
    let Some(at) = last(field) else {
        front.push((field.to_owned(), literal));
        return Ok(());
    };
    let value = &mut all[at].1;
    if value.is_null() {
        *value = literal;
        return Ok(());
    }
    if endpoint == Endpoint::Responses && matches!(value, Node::Array(_)) || !prepend(value, &literal) {
        return Err(());
    }
    Ok(())
}

fn chat(messages: &mut Node, literal: Node) -> Result<(), ()> {
    let Node::Array(messages) = messages else { return Err(()) };
    if let Some(Node::Object(first)) = messages.first_mut() {
        let role = first.iter().rfind(|(name, _)| name == "role").and_then(|(_, role)| role.text());
        let content = first.iter_mut().rfind(|(name, _)| name == "content");
        if let (Some("system" | "developer"), Some((_, content))) = (role.as_deref(), content)
            && prepend(content, &literal)
        {
            return Ok(());
        }
    }
    let role = ("role".to_owned(), Node::Scalar("\"system\"".to_owned()));
    messages.insert(0, Node::Object(vec![role, ("content".to_owned(), literal)]));
    Ok(())
}

fn prepend(value: &mut Node, literal: &Node) -> bool {
    let Node::Scalar(text) = literal else { return false };
    match value {
        Node::Scalar(raw) if raw == "\"\"" => *value = literal.clone(),
        Node::Scalar(raw) if raw.starts_with('"') => {
            *raw = format!("{}\\n\\n{}", &text[..text.len() - 1], &raw[1..]);
        }
        Node::Array(parts) => {
            let kind = ("type".to_owned(), Node::Scalar("\"text\"".to_owned()));
            parts.insert(0, Node::Object(vec![kind, ("text".to_owned(), literal.clone())]));
        }
        _ => return false,
    }
    true
}
