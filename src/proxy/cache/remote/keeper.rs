//! Keeps the connection, writes what waits, and purges.

use std::{
    fmt, io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use redis::{AsyncConnectionConfig, Pipeline, RedisConnectionInfo, RedisError, Value, aio::MultiplexedConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    Wanted,
    codec::{self, Clock},
    tier::{Inner, QUEUE, READ_WITHIN, Write},
};

/// For name, TCP, TLS and the greeting together.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// For a batch of writes, or a step of a purge.
const WRITE_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of one batch; a larger entry goes alone.
const BATCH_BYTES: usize = 1 << 20;
/// Answers of one batch.
const BATCH: usize = 64;
/// Names that one step of a purge looks at.
const SCAN: usize = 500;
/// The pause before a connection is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A connection that lasted this long was well: the next pause is the first again.
const WELL_AFTER: Duration = Duration::from_secs(30);

/// A stream to Redis, and who we are to it.
pub type Opened<S> = io::Result<(S, RedisConnectionInfo)>;

/// The one who keeps it. Its future is for the control thread, and never ends.
pub struct Keeper<C> {
    inner: Arc<Inner>,
    waiting: mpsc::Receiver<Write>,
    connect: C,
    pause: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    New,
    Serving,
    Away,
}

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("it does not answer in time")]
    Late,
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("{0}")]
    Connect(#[from] io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("reads failed or were too slow")]
    Failures,
}

impl<C> Keeper<C> {
    pub(super) fn new(inner: Arc<Inner>, waiting: mpsc::Receiver<Write>, connect: C) -> Self {
        Self { inner, waiting, connect, pause: FIRST_PAUSE, state: State::New }
    }
}

