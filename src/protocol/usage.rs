//! Token counts and finish reasons, from any dialect's answer.

/// Tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input: u32,
    pub output: u32,
    /// Input tokens that the engine had in its prefix cache.
    pub cached: u32,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Finish {
    #[default]
    None,
    Stop,
    Length,
    ToolCalls,
    ContentFilter,
    Abort,
    Error,
    Other,
}
