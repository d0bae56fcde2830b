//! Why an answer is not continued after a cut.

use std::fmt;

/// Defines the enum together with its labels and words, so that none can be forgotten.
macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $name:ident => $label:literal, $why:literal;)+) => {
        /// Why an answer is not continued.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Refusal {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Refusal {
            /// Every reason there is.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The metric's label.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label),+
                }
            }

            /// The end of the sentence "it was not continued: …".
            pub fn why(self) -> &'static str {
                match self {
                    $(Self::$name => $why),+
                }
            }
        }
    };
}

refusals! {
    // By the request.
    /// A grammar, schema, pattern or choice binds the output, or a logit processor of the client's own. Its state
    /// starts anew.
    Structured => "structured", "its output is bound to a grammar, which would start again";
    /// A tool has to be called.
    ForcedTool => "forced-tool", "a tool call is forced";
    /// Several choices, prompts or beams.
    Choices => "choices", "it has several choices";
    /// The prompt is part of the answer.
    Echo => "echo", "it echoes the prompt";
    /// Log probabilities of the prompt are asked for.
    PromptLogprobs => "prompt-logprobs", "log probabilities of the prompt are asked for";
    /// Log probabilities are asked for, or came.
    Logprobs => "logprobs", "log probabilities are asked for";
    /// Sampling counts the tokens of the output, of which a continuation knows nothing.
    Penalties => "penalties", "its sampling counts the tokens of the output";
    /// Stop strings that are shown, or patterns: they cannot be found across the seam. Or so many, or so long, that it
    /// would take long.
    Stops => "stops", "its stop strings are patterns, part of the output, or too many";
    /// The client reads token ids itself.
    TokenIds => "token-ids", "the client reads token ids itself";
    /// gpt-oss's format, whose channels are no plain text.
    Harmony => "harmony", "the model answers in channels (gpt-oss)";
    /// The last message is the assistant's already, in a way that engines take differently.
    Prefill => "prefill", "the request itself ends in an assistant message";
    /// The prompt is not text or token ids alone.
    Multimodal => "multimodal", "its prompt is not text alone";
    /// It refers to state of one backend, or leaves some there.
    Stateful => "stateful", "it depends on state that one backend holds";
    /// It has no form in which an engine goes on with an answer.
    Untranslatable => "untranslatable", "the request cannot be put as a continuation";
    /// The body is no JSON object that we read.
    Unreadable => "unreadable", "the request could not be read";

    // By what was delivered.
    /// A tool call has begun.
    ToolCall => "tool-call", "a tool call had begun";
    /// It was cut within its reasoning, or that cannot be given back as text.
    Reasoning => "reasoning", "it has reasoning that cannot be continued";
    /// An event was too large to read.
    Oversize => "oversize", "an event was too large to read";
    /// `resume.memory` is used up: its text was not kept.
    Memory => "memory", "there was no memory to keep its text";

    // By what there is.
    /// The engine is not one that can, or not known.
    Engine => "engine", "the engine is not known to continue an answer";
    /// Nobody else serves the model, or has room for it in time.
    Backend => "backend", "no other backend could take it up";
    /// The engine answered the continuation with an error.
    Rejected => "rejected", "the engine refused the continuation";
    /// `resume.attempts`, or the retry budget, is used up.
    Attempts => "attempts", "the attempts are used up";
    /// It took too long.
    Deadline => "deadline", "the time for it is over";
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn labels_are_labels_and_differ() {
        let labels: HashSet<_> = Refusal::ALL.iter().map(|refusal| refusal.label()).collect();
        assert_eq!(labels.len(), Refusal::ALL.len());
        for refusal in Refusal::ALL {
            assert!(refusal.label().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{refusal:?}");
            assert!(!refusal.why().is_empty() && !refusal.why().ends_with('.'), "{refusal:?}");
        }
    }
}
