//! What is wrong with a body, and where.

use std::borrow::Cow;

use crate::protocol::json::Malformed;

/// Why a body is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The member at fault, as a path: `messages[3].content[0].image_url`. `None` = the text is no JSON.
    pub param: Option<String>,
    /// What is wrong, where, and what would be right.
    pub message: String,
}

/// An [`Invalid`] under way: each level that it leaves puts its own name before the path.
#[derive(Debug)]
pub(super) struct Fault(Box<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None` = the text is no JSON.
    path: Option<String>,
    what: Cow<'static, str>,
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Self {
        let what = format!("the request's body is not valid: {malformed}");
        Self(Box::new(Inner { path: None, what: what.into() }))
    }
}

impl Fault {
    /// At the value that is being read.
    #[cold]
    pub(super) fn new(what: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { path: Some(String::new()), what: what.into() }))
    }

    /// The text is no JSON, and cannot be read on.
    pub(super) fn is_syntax(&self) -> bool {
        self.0.path.is_none()
    }

    /// One member out.
    #[cold]
    pub(super) fn under(mut self, name: &str) -> Self {
        if let Some(path) = &mut self.0.path {
            let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
            path.insert_str(0, dot);
            path.insert_str(0, name);
        }
        self
    }

    /// One element out.
    #[cold]
    pub(super) fn at(mut self, index: usize) -> Self {
        if let Some(path) = &mut self.0.path {
            let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
            path.insert_str(0, &format!("[{index}]{dot}"));
        }
        self
    }

    pub(super) fn told(self) -> Invalid {
        let Inner { path, what } = *self.0;
        let message = match &path {
            Some(path) => format!("Invalid `{path}`: {what}."),
            None => {
                let mut what = what.into_owned();
                what[..1].make_ascii_uppercase();
                what + "."
            }
        };
        Invalid { param: path, message }
    }
}

/// `text` as it is safe to repeat in a message.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 64;
    let mut shown: String = text.chars().filter(|c| !c.is_control()).take(MOST).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
