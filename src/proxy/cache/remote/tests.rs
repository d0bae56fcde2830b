//! Against a scripted Redis, in paused time: the world's clock goes on, the process's does not.

use std::{cell::RefCell, collections::BTreeMap, io, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use redis::RedisConnectionInfo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::Notify,
    task::{JoinSet, LocalSet},
    time::{Instant, sleep},
};

use super::{Remote, RemoteStats, Wanted, tier::READ_WITHIN};
use crate::{
    protocol::{
        endpoint::Endpoint,
        usage::{Finish, Usage},
    },
    proxy::cache::{Entry, Facts, Purge, Shape, Tenant},
};

const KEY: [u8; 32] = [5; 32];
const MAX_ENTRY: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    /// Takes commands and says nothing.
    Silent,
    /// Answers every write with an error.
    Full,
    /// Takes no connections.
    Down,
}

/// As much of a Redis as is asked for.
struct Fake {
    mood: Mood,
    /// Name → value and lifetime in ms.
    stored: BTreeMap<String, (Vec<u8>, u64)>,
    connects: u32,
    /// The names that a scan goes through: all that were there when it began.
    scanned: Vec<String>,
}

#[derive(Clone)]
struct Server(Rc<RefCell<Fake>>, Rc<Notify>);

impl Server {
    fn new() -> Self {
        let fake = Fake { mood: Mood::Well, stored: BTreeMap::new(), connects: 0, scanned: Vec::new() };
        Self(Rc::new(RefCell::new(fake)), Rc::default())
    }

    fn set(&self, mood: Mood) {
        self.0.borrow_mut().mood = mood;
    }

    /// Every connection breaks.
    fn kill(&self) {
        self.set(Mood::Down);
        self.1.notify_waiters();
    }

    fn names(&self) -> Vec<String> {
        self.0.borrow().stored.keys().cloned().collect()
    }

    async fn serve(self, mut stream: DuplexStream) {
        let mut input = Vec::new();
        loop {
            while let Some((command, used)) = parse(&input) {
                input.drain(..used);
                let Some(answer) = self.answer(&command) else { continue };
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                read = stream.read_buf(&mut input) => if !matches!(read, Ok(1..)) { return },
                () = self.1.notified() => return,
            }
        }
    }

    fn answer(&self, command: &[Vec<u8>]) -> Option<Vec<u8>> {
        let mut fake = self.0.borrow_mut();
        let word = |i: usize| String::from_utf8_lossy(&command[i]).into_owned();
        if fake.mood == Mood::Silent {
            return None;
        }
        let bulk = |bytes: &[u8]| [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        Some(match word(0).as_str() {
            "PING" => b"+PONG\r\n".to_vec(),
            "GETRANGE" => {
                let end: usize = word(3).parse().unwrap();
                let value = fake.stored.get(&word(1)).map_or(&[][..], |(value, _)| value);
                bulk(&value[..value.len().min(end + 1)])
            }
            "SET" if fake.mood == Mood::Full => {
                b"-OOM command not allowed when used memory > 'maxmemory'.\r\n".to_vec()
            }
            "SET" => {
                assert_eq!(word(3), "PX");
                fake.stored.insert(word(1), (command[2].clone(), word(4).parse().unwrap()));
                b"+OK\r\n".to_vec()
            }
            "SCAN" => {
                let cursor = word(1).parse().unwrap();
                if cursor == 0 {
                    fake.scanned = fake.stored.keys().cloned().collect();
                }
                scan(&fake.scanned, cursor, &word(3))
            }
            "UNLINK" => {
                assert_eq!(command.len(), 2, "one key per command");
                format!(":{}\r\n", u8::from(fake.stored.remove(&word(1)).is_some())).into_bytes()
            }
            _ => b"+OK\r\n".to_vec(),
        })
    }
}

/// Two names at a time.
fn scan(all: &[String], cursor: usize, pattern: &str) -> Vec<u8> {
    let step: Vec<_> = all.iter().skip(cursor).take(2).filter(|name| matches(name, pattern)).collect();
    let next = if cursor + 2 >= all.len() { 0 } else { cursor + 2 }.to_string();
    let mut out = format!("*2\r\n${}\r\n{next}\r\n*{}\r\n", next.len(), step.len());
    for name in step {
        out += &format!("${}\r\n{name}\r\n", name.len());
    }
    out.into_bytes()
}

fn matches(name: &str, pattern: &str) -> bool {
    let (names, patterns): (Vec<_>, Vec<_>) = (name.splitn(6, ':').collect(), pattern.split(':').collect());
    names.len() == patterns.len() && names.iter().zip(patterns).all(|(name, part)| part == "*" || *name == part)
}

/// One command in RESP, and its length.
fn parse(input: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    fn line(input: &[u8], at: &mut usize) -> Option<usize> {
        let end = input[*at..].windows(2).position(|two| two == b"\r\n")? + *at;
        let number = std::str::from_utf8(&input[*at + 1..end]).ok()?.parse().ok()?;
        *at = end + 2;
        Some(number)
    }
    let mut at = 0;
    let count = line(input, &mut at)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length = line(input, &mut at)?;
        words.push(input.get(at..at + length)?.to_vec());
        at += length + 2;
    }
    (at <= input.len()).then_some((words, at))
}

