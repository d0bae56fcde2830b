//! `normalize.images.max_pixels`: inline images with more pixels than the model can use are scaled down before they are
//! sent. Off until set.
//!
//! ```text
//!   worker:   find the data URLs ──► a place ──────────────────────► the edited body
//!   blocking thread:                    └► base64 ► decode ► scale ► encode ► base64 ► splice
//! ```
//! What cannot be judged stays as it is: other formats, animations, colours that are not 8 bits of grey or RGB, broken
//! data, too many pixels, no memory or no place in time. A body never becomes larger, an image keeps its format, its
//! profile and what its EXIF says of the orientation.

mod area;
mod find;
mod scale;

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use tokio::{sync::Semaphore, time::timeout};

use self::find::Inline;
use super::Counters;
use crate::{
    protocol::endpoint::Endpoint,
    proxy::memory::{Memory, Reservation},
};

/// Scales the images of one worker's bodies.
#[derive(Debug)]
pub struct Images {
    /// `normalize.images.max_pixels`
    most: u64,
    /// Of the jobs that run at the same time.
    places: Arc<Semaphore>,
    memory: Memory,
}

/// Jobs of a worker at a time: they take the processor from the workers.
const PLACES: usize = 1;
/// How long a body waits for a place before it is sent as it is.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pixels that are decoded for one body: about two seconds of work.
const BUDGET: u64 = 64 * 1024 * 1024;

/// What a job is given.
struct Job {
    body: Bytes,
    found: Vec<Inline>,
    most: u64,
    /// Of what it allocates itself.
    share: Reservation,
}

/// What became of a body.
struct Edited {
    body: Bytes,
    images: u64,
}

impl Images {
    /// Scales down what has more than `most` pixels.
    pub fn new(most: u64, memory: Memory) -> Self {
        Self { most, places: Arc::new(Semaphore::new(PLACES)), memory }
    }

    /// `body`, sent to `endpoint`, with its large images scaled down; `share` is what it holds of the memory.
    pub(super) async fn scale(
        &self,
        endpoint: Endpoint,
        body: Bytes,
        share: &mut Reservation,
        counters: &Counters,
    ) -> Bytes {
        let found = find::images(endpoint, &body);
        if found.is_empty() {
            return body;
        }
        let Ok(Ok(place)) = timeout(PATIENCE, Arc::clone(&self.places).acquire_owned()).await else { return body };
        let job = Job { body: body.clone(), found, most: self.most, share: self.memory.reserve() };
        let run = tokio::task::spawn_blocking(move || {
            // Held by the job: it goes on when its client has left.
            let _place = place;
            job.run()
        });
        // A fault of a decoder is the engine's to find.
        let Ok(Some(edited)) = run.await else { return body };
        counters.images.increment(edited.images);
        counters.images_saved.increment((body.len() - edited.body.len()) as u64);
        share.shrink(edited.body.len());
        edited.body
    }
}

impl Job {
    /// `None` = nothing is to be changed.
    fn run(mut self) -> Option<Edited> {
        let mut budget = BUDGET;
        let found = std::mem::take(&mut self.found);
        let splices: Vec<_> =
            found.into_iter().filter_map(|image| Some((image.clone(), self.one(&image, &mut budget)?))).collect();
        let saved: usize = splices.iter().map(|(image, new)| image.digits.len() - new.len()).sum();
        if splices.is_empty() {
            return None;
        }
        let length = self.body.len() - saved;
        self.share.grow(length).ok()?;
        let mut edited = Vec::with_capacity(length);
        let mut at = 0;
        for (image, new) in &splices {
            edited.extend_from_slice(&self.body[at..image.digits.start]);
            edited.extend_from_slice(new.as_bytes());
            at = image.digits.end;
        }
        edited.extend_from_slice(&self.body[at..]);
        Some(Edited { body: edited.into(), images: splices.len() as u64 })
    }

    /// The base64 of one image, scaled down; `None` = it stays as it is.
    fn one(&mut self, image: &Inline, budget: &mut u64) -> Option<String> {
        let digits = image.digits(&self.body);
        self.share.grow(digits.len()).ok()?;
        let data = STANDARD.decode(digits.as_ref()).ok()?;
        drop(digits);
        let scaled = scale::down(&data, self.most, budget, &mut self.share)?;
        let new = STANDARD.encode(scaled);
        (new.len() < image.digits.len()).then_some(new)
    }
}

#[cfg(test)]
mod tests;
