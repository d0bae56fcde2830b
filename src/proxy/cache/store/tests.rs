//! Capacity, order, expiry, purge.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    thread,
};

use bytes::Bytes;
use http::HeaderMap;

use super::*;
use crate::{
    protocol::{
        endpoint::Endpoint,
        usage::{Finish, Usage},
    },
    proxy::cache::{Facts, Shape},
};

const NEVER: Duration = Duration::ZERO;
const MIB: u64 = 1 << 20;

fn key(n: u64) -> Key {
    key_of(n, Shape::Plain)
}

fn key_of(n: u64, shape: Shape) -> Key {
    Key::new(&n.to_le_bytes(), n.wrapping_mul(0x9e37_79b9_7f4a_7c15), |_| unreachable!("short"), shape)
}

fn entry(body: impl Into<Bytes>, model: &str, tenant: u8) -> Arc<Entry> {
    let now = Instant::now();
    Arc::new(Entry {
        endpoint: Endpoint::Chat,
        shape: Shape::Plain,
        headers: HeaderMap::new(),
        body: body.into(),
        facts: Facts {
            usage: Usage::default(),
            finish: Finish::Stop,
            engine: None,
            took: Duration::from_secs(1),
            told: true,
        },
        model: Some(model.into()),
        tenant: Tenant([tenant; 16]),
        stored: now,
        expires: now + Duration::from_secs(60),
        strict: false,
    })
}

fn has(store: &Store, n: u64) -> bool {
    store.get(&key(n), Instant::now(), NEVER).is_some()
}

#[test]
fn gives_back_what_was_put_by_key_and_shape() {
    let store = Store::new(MIB);
    let kept = entry("one", "m", 1);
    store.put(key(1), Arc::clone(&kept));
    assert!(Arc::ptr_eq(&store.get(&key(1), Instant::now(), NEVER).unwrap(), &kept));
    assert!(!has(&store, 2));
    assert!(store.get(&key_of(1, Shape::Stream), Instant::now(), NEVER).is_none());
    store.put(key(1), entry("two", "m", 1));
    assert_eq!(store.get(&key(1), Instant::now(), NEVER).unwrap().body, "two");
    let stats = store.stats();
    assert_eq!((stats.entries, stats.stored, stats.replaced, stats.evicted), (1, 2, 1, 0));
    assert!(stats.bytes > 600 && stats.bytes < 2000, "{stats:?}");
}

#[test]
fn two_keys_of_one_slot_are_two_answers() {
    let store = Store::new(MIB);
    let colliding = |material: &[u8]| Key::new(material, 7, |_| unreachable!("short"), Shape::Plain);
    store.put(colliding(b"a"), entry("a", "m", 1));
    assert!(store.get(&colliding(b"b"), Instant::now(), NEVER).is_none());
    store.put(colliding(b"b"), entry("b", "m", 1));
    assert_eq!(store.get(&colliding(b"a"), Instant::now(), NEVER).unwrap().body, "a");
    assert_eq!(store.get(&colliding(b"b"), Instant::now(), NEVER).unwrap().body, "b");
}

#[test]
fn a_full_store_takes_every_new_answer_and_drops_the_least_used() {
    let store = Store::new(MIB);
    for n in 0..10_000 {
        store.put(key(n), entry(vec![b'x'; 1000], "m", 1));
        assert!(has(&store, n), "{n}");
        // In use all the time.
        assert!(has(&store, 0), "after {n}");
    }
    let stats = store.stats();
    assert!(stats.bytes <= MIB && stats.bytes > MIB * 9 / 10, "{stats:?}");
    assert_eq!(stats.evicted, 10_000 - stats.entries);
    assert!(!has(&store, 1) && has(&store, 9_999 - stats.entries / 2));
}

