//! The prober over a scripted probe, in paused time.

use http::HeaderMap;
use tokio::{task::LocalSet, time::sleep};

use super::*;
use crate::{
    fleet::{
        Outcome,
        testing::{backend, config},
    },
    protocol::engine::Engine,
};

const S: Duration = Duration::from_secs(1);

type Said = Result<(u16, &'static str), Fault>;

/// What backends answer by path; asked paths are noted.
#[derive(Default)]
struct World {
    answers: RefCell<HashMap<&'static str, Said>>,
    /// Never answers.
    hangs: RefCell<Vec<&'static str>>,
    asked: RefCell<Vec<String>>,
}

impl World {
    fn says(&self, path: &'static str, status: u16, body: &'static str) -> &Self {
        self.answers.borrow_mut().insert(path, Ok((status, body)));
        self
    }

    fn fails(&self, fault: &Fault) {
        self.answers.borrow_mut().values_mut().for_each(|said| *said = Err(fault.clone()));
    }

    fn count(&self, path: &str) -> usize {
        self.asked.borrow().iter().filter(|asked| *asked == path).count()
    }

    async fn answer(&self, ask: Ask) -> Result<Answer, Fault> {
        self.asked.borrow_mut().push(ask.path.clone());
        if self.hangs.borrow().contains(&&*ask.path) {
            std::future::pending::<()>().await;
        }
        let said = self.answers.borrow().get(&*ask.path).cloned().unwrap_or(Ok((404, "")));
        said.map(|(status, body)| Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: body.into(),
        })
    }
}

fn engines() -> Engines {
    Engines {
        detect: |_, body| body.starts_with(b"vllm").then_some(Engine::Vllm),
        detect_by_info: |body| (body == b"tgi").then_some(Engine::Tgi),
        health_path: |engine| if engine == Engine::Sglang { "/ready" } else { "/health" },
        models: |body| {
            let names = str::from_utf8(body).ok()?.split_whitespace().skip(1);
            Some(names.map(Into::into).collect())
        },
        waiting: |_| Some("waiting"),
    }
}

/// Runs `test` beside a prober.
async fn beside<T>(config: config::Config, world: &Rc<World>, test: impl AsyncFnOnce(Arc<Fleet>, Refresher) -> T) -> T {
    let fleet = Fleet::new(&config);
    let world = Rc::clone(world);
    let probe = move |ask: Ask| {
        let world = Rc::clone(&world);
        async move { world.answer(ask).await }
    };
    let prober = Prober::new(Arc::clone(&fleet), config.health, config.profile, engines(), probe).unwrap();
    let test = test(fleet, prober.refresher());
    LocalSet::new()
        .run_until(async {
            tokio::select! {
                () = prober.run() => unreachable!("it runs until dropped"),
                out = test => out,
            }
        })
        .await
}

fn state(fleet: &Fleet) -> (State, String) {
    let health = fleet.snapshot().backend("a").unwrap().health();
    (health.state, health.reason.to_string())
}

fn world() -> Rc<World> {
    let world = Rc::new(World::default());
    world.says("/v1/models", 200, "vllm m n").says("/health", 200, "");
    world
}

