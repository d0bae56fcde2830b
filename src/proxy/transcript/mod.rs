//! The transcript: one answer as an append-only log. One writer; readers start at its beginning at any time, go at
//! their own pace, then follow live, also on other workers.
//!
//! ```text
//!  Writer ─► head · frame · frame · … · end
//!               ▲       ▲         ▲
//!            Reader   Reader   Reader (waits: its worker's `Desk` is rung)
//! ```
//! What is held is counted ([`Live`]): frames are copied into blocks of its own, so that none pins a larger buffer.
//! Over its cap, or when all live memory is used, it goes on *unrecorded*: nobody joins any more, frames that all have
//! read are dropped, and a reader too far behind the others is cut.

mod desk;
mod live;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    fmt,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

pub use self::{
    desk::{Desk, Home, Pump},
    live::Live,
};
use super::cache::Entry;
use crate::{
    error::{Error, Kind},
    protocol::{
        engine::Engine,
        usage::{Finish, Usage},
    },
};

/// How far the backend is read ahead of the reader that is furthest.
pub const WINDOW: u64 = 256 * 1024;
/// What a frame costs beside its bytes.
const FRAME: usize = size_of::<Bytes>();
/// Blocks grow from the first to the second size.
const BLOCKS: (usize, usize) = (4 * 1024, 64 * 1024);

/// What was learnt while an answer came: the side log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    pub usage: Usage,
    pub finish: Finish,
    /// Of the backend that gave it, where it is known.
    pub engine: Option<Engine>,
    /// From the attempt's start to the answer's last byte: what the backend was busy for.
    pub took: Duration,
    /// The answer itself tells its usage; a stream of some endpoints only does where it is asked to.
    pub told: bool,
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    /// Without what is one request's or one client's own; its first reader gets that otherwise.
    pub headers: HeaderMap,
    /// Whether more may join once it is known.
    pub open: bool,
    /// See [`Facts::told`].
    pub told: bool,
}

/// How an answer ended.
#[derive(Clone, Debug)]
pub enum End {
    Whole(Whole),
    /// After its head.
    Cut(Arc<Error>),
    /// Before its head.
    Failed(Failure),
}

/// There is no answer.
#[derive(Clone, Debug)]
pub struct Failure {
    pub error: Arc<Error>,
    /// It is the first reader's own: its patience ran out. It says nothing to the others.
    pub own: bool,
}

/// An answer that is complete.
#[derive(Clone, Debug)]
pub struct Whole {
    pub facts: Facts,
    /// The same as it may be given again; `None` = it may not.
    pub entry: Option<Arc<Entry>>,
}

/// What a reader comes to next.
#[derive(Debug)]
pub enum Next {
    Frame(Bytes),
    /// The last frame of a whole answer.
    Last(Bytes, Whole),
    End(End),
}

/// Whether its writer should go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Go,
    /// Every reader is more than [`WINDOW`] behind.
    Wait,
    /// Nobody reads.
    Nobody,
}

/// One answer. Shared by its writer and its readers, on any worker.
pub struct Transcript {
    id: u64,
    home: Arc<Home>,
    /// Bytes that are kept at most.
    cap: u64,
    live: Live,
    state: Mutex<State>,
}

struct State {
    head: Option<Arc<Head>>,
    frames: VecDeque<Bytes>,
    /// Number of the first of `frames`; those before are dropped.
    base: u64,
    /// Bytes of all frames there were.
    written: u64,
    end: Option<End>,
    recorded: bool,
    /// It is being given up: nobody joins.
    closed: bool,
    /// Counted in [`Live`].
    held: usize,
    places: Places,
    /// Homes of readers that wait.
    waiting: Vec<Arc<Home>>,
    /// Its pump, where it goes by itself; whether it waits for room.
    pump: Option<Waker>,
    paused: bool,
    adopted: bool,
}

/// Where the readers are.
#[derive(Default)]
struct Places {
    spots: Vec<Option<Spot>>,
    free: Vec<usize>,
    /// How many there are.
    readers: usize,
    /// Bytes that the furthest has read.
    furthest: u64,
    /// Those that still want the first frame that is held; only kept while unrecorded.
    at_base: usize,
}