/// A gateway's second tier, with its keeper at work until the test ends.
fn gateway(server: &Server, key: [u8; 32], tasks: &mut JoinSet<()>) -> Remote {
    let (server, streams) = (server.clone(), Rc::new(RefCell::new(JoinSet::new())));
    let connect = async move || {
        server.0.borrow_mut().connects += 1;
        if server.0.borrow().mood == Mood::Down {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = duplex(64 << 10);
        streams.borrow_mut().spawn_local(server.clone().serve(theirs));
        Ok((ours, RedisConnectionInfo::default()))
    };
    let (remote, waiting) = Remote::new(&key, MAX_ENTRY);
    let mut keeper = waiting.keeper(connect);
    tasks.spawn_local(async move { keeper.run().await });
    remote
}

/// Lets all that can happen now happen.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

async fn until(happened: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if happened() {
            return;
        }
        settle().await;
    }
    panic!("it did not happen");
}

fn entry(body: impl Into<Bytes>, model: &str) -> Arc<Entry> {
    let now = Instant::now();
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    Arc::new(Entry {
        endpoint: Endpoint::Chat,
        shape: Shape::Plain,
        headers,
        body: body.into(),
        facts: Facts {
            usage: Usage::default(),
            finish: Finish::Stop,
            engine: None,
            took: Duration::from_secs(1),
            told: true,
        },
        model: Some(model.into()),
        tenant: Tenant([1; 16]),
        stored: now,
        expires: now + Duration::from_secs(3600),
        strict: false,
    })
}

fn wanted(digest: u8) -> Wanted<'static> {
    wanted_of(digest, "m")
}

fn wanted_of(digest: u8, model: &str) -> Wanted<'_> {
    Wanted { digest: [digest; 32], shape: Shape::Plain, tenant: Tenant([1; 16]), model: Some(model) }
}

async fn put(remote: &Remote, digest: u8, entry: Arc<Entry>) {
    let before = remote.stats().written;
    remote.put([digest; 32], &entry);
    until(|| remote.stats().written == before + 1).await;
}

async fn run<F: Future<Output = ()>>(test: impl FnOnce(Server, JoinSet<()>) -> F) {
    LocalSet::new().run_until(test(Server::new(), JoinSet::new())).await;
}

