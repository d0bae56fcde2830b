//! Every stage in order: the one screen.
//!
//! Read from the inside out, as it is built. Each stage is a tower service over the next, composed statically; the
//! whole is boxed once, at the edge.
//!
//! | stage | acts on | when the client leaves |
//! |---|---|---|
//! | `observe` | both | the story is told with status 499 |
//! | `compress` | both | its encoder goes back to the pool |
//! | `slim` | both | the answer's body is dropped, with the delta that waited |
//! | `normalize` | request | the read of the body is dropped, its memory given back |
//! | `local` | request | nothing is under way |
//! | `cache` | both | an answer that others follow goes on for them; with nobody left it stops, at once or after `cache.linger` |
//! | `resume` | the body, until its end | the continuation that is under way is dropped with it |
//! | `route` | request; the body until its first byte | its place in the queue and its permit are given back |
//! | `upstream` | both | the upstream connection is closed: the backend stops |

use std::rc::Rc;

use super::{
    EdgeService,
    cache::{Cache, cache},
    compress::{Compress, compress},
    local::{Local, local},
    normalize::{Settings, normalize},
    observe::{Observe, observe},
    resume::{Resume, resume},
    route::{self, route},
    slim::{Slim, slim},
    upstream::{Upstream, upstream},
};

/// Each stage's own piece; nobody else sees them together.
#[derive(Debug)]
pub struct Pieces {
    pub observe: Rc<Observe>,
    pub compress: Rc<Compress>,
    pub slim: Rc<Slim>,
    pub normalize: Rc<Settings>,
    pub local: Rc<Local>,
    pub cache: Rc<Cache>,
    pub resume: Rc<Resume>,
    pub route: Rc<route::Context>,
    pub upstream: Rc<Upstream>,
}

/// The stack of one worker, for one configuration.
pub fn edge(pieces: Pieces) -> EdgeService {
    // One try at one backend, its answer under guard.
    let stack = upstream(pieces.upstream);
    // Chooses the backend, waits for a place, tries again before the first byte. Above `upstream`: a retry is
    // another attempt.
    let stack = route(pieces.route, stack);
    // A stream that is cut goes on elsewhere. Above `route`: a continuation is routed like any call.
    let stack = resume(pieces.resume, stack);
    // Kept and shared answers need no backend: hits and followers wait in no queue. Above `route`: one permit per
    // answer, however many read it.
    let stack = cache(pieces.cache, stack);
    // What the gateway answers itself leaves here, so that it too was normalised.
    let stack = local(pieces.local, stack);
    // The single conversion point: from here down there are only calls.
    let stack = normalize(pieces.normalize, stack);
    // For this client alone: what is kept and shared below is the whole answer.
    let stack = slim(pieces.slim, stack);
    // Answers get their coding. Above everything that reads them.
    let stack = compress(pieces.compress, stack);
    // Outermost: sees every request, also those that fail above, and turns every error into an answer.
    let stack = observe(pieces.observe, stack);
    EdgeService::new(stack)
}