#[derive(Clone, Copy, Default)]
struct Spot {
    frame: u64,
    bytes: u64,
    /// It fell behind; it gets no more.
    cut: bool,
}

/// Writes one transcript. Dropped before its end, it fails it.
#[derive(Debug)]
pub struct Writer {
    transcript: Arc<Transcript>,
    block: BytesMut,
    next_block: usize,
    written: u64,
    recorded: bool,
    ended: bool,
    /// Bytes of what was sealed, until it takes the frames' place.
    sealed: usize,
}

/// Reads one transcript, on one worker.
pub struct Reader {
    transcript: Arc<Transcript>,
    desk: Rc<Desk>,
    slot: usize,
    /// Whether the desk has its waker.
    waits: bool,
}

static IDS: AtomicU64 = AtomicU64::new(0);

// === impl Transcript ===

impl Transcript {
    /// An answer that is to be written on `desk`'s worker, and its first reader. At most `cap` bytes are kept.
    pub fn begin(desk: &Rc<Desk>, cap: usize, live: &Live) -> (Writer, Reader) {
        let transcript = Arc::new(Self {
            id: IDS.fetch_add(1, Relaxed),
            home: Arc::clone(desk.home()),
            cap: cap as u64,
            live: live.clone(),
            state: Mutex::new(State::new()),
        });
        let slot = transcript.state().places.seat();
        let reader = Reader { transcript: Arc::clone(&transcript), desk: Rc::clone(desk), slot, waits: false };
        let writer = Writer {
            transcript,
            block: BytesMut::new(),
            next_block: BLOCKS.0,
            written: 0,
            recorded: true,
            ended: false,
            sealed: 0,
        };
        (writer, reader)
    }

    /// Unique in the process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// One more reader, from the beginning; `None` when it is too late for that.
    pub fn join(self: &Arc<Self>, desk: &Rc<Desk>) -> Option<Reader> {
        let mut state = self.state();
        if !state.is_open() {
            return None;
        }
        let slot = state.places.seat();
        let adopt = !std::mem::replace(&mut state.adopted, true) && state.end.is_none();
        // Alone it may have lingered.
        let pump = state.pump.take();
        drop(state);
        pump.into_iter().for_each(Waker::wake);
        if adopt {
            self.home.adopt(self.id);
        }
        Some(Reader { transcript: Arc::clone(self), desk: Rc::clone(desk), slot, waits: false })
    }

    /// Has its pump go on by itself.
    pub fn adopt(&self) {
        let adopt = !std::mem::replace(&mut self.state().adopted, true);
        if adopt {
            self.home.adopt(self.id);
        }
    }

    /// Whether it is right to go on. `pump` is woken when that may have changed.
    pub fn room(&self, pump: &Waker) -> Room {
        let state = &mut *self.state();
        if !state.pump.as_ref().is_some_and(|known| known.will_wake(pump)) {
            state.pump = Some(pump.clone());
        }
        let room = if state.places.readers == 0 {
            Room::Nobody
        } else if state.written.saturating_sub(state.places.furthest) > WINDOW {
            Room::Wait
        } else {
            Room::Go
        };
        state.paused = room == Room::Wait;
        room
    }

    /// Gives it up if nobody reads: from then on nobody joins.
    pub fn close_if_idle(&self) -> bool {
        let mut state = self.state();
        state.closed |= state.places.readers == 0;
        state.closed
    }

    /// Whether somebody could still join it.
    pub fn is_open(&self) -> bool {
        self.state().is_open()
    }

    /// How many read it.
    pub fn readers(&self) -> usize {
        self.state().places.readers
    }

    /// Bytes it holds.
    pub fn held(&self) -> usize {
        self.state().held
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything that may panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, homes: Vec<Arc<Home>>) {
        homes.iter().for_each(|home| home.ring(self.id));
    }