#[test]
fn what_is_larger_than_all_of_it_is_not_kept() {
    let store = Store::new(MIB);
    store.put(key(1), entry("small", "m", 1));
    store.put(key(2), entry(vec![0; MIB as usize], "m", 1));
    assert!(has(&store, 1) && !has(&store, 2));
    Store::new(0).put(key(1), entry("small", "m", 1));
}

#[tokio::test(start_paused = true)]
async fn expired_answers_stand_in_for_errors_for_a_while_and_then_go() {
    let store = Store::new(MIB);
    store.put(key(1), entry("one", "m", 1));
    let stale_for = Duration::from_secs(10);
    tokio::time::advance(Duration::from_secs(60)).await;
    let stale = store.get(&key(1), Instant::now(), stale_for).unwrap();
    assert_eq!(stale.fresh_for(Instant::now()), None);
    tokio::time::advance(stale_for).await;
    assert!(store.get(&key(1), Instant::now(), stale_for).is_none());
    assert_eq!((store.stats().entries, store.stats().expired), (0, 1));
}

#[test]
fn a_purge_takes_what_it_names() {
    let filled = || {
        let store = Store::new(MIB);
        for n in 0..40 {
            store.put(key(n), entry("x", if n % 2 == 0 { "even" } else { "odd" }, (n % 4) as u8));
        }
        store
    };
    let model = |name: &str| Some(Arc::from(name));
    let tenant = |n| Some(Tenant([n; 16]));
    for (what, gone) in [
        (Purge::default(), 40),
        (Purge { model: model("even"), tenant: None }, 20),
        (Purge { model: None, tenant: tenant(3) }, 10),
        (Purge { model: model("even"), tenant: tenant(2) }, 10),
        (Purge { model: model("even"), tenant: tenant(1) }, 0),
        (Purge { model: model("other"), tenant: None }, 0),
    ] {
        let store = filled();
        assert_eq!(store.purge(&what), gone, "{what:?}");
        let left = (0..40).filter(|n| has(&store, *n)).count() as u64;
        assert_eq!((left, store.stats().entries, store.stats().purged), (40 - gone, 40 - gone, gone), "{what:?}");
    }
    let shares = filled().shares();
    assert_eq!(shares.models[&model("odd")].entries, 20);
    assert_eq!(shares.tenants[&Tenant([1; 16])].entries, 10);
}

#[test]
fn what_was_put_before_a_purge_is_gone_whatever_is_put_meanwhile() {
    let store = Store::new(64 * MIB);
    let begin = Barrier::new(3);
    thread::scope(|threads| {
        for writer in 1..3 {
            let (store, begin) = (&store, &begin);
            threads.spawn(move || {
                begin.wait();
                // Enough for the map to grow under the purge.
                for n in 0..5_000 {
                    store.put(key(writer << 32 | n), entry("later", "m", 1));
                }
            });
        }
        for n in 0..2_000 {
            store.put(key(n), entry("before", "m", 1));
        }
        begin.wait();
        assert!(store.purge(&Purge::default()) >= 2_000);
        assert!((0..2_000).all(|n| !has(&store, n)));
    });
}

/// Bytes of a body that are counted as long as they are held.
struct Counted(Vec<u8>, Arc<AtomicI64>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len() as i64, SeqCst);
    }
}

#[test]
fn bodies_held_never_exceed_the_capacity_by_more_than_what_is_being_put() {
    const CAPACITY: u64 = 16 * MIB;
    const WRITERS: u64 = 3;
    const LARGEST: u64 = 2 * MIB;
    let (store, held, most) = (Store::new(CAPACITY), Arc::new(AtomicI64::new(0)), AtomicI64::new(0));
    thread::scope(|threads| {
        for writer in 0..WRITERS {
            let (store, held, most) = (&store, &held, &most);
            threads.spawn(move || {
                let mut seed = writer + 1;
                for n in 0..300 {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Any size, small ones the most.
                    let size = (LARGEST >> (seed >> 60)) as usize;
                    held.fetch_add(size as i64, SeqCst);
                    let body = Bytes::from_owner(Counted(vec![0; size], Arc::clone(held)));
                    store.put(key(writer << 32 | n), entry(body, "m", 1));
                    most.fetch_max(held.load(SeqCst), SeqCst);
                }
            });
        }
    });
    let most = most.into_inner() as u64;
    assert!(most > CAPACITY * 3 / 4, "it was full: {most}");
    assert!(most <= CAPACITY + PENDING_AT_MOST + 2 * WRITERS * LARGEST, "{most}");
    assert!(held.load(SeqCst) as u64 <= store.stats().bytes);
}

