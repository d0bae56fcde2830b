//! Names to addresses: the system's resolver settings and hosts file, each answer for as long as its TTL, and the
//! last good one while asking fails.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    fmt,
    future::Future,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use hickory_resolver::{TokioResolver, config::LookupIpStrategy};
use tokio::time::Instant;

use crate::error::Cause;

/// Below this a TTL would mean a question per connection.
const MIN_TTL: Duration = Duration::from_secs(1);

/// Above this a moved backend would be missed; the hosts file has no TTL at all.
const MAX_TTL: Duration = Duration::from_secs(300);

/// How long a failure is remembered, so that a burst of requests asks once.
const FAILURE_TTL: Duration = Duration::from_secs(1);

/// How long a request waits for a new answer while an old one is at hand.
const STALE_WAIT: Duration = Duration::from_millis(500);

/// How long the old answer then serves before the next question.
const STALE_TTL: Duration = Duration::from_secs(5);

/// Names that are remembered; more than any fleet has.
const MAX_NAMES: usize = 4096;

/// One worker's resolver. What it needs is built at the first name: IP literals never ask.
pub struct Resolver {
    query: Query,
    names: RefCell<HashMap<Arc<str>, Rc<Name>>>,
}

/// An answer: at least one address, and until when it holds.
#[derive(Clone, Debug)]
pub struct Answer {
    pub addresses: Rc<[IpAddr]>,
    pub until: Instant,
}

/// A failed question.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot resolve {name}: {reason}")]
pub struct Unresolved {
    pub name: Arc<str>,
    pub reason: Arc<str>,
    /// The name surely does not exist: older answers are void.
    pub gone: bool,
}

/// Asks for one name.
pub type Query = Box<dyn Fn(Arc<str>) -> Pin<Box<dyn Future<Output = Result<Answer, Unresolved>>>>>;

/// What is known of a name.
#[derive(Default)]
struct Name {
    known: RefCell<Option<Known>>,
    /// Held while asking: all others wait for that one answer.
    asking: tokio::sync::Mutex<()>,
}

struct Known {
    outcome: Result<Rc<[IpAddr]>, Unresolved>,
    until: Instant,
}

impl Resolver {
    /// Asks as the system is set up to: `/etc/resolv.conf` and `/etc/hosts`.
    pub fn system() -> Rc<Self> {
        let hickory: Rc<OnceCell<TokioResolver>> = Rc::default();
        Self::new(Box::new(move |name| {
            let hickory = Rc::clone(&hickory);
            Box::pin(async move { ask_system(&hickory, name).await })
        }))
    }

    /// Asks by `query`.
    pub fn new(query: Query) -> Rc<Self> {
        Rc::new(Self { query, names: RefCell::default() })
    }

    /// All addresses of a host, never none. Concurrent look-ups of a name are one question.
    ///
    /// # Errors
    /// The name has no address, or asking failed and no earlier answer is known.
    pub async fn lookup(&self, host: &Arc<str>) -> Result<Rc<[IpAddr]>, Cause> {
        if let Ok(literal) = host.parse::<IpAddr>() {
            return Ok(Rc::new([literal]));
        }
        let name = self.name(host);
        if let Some(outcome) = name.fresh() {
            return Ok(outcome?);
        }
        let _asking = name.asking.lock().await;
        if let Some(outcome) = name.fresh() {
            return Ok(outcome?);
        }
        Ok(self.ask(host, &name).await?)
    }

    fn name(&self, host: &Arc<str>) -> Rc<Name> {
        let mut names = self.names.borrow_mut();
        if names.len() >= MAX_NAMES && !names.contains_key(host) {
            names.clear();
        }
        Rc::clone(names.entry(Arc::clone(host)).or_default())
    }

    async fn ask(&self, host: &Arc<str>, name: &Name) -> Result<Rc<[IpAddr]>, Unresolved> {
        let old = name.known.borrow().as_ref().and_then(|known| known.outcome.clone().ok());
        let question = (self.query)(Arc::clone(host));
        let answer = match &old {
            None => question.await,
            Some(_) => tokio::time::timeout(STALE_WAIT, question).await.unwrap_or_else(|_| {
                Err(Unresolved { name: Arc::clone(host), reason: "no answer yet".into(), gone: false })
            }),
        };
        let now = Instant::now();
        let known = match (answer, old) {
            (Ok(answer), _) => {
                Known { until: answer.until.clamp(now + MIN_TTL, now + MAX_TTL), outcome: Ok(answer.addresses) }
            }
            (Err(failure), Some(old)) if !failure.gone => {
                tracing::warn!(name = %host, reason = %failure.reason, "name not resolved again; its last addresses are used");
                Known { outcome: Ok(old), until: now + STALE_TTL }
            }
            (Err(failure), _) => Known { outcome: Err(failure), until: now + FAILURE_TTL },
        };
        let outcome = known.outcome.clone();
        *name.known.borrow_mut() = Some(known);
        outcome
    }
}