    fn leave(&self, slot: usize) {
        let mut state = self.state();
        state.places.spots[slot] = None;
        state.places.free.push(slot);
        state.places.readers -= 1;
        let freed = if state.recorded { 0 } else { state.trim() };
        // The pump may have nobody left to work for.
        let pump = if state.places.readers == 0 { state.pump.take() } else { None };
        drop(state);
        self.live.release(freed);
        pump.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Transcript {
    fn drop(&mut self) {
        let held = self.state().held;
        self.live.release(held);
    }
}

impl fmt::Debug for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Transcript")
            .field("id", &self.id)
            .field("written", &state.written)
            .field("readers", &state.places.readers)
            .field("recorded", &state.recorded)
            .field("end", &state.end)
            .finish_non_exhaustive()
    }
}

// === impl State ===

impl State {
    fn new() -> Self {
        Self {
            head: None,
            frames: VecDeque::new(),
            base: 0,
            written: 0,
            end: None,
            recorded: true,
            closed: false,
            held: 0,
            places: Places::default(),
            waiting: Vec::new(),
            pump: None,
            paused: false,
            adopted: false,
        }
    }

    fn is_open(&self) -> bool {
        let fits = self.head.as_ref().is_none_or(|head| head.open);
        fits && self.recorded && !self.closed && matches!(self.end, None | Some(End::Whole(_)))
    }

    /// What the reader in `slot` comes to, and the bytes that are dropped with it; `None` = it has to wait.
    fn take(&mut self, slot: usize) -> (Option<Next>, usize) {
        let Some(spot) = &mut self.places.spots[slot] else { return (None, 0) };
        if spot.cut {
            return (Some(Next::End(End::Cut(Arc::new(fell_behind())))), 0);
        }
        let index = usize::try_from(spot.frame - self.base).unwrap_or(usize::MAX);
        let Some(frame) = self.frames.get(index).cloned() else { return (self.end.clone().map(Next::End), 0) };
        let was_first = index == 0;
        spot.frame += 1;
        spot.bytes += frame.len() as u64;
        self.places.furthest = self.places.furthest.max(spot.bytes);
        let last = index + 1 == self.frames.len();
        let mut freed = 0;
        if !self.recorded && was_first {
            self.places.at_base -= 1;
            if self.places.at_base == 0 {
                freed = self.trim();
            }
        }
        let next = match &self.end {
            Some(End::Whole(whole)) if last => Next::Last(frame, whole.clone()),
            _ => Next::Frame(frame),
        };
        (Some(next), freed)
    }

    /// The pump, where it has room again.
    fn resumed(&mut self) -> Option<Waker> {
        let room = self.written.saturating_sub(self.places.furthest) <= WINDOW;
        if self.paused && room {
            self.paused = false;
            self.pump.take()
        } else {
            None
        }
    }

    fn append(&mut self, frame: Bytes, cost: usize) {
        self.written += frame.len() as u64;
        self.held += cost;
        self.frames.push_back(frame);
    }

    /// Drops what every reader has read; gives the bytes this freed.
    fn trim(&mut self) -> usize {
        let spots = || self.places.spots.iter().flatten().filter(|spot| !spot.cut);
        let end = self.base + self.frames.len() as u64;
        let first = spots().map(|spot| spot.frame).min().unwrap_or(end);
        let mut freed = 0;
        while self.base < first
            && let Some(frame) = self.frames.pop_front()
        {
            self.base += 1;
            freed += frame.len() + FRAME;
        }
        let at_base = spots().filter(|spot| spot.frame == self.base).count();
        self.places.at_base = at_base;
        self.held = self.held.saturating_sub(freed);
        freed
    }

    /// Nobody joins from now on, and only what somebody has still to read is held. Gives what is counted less.
    fn spill(&mut self) -> usize {
        self.recorded = false;
        let before = self.held;
        self.held = self.frames.iter().map(|frame| frame.len() + FRAME).sum();
        self.trim();
        before.saturating_sub(self.held)
    }

    /// Cuts those more than `lag` bytes behind, but for the furthest; gives the bytes this freed.
    fn cut_behind(&mut self, lag: u64) -> usize {
        let written = self.written;
        let front = self.places.spots.iter().flatten().filter(|spot| !spot.cut).map(|spot| spot.bytes).max();
        let late = |spot: &Spot| Some(spot.bytes) != front && written - spot.bytes > lag && !spot.cut;
        let mut any = false;
        for spot in self.places.spots.iter_mut().flatten() {
            if late(spot) {
                spot.cut = true;
                any = true;
            }
        }
        if any { self.trim() } else { 0 }
    }
}

