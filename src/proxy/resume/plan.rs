//! What a continuation starts from: what the client asked for, and what it was given.

use tokio::time::Instant;

use super::{Resume, refusal::Refusal, request::Request, tap::Delivered};
use crate::{
    config::ResumeMode,
    protocol::{
        endpoint::Endpoint,
        usage::{Finish, Usage},
    },
    proxy::call::Call,
};

/// Taken at the cut.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) request: Request,
    /// Tokens that the client wants at most.
    pub(super) limit: Option<u64>,
    pub(super) text: String,
    /// Where the engine told them.
    pub(super) ids: Option<Ids>,
    /// Events that brought text: what is known without asking about how many tokens there were.
    pub(super) events: u64,
    /// The answer had come to its end; only what closes it is missing.
    pub(super) finish: Option<Finish>,
    /// The client is to be told its usage, and has not been.
    pub(super) tells_usage: bool,
    /// What it used so far, where every id is known.
    pub(super) used: Option<Usage>,
}

/// Token ids of an answer.
#[derive(Debug)]
pub(super) struct Ids {
    pub(super) prompt: Vec<u32>,
    pub(super) said: Vec<u32>,
    /// The text of `said` may be shorter than what was delivered, or not be known for sure: it is still to be asked.
    pub(super) behind: bool,
}

impl Plan {
    /// How `call` could go on from what was `delivered`; or why it does not.
    pub(super) fn of(ctx: &Resume, call: &Call, delivered: &Delivered, attempts: u32) -> Result<Self, Refusal> {
        if attempts >= ctx.config.attempts {
            return Err(Refusal::Attempts);
        }
        if Instant::now() >= call.deadline {
            return Err(Refusal::Deadline);
        }
        if call.asked.stateful {
            return Err(Refusal::Stateful);
        }
        if let Some(refusal) = delivered.refusal() {
            return Err(refusal);
        }
        let body = call.payload.bytes().ok_or(Refusal::Unreadable)?;
        let request = Request::read(call.endpoint, body)?;
        let ids = if ctx.config.mode == ResumeMode::Auto { Ids::of(delivered, &request) } else { None };
        let engine = call.record.backend.borrow().as_ref().and_then(|backend| backend.engine());
        Ok(Self {
            limit: engine.and_then(|engine| request.limit(engine)),
            text: delivered.text(),
            ids,
            events: delivered.chunks(),
            finish: delivered.finish(),
            tells_usage: tells_usage(call),
            used: used(delivered),
            request,
        })
    }
}

fn used(delivered: &Delivered) -> Option<Usage> {
    let count = |count: usize| u32::try_from(count).ok();
    let (input, output) = (count(delivered.prompt_count()?)?, count(delivered.id_count()?)?);
    Some(Usage { input, output, cached: 0 })
}

/// Whether the stream tells its usage: asked for, or always.
pub(super) fn tells_usage(call: &Call) -> bool {
    matches!(call.endpoint, Endpoint::Responses | Endpoint::Messages) || call.record.usage_asked.get()
}

impl Ids {
    fn of(delivered: &Delivered, request: &Request) -> Option<Self> {
        let prompt = delivered.prompt_ids()?;
        let longest = request.stops().iter().map(|stop| stop.chars().count()).max().unwrap_or(0);
        // Before a stop string is told from text, as much as the longest is held back by the engine, whose ids it told.
        let (said, behind) = if longest > 1 {
            (delivered.sure_ids(longest)?, true)
        } else {
            (delivered.settled_ids()?, !delivered.settled_is_sure())
        };
        Some(Self { prompt, said, behind })
    }
}