#[tokio::test(start_paused = true)]
async fn what_one_stored_the_other_serves() {
    run(async |server, mut tasks| {
        let (one, two) = (gateway(&server, KEY, &mut tasks), gateway(&server, KEY, &mut tasks));
        let stranger = gateway(&server, [6; 32], &mut tasks);
        until(|| [&one, &two, &stranger].iter().all(|remote| remote.stats().connected)).await;
        put(&one, 1, entry("an answer", "m")).await;
        let read = two.get(&wanted(1)).await.unwrap();
        assert_eq!(read.body, "an answer");
        assert_eq!(read.headers["content-type"], "application/json");
        let lifetime = server.0.borrow().stored.values().next().unwrap().1;
        assert!((3_500_000..=3_600_000).contains(&lifetime), "{lifetime}");
        assert!(two.get(&wanted(2)).await.is_none());
        assert!(two.get(&Wanted { shape: Shape::Stream, ..wanted(1) }).await.is_none());
        assert!(two.get(&Wanted { tenant: Tenant([2; 16]), ..wanted(1) }).await.is_none());
        assert!(stranger.get(&wanted(1)).await.is_none());
        assert_eq!((two.stats().hits, two.stats().misses, two.stats().refused), (1, 3, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn damaged_swapped_and_endless_values_are_misses() {
    run(async |server, mut tasks| {
        let remote = gateway(&server, KEY, &mut tasks);
        until(|| remote.stats().connected).await;
        put(&remote, 1, entry("one", "m")).await;
        put(&remote, 2, entry("two", "m")).await;
        let names = server.names();
        let values: Vec<_> = names.iter().map(|name| server.0.borrow().stored[name].clone()).collect();
        server.0.borrow_mut().stored.insert(names[0].clone(), values[1].clone());
        assert!(remote.get(&wanted(1)).await.is_none());
        let mut damaged = values[1].clone();
        *damaged.0.last_mut().unwrap() ^= 1;
        server.0.borrow_mut().stored.insert(names[1].clone(), damaged);
        assert!(remote.get(&wanted(2)).await.is_none());
        server.0.borrow_mut().stored.insert(names[1].clone(), (vec![1; 8 * MAX_ENTRY], 1));
        assert!(remote.get(&wanted(2)).await.is_none());
        assert_eq!((remote.stats().refused, remote.stats().hits), (3, 0));
        server.0.borrow_mut().stored.insert(names[0].clone(), values[0].clone());
        assert!(remote.get(&wanted(1)).await.is_some());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_redis_costs_a_request_its_deadline_a_few_times_and_then_nothing() {
    run(async |server, mut tasks| {
        let remote = gateway(&server, KEY, &mut tasks);
        until(|| remote.stats().connected).await;
        put(&remote, 1, entry("one", "m")).await;
        server.set(Mood::Silent);
        for n in 1..=5 {
            let begun = Instant::now();
            assert!(remote.get(&wanted(1)).await.is_none());
            assert!(begun.elapsed() >= READ_WITHIN && begun.elapsed() < READ_WITHIN + Duration::from_millis(5));
            assert_eq!(remote.stats().late, n);
        }
        let begun = Instant::now();
        assert!(remote.get(&wanted(1)).await.is_none());
        remote.put([2; 32], &entry("two", "m"));
        let stats = remote.stats();
        assert_eq!((begun.elapsed(), stats.connected, stats.away, stats.dropped), (Duration::ZERO, false, 1, 1));
        until(|| remote.stats().lost == 1).await;
        sleep(Duration::from_secs(5)).await;
        assert!(!remote.stats().connected, "a greeting that is not answered is none");
        server.set(Mood::Well);
        until(|| remote.stats().connected).await;
        assert!(remote.get(&wanted(1)).await.is_some());
        assert_eq!(remote.stats().lost, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_redis_that_is_killed_is_left_alone_and_found_again() {
    run(async |server, mut tasks| {
        let remote = gateway(&server, KEY, &mut tasks);
        until(|| remote.stats().connected).await;
        put(&remote, 1, entry("one", "m")).await;
        server.kill();
        until(|| !remote.stats().connected).await;
        assert!(remote.get(&wanted(1)).await.is_none());
        let before = server.0.borrow().connects;
        sleep(Duration::from_secs(60)).await;
        let tries = server.0.borrow().connects - before;
        assert!((6..=14).contains(&tries), "{tries} tries in a minute");
        server.set(Mood::Well);
        until(|| remote.stats().connected).await;
        assert!(remote.get(&wanted(1)).await.is_some());
        assert_eq!((remote.stats().lost, remote.stats().away), (1, 1));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_purge_reaches_it_by_scope_and_whenever_it_is_back() {
    run(async |server, mut tasks| {
        let (one, two) = (gateway(&server, KEY, &mut tasks), gateway(&server, KEY, &mut tasks));
        until(|| one.stats().connected && two.stats().connected).await;
        for n in 1..=9 {
            put(&one, n, entry("x", if n % 2 == 0 { "even" } else { "odd" })).await;
        }
        let model = |name: &str| Purge { model: Some(name.into()), tenant: None };
        one.purge(&model("even"));
        assert!(one.get(&wanted_of(2, "even")).await.is_none(), "at once where it was asked for");
        until(|| server.names().len() == 5).await;
        assert!(two.get(&wanted_of(2, "even")).await.is_none());
        assert!(two.get(&wanted_of(1, "odd")).await.is_some());

        server.kill();
        until(|| !one.stats().connected).await;
        one.purge(&Purge { model: None, tenant: Some(Tenant([7; 16])) });
        one.purge(&model("odd"));
        server.set(Mood::Well);
        until(|| one.stats().connected).await;
        assert_eq!(server.names(), Vec::<String>::new(), "before it is read again");
        put(&one, 1, entry("new", "odd")).await;
        assert_eq!(one.get(&wanted_of(1, "odd")).await.unwrap().body, "new");
        one.purge(&Purge::default());
        until(|| server.names().is_empty()).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_when_a_purge_comes_is_not_written_after_it() {
    run(async |server, mut tasks| {
        let remote = gateway(&server, KEY, &mut tasks);
        until(|| remote.stats().connected).await;
        // Nothing of this runs before the next await.
        remote.put([1; 32], &entry("x", "m"));
        remote.put([2; 32], &entry("x", "other"));
        remote.purge(&Purge { model: Some("m".into()), tenant: None });
        until(|| remote.stats().written == 1).await;
        settle().await;
        assert!(remote.get(&wanted(1)).await.is_none());
        assert!(remote.get(&wanted_of(2, "other")).await.is_some());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded_and_a_full_redis_is_no_lost_one() {
    run(async |server, mut tasks| {
        let remote = gateway(&server, KEY, &mut tasks);
        until(|| remote.stats().connected).await;
        let large = entry(vec![b'x'; MAX_ENTRY], "m");
        for n in 0..40 {
            remote.put([n; 32], &large);
        }
        assert_eq!(remote.stats().dropped, 25, "15 of 1 MiB and a little more are less than 16 MiB");
        remote.put([99; 32], &entry(vec![b'x'; MAX_ENTRY + 1], "m"));
        assert_eq!(remote.stats().dropped, 26);
        until(|| remote.stats().written == 15).await;
        assert!(remote.get(&wanted(14)).await.is_some());

        server.set(Mood::Full);
        remote.put([50; 32], &large);
        until(|| remote.stats().unwritten == 1).await;
        let RemoteStats { connected, lost, .. } = remote.stats();
        assert_eq!((connected, lost), (true, 0));
    })
    .await;
}