impl Places {
    fn seat(&mut self) -> usize {
        self.readers += 1;
        if let Some(slot) = self.free.pop() {
            self.spots[slot] = Some(Spot::default());
            return slot;
        }
        self.spots.push(Some(Spot::default()));
        self.spots.len() - 1
    }
}

fn fell_behind() -> Error {
    Error::new(
        Kind::StreamCut,
        "this client took the shared answer too slowly, and it is too long to be held for it; ask again, and read faster",
    )
}

// === impl Writer ===

impl Writer {
    /// What is written.
    pub fn transcript(&self) -> &Arc<Transcript> {
        &self.transcript
    }

    /// Whether all of it is still held.
    pub fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// The head; once, first of all.
    pub fn head(&mut self, head: Head) {
        let mut state = self.transcript.state();
        state.head = Some(Arc::new(head));
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.transcript.ring(waiting);
    }

    /// The next bytes.
    pub fn push(&mut self, data: &Bytes) {
        if data.is_empty() {
            return;
        }
        self.written += data.len() as u64;
        let recorded = if self.recorded { self.record(data) } else { None };
        let mut state = self.transcript.state();
        let freed = match recorded {
            Some((frame, cost)) => {
                state.append(frame, cost);
                0
            }
            None => self.transcript.pass(&mut state, data.clone()),
        };
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.transcript.live.release(freed);
        self.transcript.ring(waiting);
    }

    /// A copy in a block of ours and what it costs; `None` when it is not recorded any more.
    fn record(&mut self, data: &Bytes) -> Option<(Bytes, usize)> {
        let block = if self.block.capacity() >= data.len() { 0 } else { self.next_block.max(data.len()) };
        let cost = block + FRAME;
        if self.written > self.transcript.cap || !self.transcript.live.reserve(cost) {
            self.spill();
            return None;
        }
        if block > 0 {
            self.block = BytesMut::with_capacity(block);
            self.next_block = (self.next_block * 2).min(BLOCKS.1);
        }
        self.block.extend_from_slice(data);
        Some((self.block.split().freeze(), cost))
    }

    fn spill(&mut self) {
        self.recorded = false;
        self.block = BytesMut::new();
        let freed = self.transcript.state().spill();
        self.transcript.live.release(freed);
    }

    /// The whole body in one piece of its own, with `last` as its end; `None` when it is not all there, too long, or no
    /// memory is left for it beside the frames.
    pub fn seal(&mut self, last: &Bytes) -> Option<Bytes> {
        if !self.recorded {
            return None;
        }
        let length = self.written + last.len() as u64;
        if length > self.transcript.cap {
            self.spill();
            return None;
        }
        let length = usize::try_from(length).ok()?;
        if !self.transcript.live.reserve(length) {
            return None;
        }
        self.sealed = length;
        let state = self.transcript.state();
        if state.frames.is_empty() {
            drop(state);
            return Some(Bytes::copy_from_slice(last));
        }
        let mut body = Vec::with_capacity(length);
        state.frames.iter().for_each(|frame| body.extend_from_slice(frame));
        drop(state);
        body.extend_from_slice(last);
        Some(body.into())
    }

    /// The end, whole, after `last`. What was sealed takes the place of the frames it is made of.
    pub fn whole(mut self, last: Bytes, sealed: Option<Bytes>, whole: Whole) {
        self.ended = true;
        let mut state = self.transcript.state();
        let before = state.held;
        match sealed {
            Some(sealed) if self.recorded => state.replace(&sealed, &last),
            _ if last.is_empty() => {}
            _ => {
                let cost = last.len() + FRAME;
                state.append(last, cost);
            }
        }
        let after = state.held;
        state.end = Some(End::Whole(whole));
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.transcript.live.count(after.saturating_sub(before));
        self.transcript.live.release(before.saturating_sub(after) + std::mem::take(&mut self.sealed));
        self.transcript.ring(waiting);
    }

