//! Several clients ask the same at once, and one more when they have their answer: what is computed once is shared,
//! then kept.

use std::time::Duration;

use tokio::{task::JoinSet, time::Instant};

use super::{
    Stage,
    client::{Answered, Origin, Question, ask},
};

/// How many ask at once.
pub(super) const CROWD: usize = 5;

/// What became of a crowd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shared {
    /// Clients of the crowd that read the answer of another.
    pub(super) collapsed: usize,
    /// Until the last of the crowd had its answer.
    pub(super) took: Duration,
    /// Whether the one who came later was given the kept answer, and how long that took.
    pub(super) hit: Option<Duration>,
}

/// Lets a crowd ask for a stream, and one more client after it.
pub(super) async fn gather(stage: &Stage, number: u64) {
    let prompt = format!("everybody's question {number}");
    let started = Instant::now();
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let (gateway, prompt) = (stage.gateway, prompt.clone());
        crowd.spawn_local(async move { ask(gateway, same(&prompt)).await });
    }
    let mut shared = Shared::default();
    while let Some(Ok(answered)) = crowd.join_next().await {
        shared.collapsed += usize::from(answered.origin == Origin::Collapsed);
        told(stage, &answered);
    }
    shared.took = started.elapsed();
    let again = Instant::now();
    let answered = ask(stage.gateway, same(&prompt)).await;
    shared.hit = (answered.origin == Origin::Kept).then(|| again.elapsed());
    told(stage, &answered);
    stage.story.shared(&shared);
}

fn same(prompt: &str) -> Question<'_> {
    Question { prompt, streamed: true, greedy: true }
}

fn told(stage: &Stage, answered: &Answered) {
    stage.tally.borrow_mut().add(true, answered);
    stage.story.in_crowd(&answered.outcome);
}