#[tokio::test(start_paused = true)]
async fn a_backend_is_asked_what_it_is_before_it_is_healthy() {
    let world = world();
    beside(config([backend("a")]), &world, async |fleet, _| {
        sleep(S / 10).await;
        assert_eq!(state(&fleet).0, State::Healthy);
        let snapshot = fleet.snapshot();
        let a = snapshot.backend("a").unwrap();
        assert_eq!(a.engine(), Some(Engine::Vllm));
        assert!(a.models().lists("m") && snapshot.known());
        assert_eq!(a.model_list().unwrap(), "vllm m n");
        sleep(S * 20).await;
        assert_eq!(world.count("/v1/models"), 1, "then its own health path is asked");
        assert!((17..=22).contains(&world.count("/health")));
        world.says("/v1/models", 200, "vllm m n late");
        sleep(S * 15).await;
        assert!(fleet.snapshot().candidates(Some("late")).is_some(), "the list is read again every 30 s");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn it_is_unhealthy_after_two_failures_with_the_reason() {
    let world = world();
    beside(config([backend("a")]), &world, async |fleet, _| {
        sleep(S / 2).await;
        world.fails(&Fault::Unreachable("connection refused".into()));
        sleep(S).await;
        assert_eq!(state(&fleet).0, State::Healthy, "one is not enough");
        sleep(S).await;
        assert_eq!(state(&fleet), (State::Unhealthy, "health check /health: connection refused".into()));
        world.says("/health", 503, r#"{"error":{"message":"Loading model"}}"#);
        sleep(S * 2).await;
        assert_eq!(state(&fleet), (State::Unhealthy, "loading model".into()));
        world.says("/health", 200, "").says("/v1/models", 200, "vllm other");
        sleep(S * 2).await;
        assert_eq!(state(&fleet).0, State::Healthy);
        assert!(fleet.snapshot().candidates(Some("other")).is_some(), "the list was read before");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_probe_says_nothing_about_one_that_sends() {
    let world = world();
    beside(config([backend("a")]), &world, async |fleet, _| {
        sleep(S / 2).await;
        world.hangs.borrow_mut().push("/health");
        let a = Arc::clone(fleet.snapshot().backend("a").unwrap());
        for _ in 0..60 {
            a.note_bytes();
            sleep(S).await;
        }
        assert_eq!(state(&fleet).0, State::Healthy);
        sleep(S * 20).await;
        assert_eq!(state(&fleet), (State::Unhealthy, "health check /health: no answer within 5s".into()));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_not_there_gives_way() {
    let world = Rc::new(World::default());
    world.says("/health", 200, "");
    let spec = config::Backend { engine: Some(Engine::Sglang), ..backend("a") };
    beside(config([spec]), &world, async |fleet, _| {
        sleep(S * 5).await;
        assert_eq!(state(&fleet).0, State::Healthy);
        assert!(world.count("/ready") <= 2 && world.count("/health") >= 4);
        assert!(!fleet.snapshot().known(), "no list came");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_configured_path_is_the_only_one() {
    let world = world();
    let mut config = config([backend("a")]);
    config.health.path = Some("/mine".into());
    beside(config, &world, async |fleet, _| {
        sleep(S * 3).await;
        assert_eq!(state(&fleet), (State::Unhealthy, "/mine answered 404 Not Found".into()));
        assert_eq!(world.count("/health"), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn tgi_tells_by_its_info() {
    let world = Rc::new(World::default());
    world.says("/v1/models", 200, "list m").says("/info", 200, "tgi").says("/health", 200, "");
    beside(config([backend("a")]), &world, async |fleet, _| {
        sleep(S / 10).await;
        assert_eq!(fleet.snapshot().backend("a").unwrap().engine(), Some(Engine::Tgi));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_is_taken_back_by_the_next_probe() {
    let world = world();
    beside(config([backend("a")]), &world, async |fleet, _| {
        sleep(S / 2).await;
        fleet.snapshot().backend("a").unwrap().report(Outcome::Refused("connection refused"));
        assert_eq!(state(&fleet).0, State::Unhealthy);
        sleep(S).await;
        assert_eq!(state(&fleet).0, State::Healthy);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_silent_are_judged_by_a_probe_once_for_all_who_wait() {
    let world = world();
    beside(config([backend("a")]), &world, async |fleet, _| {
        sleep(S / 2).await;
        let a = Arc::clone(fleet.snapshot().backend("a").unwrap());
        assert_eq!(a.suspect().await, Verdict::Busy, "it answers");

        world.hangs.borrow_mut().push("/health");
        let start = Instant::now();
        let before = world.count("/health");
        let (one, two) = tokio::join!(a.suspect(), a.suspect());
        assert!(matches!(&one, Verdict::Dead(reason) if reason.contains("no answer within 5s")), "{one:?}");
        assert_eq!((&one, start.elapsed()), (&two, S * 5));
        assert!(world.count("/health") <= before + 2, "one for both, beside the loop's own");
        assert_eq!(state(&fleet).0, State::Unhealthy, "and it is out at once");

        let noise = async {
            sleep(S).await;
            a.note_bytes();
        };
        assert_eq!(tokio::join!(a.suspect(), noise).0, Verdict::Busy, "something came meanwhile");

        world.hangs.borrow_mut().clear();
        world.fails(&Fault::Reset("connection reset".into()));
        assert!(matches!(a.suspect().await, Verdict::Dead(reason) if reason.contains("connection reset")));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn lists_are_read_on_demand_once_for_all_who_ask() {
    let world = world();
    beside(config([backend("a")]), &world, async |fleet, refresher| {
        sleep(S * 3).await;
        world.says("/v1/models", 200, "vllm m n lora");
        let before = world.count("/v1/models");
        tokio::join!(refresher.refresh(), refresher.refresh(), refresher.refresh());
        assert!(fleet.snapshot().candidates(Some("lora")).is_some());
        refresher.refresh().await;
        assert_eq!(world.count("/v1/models"), before + 1);
        sleep(S * 2).await;
        refresher.refresh().await;
        assert_eq!(world.count("/v1/models"), before + 2, "at most once a second");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn serverless_asks_only_when_a_call_needs_it() {
    let world = world();
    let mut config = config([backend("a")]);
    config.profile = Profile::Serverless;
    beside(config, &world, async |fleet, refresher| {
        sleep(S * 100).await;
        assert!(world.asked.borrow().is_empty());
        assert!(fleet.snapshot().may_serve());
        refresher.refresh().await;
        assert!(fleet.snapshot().known());
        let a = Arc::clone(fleet.snapshot().backend("a").unwrap());
        assert_eq!(a.suspect().await, Verdict::Busy);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn backends_that_join_are_asked_and_those_that_leave_are_not() {
    let world = world();
    beside(config([backend("a")]), &world, async |fleet, _| {
        sleep(S / 2).await;
        fleet.apply(&config([backend("b")]));
        sleep(S / 2).await;
        assert_eq!(fleet.snapshot().backend("b").unwrap().health().state, State::Healthy);
        let before = world.asked.borrow().len();
        sleep(S * 10).await;
        assert!(world.asked.borrow().len() - before <= 12);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_learnt_limit_hears_of_calls_that_wait_in_the_engine() {
    let world = world();
    world.says("/metrics", 200, "# HELP waiting x\nwaiting{model=\"m\"} 3.0\nwaiting_other 9\n");
    let spec = config::Backend { max_concurrency: Concurrency::Auto, ..backend("a") };
    beside(config([spec]), &world, async |fleet, _| {
        sleep(S * 5).await;
        assert!(fleet.snapshot().backend("a").unwrap().load().limit().unwrap() < 16);
    })
    .await;
}

#[test]
fn gauges_are_summed_over_their_series() {
    let text = b"# TYPE w gauge\nw{a=\"}\",b=\"1\"} 2\nw{a=\"y\"} 1.0 1700000000\nwide 7\n";
    assert_eq!(gauge_of(text, "w"), Some(3));
    assert_eq!(gauge_of(b"w 4\n", "w"), Some(4));
    assert_eq!(gauge_of(text, "v"), None);
    assert_eq!(gauge_of(b"w{ 1\nw} x\n\xff", "w"), None);
}