impl Name {
    fn fresh(&self) -> Option<Result<Rc<[IpAddr]>, Unresolved>> {
        let known = self.known.borrow();
        known.as_ref().filter(|known| Instant::now() < known.until).map(|known| known.outcome.clone())
    }
}

async fn ask_system(cell: &OnceCell<TokioResolver>, name: Arc<str>) -> Result<Answer, Unresolved> {
    let unresolved = |reason: String, gone| Unresolved { name: Arc::clone(&name), reason: reason.into(), gone };
    let hickory = match cell.get() {
        Some(hickory) => hickory,
        None => {
            let built = build().map_err(|error| unresolved(error.to_string(), false))?;
            cell.get_or_init(|| built)
        }
    };
    let found = hickory.lookup_ip(&*name).await;
    let found = found.map_err(|error| unresolved(error.to_string(), error.is_nx_domain()))?;
    let addresses: Rc<[IpAddr]> = found.iter().collect();
    if addresses.is_empty() {
        return Err(unresolved("it has no address".into(), true));
    }
    Ok(Answer { addresses, until: Instant::from_std(found.valid_until()) })
}

fn build() -> Result<TokioResolver, hickory_resolver::net::NetError> {
    let mut builder = TokioResolver::builder_tokio()?;
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    builder.build()
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("names", &self.names.borrow().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A resolver whose answers are a script, and the number of questions it was asked.
    fn scripted(script: Vec<Result<(&'static str, u64), bool>>) -> (Rc<Resolver>, Rc<Cell<usize>>) {
        let asked = Rc::new(Cell::new(0));
        let count = Rc::clone(&asked);
        let resolver = Resolver::new(Box::new(move |name| {
            let step = script[count.get().min(script.len() - 1)];
            count.set(count.get() + 1);
            Box::pin(async move {
                tokio::task::yield_now().await;
                match step {
                    Ok((address, ttl)) => Ok(Answer {
                        addresses: Rc::new([address.parse().unwrap()]),
                        until: Instant::now() + Duration::from_secs(ttl),
                    }),
                    Err(gone) => Err(Unresolved { name, reason: "scripted".into(), gone }),
                }
            })
        }));
        (resolver, asked)
    }

    async fn first(resolver: &Resolver, name: &str) -> String {
        resolver.lookup(&name.into()).await.map_or_else(|error| error.to_string(), |found| found[0].to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_holds_for_its_ttl() {
        let (resolver, asked) = scripted(vec![Ok(("10.0.0.1", 30)), Ok(("10.0.0.2", 30))]);
        assert_eq!(first(&resolver, "a").await, "10.0.0.1");
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(first(&resolver, "a").await, "10.0.0.1");
        assert_eq!(asked.get(), 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(first(&resolver, "a").await, "10.0.0.2");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_answer_serves_while_asking_fails_but_not_when_the_name_is_gone() {
        let (resolver, asked) = scripted(vec![Ok(("10.0.0.1", 1)), Err(false), Err(true)]);
        assert_eq!(first(&resolver, "a").await, "10.0.0.1");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(first(&resolver, "a").await, "10.0.0.1");
        assert_eq!(asked.get(), 2);
        tokio::time::advance(STALE_TTL).await;
        assert_eq!(first(&resolver, "a").await, "cannot resolve a: scripted");
    }

    #[tokio::test(start_paused = true)]
    async fn lookups_at_once_are_one_question_also_when_it_fails() {
        for step in [Ok(("10.0.0.1", 30)), Err(false)] {
            let (resolver, asked) = scripted(vec![step]);
            let (a, b, c) = tokio::join!(first(&resolver, "a"), first(&resolver, "a"), first(&resolver, "a"));
            assert_eq!((&a, &b), (&b, &c));
            assert_eq!(asked.get(), 1);
        }
    }

    #[tokio::test]
    async fn literals_never_ask() {
        let (resolver, asked) = scripted(vec![Err(true)]);
        assert_eq!(first(&resolver, "127.0.0.1").await, "127.0.0.1");
        assert_eq!(first(&resolver, "::1").await, "::1");
        assert_eq!(asked.get(), 0);
    }

    #[tokio::test]
    async fn the_hosts_file_is_read() {
        let found = Resolver::system().lookup(&"localhost".into()).await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback));
    }
}
