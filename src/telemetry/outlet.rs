//! Lines out of the process, without waiting for whoever reads them.
//!
//! One thread per outlet does the writing. Those who log hand it whole buffers over a short channel: when that is
//! full (a pipe nobody reads), or the pipe is closed, lines are thrown away and counted. It never panics and never
//! blocks a worker.

use std::{
    fmt,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

/// Where lines go. Cheap to clone; all clones write to the same end.
#[derive(Clone)]
pub struct Outlet {
    jobs: SyncSender<Job>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    dropped: AtomicU64,
    closed: AtomicBool,
}

enum Job {
    Lines(Vec<u8>, u64),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

impl Outlet {
    /// Starts the thread `name` that writes to `end`; at most `depth` buffers wait for it.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn new(name: &'static str, end: impl Write + Send + 'static, depth: usize) -> io::Result<Self> {
        let (jobs, receiver) = mpsc::sync_channel(depth);
        let state = Arc::new(State::default());
        let writer = Writer { name, end, state: Arc::clone(&state), complained: false };
        thread::Builder::new().name(name.into()).spawn(move || writer.run(&receiver))?;
        Ok(Self { jobs, state })
    }

    /// Hands over a buffer of `lines` whole lines, or drops it.
    pub fn send(&self, buffer: Vec<u8>, lines: u64) {
        let sent = if self.is_closed() {
            Err(())
        } else {
            self.jobs.try_send(Job::Lines(buffer, lines)).map_err(|_: TrySendError<Job>| ())
        };
        if sent.is_err() {
            self.state.dropped.fetch_add(lines, Relaxed);
        }
    }

    /// Lines thrown away so far.
    pub fn dropped(&self) -> u64 {
        self.state.dropped.load(Relaxed)
    }

    /// Whether the reader is gone for good.
    pub fn is_closed(&self) -> bool {
        self.state.closed.load(Relaxed)
    }

    /// Waits until what was handed over is written, at most `within`; for the end of the process. Says whether it is.
    pub fn flush(&self, within: Duration) -> bool {
        let (done, written) = mpsc::sync_channel(1);
        // A full channel has a reader that is too slow: those lines are lost, as they would be in operation.
        if self.jobs.try_send(Job::Flush(done)).is_err() {
            return false;
        }
        !matches!(written.recv_timeout(within), Err(RecvTimeoutError::Timeout))
    }
}

struct Writer<W> {
    name: &'static str,
    end: W,
    state: Arc<State>,
    /// The newest write failed and that was said.
    complained: bool,
}

impl<W: Write> Writer<W> {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            match job {
                Job::Lines(buffer, lines) => self.write(&buffer, lines),
                // Whoever asked may have stopped waiting.
                Job::Flush(done) => drop(done.try_send(())),
            }
        }
    }

    fn write(&mut self, buffer: &[u8], lines: u64) {
        if self.state.closed.load(Relaxed) {
            self.state.dropped.fetch_add(lines, Relaxed);
            return;
        }
        let Err(error) = self.end.write_all(buffer).and_then(|()| self.end.flush()) else {
            self.complained = false;
            return;
        };
        self.state.dropped.fetch_add(lines, Relaxed);
        // Set first: the complaint below may come back to this very outlet.
        self.state.closed.store(error.kind() == io::ErrorKind::BrokenPipe, Relaxed);
        if !std::mem::replace(&mut self.complained, true) {
            let name = self.name;
            tracing::warn!(%error, "cannot write the {name}; its lines are dropped and counted in \
                sluicegate_log_lines_dropped_total");
        }
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("state", &self.state).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails as told, else passes on what it was given.
    struct End(Receiver<Option<io::ErrorKind>>, mpsc::Sender<Vec<u8>>);

    impl Write for End {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            if let Some(kind) = self.0.recv().unwrap() {
                return Err(kind.into());
            }
            self.1.send(buffer.to_vec()).unwrap();
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn outlet(depth: usize) -> (Outlet, mpsc::Sender<Option<io::ErrorKind>>, Receiver<Vec<u8>>) {
        let (orders, told) = mpsc::channel();
        let (wrote, written) = mpsc::channel();
        (Outlet::new("test", End(told, wrote), depth).unwrap(), orders, written)
    }

    #[test]
    fn a_closed_pipe_ends_writing_and_everything_is_counted() {
        let (out, orders, written) = outlet(8);
        orders.send(None).unwrap();
        out.send(b"one\n".to_vec(), 1);
        assert_eq!(written.recv().unwrap(), b"one\n");

        orders.send(Some(io::ErrorKind::BrokenPipe)).unwrap();
        out.send(b"two\nthree\n".to_vec(), 2);
        assert!(out.flush(Duration::from_secs(5)));
        assert!(out.is_closed());
        // No order is left: a further write would hang.
        out.send(b"four\n".to_vec(), 1);
        assert_eq!(out.dropped(), 3);
    }

    #[test]
    fn a_full_disk_loses_lines_but_not_the_log() {
        let (out, orders, written) = outlet(8);
        orders.send(Some(io::ErrorKind::StorageFull)).unwrap();
        orders.send(None).unwrap();
        out.send(b"lost\n".to_vec(), 1);
        out.send(b"kept\n".to_vec(), 1);
        assert_eq!(written.recv().unwrap(), b"kept\n");
        assert_eq!((out.dropped(), out.is_closed()), (1, false));
    }

    #[test]
    fn a_pipe_nobody_reads_never_blocks() {
        let (out, orders, written) = outlet(2);
        // The writer hangs in its first write until it is ordered on; two more wait, the rest is dropped.
        for _ in 0..100 {
            out.send(b"x\n".to_vec(), 1);
        }
        let dropped = out.dropped();
        assert!((97..=98).contains(&dropped), "{dropped}");
        assert!(!out.flush(Duration::ZERO));
        for _ in dropped..100 {
            orders.send(None).unwrap();
            written.recv().unwrap();
        }
    }

    #[test]
    fn a_real_pipe_without_reader() {
        let (reader, writer) = io::pipe().unwrap();
        let out = Outlet::new("test", writer, 8).unwrap();
        drop(reader);
        out.send(b"x\n".to_vec(), 1);
        assert!(out.flush(Duration::from_secs(5)));
        assert_eq!((out.dropped(), out.is_closed()), (1, true));
    }
}