#[test]
fn twins_stand_beside_their_answer_and_are_counted() {
    let store = Store::new(10 * MIB);
    let (answer, now) = (entry(vec![b'x'; 1000], "m", 1), Instant::now());
    store.put(key(1), Arc::clone(&answer));
    let before = store.stats();
    for coding in Coding::ALL {
        assert_eq!(store.twin(&key(1), &answer, coding, false), None);
        let twin = Bytes::from(vec![coding as u8; 500]);
        store.offer(&key(1), &answer, coding, false, twin.clone());
        // Another worker had it at the same time.
        store.offer(&key(1), &answer, coding, false, twin.clone());
        assert_eq!(store.twin(&key(1), &answer, coding, false), Some(twin));
        assert_eq!(store.twin(&key(1), &answer, coding, true), None, "another text");
    }
    let after = store.stats();
    assert_eq!(after.bytes, before.bytes + 3 * held(500) as u64);
    assert_eq!(Stats { bytes: before.bytes, ..after }, before, "still the one answer, put once");
    assert_eq!(store.shares().models[&Some("m".into())].bytes, after.bytes);
    assert!(Arc::ptr_eq(&store.get(&key(1), now, NEVER).unwrap(), &answer));
    // A newer one has none yet, and takes none of the older.
    let newer = entry("newer", "m", 1);
    store.put(key(1), Arc::clone(&newer));
    assert_eq!(store.twin(&key(1), &answer, Coding::Gzip, false), None);
    assert_eq!(store.twin(&key(1), &newer, Coding::Gzip, false), None);
    store.offer(&key(1), &answer, Coding::Gzip, false, Bytes::from_static(b"old"));
    assert!(Arc::ptr_eq(&store.get(&key(1), now, NEVER).unwrap(), &newer));
    assert_eq!((store.twin(&key(1), &newer, Coding::Gzip, false), store.stats().replaced), (None, 1));
}

#[test]
fn a_twin_brings_nothing_back_and_breaks_no_bound() {
    let store = Store::new(4000);
    let answer = entry(vec![b'x'; 500], "m", 1);
    store.put(key(1), Arc::clone(&answer));
    store.offer(&key(1), &answer, Coding::Gzip, false, Bytes::from(vec![0; 4000]));
    assert_eq!(store.twin(&key(1), &answer, Coding::Gzip, false), None, "larger than all of it");
    assert_eq!(store.purge(&Purge::default()), 1);
    store.offer(&key(1), &answer, Coding::Gzip, false, Bytes::from_static(b"x"));
    assert!(!has(&store, 1) && store.stats().entries == 0);
}

#[test]
fn twins_make_room_like_answers() {
    let store = Store::new(20_000);
    let answers: Vec<_> = (0..6).map(|n| (n, entry(vec![b'x'; 1000], "m", 1))).collect();
    for (n, answer) in &answers {
        store.put(key(*n), Arc::clone(answer));
    }
    assert_eq!(store.stats().entries, 6);
    for (n, answer) in &answers {
        store.offer(&key(*n), answer, Coding::Br, false, Bytes::from(vec![1; 3000]));
        assert!(store.stats().bytes <= 20_000);
    }
    let stats = store.stats();
    let kept = answers.iter().any(|(n, answer)| store.twin(&key(*n), answer, Coding::Br, false).is_some());
    assert!(stats.evicted > 0 && kept, "{stats:?}");
}