impl<C, S> Keeper<C>
where
    C: AsyncFn() -> Opened<S>,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Connects, serves, and connects again.
    pub async fn run(&mut self) {
        loop {
            let begun = Instant::now();
            let lost = self.once().await;
            self.inner.connection.store(None);
            self.say(&lost);
            if begun.elapsed() >= WELL_AFTER {
                self.pause = FIRST_PAUSE;
            }
            self.drop_waiting();
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Once for each time that it goes, not at every try.
    fn say(&mut self, lost: &Lost) {
        match self.state {
            State::Away => return,
            State::Serving => drop(self.inner.counts.lost.fetch_add(1, Relaxed)),
            State::New => {}
        }
        self.state = State::Away;
        tracing::warn!(reason = %lost, "the second tier of the cache is away: it is not asked until it is back");
    }

    /// One connection, until it is lost.
    async fn once(&mut self) -> Lost {
        let deadline = Instant::now() + CONNECT_WITHIN;
        let (stream, who) = match timeout_at(deadline, (self.connect)()).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return error.into(),
            Err(_) => return Lost::Late,
        };
        // Deadlines are ours.
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let greeted = timeout_at(deadline, MultiplexedConnection::new_with_config(&who, stream, config));
        let (connection, driver) = match greeted.await {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(error)) => return error.into(),
            Err(_) => return Lost::Late,
        };
        tokio::select! {
            () = driver => Lost::Closed,
            lost = self.serve(connection) => lost,
        }
    }

    async fn serve(&mut self, mut connection: MultiplexedConnection) -> Lost {
        if let Err(lost) = self.greet(&mut connection).await {
            return lost;
        }
        tracing::info!("the second tier of the cache is there");
        self.state = State::Serving;
        let inner = Arc::clone(&self.inner);
        let mut batch = Vec::new();
        loop {
            let done = tokio::select! {
                biased;
                // A late word about an earlier connection says nothing of this one.
                () = inner.lost.notified() => match inner.connection.load().is_some() {
                    true => Ok(()),
                    false => Err(Lost::Failures),
                },
                () = inner.purged.notified() => self.purge(&mut connection).await,
                taken = self.waiting.recv_many(&mut batch, BATCH) => match taken {
                    0 => std::future::pending().await,
                    _ => self.write(&mut connection, &mut batch).await,
                },
            };
            if let Err(lost) = done {
                return lost;
            }
        }
    }

    /// As fast as reads must be; purges that waited come first, then it is there for reads.
    async fn greet(&mut self, connection: &mut MultiplexedConnection) -> Result<(), Lost> {
        let ping = redis::cmd("PING");
        match timeout(READ_WITHIN, connection.send_packed_command(&ping)).await {
            Ok(Ok(Value::ServerError(error))) => return Err(RedisError::from(error).into()),
            Ok(answered) => drop(answered?),
            Err(_) => return Err(Lost::Late),
        }
        self.purge(connection).await?;
        self.inner.failures.store(0, Relaxed);
        self.inner.connection.store(Some(Arc::new(connection.clone())));
        Ok(())
    }

    async fn write(&mut self, connection: &mut MultiplexedConnection, batch: &mut Vec<Write>) -> Result<(), Lost> {
        let mut waiting = batch.drain(..).peekable();
        while waiting.peek().is_some() {
            let (mut pipe, mut bytes, mut count) = (Pipeline::new(), 0, 0);
            while let Some(write) = waiting.next_if(|write| count == 0 || bytes + write.entry.weight() <= BATCH_BYTES) {
                bytes += write.entry.weight();
                count += usize::from(self.inner.add(&mut pipe, &write));
            }
            if count == 0 {
                continue;
            }
            let sent = timeout(WRITE_WITHIN, connection.send_packed_commands(&pipe, 0, count)).await;
            let counts = &self.inner.counts;
            match sent {
                Ok(Ok(answers)) => {
                    // Each may be refused by itself: out of memory, read only.
                    let written = answers.iter().filter(|answer| **answer == Value::Okay).count();
                    counts.written.fetch_add(written as u64, Relaxed);
                    counts.unwritten.fetch_add(count.saturating_sub(written) as u64, Relaxed);
                }
                failed => {
                    counts.unwritten.fetch_add(count as u64, Relaxed);
                    failed.map_err(|_| Lost::Late)??;
                }
            }
        }
        Ok(())
    }

    /// Does the purges that wait. What was put before one of them is not written after it.
    async fn purge(&mut self, connection: &mut MultiplexedConnection) -> Result<(), Lost> {
        loop {
            let Some((number, what)) = self.inner.purges().waiting.first().cloned() else { return Ok(()) };
            let mut waiting = Vec::new();
            while waiting.len() < QUEUE
                && let Ok(write) = self.waiting.try_recv()
            {
                waiting.push(write);
            }
            waiting.retain(|write| !what.matches(write.entry.model.as_deref(), write.entry.tenant));
            let removed = remove(connection, &self.inner.sealer.pattern(&what)).await?;
            tracing::info!(removed, "the second tier of the cache is purged");
            // Another may have taken its place: that one is still to be done.
            self.inner.purges().waiting.retain(|(other, _)| *other != number);
            self.write(connection, &mut waiting).await?;
        }
    }

    fn drop_waiting(&mut self) {
        while self.waiting.try_recv().is_ok() {
            self.inner.counts.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Removes what matches `pattern`: one key per command, freed by Redis when it has time.
async fn remove(connection: &mut MultiplexedConnection, pattern: &str) -> Result<u64, Lost> {
    let (mut cursor, mut removed) = (0_u64, 0);
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN);
        let (next, names): (u64, Vec<Vec<u8>>) =
            timeout(WRITE_WITHIN, scan.query_async(connection)).await.map_err(|_| Lost::Late)??;
        if !names.is_empty() {
            let mut pipe = Pipeline::new();
            for name in &names {
                pipe.cmd("UNLINK").arg(name);
            }
            let gone: Vec<u64> =
                timeout(WRITE_WITHIN, pipe.query_async(connection)).await.map_err(|_| Lost::Late)??;
            removed += gone.iter().sum::<u64>();
        }
        if next == 0 {
            return Ok(removed);
        }
        cursor = next;
    }
}

impl Inner {
    /// Whether there is something to write.
    fn add(&self, pipe: &mut Pipeline, write: &Write) -> bool {
        let entry = &*write.entry;
        let wanted =
            Wanted { digest: write.digest, shape: entry.shape, tenant: entry.tenant, model: entry.model.as_deref() };
        let name = self.sealer.name(&wanted);
        let Some((bytes, left)) = codec::encode(entry, &name, &self.sealer, Clock::now()) else { return false };
        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64 / 2);
        pipe.cmd("SET").arg(name).arg(bytes).arg("PX").arg(left);
        true
    }
}

impl<C> fmt::Debug for Keeper<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("state", &self.state).finish_non_exhaustive()
    }
}
