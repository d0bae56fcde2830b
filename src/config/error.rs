//! What is wrong with a configuration, where, and what to do: [`Problem`], and its three renderings.

use std::fmt::{self, Write as _};

use serde::Serialize;

/// One thing that is wrong, or worth a look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub severity: Severity,
    /// The file as it was named, or `environment variable X`, or `--flag`.
    pub file: String,
    /// From 1; 0 when the place is not in a file.
    pub line: usize,
    /// In characters, from 1; 0 when the place is not in a file.
    pub column: usize,
    /// The field, as `backends[0].url`; empty for the file as a whole.
    pub path: String,
    /// What is wrong. Never contains a secret.
    pub reason: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The source line, secrets blanked.
    pub snippet: Option<Snippet>,
}

/// Whether the configuration can be used all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

/// A source line with the part that is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snippet {
    pub text: String,
    /// The character of `text`, from 1, that the caret begins at: `Problem::column`, moved by what was blanked.
    pub start: usize,
    /// How many characters it covers; at least 1.
    pub width: usize,
}

/// How `check` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people, with source lines.
    #[default]
    Human,
    /// For programs.
    Json,
    /// Workflow commands: annotations on a pull request.
    Github,
}

impl Problem {
    /// A problem with no place in a file.
    pub fn general(severity: Severity, source: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            severity,
            file: source.into(),
            line: 0,
            column: 0,
            path: String::new(),
            reason: reason.into(),
            help: None,
            snippet: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Whether the configuration cannot be used.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// `file:line:column`, or the name of what is not a file.
    fn place(&self) -> String {
        match self.line {
            0 => self.file.clone(),
            line => format!("{}:{line}:{}", self.file, self.column),
        }
    }

    /// A GitHub workflow command.
    fn github(&self) -> String {
        let level = if self.is_error() { "error" } else { "warning" };
        let mut text = self.reason.clone();
        if let Some(help) = &self.help {
            let _ = write!(text, " ({help})");
        }
        let text = escape_command(&text);
        match self.line {
            0 => format!("::{level}::{}: {text}", escape_command(&self.file)),
            line => {
                let file = escape_command(&self.file).replace(':', "%3A").replace(',', "%2C");
                format!("::{level} file={file},line={line},col={}::{text}", self.column)
            }
        }
    }
}

/// Percent-encodes what ends or splits a workflow command.
fn escape_command(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// For people: `file:line:column: reason`, the source line, a caret, and what to do.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = if self.is_error() { "" } else { "warning: " };
        write!(f, "{}: {label}{}", self.place(), self.reason)?;
        let Some(snippet) = &self.snippet else {
            return match &self.help {
                Some(help) => write!(f, "\n  = {help}"),
                None => Ok(()),
            };
        };
        let margin = self.line.to_string().len();
        // Tabs are kept in the pad, so that the caret stands below its character at any tab width.
        let pad: String = snippet
            .text
            .chars()
            .chain(std::iter::repeat(' '))
            .take(snippet.start.saturating_sub(1))
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let caret = "^".repeat(snippet.width.max(1));
        write!(f, "\n {:margin$} |\n {} | {}\n {:margin$} | {pad}{caret}", "", self.line, snippet.text, "")?;
        match &self.help {
            Some(help) => write!(f, " {help}"),
            None => Ok(()),
        }
    }
}

/// All problems in one text, in the order of their places.
pub fn render(problems: &[Problem], format: Format) -> String {
    let mut out = String::new();
    match format {
        Format::Human => {
            for problem in problems {
                let _ = writeln!(out, "{problem}");
            }
            out.push_str(&summary(problems));
        }
        Format::Github => {
            for problem in problems {
                let _ = writeln!(out, "{}", problem.github());
            }
        }
        Format::Json => {
            let ok = !problems.iter().any(Problem::is_error);
            let _ = writeln!(out, "{}", serde_json::json!({ "ok": ok, "problems": problems }));
        }
    }
    out
}

/// `2 errors, 1 warning`, or nothing.
fn summary(problems: &[Problem]) -> String {
    let errors = problems.iter().filter(|p| p.is_error()).count();
    let count = |n: usize, what: &str| match n {
        0 => None,
        1 => Some(format!("1 {what}")),
        n => Some(format!("{n} {what}s")),
    };
    let parts: Vec<_> =
        [count(errors, "error"), count(problems.len() - errors, "warning")].into_iter().flatten().collect();
    if parts.is_empty() { String::new() } else { format!("{}\n", parts.join(", ")) }
}