    /// The end, by an error: before the head or after it. `own`: it concerns the first reader alone.
    pub fn fail(mut self, error: Error, own: bool) {
        self.end(error, own);
    }

    fn end(&mut self, error: Error, own: bool) {
        self.ended = true;
        let error = Arc::new(error);
        let mut state = self.transcript.state();
        state.end = Some(if state.head.is_some() { End::Cut(error) } else { End::Failed(Failure { error, own }) });
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.transcript.ring(waiting);
    }
}

impl State {
    /// `sealed`, cut where the frames and `last` are.
    fn replace(&mut self, sealed: &Bytes, last: &Bytes) {
        let mut at = 0;
        for frame in &mut self.frames {
            let end = at + frame.len();
            *frame = sealed.slice(at..end);
            at = end;
        }
        if !last.is_empty() {
            self.frames.push_back(sealed.slice(at..));
        }
        self.written = sealed.len() as u64;
        self.held = sealed.len() + self.frames.len() * FRAME;
    }
}

impl Transcript {
    /// Takes a frame that is not recorded: held for those who have not read it. Gives the bytes this freed.
    fn pass(&self, state: &mut State, frame: Bytes) -> usize {
        let cost = frame.len() + FRAME;
        let short = !self.live.reserve(cost);
        if short {
            self.live.count(cost);
        }
        let first = state.frames.is_empty();
        state.append(frame, cost);
        // The furthest may be a window behind: the others are given as much again.
        let lag = if short { 2 * WINDOW } else { self.cap.max(2 * WINDOW) };
        let freed = state.cut_behind(lag);
        if first { freed + state.trim() } else { freed }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.transcript.live.release(self.sealed);
        if !self.ended {
            self.end(Error::new(Kind::Internal, "the answer was given up by a fault of the gateway"), false);
        }
    }
}

// === impl Reader ===

impl Reader {
    /// What it reads.
    pub fn transcript(&self) -> &Arc<Transcript> {
        &self.transcript
    }

    /// The head, or the error that came in its place. Waits with `waker`; without one it only looks.
    pub fn poll_head(&mut self, waker: Option<&Waker>) -> Poll<Result<Arc<Head>, Failure>> {
        self.poll(waker, |state, _| {
            let head = state.head.as_ref().map(|head| Ok(Arc::clone(head)));
            let failed = || match &state.end {
                Some(End::Failed(failure)) => Some(Err(failure.clone())),
                _ => None,
            };
            (head.or_else(failed), 0)
        })
    }

    /// The next frame, or the end. Waits with `waker`; without one it only looks.
    pub fn poll_next(&mut self, waker: Option<&Waker>) -> Poll<Next> {
        self.poll(waker, State::take)
    }

    /// The whole answer, once it is complete, or its other end. Waits with `waker`; without one it only looks.
    pub fn poll_end(&mut self, waker: Option<&Waker>) -> Poll<End> {
        self.poll(waker, |state, _| (state.end.clone(), 0))
    }

    fn poll<T>(
        &mut self,
        waker: Option<&Waker>,
        look: impl FnOnce(&mut State, usize) -> (Option<T>, usize),
    ) -> Poll<T> {
        let mut state = self.transcript.state();
        let (found, freed) = look(&mut state, self.slot);
        if let Some(found) = found {
            let pump = state.resumed();
            drop(state);
            self.transcript.live.release(freed);
            pump.into_iter().for_each(Waker::wake);
            return Poll::Ready(found);
        }
        let Some(waker) = waker else { return Poll::Pending };
        let home = self.desk.home();
        if !state.waiting.iter().any(|known| Arc::ptr_eq(known, home)) {
            state.waiting.push(Arc::clone(home));
        }
        // Mail is read on this thread, after this.
        drop(state);
        self.waits = true;
        self.desk.wait(self.transcript.id, self.slot, waker);
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.waits {
            self.desk.forget(self.transcript.id, self.slot);
        }
        self.transcript.leave(self.slot);
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("transcript", &self.transcript).field("slot", &self.slot).finish_non_exhaustive()
    }
}
